"""Time samplers at equal numbers of network evaluations, alone or beside a peer's.

    python -m launch.bench_samplers experiments/score_sde/vp_ddpmpp_digits.py --torch

The weights are fresh ones: the adaptive solvers, of the ODE and of the likelihood, take
fewer evaluations with them than with trained ones, which `launch.evaluate` counts. A
peer is a function `samplers(task, variables, batch_size, evaluations)` that returns
someone else's contenders by sampler, each with the evaluations that its draw takes;
`--torch` takes the one of the experiment's family, `launch/peers/FAMILY.py`.
"""

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from launch.bench import find_peer
from launch.cli import Choice, run, start
from launch.text import console
from launch.timing import Contender, Timing, race
from research.diffusion.karras import Karras
from research.diffusion.processes import VE, VP
from research.diffusion.samplers import (
    DDIM,
    AnnealedLangevin,
    Langevin,
    PredictorCorrector,
    ProbabilityFlow,
    Sampler,
    ancestral,
    euler_maruyama,
    reverse_diffusion,
)
from research.errors import UserError
from research.experiment import find_file
from research.tasks.base import Variables
from research.tasks.score_matching import ScoreMatching
from research.train import flops

PeerFunction = Callable[
    [ScoreMatching, Variables, int, int],
    Mapping[str, Sequence[tuple[Contender, int]]],
]

OURS = "ours"
LIKELIHOOD = "likelihood"


@dataclass(frozen=True)
class Row:
    """One sampler's timings, ours first, and the evaluations that each draw took."""

    sampler: str
    timings: tuple[Timing, ...]
    evaluations: tuple[int, ...]

    def ratios(self) -> dict[str, float]:
        """Our network evaluations per second over theirs, by name.

        Where both take as many, it is also that of images per second.
        """
        pairs = zip(self.timings, self.evaluations, strict=True)
        ours, *others = [taken / timing.median for timing, taken in pairs]
        names = [timing.name for timing in self.timings[1:]]
        return {name: ours / other for name, other in zip(names, others, strict=True)}


def samplers(evaluations: int, process: Any) -> dict[str, Sampler]:
    """Every sampler that the process takes, with so many network evaluations.

    The adaptive solver takes what it needs.
    """
    corrected = evaluations // 2

    def predictor(rule: Any) -> Sampler:
        return PredictorCorrector(rule, None, evaluations, 1e-3)

    found: dict[str, Sampler] = {
        "Euler-Maruyama": predictor(euler_maruyama),
        "reverse diffusion": predictor(reverse_diffusion),
        "ancestral": predictor(ancestral),
        "predictor-corrector": PredictorCorrector(
            reverse_diffusion, Langevin(0.16), corrected, 1e-3
        ),
        "annealed Langevin": AnnealedLangevin(
            num_levels=10, num_steps=evaluations // 10, step_size=1e-5
        ),
        "DDIM": DDIM(evaluations),
        "Heun": Karras((evaluations + 1) // 2),
        "ODE": ProbabilityFlow(),
    }
    if not isinstance(process, VE):
        del found["annealed Langevin"]
    if not isinstance(process, VE | VP):
        del found["ancestral"]
    return found


def our_contender(
    task: ScoreMatching, variables: Variables, batch_size: int
) -> tuple[Contender, int]:
    """The task's draw, and the evaluations that it took."""
    draw = jax.jit(lambda variables, rng: task.sample(variables, rng, batch_size))
    rng = jax.random.key(0)
    evaluations = int(draw(variables, rng)["nfe"])
    return _contender(task, variables, batch_size, evaluations, draw, rng), evaluations


def our_likelihood(
    task: ScoreMatching, variables: Variables, batch_size: int
) -> tuple[Contender, int]:
    """Likelihoods with one probe, and the evaluations of the solver."""
    image = np.random.default_rng(0).integers(
        0, task.pixels.levels, (batch_size, *task.image_shape), np.uint8
    )
    images = jnp.asarray(image)
    find = jax.jit(lambda v, rng: task.log_likelihood(v, images, rng))
    rng = jax.random.key(0)
    evaluations = int(find(variables, rng)[1])
    return _contender(task, variables, batch_size, evaluations, find, rng), evaluations


def _contender(task, variables, batch_size, evaluations, function, rng) -> Contender:
    x, t = jnp.zeros((batch_size, *task.image_shape)), jnp.full(batch_size, 0.5)
    return Contender(
        OURS,
        lambda: jax.block_until_ready(function(variables, rng)),
        sum(leaf.size for leaf in jax.tree.leaves(variables["params"])),
        evaluations * flops.count(task.score, variables, x, t),
    )


def bench(
    task: ScoreMatching,
    batch_size: int,
    evaluations: int,
    repeats: int,
    peer: PeerFunction | None = None,
    tell: Callable[[str], None] = lambda line: None,
) -> list[Row]:
    """Times every sampler, and the likelihood, in turns with the peer's.

    Raises:
      UserError: fewer than 50 evaluations, or a count that is not even.
    """
    if evaluations < 50 or evaluations % 10:
        raise UserError(
            f"evaluations={evaluations}: expected a multiple of 10, at least 50, which "
            "every sampler can split into its steps"
        )
    batch = {"image": jnp.zeros((1, *task.image_shape), jnp.uint8)}
    variables = jax.jit(task.init)(jax.random.key(0), batch)
    others = peer(task, variables, batch_size, evaluations) if peer else {}
    drawn = {
        name: partial(our_contender, replace(task, sampler=sampler))
        for name, sampler in samplers(evaluations, task.process).items()
    }
    rows = []
    for name, make in {**drawn, LIKELIHOOD: partial(our_likelihood, task)}.items():
        tell(f"{name} ...")
        contenders, taken = zip(
            make(variables, batch_size), *others.get(name, ()), strict=True
        )
        timings = race(contenders, batch_size, repeats, warm_up=1)
        rows.append(Row(name, timings, taken))
    return rows


def main(
    choice: Annotated[Choice, tyro.conf.arg(name="")],
    batch_size: int = 16,
    evaluations: int = 50,
    repeats: int = 5,
    torch: bool = False,
    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False,
) -> None:
    """Time every sampler of a diffusion experiment on random weights.

    Args:
      choice: Which experiment.
      batch_size: Images drawn at a time.
      evaluations: Of the network, for the samplers whose number is fixed.
      repeats: Timed draws of each, after one to warm up.
      torch: Beside the PyTorch peer of the experiment's family.
      as_json: Print the rows as JSON.
    """
    start()
    peer: Any = None
    if torch:
        family = find_file(choice.experiment).parent.name
        peer = find_peer(f"launch.peers.{family}:samplers")
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    load = os.getloadavg()[0]
    experiment = choice.load()
    task = experiment.task
    if not isinstance(task, ScoreMatching):
        raise UserError(
            f"{experiment.name} trains {type(task).__name__}: expected ScoreMatching, "
            "which has samplers"
        )
    rows = bench(task, batch_size, evaluations, repeats, peer, _tell)
    if as_json:
        print(json.dumps([asdict(row) | {"ratios": row.ratios()} for row in rows]))
        return
    title = (
        f"{experiment.name}, {rows[0].timings[0].num_params:,} parameters, batches of "
        f"{batch_size} on {jax.device_count()} x {jax.devices()[0].device_kind}, "
        f"median of {repeats}, load before it {load:.2f} of {os.cpu_count()} cores"
    )
    _print(title, rows)


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _print(title: str, rows: Sequence[Row]) -> None:
    from rich.table import Table

    out = console()
    out.print(f"\n{title}\n", highlight=False)
    names = list(dict.fromkeys(t.name for row in rows for t in row.timings))
    headings = [heading for name in names for heading in (name, "evaluations", "")]
    table = Table("images/s", *headings[:2], *headings[3:], box=None)
    for row in rows:
        found = dict(zip((t.name for t in row.timings), row.evaluations, strict=True))
        timings = {timing.name: timing for timing in row.timings}
        ratios = {OURS: 1.0} | row.ratios()
        cells = []
        for name in names:
            known = name in timings
            cells += [
                f"{timings[name].examples_per_second:,.2f}" if known else "",
                str(found[name]) if known else "",
            ]
            if name != OURS:
                cells.append(f"{ratios[name]:.3f}x" if known else "")
        table.add_row(row.sampler, *cells)
    out.print(table, highlight=False)
    if len(names) > 1:
        out.print("x: our evaluations a second over theirs", highlight=False)


if __name__ == "__main__":
    run(main)
