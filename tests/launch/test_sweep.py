import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from launch import cli
from launch import sweep as command
from launch.sweep import Curve, settings_of
from research.errors import UserError

FILE = """
from launch.tiny import experiment as tiny
from research.experiment import Experiment


def experiment(num_steps: int = 20, seed: int = 1) -> Experiment:
    return tiny(num_steps)
"""


@pytest.fixture
def folder(tmp_path):
    """Two experiments that take the same arguments."""
    for name in ("apple", "pear"):
        (tmp_path / "fruit").mkdir(exist_ok=True)
        (tmp_path / "fruit" / f"{name}.py").write_text(FILE)
    return tmp_path / "fruit"


@pytest.fixture
def launched(monkeypatch):
    """What would be launched; each run is finished at once, but for pears of 30."""
    commands = []

    def instead(asked, **options):
        commands.append(asked)
        workdir = Path(asked[asked.index("--workdir") + 1])
        workdir.mkdir(parents=True)
        steps = int(workdir.name.split("num_steps=")[1].split(",")[0])
        failed = "pear" in workdir.name and steps == 30
        records = [
            {"kind": "train", "step": step, "loss": 2.0 / (1 + step)}
            for step in range(10, 11 if failed else steps + 1, 10)
        ]
        if failed:
            (workdir / "nonfinite").mkdir()
        else:
            records.append({"kind": "eval", "step": 10, "test/loss": 9.0})
            final = {"kind": "eval", "step": steps, "test/loss": 0.5 + steps}
            records.append(final)
        lines = "".join(json.dumps(record) + "\n" for record in records)
        (workdir / "metrics.jsonl").write_text(lines)
        return subprocess.CompletedProcess(asked, 3 if failed else 0)

    monkeypatch.setattr(command.subprocess, "run", instead)
    return commands


@pytest.fixture
def ask(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)

    def ask(*arguments):
        with pytest.raises(SystemExit) as ended:
            cli.run(command.main, [str(argument) for argument in arguments])
        told = capsys.readouterr()
        return ended.value.code, told.out, told.err

    return ask


def test_every_file_is_trained_at_every_value_once(ask, launched, folder, tmp_path):
    over = ["--over", "num_steps=20,30", "--over", "seed=4,5", "--workdir", "runs"]
    code, out, err = ask(folder, *over)
    assert code == 0, err
    names = [Path(c[c.index("--workdir") + 1]).name for c in launched]
    assert names == [
        "apple-num_steps=20,seed=4",
        "pear-num_steps=20,seed=4",
        "apple-num_steps=30,seed=5",
        "pear-num_steps=30,seed=5",
    ]
    assert launched[0][:4] == [
        sys.executable,
        *("-m", "launch.train", str(folder / "apple.py")),
    ]
    assert launched[3][-4:] == ["--with", "num_steps=30", "--with", "seed=5"]
    lines = [line.split() for line in out.splitlines()]
    apple, pear = (line for line in lines if line and line[0] in ("apple", "pear"))
    assert apple == ["apple", "20.5", "30.5"]
    assert pear == ["pear", "20.5", *"not finite after 10".split()]
    with Image.open(tmp_path / "runs" / "curves.png") as picture:
        assert picture.width > picture.height > 100

    code, again, _ = ask(folder, *over)
    assert code == 0 and again == out
    assert len(launched) == 4  # what is done is only read


def test_other_arguments_go_along(ask, launched, folder):
    given = ["--over", "num_steps=20", "--with", "seed=3", "--metric", "test/none"]
    code, out, err = ask(folder / "apple.py", *given)
    assert code == 0, err
    assert launched[0][-4:] == ["--with", "num_steps=20", "--with", "seed=3"]
    assert "nan" in out


def test_a_run_that_breaks_off_is_told(ask, folder, monkeypatch):
    broken = subprocess.CompletedProcess([], 75)
    monkeypatch.setattr(command.subprocess, "run", lambda *_, **__: broken)
    code, _, err = ask(folder, "--over", "num_steps=20")
    assert code == 2 and "ended with exit code 75" in err


def test_large_numbers_are_short():
    assert Curve("a", "b", final={"loss": 2.718e9}).told("loss") == "3e+09"
    assert Curve("a", "b", final={"loss": 1.87654}).told("loss") == "1.877"


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["fruit"], "--over is missing: expected one or more lists"),
        (["fruit", "--over", "num_steps"], "--over num_steps: expected NAME=VALUE"),
        (
            ["fruit", "--over", "num_steps=1,2", "--over", "seed=1"],
            "all of the same length",
        ),
        (["fruit", "--over", "steps=1"], "apple.py has no argument steps: it has"),
        (["nowhere", "--over", "steps=1"], "nowhere does not exist"),
        (["empty", "--over", "steps=1"], "no experiment files in empty"),
        (
            ["fruit", "--over", "num_steps=1", "--with", "seed"],
            "--with seed: expected NAME=VALUE",
        ),
        (
            ["fruit", "--over", "num_steps=many"],
            "num_steps=many: there is no many; expected int",
        ),
    ],
)
def test_bad_input_is_told_in_words(ask, launched, folder, arguments, words):
    (folder.parent / "empty").mkdir()
    code, out, err = ask(*arguments)
    assert code == 2 and out == "" and not launched
    assert err.startswith("UserError: ") and err.count("\n") == 1
    assert words in err


def test_lists_go_hand_in_hand():
    assert settings_of(["a=1,2", "b=3,4"]) == [("a=1", "b=3"), ("a=2", "b=4")]
    with pytest.raises(UserError):
        settings_of([])
