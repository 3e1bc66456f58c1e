"""Several processes as one run: the same numbers, and no process left behind."""

import json
import math
import signal

import pytest

from research.train.checkpoints import complete_steps
from tests.launch.processes import Process, job
from tests.train.runs import records, run, saved

# Slow enough that signals arrive midway, and without evaluators that nobody needs here.
SLOW = ("launch.soak", "--with", "num_steps=10000", "--heartbeat-seconds", "60")


def resumed(folder) -> int:
    return records(folder, "resume")[-1]["step"]


def test_two_processes_are_one(tmp_path):
    """Four devices in each against eight in one."""
    with job(tmp_path / "two", 2, 4, "launch.tiny", "--stop-at", "8") as processes:
        codes = [process.wait() for process in processes]
        assert codes == [0, 0], processes[0].printed
    run(tmp_path / "one", stop_at=8)
    pairs = [records(tmp_path / name, "train") for name in ("one", "two")]
    for one, two in zip(*pairs, strict=True):
        for name in ("loss", "grad_norm", "param_norm"):
            assert math.isclose(one[name], two[name], rel_tol=1e-5)
    (start,) = (tmp_path / "two" / "starts.jsonl").read_text().splitlines()
    assert (
        json.loads(start)["processes"] == 2 and len(json.loads(start)["devices"]) == 8
    )
    # What two processes saved, one reads.
    one, two = (saved(tmp_path / name, 8) for name in ("one", "two"))
    for name, leaf in one.items():
        assert two[name] == pytest.approx(leaf, rel=1e-4, abs=1e-6)


def test_a_process_that_compiles_for_longer_is_waited_for(tmp_path, monkeypatch):
    """By the others' devices no longer than XLA's limit, here 5 seconds for its 40."""
    limit = "--xla_cpu_collective_call_terminate_timeout_seconds=5"
    monkeypatch.setenv("XLA_FLAGS", limit)
    options = ("tests.launch.late", "--stop-at", "2")
    with job(tmp_path / "run", 2, 2, *options) as processes:
        codes = [process.wait() for process in processes]
        assert codes == [0, 0], processes[0].printed


def test_what_happens_to_one_process_happens_to_the_run(tmp_path):
    """SIGTERM, SIGKILL and SIGSTOP of one of two; each time a restart goes on."""
    folder = tmp_path / "run"
    with job(folder, 2, 1, *SLOW) as (first, second):
        first.wait_for("step     3/")
        second.send(signal.SIGTERM)
        assert (first.wait(), second.wait()) == (75, 75)
        (step,) = complete_steps(folder / "checkpoints")[-1:]
        told = f"Preempted: SIGTERM: saved at step {step} of 10000; the same command"
        assert told in first.printed and told in second.printed
        assert records(folder, "train")[-1]["step"] == step

    with job(folder, 2, 1, *SLOW) as (first, second):
        first.wait_for(f"step {step + 3:5d}/")
        assert resumed(folder) == step
        second.send(signal.SIGKILL)
        assert first.wait() not in (0, 75)
    newest = complete_steps(folder / "checkpoints")[-1]

    with job(folder, 2, 1, *SLOW, "--watchdog-seconds", "10") as (first, second):
        first.wait_for(f"step {newest + 3:5d}/")
        assert resumed(folder) == newest
        second.send(signal.SIGSTOP)
        assert first.wait() == 124
        assert "no progress for" in first.printed and "loop.py" in first.printed
        stacks = (folder / "stacks-0.txt").read_text()
        assert "loop.py" in stacks and "Thread" in stacks


def test_a_process_that_cannot_find_the_others_says_so(tmp_path):
    command = ("-m", "launch.train", "launch.tiny", "--coordinator", "localhost:1")
    process = Process(tmp_path / "log.txt", 1, *command)
    assert process.wait() == 2
    assert process.printed.count("\n") == 1
    assert process.printed.startswith(
        "UserError: the processes cannot find each other: "
    )
