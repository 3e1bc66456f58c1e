"""The loop: cut anywhere it computes the same, and it tells the truth about itself."""

import errno
import itertools
import math
import os
import shutil
import signal
import struct
import time

import jax
import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog

from research.errors import Preempted, SaveError, UserError
from research.train import checkpoints
from research.train.checkpoints import complete_steps, read_meta
from research.train.clock import BUCKETS, Clock
from tests.train import runs
from tests.train.runs import assert_bitwise, records, run, saved


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """Twenty steps without a break."""
    folder = tmp_path_factory.mktemp("straight")
    return folder, run(folder)


@pytest.fixture(scope="module")
def cut(tmp_path_factory):
    """The same, stopped after ten and begun again."""
    folder = tmp_path_factory.mktemp("cut")
    run(folder, stop_at=10)
    assert complete_steps(folder / "checkpoints") == [5, 10]
    return folder, run(folder)


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    """Twenty steps whose images are seen and whose evaluations are no numbers."""
    folder = tmp_path_factory.mktemp("watched")
    runs.SEEN.clear()
    return folder, run(folder, reference="tests.train.runs:recorded"), list(runs.SEEN)


def numbers(folder):
    """What the lines of metrics.jsonl say about the model, not about time."""
    words = ("loss", "norm", "skipped", "learning_rate")
    return [
        (line["step"], {n: v for n, v in line.items() if any(w in n for w in words)})
        for line in records(folder, "train") + records(folder, "eval")
    ]


def test_a_run_cut_in_two_is_the_straight_run(straight, cut):
    """Dropout, accumulation, the average and the schedule are on."""
    assert cut[1] == straight[1]
    assert_bitwise(saved(cut[0], 20), saved(straight[0], 20))
    assert numbers(cut[0]) == numbers(straight[0])
    resume = {"step": 10, "kind": "resume", "repeated_steps": 0}
    assert records(cut[0], "resume") == [resume]


def test_every_checkpoint_holds_its_number_of_updates(straight):
    folder, _ = straight
    for step in complete_steps(folder / "checkpoints"):
        state = saved(folder, step)
        counts = [v for n, v in state.items() if n.endswith("count")]
        assert counts and {int(count) for count in counts} == {step}
        assert state["step"] == step and state["skipped"] == 0
        meta = read_meta(folder / "checkpoints", step)
        assert meta["step"] == meta["next_batch"] == step
    assert complete_steps(folder / "checkpoints") == [10, 15, 20]
    average, now = state["ema/hidden/kernel"], state["params/hidden/kernel"]
    assert not np.array_equal(average, now)


def test_the_next_batch_of_checkpoint_k_is_batch_k(watched, tmp_path):
    order = watched[2][1:]  # every start looks at one example before it begins
    assert len(order) == 20 * 16 and len(set(order)) > 200
    runs.SEEN.clear()
    run(tmp_path, reference="tests.train.runs:recorded", stop_at=7)
    middle = len(runs.SEEN)
    run(tmp_path, reference="tests.train.runs:recorded", stop_at=12)
    assert runs.SEEN[1:middle] == order[: 7 * 16]
    assert runs.SEEN[middle + 1 :] == order[7 * 16 : 12 * 16]


def test_a_stop_between_two_reports_loses_no_step(straight, tmp_path):
    folder, result = straight
    run(tmp_path, stop_at=7)
    assert complete_steps(tmp_path / "checkpoints") == [5, 7]
    assert run(tmp_path) == result
    assert_bitwise(saved(tmp_path, 20), saved(folder, 20))
    whole = {line["step"]: line["loss"] for line in records(folder, "train")}
    parts = {line["step"]: line["loss"] for line in records(tmp_path, "train")}
    assert list(parts) == [5, 7, 10, 15, 20]
    # Sums of float32 losses, pooled in float64.
    assert math.isclose(2 * parts[7] + 3 * parts[10], 5 * whole[10], rel_tol=1e-12)


class Scheduler:
    """Sends SIGTERM when it hears of the first steps, and once more after that."""

    def write(self, record):
        if record["kind"] in ("train", "goodput"):
            os.kill(os.getpid(), signal.SIGTERM)

    def close(self): ...


def test_sigterm_saves_the_step_and_a_restart_goes_on(straight, tmp_path):
    folder, result = straight
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Preempted, match="SIGTERM: saved at step 6 of 20; the same"):
        run(tmp_path, reports=(lambda _: Scheduler(),))
    assert signal.getsignal(signal.SIGTERM) is before
    assert complete_steps(tmp_path / "checkpoints") == [5, 6]
    assert [line["step"] for line in records(tmp_path, "train")] == [5, 6]
    assert run(tmp_path) == result
    assert records(tmp_path, "resume")[0]["repeated_steps"] == 0
    assert_bitwise(saved(tmp_path, 20), saved(folder, 20))


def test_steps_after_the_newest_checkpoint_are_repeated_and_told_once(
    straight, tmp_path
):
    folder, _ = straight
    shutil.copytree(folder, tmp_path / "run")
    for step in (15, 20):
        shutil.rmtree(tmp_path / "run" / "checkpoints" / str(step))
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 21, "kind": "train", "lo')  # as a kill leaves it
    run(tmp_path / "run")
    assert numbers(tmp_path / "run") == numbers(folder)
    assert records(tmp_path / "run", "resume")[0]["repeated_steps"] == 10
    assert_bitwise(saved(tmp_path / "run", 20), saved(folder, 20))
    starts = (tmp_path / "run" / "starts.jsonl").read_text().splitlines()
    assert len(starts) == 2


def test_a_line_cut_off_just_before_its_end_is_dropped(straight, tmp_path):
    folder, _ = straight
    shutil.copytree(folder, tmp_path / "run")
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 20, "kind": "cut"}')
    run(tmp_path / "run")
    assert records(tmp_path / "run", "cut") == []


def test_a_complete_run_is_not_evaluated_again(straight, tmp_path):
    folder, result = straight
    shutil.copytree(folder, tmp_path / "run")
    assert run(tmp_path / "run") == result
    assert numbers(tmp_path / "run") == numbers(folder)


def test_what_is_no_number_is_null(watched):
    folder, result, _ = watched
    assert math.isnan(result["broken/nan"]) and math.isinf(result["broken/infinity"])
    assert records(folder, "eval") == [
        {"step": n, "kind": "eval", "broken/nan": None, "broken/infinity": None}
        for n in (5, 10, 15, 20)
    ]
    assert read_meta(folder / "checkpoints", 20)["metrics"]["broken/nan"] is None


class Stopwatch:
    """Notes when the loop gives its account of where the time went."""

    def __init__(self):
        self.wall, self._begun = 0.0, time.perf_counter()

    def write(self, record):
        if record["kind"] == "goodput":
            self.wall = time.perf_counter() - self._begun

    def close(self): ...


def test_the_buckets_are_the_wall_time(tmp_path):
    """Against a clock of the test's own, not against their own sum."""
    stopwatch, clock = Stopwatch(), Clock()
    run(tmp_path, clock=clock, reports=(lambda _: stopwatch,))
    (line,) = records(tmp_path, "goodput")
    assert math.isclose(sum(line["seconds"].values()), stopwatch.wall, rel_tol=0.01)
    assert line["wall_seconds"] == sum(line["seconds"].values())
    assert set(line["seconds"]) == set(BUCKETS)
    assert all(line["seconds"][bucket] > 0 for bucket in BUCKETS)


class Compilations:
    """Counts what is compiled between the reports of a run."""

    def __init__(self):
        self.number, self.at = 0, {}
        jax.monitoring.register_event_duration_secs_listener(self._count)

    def _count(self, event, seconds, **_):
        self.number += event == "/jax/core/compile/backend_compile_duration"

    def write(self, record):
        self.at[record["kind"], record["step"]] = self.number

    def close(self):
        jax.monitoring.unregister_event_duration_listener(self._count)


def test_nothing_is_compiled_after_the_first_of_each_kind(tmp_path):
    """Neither for steps, reports, saves and evaluations, nor after a resume."""
    often = ["log_every=1", "evals.test.every=2", "checkpoints.every=2"]
    for first, stop in ((0, 8), (8, 20)):
        compilations = Compilations()
        run(tmp_path, *often, stop_at=stop, reports=(lambda _, c=compilations: c,))
        at = compilations.at
        assert at["train", first + 1] > 0
        # Step 1 is reported when step 2 has run; the evaluation at 2 is the first.
        warm = at["train", first + 3]
        assert at["eval", stop] == at["goodput", stop] == warm


def test_a_failed_save_stops_the_run_with_the_original_error(tmp_path, monkeypatch):
    """Well before the next save, at which it would be noticed anyway."""

    def full(folder):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoints, "_write_digests", full)
    rarely = ("num_steps=100000", "checkpoints.every=200", "log_every=100")
    with pytest.raises(SaveError, match="No space left on device") as raised:
        run(tmp_path, *rarely)
    assert raised.value.__cause__.errno == errno.ENOSPC
    assert complete_steps(tmp_path / "checkpoints") == []
    assert 200 <= records(tmp_path, "train")[-1]["step"] < 400
    monkeypatch.undo()
    run(tmp_path, *rarely, stop_at=1)
    (note,) = records(tmp_path, "note")
    assert note["note"] == "ignored the unfinished save 200.orbax-checkpoint-tmp"


class Full:
    """A report on a full disk, which cannot be closed either."""

    def write(self, record):
        raise OSError(errno.ENOSPC, "No space left on device")

    def close(self):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_report_that_cannot_be_written_stops_the_run(tmp_path):
    """The split that is absent here does not, as nobody reads it."""
    with pytest.raises(SaveError, match="a report could not be written.*No space"):
        run(
            tmp_path,
            reference="tests.train.runs:with_absent",
            reports=(lambda _: Full(),),
        )


def test_a_thing_that_an_evaluation_needs_is_asked_for_at_once(tmp_path):
    """Not at the first evaluation, which may be days away."""
    for override, words in {
        "evals.test.split=absent": "data.eval.absent is not there: no nowhere.npz: ",
        'data.train=research.data.sources.Npz("nowhere.npz")': "data.train is not",
        "data.transforms=(research.data.sequences.Tokenize("
        'research.data.subwords.SentencePiece("nowhere.model")),)': "transforms read n",
        "evals.test.split=tset": "evals.test.split='tset': data.eval has test",
        "evals.test.batch_size=100": "a batch of 100 cannot be split over 8",
    }.items():
        with pytest.raises(UserError, match=words):
            run(tmp_path / "run", override, reference="tests.train.runs:with_absent")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "option", [{"stop_at": 0}, {"stop_at": -1}, {"watchdog_seconds": 0.0}], ids=str
)
def test_options_without_sense_are_refused(tmp_path, option):
    with pytest.raises(UserError, match="expected a positive number"):
        run(tmp_path / "run", **option)
    assert not (tmp_path / "run").exists()


def events(path):
    """The events of a TensorBoard file: length, its checksum, event, its checksum."""
    data, place = path.read_bytes(), 0
    while place < len(data):
        (length,) = struct.unpack_from("<Q", data, place)
        yield Event.FromString(data[place + 12 : place + 12 + length])
        place += 12 + length + 4


def test_tensorboard_has_every_number_and_hides_what_is_repeated(cut):
    folder, _ = cut
    files = sorted((folder / "tensorboard").iterdir(), key=lambda p: p.stat().st_mtime)
    first, second = ([*events(path)] for path in files)
    assert first[0].file_version == "brain.Event:2"
    (start,) = [e for e in second if e.session_log.status == SessionLog.START]
    assert start.step == 11
    scalars = {
        (event.step, value.tag): value.simple_value
        for event in itertools.chain(first, second)
        for value in event.summary.value
    }
    for line in records(folder, "train"):
        assert scalars[line["step"], "train/loss"] == pytest.approx(line["loss"])
    assert [s for s, tag in scalars if tag == "train/loss"] == [5, 10, 15, 20]
    assert (20, "eval/test/loss") in scalars and (20, "goodput/seconds/step") in scalars
