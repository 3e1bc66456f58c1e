"""Time an experiment's training step, alone or beside a peer.

    python -m launch.bench experiments/score_sde/vp_ddpmpp_digits.py
    python -m launch.bench experiments/score_sde/vp_ddpmpp_digits.py --torch
    python -m launch.bench experiments/detection/detr_r50_coco.py --torch --data
    python -m launch.bench experiments/swin/swin_t_imagenet1k.py --torch --forward

The batch is synthetic, of the largest shape; `--data` takes the first one of the
experiment's data, where the work depends on what is in it, and times the data too.
`--forward` times the loss in evaluation in the place of the training step.

A peer is a function `contenders(experiment, batch, train)` that builds someone else's
step of the same model, batch and optimizer, or without `train` their loss in
evaluation. `--torch` takes the one of the experiment's family,
`launch/peers/FAMILY.py`; `--peer module:function` takes any.
"""

import contextlib
import dataclasses
import importlib
import itertools
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from launch.cli import Choice, run, start
from launch.text import console, size_text
from launch.timing import Contender, Timing, race
from research.errors import UserError
from research.experiment import Experiment, find_file
from research.train import flops, hardware, sharding
from research.train.builder import Program, build, synthetic_batch
from research.train.state import TrainState

PeerFunction = Callable[
    [Experiment, Mapping[str, np.ndarray], bool], Sequence[Contender]
]

OURS = "this step"


@dataclass(frozen=True)
class Bench:
    """What was measured in one call.

    Attributes:
      experiment: its name.
      devices: how many of which kind.
      batch_size: global.
      repeats: steps that each median is over.
      load: runnable threads of the whole machine, averaged over the minute before; more
        than a few tenths means that others take part in the timing.
      ceiling: FLOP/s of a plain matrix product on all devices, measured before and
        after the steps: the better one.
      ceiling_rule: its size and type.
      timings: ours first.
      loader: examples per second that the data's pipeline makes while nothing else
        runs, None where the batch was synthetic.
    """

    experiment: str
    devices: str
    batch_size: int
    repeats: int
    load: float
    ceiling: float
    ceiling_rule: str
    timings: tuple[Timing, ...]
    loader: float | None = None

    def utilization(self, timing: Timing) -> float:
        """Its FLOP/s over those of the matrix product."""
        return timing.flops_per_second / self.ceiling

    def ratios(self) -> dict[str, float]:
        """Our examples per second over theirs, by name."""
        ours, *others = self.timings
        return {other.name: other.median / ours.median for other in others}

    def processor_ratios(self) -> dict[str, float]:
        """Our examples per second of processor time over theirs, by name."""
        ours, *others = self.timings
        return {other.name: other.processor / ours.processor for other in others}

    def record(self) -> dict[str, Any]:
        """All of it, with what follows from it, for JSON."""
        record = dataclasses.asdict(self)
        for part, timing in zip(record["timings"], self.timings, strict=True):
            part["utilization"] = self.utilization(timing)
        ratios = {"ratios": self.ratios(), "processor_ratios": self.processor_ratios()}
        return record | ratios


def bench(
    experiment: Experiment,
    repeats: int = 20,
    peer: PeerFunction | None = None,
    tell: Callable[[str], None] = lambda line: None,
    *,
    data: bool = False,
    forward: bool = False,
) -> Bench:
    """Times the compiled step, and those of a peer, on one batch.

    Args:
      experiment: on this machine's devices.
      repeats: timed steps of each.
      peer: builds the steps to compare with.
      tell: is given a line before and after each lengthy part.
      data: the batch is the first one of the experiment's data, not a synthetic one.
      forward: the loss in evaluation, in the place of the step.

    Raises:
      UserError: what is wrong with the data.
    """
    load = os.getloadavg()[0]
    program = build(experiment)
    loader = None
    if data:
        tell("data: the first batches ...")
        loader, local = _first_batch(experiment, repeats)
        batch = sharding.to_global(local, program.mesh, program.batch_size_of(local))
    else:
        batch = synthetic_batch(program)
    tell(f"{OURS}: compiling ...")
    contenders = [(our_loss if forward else our_step)(program, batch)]
    if peer:
        contenders += peer(experiment, jax.device_get(batch), not forward)
    devices = program.mesh.devices.flat
    before, rule = _ceiling(devices)
    batch_size = program.batch_size_of(batch)
    timings = race(contenders, batch_size, repeats, tell=tell)
    after, _ = _ceiling(devices)
    return Bench(
        experiment=experiment.name,
        devices=f"{len(devices)} x {devices[0].device_kind}",
        batch_size=batch_size,
        repeats=repeats,
        load=load,
        ceiling=max(before, after),
        ceiling_rule=rule,
        timings=timings,
        loader=loader,
    )


def our_step(program: Program, batch: Mapping[str, jax.Array]) -> Contender:
    """The compiled step from a fresh state, which every call donates and replaces."""
    shapes = {
        name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
        for name, leaf in batch.items()
    }
    compiled = program.compile_for(shapes)
    state = jax.block_until_ready(program.init())

    def step() -> None:
        nonlocal state
        state, metrics = compiled(state, batch)
        jax.block_until_ready((state, metrics))

    return _ours(program, step, program.flops_of(batch))


def our_loss(program: Program, batch: Mapping[str, jax.Array]) -> Contender:
    """The compiled loss in evaluation, of a fresh state."""
    task = program.experiment.task

    def loss(state: TrainState, batch: Mapping[str, jax.Array]) -> jax.Array:
        variables = {"params": state.params, **state.extra}
        return task.loss(variables, batch, jax.random.key(0), False)[0]

    state = program.init()
    compiled = jax.jit(loss).lower(state, batch).compile()

    def step() -> None:
        jax.block_until_ready(compiled(state, batch))

    return _ours(program, step, flops.count(loss, state, batch))


def _ours(program: Program, step: Callable[[], None], num_flops: int) -> Contender:
    def peak_memory() -> int | None:
        stats = program.mesh.devices.flat[0].memory_stats() or {}
        return stats.get("peak_bytes_in_use")

    return Contender(OURS, step, program.num_params(), num_flops, peak_memory)


def _first_batch(
    experiment: Experiment, repeats: int
) -> tuple[float, Mapping[str, np.ndarray]]:
    """Examples per second in the long run, and the first batch."""
    data = experiment.data
    with contextlib.closing(data.batches()) as batches:
        first = next(batches)
        # Those that were made meanwhile cost nothing.
        for _ in range(data.prefetch * max(data.num_workers, 1)):
            next(batches)
        started, made = time.perf_counter(), 0
        for batch in itertools.islice(batches, repeats):
            made += len(next(iter(batch.values())))
        return made / (time.perf_counter() - started), first


def find_peer(name: str) -> PeerFunction:
    """The function of `module:function`; the function is `contenders` by default.

    Raises:
      UserError: no such module or function, or a package that it needs is missing.
    """
    where, _, function = name.partition(":")
    try:
        module = importlib.import_module(where)
    except ModuleNotFoundError as error:
        missing = error.name or where
        if where.startswith(missing):
            raise UserError(
                f"no peer {name}: there is no module {missing}; expected --peer "
                "MODULE:FUNCTION"
            ) from None
        raise UserError(
            f"the peer {where} needs {missing}: pip install 'twelvefold[parity]'"
        ) from None
    function = function or "contenders"
    found: PeerFunction | None = getattr(module, function, None)
    if found is None:
        raise UserError(f"no peer {name}: {where} defines no function {function}")
    return found


def _ceiling(devices: Any) -> tuple[float, str]:
    """FLOP/s of matrix products on all devices."""
    cpu = devices[0].platform == "cpu"
    size, dtype = (2048, jnp.float32) if cpu else (8192, jnp.bfloat16)
    # The devices of the CPU platform share its cores.
    number = 1 if cpu else len(devices)
    rule = f"{size}x{size}x{size} product of {jnp.dtype(dtype).name}"
    return number * hardware.measure_matmul(size, dtype), rule


def main(
    choice: Annotated[Choice, tyro.conf.arg(name="")],
    repeats: int = 20,
    torch: bool = False,
    peer: str | None = None,
    data: bool = False,
    forward: bool = False,
    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False,
) -> None:
    """Time the training step on synthetic data or on its own, alone or with a peer.

    Args:
      choice: Which experiment.
      repeats: Timed steps, after warm-up.
      torch: Beside the PyTorch peer of the experiment's family.
      peer: Beside another one, as MODULE:FUNCTION.
      data: On the first batch of its data; the pipeline is timed alone, too.
      forward: The loss in evaluation, in the place of the training step.
      as_json: Print the record as JSON.
    """
    start()
    if torch and not peer:
        peer = f"launch.peers.{find_file(choice.experiment).parent.name}"
    function = find_peer(peer) if peer else None
    if function:
        # Two frameworks share one GPU only if JAX does not take most of it at once.
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    measured = bench(
        choice.load(), repeats, function, _tell, data=data, forward=forward
    )
    print(json.dumps(measured.record())) if as_json else _print(measured)


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _print(measured: Bench) -> None:
    from rich.table import Table

    out = console()
    out.print(
        f"\n{measured.experiment} on {measured.devices}, batch {measured.batch_size}, "
        f"median of {measured.repeats} steps\n"
        f"ceiling: {measured.ceiling / 1e9:,.1f} GFLOP/s, "
        f"{measured.ceiling_rule}, in this call\n"
        f"load before it: {measured.load:.2f} of {os.cpu_count()} cores\n",
        highlight=False,
    )
    table = Table("", *(t.name for t in measured.timings), box=None)
    rows: dict[str, Callable[[Timing], str]] = {
        "examples/s": lambda t: f"{t.examples_per_second:,.1f}",
        "ms a step": lambda t: f"{1e3 * t.median:,.1f}",
        "  10% to 90%": lambda t: f"{1e3 * t.low:,.1f} to {1e3 * t.high:,.1f}",
        "ms of processor": lambda t: f"{1e3 * t.processor:,.1f}",
        "model GFLOP/s": lambda t: f"{t.flops_per_second / 1e9:,.1f}",
        "of the ceiling": lambda t: f"{measured.utilization(t):.1%}",
        "parameters": lambda t: f"{t.num_params:,}",
        "FLOPs a step": lambda t: f"{t.flops:.4g}",
        "peak memory": lambda t: size_text(t.peak_memory) if t.peak_memory else "?",
        "first step": lambda t: f"{t.first:.1f} s",
    }
    for name, cell in rows.items():
        table.add_row(name, *map(cell, measured.timings))
    out.print(table, highlight=False)
    out.print(f"FLOPs: {flops.RULE}", highlight=False)
    if measured.loader:
        out.print(
            f"data alone, while nothing else runs: {measured.loader:,.1f} examples/s",
            highlight=False,
        )
    ours, *others = measured.timings
    for other in others:
        out.print(
            f"[bold]{measured.ratios()[other.name]:.3f}[/bold] x the examples/s of "
            f"{other.name} ({measured.processor_ratios()[other.name]:.3f} x per second "
            f"of processor), at {ours.flops / other.flops:.3f} x its FLOPs and "
            f"{ours.num_params / other.num_params:.3f} x its parameters",
            highlight=False,
        )


if __name__ == "__main__":
    run(main)
