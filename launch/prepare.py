"""Make ready what an experiment reads, and say exactly what is missing.

    python -m launch.prepare experiments/score_sde/vp_ddpmpp_digits.py

Training never downloads: this command does, for the sources that can.
"""

import dataclasses
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Annotated

import tyro

from launch.cli import Choice, run
from launch.text import console
from research.data.groups import GroupedData
from research.data.loader import Batches, Data
from research.data.sources import Source, all_missing, prepare_all
from research.data.transforms import Transform
from research.errors import UserError


@dataclass(frozen=True)
class Split:
    """One split that is ready."""

    name: str
    """Its path in the experiment: data.train, data.eval.test."""

    num_examples: int

    example: str
    """The parts of an example after the transforms."""

    verified: str
    """What its source and its transforms could verify."""

    source: str


def prepare(data: Data, download: bool = True) -> list[Split]:
    """Get what is missing, verify what is there, and make a batch of every split.

    Args:
      data: what an experiment reads.
      download: whether to download what a source can; otherwise say that it is missing.

    Raises:
      UserError: what stands in the way, a line each, with the splits that it concerns.
    """
    here = dataclasses.replace(data, num_workers=0, prefetch=0)
    splits = [("data.train", data.train, data.transforms, partial(here.batches, 0))]
    for name, source in data.eval.items():
        batches = partial(here.eval_batches, name, data.batch_size)
        splits.append((f"data.eval.{name}", source, data.eval_transforms, batches))
    ready: list[Split] = []
    problems: dict[str, list[str]] = {}
    failed: dict[tuple[str, ...], str] = {}
    for name, source, transforms, batches in splits:
        missing = tuple(all_missing([source, *transforms]))
        try:
            # Two splits are often one download: one that failed is not tried again.
            if missing in failed:
                raise UserError(failed[missing])
            if missing and not download:
                raise UserError(
                    f"no {' and no '.join(missing)}: put it there, or try again "
                    "without --no-download"
                )
            ready.append(_check(name, source, transforms, batches))
        except UserError as error:
            problems.setdefault(str(error), []).append(name)
            if missing:
                failed[missing] = str(error)
    if problems:
        told = (f"{', '.join(names)}: {text}" for text, names in problems.items())
        raise UserError("\n".join(told))
    return ready


def _check(
    name: str,
    source: Source,
    transforms: tuple[Transform, ...],
    batches: Callable[[], Batches],
) -> Split:
    """Prepares a source and its transforms, then makes a batch."""
    verified = prepare_all([source, *transforms])
    with closing(batches()) as made:
        batch = next(made)
    told = [f"{n} {v.dtype} {v.shape[1:]}" for n, v in batch.items() if n != "mask"]
    kind = repr(source) if dataclasses.is_dataclass(source) else type(source).__name__
    return Split(name, len(source), ", ".join(told), verified, kind)


def main(
    choice: Annotated[Choice, tyro.conf.arg(name="")], download: bool = True
) -> None:
    """Download and check the data of an experiment, and show its splits.

    Args:
      choice: Which experiment.
      download: Download what is missing and can be; without, only say what it is.
    """
    from rich.table import Table

    table = Table()
    for heading in ("split", "examples"):
        table.add_column(heading, no_wrap=True)
    for heading in ("an example", "verified", "source"):
        table.add_column(heading, overflow="fold")
    data = choice.load().data
    for split in prepare(data, download):
        table.add_row(*map(str, dataclasses.astuple(split)))
    console().print(table)
    if isinstance(data, GroupedData):
        print(data.summary())


if __name__ == "__main__":
    run(main)
