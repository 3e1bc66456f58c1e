import dataclasses
import math
from pathlib import Path

import pytest

from launch import prove
from launch.cli import run
from research.errors import UserError
from research.experiment import Required
from tests.launch import linear

FILE = """
import dataclasses
from research.evals.loss import HeldOutLoss
from research.experiment import Required
from tests.launch import linear

def experiment(num_steps: int = 3):
    base = linear.experiment()
    data = dataclasses.replace(base.data, eval={"test": base.data.train})
    return dataclasses.replace(
        base,
        data=data,
        num_steps=num_steps,
        evals={"test": HeldOutLoss(batch_size=16)},
        required=(Required("test/loss", below=%s), Required("test/loss", above=0.0)),
    )
"""


@pytest.mark.parametrize(
    "required, text, inside, outside",
    [
        (Required("x", below=2.0), "< 2", 1.0, 2.0),
        (Required("x", above=0.5), "> 0.5", 1.0, 0.5),
        (Required("x", below=2.0, above=0.5), "> 0.5 and < 2", 1.0, 3.0),
    ],
    ids=str,
)
def test_bounds(required, text, inside, outside):
    assert str(required) == text
    assert required.met(inside)
    assert not required.met(outside) and not required.met(math.nan)


def test_a_number_that_is_not_there_is_not_met():
    experiment = dataclasses.replace(
        linear.experiment(), required=(Required("a/b", below=1.0),)
    )
    assert not prove.judge(experiment, {"a/c": 0.0})[0].met
    (finding,) = prove.judge(experiment, {"a/b": 0.0})
    assert finding.met


def test_other_numbers_are_shown_and_never_fail():
    experiment = dataclasses.replace(
        linear.experiment(), required=(Required("a/b", below=1.0),)
    )
    values = {"a/control": math.inf, "a/b": 0.0, "a/nfe": 9.0}
    stated, *others = prove.judge(experiment, values)
    assert stated.stated and stated.measured == 0.0
    assert [(o.required.metric, o.measured) for o in others] == [
        ("a/control", math.inf),
        ("a/nfe", 9.0),
    ]
    assert all(other.met and not other.stated for other in others)


@pytest.mark.parametrize("bound, code, word", [("1e9", 0, "met"), ("1e-9", 1, "NOT")])
def test_command_trains_evaluates_and_judges(tmp_path, capfd, bound, code, word):
    (tmp_path / "file.py").write_text(FILE % bound)
    with pytest.raises(SystemExit) as exited:
        run(prove.main, [str(tmp_path), "--workdir", str(tmp_path / "runs")])
    out = capfd.readouterr().out
    assert exited.value.code == code
    assert word in out and "test/loss" in out and f"{float(bound):g}" in out
    assert (tmp_path / "runs" / "linear" / "checkpoints" / "3").is_dir()


def test_what_cannot_be_proved_is_told(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        prove.proofs(tmp_path / "absent")
    with pytest.raises(UserError, match="nothing in"):
        prove.proofs(tmp_path)
    path = tmp_path / "file.py"
    path.write_text(FILE.replace('"test/loss", above', '"tset/loss", above') % "1.0")
    with pytest.raises(UserError, match="requires tset/loss.*it has test"):
        prove.proofs(path)


def test_a_family_is_its_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    family = tmp_path / "experiments" / "lines"
    family.mkdir(parents=True)
    (family / "file.py").write_text(FILE % "1.0")
    (found,) = prove.proofs(Path("lines"))
    assert found == Path("experiments/lines/file.py")
    with pytest.raises(UserError, match="expected a family \\(lines\\)"):
        prove.proofs(Path("line"))


def test_an_argument_goes_to_those_that_take_it(tmp_path, capfd):
    (tmp_path / "one.py").write_text(FILE % "1e9")
    takes_another = FILE.replace("num_steps: int = 3", "other: int = 3")
    takes_another = takes_another.replace("num_steps=num_steps", "num_steps=other")
    takes_another = takes_another.replace("base,\n        data", "base, name='b', data")
    (tmp_path / "two.py").write_text(takes_another % "1e9")
    command = [str(tmp_path), "--workdir", str(tmp_path / "runs"), "--with"]
    with pytest.raises(SystemExit) as exited:
        run(prove.main, [*command, "num_steps=2"])
    assert exited.value.code == 0
    assert (tmp_path / "runs" / "linear" / "checkpoints" / "2").is_dir()
    assert (tmp_path / "runs" / "b" / "checkpoints" / "3").is_dir()
    capfd.readouterr()
    with pytest.raises(SystemExit) as exited:
        run(prove.main, [*command, "steps=2"])
    assert exited.value.code == 2
    assert "none of these experiments takes" in capfd.readouterr().err
