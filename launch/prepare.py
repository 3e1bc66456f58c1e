"""Make ready what an experiment reads, and say exactly what is missing.

    python -m launch.prepare experiments/score_sde/vp_ddpmpp_digits.py

Training never downloads: this command does, for the sources that can.
"""

import dataclasses
from contextlib import closing
from dataclasses import dataclass
from typing import Annotated

import tyro

from launch.cli import Choice, run
from research.data.loader import Batches, Data
from research.data.sources import Preparable, Source
from research.errors import UserError


@dataclass(frozen=True)
class Split:
    """One split that is ready."""

    name: str
    """Its path in the experiment: data.train, data.eval.test."""

    source: str
    num_examples: int

    verified: str
    """What its source could verify."""

    example: str
    """The parts of an example after the transforms."""


def prepare(data: Data) -> list[Split]:
    """Download what is missing, verify what is there, and make a batch of every split.

    Raises:
      UserError: what stands in the way, of every split.
    """
    here = dataclasses.replace(data, num_workers=0, prefetch=0)
    splits = [("data.train", data.train, here.batches())]
    for name, source in data.eval.items():
        batches = here.eval_batches(name, data.batch_size)
        splits.append((f"data.eval.{name}", source, batches))
    ready, problems = [], []
    for name, source, batches in splits:
        try:
            ready.append(_check(name, source, batches))
        except UserError as error:
            problems.append(f"{name}: {error}")
    if problems:
        raise UserError("\n".join(problems))
    return ready


def _check(name: str, source: Source, batches: Batches) -> Split:
    verified = source.prepare() if isinstance(source, Preparable) else ""
    with closing(batches):
        batch = next(batches)
    parts = [f"{n} {v.dtype} {v.shape[1:]}" for n, v in batch.items() if n != "mask"]
    told = repr(source) if dataclasses.is_dataclass(source) else type(source).__name__
    return Split(name, told, len(source), verified, ", ".join(parts))


def main(choice: Annotated[Choice, tyro.conf.arg(name="")]) -> None:
    """Download and check the data of an experiment, and show its splits.

    Args:
      choice: Which experiment.
    """
    from rich.console import Console
    from rich.table import Table

    table = Table("split", "source", "examples", "verified", "an example")
    for split in prepare(choice.load().data):
        table.add_row(*map(str, dataclasses.astuple(split)))
    Console().print(table)


if __name__ == "__main__":
    run(main)
