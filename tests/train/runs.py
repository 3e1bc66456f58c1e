"""Whole runs of the tiny experiment, in the test's own process, on all its devices."""

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import numpy as np

from launch import tiny
from research.data.sources import Npz
from research.data.transforms import RandomFlip
from research.experiment import Experiment
from research.train.builder import build
from research.train.checkpoints import CheckpointStore
from research.train.loop import Options, train
from research.train.sharding import path_name
from research.train.workdir import Request, Workdir


def run(
    folder: Path,
    *overrides: str,
    reference: str = "launch.tiny",
    clock: Any = None,
    **options: Any,
) -> dict[str, float]:
    """`launch.train` without its command line; the peak is not measured anew."""
    request = Request(reference, {}, overrides)
    with mock.patch("research.train.hardware.measure_matmul", return_value=1e10):
        return train(
            request.load(), Workdir(folder), request, Options(**options), clock
        )


def saved(folder: Path, step: int, *overrides: str) -> dict[str, np.ndarray]:
    """Every leaf of a checkpoint by its path, read on all devices."""
    program = build(Request("launch.tiny", {}, overrides).load())
    policy = program.experiment.checkpoints
    with CheckpointStore(folder / "checkpoints", policy, read_only=True) as store:
        return leaves(store.restore(step, program.state))


def leaves(tree: Any) -> dict[str, np.ndarray]:
    """Host arrays by path."""
    flat = jax.tree_util.tree_leaves_with_path(tree)
    return {path_name(path): np.asarray(leaf) for path, leaf in flat}


def assert_bitwise(left: dict[str, np.ndarray], right: dict[str, np.ndarray]) -> None:
    """Equal in every bit of every leaf."""
    assert left.keys() == right.keys()
    different = [n for n in left if left[n].tobytes() != right[n].tobytes()]
    assert not different


def records(folder: Path, kind: str) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl of one kind; each has to be JSON by the standard."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    lines = (folder / "metrics.jsonl").read_text().splitlines()
    parsed = [json.loads(line, parse_constant=refuse) for line in lines]
    return [record for record in parsed if record["kind"] == kind]


def content(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, to see that nothing was overwritten."""
    return {str(p): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


SEEN: list[bytes] = []
"""The images that `recorded` has read, in order."""


@dataclass(frozen=True)
class Record:
    """A transform that remembers what passes."""

    def __call__(self, example, rng):
        SEEN.append(example["image"].tobytes())
        return example


@dataclass(frozen=True)
class Broken:
    """An evaluator whose answer is no number."""

    every: int = 5

    def __call__(self, task, variables, context):
        return {"nan": math.nan, "infinity": math.inf}


def recorded() -> Experiment:
    """The tiny experiment, watched."""
    base = tiny.experiment()
    transforms = (Record(), RandomFlip())
    data = dataclasses.replace(base.data, transforms=transforms, prefetch=0)
    return dataclasses.replace(base, data=data, evals={"broken": Broken()})


def with_absent() -> Experiment:
    """The tiny experiment, with one more split whose file is not there."""
    base = tiny.experiment()
    splits = {**base.data.eval, "absent": Npz("nowhere.npz")}
    return dataclasses.replace(base, data=dataclasses.replace(base.data, eval=splits))
