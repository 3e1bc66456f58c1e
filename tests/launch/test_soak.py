"""A run under the faults that need real processes, against an undisturbed one."""

import re

from tests.launch.processes import Process


def test_a_disturbed_run_ends_as_the_undisturbed_one(tmp_path):
    """Killed at some moment, killed while it saves, and out of disk."""
    command = ["-m", "launch.soak", "--events=3", f"--workdir={tmp_path / 'soak'}"]
    process = Process(tmp_path / "log.txt", 1, *command)
    try:
        assert process.wait() == 0, process.printed
    finally:
        process.end()
    kinds = "1 kill -9, 1 kill -9 while saving, 1 full disk"
    assert f"survived 3 events in 100 steps: {kinds}, " in process.printed
    assert "final state and every step's loss bitwise equal: yes" in process.printed
    starts, interrupted = (
        int(re.search(rf"(\d+) {words}", process.printed)[1])
        for words in ("starts", "saves interrupted")
    )
    assert starts == 4 and interrupted >= 1
