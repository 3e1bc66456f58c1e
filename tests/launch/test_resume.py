"""A run that moves to other devices, and the commands that read it there."""

import json

import numpy as np
import pytest

from launch import cli, evaluate, sample
from research.train.checkpoints import complete_steps
from tests.launch.processes import Process
from tests.train.runs import records, run, saved

# The three commands one after the other, as on a machine with one CPU.
COMMANDS = """
import sys
from launch import cli, evaluate, sample, train

folder = sys.argv[1]
for main, arguments in (
    (evaluate.main, [folder]),
    (sample.main, [folder, "--num", "3"]),
    (train.main, ["launch.tiny", "--workdir", folder]),
):
    try:
        cli.run(main, arguments)
    except SystemExit as end:
        assert end.code == 0
"""


def called(capsys, main, *arguments) -> str:
    with pytest.raises(SystemExit) as ended:
        cli.run(main, arguments)
    told = capsys.readouterr()
    assert ended.value.code == 0, told.err
    return told.out


def test_a_run_goes_from_eight_devices_to_one_and_back(tmp_path, capsys):
    folder = tmp_path / "run"
    run(folder, stop_at=10)
    before = json.loads(called(capsys, evaluate.main, str(folder)))
    called(capsys, sample.main, str(folder), "--num", "3", "--out", f"{tmp_path}/eight")

    process = Process(tmp_path / "log.txt", 1, "-c", COMMANDS, str(folder))
    assert process.wait() == 0, process.printed
    starts = [json.loads(x) for x in (folder / "starts.jsonl").read_text().splitlines()]
    assert [len(start["devices"]) for start in starts] == [8, 1]
    assert records(folder, "resume")[-1]["step"] == 10
    there = json.loads(process.printed.splitlines()[0])
    assert before["step"] == there["step"] == 10
    assert there["test/loss"] == pytest.approx(before["test/loss"], rel=1e-5)

    drawn = [
        np.load(path)["image"].astype(int)
        for path in (tmp_path / "eight.npz", folder / "samples/00000010-seed-0.npz")
    ]
    assert drawn[0].shape == drawn[1].shape == (3, 8, 8, 1)
    assert np.abs(drawn[0] - drawn[1]).max() <= 1  # a level, where rounding differs

    # One device wrote step 20: eight read it, and it is where eight would have come.
    assert complete_steps(folder / "checkpoints") == [10, 15, 20]
    after = json.loads(called(capsys, evaluate.main, str(folder)))
    final = records(folder, "eval")[-1]
    assert after["test/loss"] == pytest.approx(final["test/loss"], rel=1e-5)
    run(tmp_path / "straight")
    straight, moved = saved(tmp_path / "straight", 20), saved(folder, 20)
    for name, leaf in straight.items():
        assert moved[name] == pytest.approx(leaf, rel=1e-4, abs=1e-6), name
