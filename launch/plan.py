"""Compile an experiment for devices that are not there, and say what it will need.

    python -m launch.plan experiments/score_sde/vp_ddpmpp_cifar10.py --topology v5e:8x8

With the extra `tpu` installed, the step is compiled by the TPU's own compiler, which
needs no TPU. The exit code is 1 if the experiment does not fit.
"""

import dataclasses
import json
import math
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any

import jax
import tyro

from launch import roofline
from launch import topology as topologies
from launch.cli import Choice, run, start
from launch.hlo import Collective, Hlo
from launch.roofline import Estimate
from launch.text import console, size_text
from research.experiment import Experiment
from research.train import flops, hardware, sharding
from research.train.builder import Program, build


@dataclass(frozen=True)
class Memory:
    """Bytes of one device while a step runs.

    Attributes:
      params: its part of the parameters.
      optimizer: of the optimizer's state.
      ema: of the averaged parameters.
      other: counters, and other collections of the model.
      batch: its rows of the batch.
      temporaries: activations and all else that the compiler keeps for a while.
      code: the program.
    """

    params: int
    optimizer: int
    ema: int
    other: int
    batch: int
    temporaries: int
    code: int

    @property
    def total(self) -> int:
        """All of it."""
        return sum(dataclasses.astuple(self))


@dataclass(frozen=True)
class Plan:
    """What a run on some devices needs and could reach.

    Attributes:
      experiment: its name.
      kind: the devices' kind, whose figures apply.
      compiler: who compiled the step.
      mesh: sizes of the axes.
      batch_size: global.
      num_params: of the whole model.
      fits: whether `memory` and `init_bytes` fit into `limit`; None if that is unknown.
      limit: bytes of memory of one device.
      memory: of one device during a step.
      init_bytes: of one device while the state is born; None if it does not fit.
      flops: model FLOPs of one step, by the rule of `research.train.flops`.
      traffic: bytes that one device's memory moves in a step.
      collectives: of one device in a step.
      unknown_loops: loops of which one iteration counts in the two above, because
        nothing says how many there are.
      estimate: bounds of the step's time; None for an unknown kind.
      seconds: what it took to build and compile.
    """

    experiment: str
    kind: str
    compiler: str
    mesh: dict[str, int]
    batch_size: int
    num_params: int
    fits: bool | None
    limit: float | None
    memory: Memory
    init_bytes: int | None
    flops: int
    traffic: int
    collectives: tuple[Collective, ...]
    unknown_loops: int
    estimate: Estimate | None
    seconds: dict[str, float]

    @property
    def num_devices(self) -> int:
        """In the mesh."""
        return math.prod(self.mesh.values())

    def record(self) -> dict[str, Any]:
        """All of it, with what follows from it, for JSON."""
        record = dataclasses.asdict(self)
        record["num_devices"] = self.num_devices
        record["memory"]["total"] = self.memory.total
        if self.estimate:
            record["estimate"] |= {
                "overlapped": self.estimate.overlapped,
                "serial": self.estimate.serial,
                "bound": self.estimate.bound,
                "utilization": self.estimate.utilization(),
                "assumptions": roofline.ASSUMPTIONS,
            }
        return record


def plan(
    experiment: Experiment,
    devices: Sequence[Any],
    *,
    kind: str | None = None,
    compiler: str = "",
    tell: Callable[[str], None] = lambda line: None,
) -> Plan:
    """Compiles the init and the step of an experiment for `devices`; runs neither.

    Args:
      experiment: whose `mesh` is laid over the devices.
      devices: real ones, or those of a `launch.topology`.
      kind: of other devices, whose figures shall apply.
      compiler: what to call the compiler, if not by the devices' kind.
      tell: is given a line before and after each lengthy part.

    Raises:
      UserError: a mesh, a batch size or a rule that does not fit.
    """
    clock = _Phases(tell)
    kind = kind or str(devices[0].device_kind)
    chip = hardware.CHIPS.get(kind)
    with clock.phase("build"):
        program = build(experiment, sharding.make_mesh(experiment.mesh, devices))
    with clock.phase("compile init"):
        init, init_bytes = _compile(lambda: program.init.lower())
    with clock.phase("compile step"):
        step, step_bytes = _compile(
            lambda: program.step.lower(program.state, program.batch)
        )
    hlo = Hlo(step.as_text()) if step else None
    collectives = hlo.collectives() if hlo else ()
    traffic = hlo.traffic() if hlo else 0
    bounds = None
    if chip and hlo:
        sent = sum(collective.sent for collective in collectives)
        number = len(devices)
        bounds = roofline.estimate(chip, number, program.flops, traffic, sent)
    memory = _memory(program, step, step_bytes)
    fits = None
    if chip or not (init and step):
        within = chip is None or max(memory.total, init_bytes) <= chip.memory
        fits = bool(init and step and within)
    return Plan(
        experiment=experiment.name,
        kind=kind,
        compiler=compiler or f"{devices[0].device_kind} compiler",
        mesh=dict(program.mesh.shape),
        batch_size=experiment.data.batch_size,
        num_params=program.num_params(),
        fits=fits,
        limit=chip.memory if chip else None,
        memory=memory,
        init_bytes=init_bytes,
        flops=program.flops,
        traffic=traffic,
        collectives=collectives,
        unknown_loops=hlo.unknown_loops if hlo else 0,
        estimate=bounds,
        seconds=clock.seconds,
    )


class _Phases:
    """Times named parts, and tells of each."""

    def __init__(self, tell: Callable[[str], None]):
        self._tell = tell
        self.seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        self._tell(f"{name} ...")
        begun = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - begun
        self._tell(f"{name}: {self.seconds[name]:.1f} s")


def _compile(lower: Callable[[], Any]) -> tuple[Any | None, int]:
    """The executable, None if it exceeds the memory, and the bytes that it needs."""
    lowered = lower()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        used = re.search(r"Used ([\d.]+)([KMGT]?) of [\d.]+[KMGT]? hbm", str(error))
        if not used:
            raise
        scale = 1024 ** " KMGT".index(used[2] or " ")
        return None, int(float(used[1]) * scale)
    needs = compiled.memory_analysis()
    apart = needs.argument_size_in_bytes + needs.temp_size_in_bytes
    apart += needs.output_size_in_bytes - needs.alias_size_in_bytes
    # The TPU's compiler counts what lives together; the CPU's leaves out temporaries.
    return compiled, needs.generated_code_size_in_bytes + max(
        apart, needs.peak_memory_in_bytes
    )


def _memory(program: Program, step: Any | None, needed: int) -> Memory:
    state = program.state
    parts = {
        "params": _bytes(state.params),
        "optimizer": _bytes(state.opt_state),
        "ema": _bytes(state.ema),
        "other": _bytes((state.step, state.skipped, state.extra)),
        "batch": _bytes(program.batch),
    }
    code = step.memory_analysis().generated_code_size_in_bytes if step else 0
    # The compiler rounds arguments up to its tiles: those bytes count as temporary.
    return Memory(**parts, code=code, temporaries=needed - code - sum(parts.values()))


def _bytes(tree: Any) -> int:
    """Of one device's shards."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


# The command


def main(
    choice: Annotated[Choice, tyro.conf.arg(name="")],
    topology: str | None = None,
    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False,
) -> int:
    """Say whether an experiment fits on devices, what it sends, how fast it could be.

    Args:
      choice: Which experiment, on which mesh.
      topology: Devices that need not be there, such as v5e:8x8, v5p-128, h100:8 or
        cpu:8; default those of this machine.
      as_json: Print the record as JSON.
    """
    start()
    devices, kind, compiler = _devices(topology)
    experiment = choice.load()
    _tell(f"{experiment.name} for {len(devices)} x {kind}, by the {compiler}")
    planned = plan(experiment, devices, kind=kind, compiler=compiler, tell=_tell)
    if as_json:
        print(json.dumps(planned.record()))
    else:
        _print(planned)
    return int(planned.fits is False)


def _devices(name: str | None) -> tuple[Sequence[Any], str, str]:
    if name is None:
        here = jax.devices()
        return here, here[0].device_kind, f"{here[0].device_kind} compiler"
    chosen = topologies.parse(name)
    devices, compiler = topologies.devices(chosen)
    if devices[0].platform == "cpu" and chosen.kind != "cpu":
        _tell(
            f"the CPU's compiler stands in for that of {chosen.kind}: activations, "
            "traffic and collectives are as it chooses"
        )
        if chosen.slice:
            _tell("pip install 'twelvefold[tpu]' brings the TPUs' own compiler")
    return devices, chosen.kind, compiler


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _print(planned: Plan) -> None:
    from rich.table import Table

    out = console()
    out.print(f"\n[bold]{_verdict(planned)}[/bold]\n", highlight=False)

    facts = Table("", "", box=None, show_header=False)
    mesh = ", ".join(f"{axis}={size}" for axis, size in planned.mesh.items())
    facts.add_row("mesh", mesh)
    facts.add_row("parameters", f"{planned.num_params:,}")
    ways = planned.mesh["data"] * planned.mesh["fsdp"]
    rows = f"{planned.batch_size} rows, {planned.batch_size / ways:g} a device"
    facts.add_row("batch", rows)
    facts.add_row("model FLOPs a step", f"{planned.flops:.4g} ({flops.RULE})")
    out.print(facts, highlight=False)

    memory = Table("\nmemory of a device", "\nbytes", "", box=None)
    names = {"temporaries": "activations, temporaries"}
    for name, size in dataclasses.asdict(planned.memory).items():
        memory.add_row(names.get(name, name), f"{size:,}", size_text(size))
    total = planned.memory.total
    memory.add_row("step in all", f"{total:,}", size_text(total))
    if planned.init_bytes is not None:
        size = planned.init_bytes
        memory.add_row("init in all", f"{size:,}", size_text(size))
    out.print(memory, highlight=False)

    network = Table("\ncollectives of a step", "\ncount", "\nbytes in", box=None)
    network.add_column("\nbytes sent by a device")
    for one in planned.collectives:
        network.add_row(one.kind, *(f"{n:,}" for n in (one.count, one.bytes, one.sent)))
    if not planned.collectives:
        network.add_row("none", "", "", "")
    out.print(network, highlight=False)
    if planned.unknown_loops:
        out.print(
            f"{planned.unknown_loops} loops of unknown length are counted as one "
            "iteration each",
            highlight=False,
        )
    if planned.estimate:
        _print_estimate(out, planned, planned.estimate)


def _verdict(planned: Plan) -> str:
    where = f"{planned.num_devices} x {planned.kind}, by the {planned.compiler}"
    needs = f"{size_text(max(planned.memory.total, planned.init_bytes or 0))} a device"
    if planned.fits is None:
        return f"needs {needs}: {where}, of unknown memory"
    limit = size_text(planned.limit) if planned.limit else "there are"
    told = "fits" if planned.fits else "does NOT fit"
    return f"{told}: {needs} of {limit}: {where}"


def _print_estimate(out: Any, planned: Plan, bounds: Estimate) -> None:
    from rich.table import Table

    chip = hardware.CHIPS[planned.kind]
    table = Table("\nroofline of a step", "\nms", "", box=None)
    traffic = f"{size_text(planned.traffic)} at {chip.memory_bandwidth / 1e9:g} GB/s"
    sent = sum(collective.sent for collective in planned.collectives)
    links = f"{size_text(sent)} at {chip.link_bandwidth / 1e9:g} GB/s"
    rows = {
        "compute": (bounds.compute, f"at {chip.flops / 1e12:g} TFLOP/s a device"),
        "memory": (bounds.memory, traffic),
        "network": (bounds.network, links),
    }
    low, high = bounds.utilization()
    rows["all overlapped"] = (
        bounds.overlapped,
        f"bound by {bounds.bound}; utilization {high:.1%}, "
        f"{planned.batch_size / bounds.overlapped:,.0f} examples/s",
    )
    rows["one after the other"] = (
        bounds.serial,
        f"utilization {low:.1%}, {planned.batch_size / bounds.serial:,.0f} examples/s",
    )
    for name, (seconds, told) in rows.items():
        table.add_row(name, f"{1e3 * seconds:.3f}", told)
    out.print(table, highlight=False)
    out.print("\nassuming that", highlight=False)
    for assumption in roofline.ASSUMPTIONS:
        out.print(f"  {assumption}", highlight=False)
    out.print(f"figures of the chip: {chip.source}", highlight=False)


if __name__ == "__main__":
    run(main)
