"""Time and memory of attention's cores against the length of a sequence.

    python -m launch.bench_cores --lengths 256 1024 4096 16384

Every core mixes the same random queries, keys and values, forward and backward, beside
`jax.nn.dot_product_attention`. The slope is that of the logarithms over the two longest
lengths: 1 is linear, 2 quadratic. The crossover is the first length at which a core is
faster than that attention, and stays so.
"""

import json
import math
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from launch.cli import run, start
from launch.text import console
from research.errors import UserError
from research.layers import cores
from research.layers.cores.mixed_chunk import MixedChunk
from research.layers.cores.pointwise import Pointwise

BASELINE = "dot_product_attention"


class Baseline(nn.Module):
    """`jax.nn.dot_product_attention`, without anything around it."""

    def __call__(self, query, key, value, *, mask, train):
        return jax.nn.dot_product_attention(query, key, value, is_causal=mask.causal)


def contenders(length: int, causal: bool) -> dict[str, nn.Module]:
    """Every core at its usual setting for a length; without causality two more."""
    root = 2 ** round(math.log2(length) / 2)
    found: dict[str, nn.Module] = {
        BASELINE: Baseline(),
        "softmax": cores.Softmax(),
        "local 64": cores.Sparse(cores.local(64)),
        f"strided {chr(8730)}n": cores.Sparse(cores.strided(root)),
        f"fixed {chr(8730)}n": cores.Sparse(cores.fixed(root, min(8, root))),
        "linear elu+1": cores.Linear(),
        "cosFormer": cores.CosFormer(max_length=length + 1),
        "Performer 128": cores.Performer(num_features=128),
        "LSH": cores.LSH(num_buckets=max(2, length // 64 * 2)),
        "squared ReLU": Pointwise(),
        "mixed chunks 256": MixedChunk(),
    }
    if not causal:
        found["Linformer 128"] = cores.Linformer(max_length=length, num_projected=128)
    return found


@dataclass(frozen=True)
class Point:
    """One core at one length.

    Attributes:
      seconds: of a forward and a backward pass, the median.
      memory: bytes that the compiled pass takes beside its inputs and outputs.
    """

    core: str
    length: int
    seconds: float
    memory: int


def measure(
    name: str,
    core: nn.Module,
    length: int,
    *,
    heads: int,
    dim: int,
    causal: bool,
    repeats: int,
    most_memory: float,
) -> Point | None:
    """Compiles the pass, runs it once, and times it; None if it takes more memory."""
    keys = jax.random.split(jax.random.key(0), 4)
    query, key, value = (
        jax.random.normal(k, (1, length, heads, dim)) / dim**0.25 for k in keys[:3]
    )
    mask = cores.Mask(causal=causal)
    variables = core.init(keys[3], query, key, value, mask=mask, train=False)

    def total(params, query, key, value):
        others = {n: v for n, v in variables.items() if n != "params"}
        given = {"params": params, **others} if params else others
        out = core.apply(given, query, key, value, mask=mask, train=False)
        return jnp.sum(jnp.asarray(out) ** 2)

    arguments = (variables.get("params", {}), query, key, value)
    compiled = jax.jit(jax.grad(total, argnums=(0, 1, 2, 3))).lower(*arguments)
    executable = compiled.compile()
    analysis = executable.memory_analysis()
    memory = analysis.temp_size_in_bytes if analysis else 0
    if memory > most_memory:
        return None
    jax.block_until_ready(executable(*arguments))
    times = []
    for _ in range(repeats):
        before = time.perf_counter()
        jax.block_until_ready(executable(*arguments))
        times.append(time.perf_counter() - before)
    return Point(name, length, float(np.median(times)), int(memory))


def slope(points: Sequence[Point], value: Callable[[Point], float]) -> float:
    """Of the logarithms, over the two longest lengths; NaN of fewer."""
    if len(points) < 2:
        return math.nan
    first, last = sorted(points, key=lambda point: point.length)[-2:]
    growth = value(last) / max(value(first), 1e-12)
    return math.log(growth) / math.log(last.length / first.length)


def crossover(points: Sequence[Point], baseline: Sequence[Point]) -> int | None:
    """The first length from which on a core is the faster one; None is for never."""
    reference = {point.length: point.seconds for point in baseline}
    since = None
    for point in sorted(points, key=lambda point: point.length):
        if point.length not in reference:
            continue
        faster = point.seconds < reference[point.length]
        since = (since or point.length) if faster else None
    return since


def main(
    lengths: tuple[int, ...] = (256, 1024, 4096, 16384),
    heads: int = 4,
    dim: int = 32,
    bidirectional: bool = False,
    repeats: int = 5,
    most_memory: float | None = None,
    out: Path | None = None,
    as_json: bool = False,
) -> None:
    """Time every attention core at growing lengths.

    Args:
      lengths: Of the sequences.
      heads: Of the attention.
      dim: Of a head.
      bidirectional: Without a causal mask.
      repeats: Timed passes.
      most_memory: Bytes that a pass may take beside its inputs and outputs; those that
        take more are left out. By default half of what the machine has.
      out: Draw the times and memory into this PNG.
      as_json: Print the points as JSON.
    """
    if min(lengths, default=0) < 2 or repeats < 1:
        raise UserError("lengths are at least 2, and repeats at least 1")
    start()
    room = _memory() / 2
    found: dict[str, list[Point]] = {}
    for length in sorted(lengths):
        for name, core in contenders(length, not bidirectional).items():
            point = measure(
                name,
                core,
                length,
                heads=heads,
                dim=dim,
                causal=not bidirectional,
                repeats=repeats,
                most_memory=room if most_memory is None else most_memory,
            )
            if point is None:
                print(f"{name}, {length}: too large", file=sys.stderr)
                continue
            print(f"{name}, {length}: {1e3 * point.seconds:.1f} ms", file=sys.stderr)
            found.setdefault(name, []).append(point)
    if as_json:
        points = [asdict(point) for row in found.values() for point in row]
        print(json.dumps({"load": os.getloadavg()[0], "points": points}))
    else:
        _print(found, sorted(lengths))
    if out:
        draw(found, out)


def _memory() -> int:
    """Bytes that the device has; the CPU has the machine's."""
    stats = jax.devices()[0].memory_stats() or {}
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return stats.get("bytes_limit", machine)


def draw(found: Mapping[str, Sequence[Point]], out: Path) -> None:
    """Times and memory over lengths, both axes logarithmic, as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    parts = (("ms", lambda p: 1e3 * p.seconds), ("MiB", lambda p: p.memory / 2**20))
    for axis, (label, value) in zip(axes, parts, strict=True):
        for name, points in found.items():
            style = {"color": "black", "linewidth": 2.5} if name == BASELINE else {}
            lengths = [point.length for point in points]
            axis.loglog(
                lengths, [value(p) for p in points], marker=".", label=name, **style
            )
        axis.set_xlabel("length")
        axis.set_ylabel(f"{label}, forward and backward")
        axis.grid(alpha=0.3)
    axes[1].legend(fontsize=7)
    figure.savefig(out, dpi=90)


def _print(found: Mapping[str, Sequence[Point]], lengths: Sequence[int]) -> None:
    from rich.table import Table

    table = Table("ms, MiB", *map(str, lengths), "slopes", "faster from", box=None)
    for name, points in found.items():
        at = {point.length: point for point in points}
        cells = [
            f"{1e3 * at[n].seconds:,.1f}, {at[n].memory / 2**20:,.1f}"
            if n in at
            else ""
            for n in lengths
        ]
        slopes = [
            slope(points, value) for value in (lambda p: p.seconds, lambda p: p.memory)
        ]
        since = crossover(points, found.get(BASELINE, ()))
        told = "" if name == BASELINE else str(since or "-")
        table.add_row(name, *cells, f"{slopes[0]:.2f}, {slopes[1]:.2f}", told)
    out = console()
    devices = jax.devices()
    out.print(
        f"\n{len(devices)} x {devices[0].device_kind}, load before it "
        f"{os.getloadavg()[0]:.2f} of {os.cpu_count()} cores\n",
        highlight=False,
    )
    out.print(table, highlight=False)


if __name__ == "__main__":
    run(main)
