"""The watchdog, in processes of its own, since it ends them."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

SCRIPT = """
import sys, time
from pathlib import Path
from research.train.watchdog import SLOW, Watchdog

def stuck_here(seconds):
    time.sleep(seconds)

with Watchdog(0.4, Path(sys.argv[1])) as watchdog:
    {body}
print("went on")
"""


def watch(folder: Path, body: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", SCRIPT.format(body=body), str(folder / "stacks.txt")],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )


@pytest.mark.parametrize(
    "body",
    [
        "time.sleep(1)",  # the start
        "watchdog.beat(); watchdog.beat(SLOW); time.sleep(1)",  # an evaluation
        "[(watchdog.beat(), time.sleep(0.01)) for _ in range(100)]",  # steps
    ],
)
def test_what_goes_on_is_left_alone(tmp_path, body):
    process = watch(tmp_path, body)
    assert process.returncode == 0 and process.stdout == "went on\n"
    assert not (tmp_path / "stacks.txt").exists()


def test_what_is_stuck_is_ended_with_all_its_stacks(tmp_path):
    process = watch(tmp_path, "watchdog.beat(); stuck_here(60)")
    assert process.returncode == 124
    assert "no progress for 0 s" in process.stderr and "exit 124" in process.stderr
    for text in (process.stderr, (tmp_path / "stacks.txt").read_text()):
        assert "in stuck_here" in text and "in _watch" in text
