"""A batch that makes the loss NaN: stopped or skipped, kept, and played again."""

import json
from pathlib import Path

import numpy as np
import pytest

from launch import cli, replay, tiny, train
from research.data.permutation import permuted
from research.train.checkpoints import complete_steps
from tests.train.runs import assert_bitwise, leaves, records, saved

BAD = 12
"""The step, counted from zero, whose batch holds the bad image."""

# A file of a user, whose source has one image with a level that is not of the data.
EXPERIMENT = """
import dataclasses
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np

from launch import tiny
from research.data.sources import Digits
from research.tasks.score_matching import ScoreMatching


@dataclass(frozen=True)
class OneBad(Digits):
    index: int = 0

    def __getitem__(self, index):
        example = super().__getitem__(index)
        if index == self.index:
            example["image"] = np.full_like(example["image"], 200)
        return example


class Fragile(ScoreMatching):
    def loss(self, variables, batch, rng, train):
        mean, (metrics, extra) = super().loss(variables, batch, rng, train)
        room = 100.0 - batch["image"].astype(jnp.float32).max()
        root = jnp.sqrt(room)
        total, count = metrics["loss"]
        return root * mean, ({"loss": (root * total, count)}, extra)


def experiment(index: int = 0):
    base = tiny.experiment()
    task = Fragile(**vars(base.task))
    data = dataclasses.replace(base.data, train=OneBad(index=index))
    return dataclasses.replace(base, task=task, data=data)
"""


@pytest.fixture
def call(tmp_path, capsys, monkeypatch):
    """Calls a command; returns its exit code and what it printed to both streams."""
    monkeypatch.setattr("research.train.hardware.measure_matmul", lambda: 1e10)
    file = tmp_path / "mine.py"
    file.write_text(EXPERIMENT)
    positions = np.arange(16 * BAD, 16 * (BAD + 1))
    index = permuted(positions, len(tiny.experiment().data.train), seed=0)[3]

    def call(main, *arguments):
        if main is train.main:
            arguments = (str(file), "--with", f"index={index}", *arguments)
        with pytest.raises(SystemExit) as ended:
            cli.run(main, arguments)
        return ended.value.code, *capsys.readouterr()

    return call


def test_it_stops_with_all_that_is_needed_to_see_why(call, tmp_path):
    folder = tmp_path / "run"
    bundle = folder / "nonfinite" / f"step_{BAD:08d}"
    code, _, error = call(train.main, "--workdir", str(folder), "--stop-at", str(BAD))
    assert code == 0, error
    code, _, error = call(train.main, "--workdir", str(folder))
    assert code == 3 and "Traceback" not in error
    assert f"NonFiniteError: step {BAD} (update {BAD + 1}): grad_norm" in error
    assert f"python -m launch.replay {bundle}; the last checkpoint is [12]" in error
    assert complete_steps(folder / "checkpoints") == [5, 10, 12]
    assert [line["step"] for line in records(folder, "train")] == [5, 10, 12]

    with np.load(bundle / "batch.npz") as batch:
        assert batch["image"].shape == (16, 8, 8, 1)
        assert np.flatnonzero((batch["image"] == 200).all((1, 2, 3))).tolist() == [3]
    numbers = json.loads((bundle / "metrics.json").read_text())
    assert numbers["step"] == BAD and numbers["loss"] == "nan"
    assert_bitwise(state_of(bundle), saved(folder, BAD))

    code, told, _ = call(replay.main, str(bundle))
    assert code == 0
    assert "batch image: uint8 (16, 8, 8, 1) finite" in told
    (values,) = (json.loads(x) for x in told.splitlines() if x.startswith("{"))
    assert values["step"] == BAD and values["loss"] == "nan"
    source = "root = jnp.sqrt(room)"
    (line,) = (n for n, x in enumerate(EXPERIMENT.splitlines(), 1) if source in x)
    where = f"first at {bundle / 'experiment.py'}:{line}: {source}: "
    assert where in told and "nan" in told.split(where)[1]


def state_of(bundle: Path):
    from research.train.builder import build
    from research.train.bundle import read

    evidence = read(bundle)
    return leaves(evidence.state(build(evidence.request.load()).state))


def test_it_goes_on_without_the_batch_if_that_is_the_policy(call, tmp_path):
    skip = ("--set", "on_nonfinite='skip'")
    folder = tmp_path / "run"
    code, told, _ = call(train.main, "--workdir", str(folder), *skip, "--stop-at", "15")
    assert code == 0
    note = f"step {BAD} (update {BAD + 1}): grad_norm, "
    assert f"step 13/20  skipped  {note}" in told
    (record,) = records(folder, "skipped")
    assert record["step"] == BAD + 1 and record["skipped"] == 1
    assert all(line["loss"] < 100 for line in records(folder, "train"))
    state = saved(folder, 15)
    assert state["step"] == 15 and state["skipped"] == 1
    assert all(np.isfinite(leaf).all() for leaf in state.values())

    # What has skipped once can be taken over by one that stops: it trains on.
    code, _, error = call(train.main, "--workdir", str(folder), "--adopt")
    assert code == 0, error
    final = saved(folder, 20)
    assert final["step"] == 20 and final["skipped"] == 0
    name = "params/hidden/kernel"
    assert not np.array_equal(final[name], state[name])


def test_replay_says_what_is_no_bundle(call, tmp_path):
    code, _, error = call(replay.main, str(tmp_path))
    assert code == 2
    assert error.startswith(f"UserError: {tmp_path} is not a bundle: ")
