"""A run's folder: one holder, one experiment, nothing overwritten, nothing half."""

import dataclasses
import json
import os
from pathlib import Path

import pytest

from launch import tiny
from research.errors import UserError
from research.evals.loss import HeldOutLoss
from research.experiment import describe
from research.train.checkpoints import Checkpoints
from research.train.optimizers import Adam
from research.train.schedules import Cosine
from research.train.workdir import Request, Workdir, read_request
from tests.train.runs import content

TINY = Request("launch.tiny")


def hold(path: Path, experiment=None, adopt=False, request=TINY) -> Workdir:
    workdir = Workdir(path)
    workdir.open(experiment or tiny.experiment(), request, adopt)
    return workdir


@pytest.fixture
def used(tmp_path):
    """A folder in which the tiny experiment has got as far as a checkpoint."""
    path = tmp_path / "run"
    hold(path).close()
    (path / "checkpoints" / "5").mkdir(parents=True)
    return path


def changed(**settings):
    return dataclasses.replace(tiny.experiment(), **settings)


def test_everything_about_a_start_is_written_down(tmp_path):
    request = Request("launch.tiny", {"num_steps": "30"}, ("seed=7",))
    for _ in range(2):
        hold(tmp_path, request.load(), request=request).close()
    text = (tmp_path / "experiment.txt").read_text()
    assert text == describe(request.load()) and "num_steps = 30\n" in text
    assert (tmp_path / "experiment.py").read_text() == Path(tiny.__file__).read_text()
    again = read_request(tmp_path)
    assert again.reference == f"{tmp_path}/experiment.py:experiment"
    identity = describe(request.load(), operational=False)
    assert "checkpoints" not in identity
    assert (tmp_path / "identity.txt").read_text() == identity
    loaded = describe(again.load(), operational=False)
    assert loaded == identity.replace("launch.tiny.", "file.")
    starts = [
        json.loads(x) for x in (tmp_path / "starts.jsonl").read_text().splitlines()
    ]
    assert len(starts) == 2
    assert len(starts[0]["devices"]) == 8 and starts[0]["versions"]["jax"]
    assert {"command", "commit", "dirty", "python", "time"} <= starts[0].keys()


def test_a_second_job_is_refused_until_the_first_has_gone(tmp_path):
    first = hold(tmp_path)
    before = content(tmp_path)
    with pytest.raises(UserError, match=rf"in use by process {os.getpid()} on "):
        hold(tmp_path)
    assert content(tmp_path) == before
    first.close()
    hold(tmp_path).close()


def test_another_experiment_is_refused_with_what_differs(used):
    before = content(used)
    adam = Adam(Cosine(2e-2, num_steps=20, warmup_steps=3), clip_norm=1.0)
    with pytest.raises(UserError) as raised:
        hold(used, changed(optimizer=adam, seed=7))
    assert [line for line in str(raised.value).splitlines() if line[:2] == "  "] == [
        "  -optimizer.learning_rate.peak = 0.01",
        "  +optimizer.learning_rate.peak = 0.02",
        "  -seed = 42",
        "  +seed = 7",
    ]
    assert "--adopt" in str(raised.value)
    assert content(used) == before
    hold(used).close()  # the refused start has let go of it


def test_how_it_is_operated_may_change(used):
    operated = changed(
        checkpoints=Checkpoints(every=3),
        evals={"again": HeldOutLoss(every=1)},
        log_every=1,
        mesh={"fsdp": -1},
    )
    before = (used / "identity.txt").read_bytes()
    hold(used, operated).close()
    assert (used / "identity.txt").read_bytes() == before
    assert "log_every = 1\n" in (used / "experiment.txt").read_text()


def test_another_experiment_takes_over_if_told_to(used):
    hold(used, changed(seed=7), adopt=True).close()
    assert "seed = 7\n" in (used / "identity.txt").read_text()
    hold(used, changed(seed=7)).close()
    with pytest.raises(UserError, match="seed = 42"):
        hold(used)


@pytest.mark.parametrize(
    "trace", ["metrics.jsonl", "checkpoints/5.orbax-checkpoint-tmp"]
)
def test_a_start_that_left_nothing_binds_nobody(tmp_path, trace):
    hold(tmp_path).close()
    hold(tmp_path, changed(seed=7)).close()
    (tmp_path / trace).parent.mkdir(exist_ok=True)
    (tmp_path / trace).write_text("{}\n")
    with pytest.raises(UserError, match="seed"):
        hold(tmp_path)


def test_checkpoints_of_something_else_are_left_alone(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(UserError, match="not the workdir of a run"):
        hold(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoints", "lock"]


def test_a_file_is_written_whole_or_not_at_all(used, monkeypatch):
    """A kill between the bytes and the name leaves what was there."""
    before = content(used)

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        hold(used, changed(seed=7), adopt=True)
    after = content(used)
    assert {n: b for n, b in after.items() if not n.endswith(".tmp")} == before
    monkeypatch.undo()
    hold(used).close()


@pytest.mark.parametrize("below", ["file/run", "file"])
def test_a_folder_that_cannot_be_made_is_told(tmp_path, below):
    (tmp_path / "file").write_text("precious")
    with pytest.raises(UserError, match=r"cannot be written: .*choose another"):
        hold(tmp_path / below)
    assert (tmp_path / "file").read_text() == "precious"


def test_a_full_disk_at_the_start_is_told(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(UserError, match="No space left on device"):
        hold(tmp_path)
    monkeypatch.undo()
    hold(tmp_path).close()


@pytest.mark.parametrize("text", [None, "", "[]", "{", '{"reference": "x", "more": 1}'])
def test_what_is_no_workdir_is_told(tmp_path, text):
    if text is not None:
        (tmp_path / "run.json").write_text(text)
    with pytest.raises(UserError, match="not the workdir of a run: expected run.json"):
        read_request(tmp_path)
