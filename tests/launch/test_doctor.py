import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from launch import doctor
from launch.cli import Choice, run
from launch.doctor import examine
from tests.launch import linear

FILE = str(Path(linear.__file__))
DIGITS = "experiments/score_sde/vp_ddpmpp_digits.py"
Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def locks(tmp_path):
    """A tested set that is the installed one."""
    lines = [f"{name}=={doctor._version(name)}\n" for name in doctor.CORE]
    major, minor, *_ = doctor.platform.python_version_tuple()
    path = tmp_path / "locks" / f"py{major}{minor}-cpu.txt"
    path.parent.mkdir()
    path.write_text("".join(lines))
    return path.parent


@pytest.fixture
def elsewhere(tmp_path):
    """An experiment file whose data are not there."""
    text = "from research.data.sources import Npz\n" + Path(FILE).read_text()
    here = 'train=[{"x": np.ones(INPUTS, np.float32)}],'
    assert here in text
    text = text.replace(here, f'train=Npz("{tmp_path}/gone.npz"),')
    path = tmp_path / "elsewhere.py"
    path.write_text(text)
    return str(path)


def by_subject(findings):
    return {finding.subject: finding for finding in findings}


def test_all_is_well(locks, tmp_path):
    findings = examine(Choice(FILE), tmp_path / "runs", locks)
    assert [f for f in findings if not f.ok] == []
    found = by_subject(findings)
    assert "16,384 parameters, batch 16" in found["experiment"].told
    assert found["data.train"].told == "is there"
    assert "jax " in found["packages"].told
    assert "8 x cpu" in found["devices"].told


def test_another_version_than_the_tested(locks, tmp_path):
    (path,) = locks.iterdir()
    text = path.read_text()
    path.write_text(text.replace(f"jax=={doctor._version('jax')}", "jax==0.9.9"))
    found = by_subject(examine(None, tmp_path, locks))["tested set"]
    assert not found.ok
    assert found.told == (
        f"jax {doctor._version('jax')}, tested 0.9.9: pip install -r {path}"
    )


def test_no_lock_is_told_but_no_problem(tmp_path):
    found = by_subject(examine(None, tmp_path, tmp_path))["tested set"]
    assert found.ok
    assert "the repository has those that were tested" in found.told


def test_versions_outside_the_declared_ranges(monkeypatch):
    declared = ["jax>=99", "optax", 'torch>=99; extra == "parity"', "absent-package"]
    monkeypatch.setattr(doctor.importlib.metadata, "requires", lambda _: declared)
    (found,) = doctor._ranges()
    assert not found.ok
    jax = doctor._version("jax")
    told = f"jax {jax} (expected >=99); absent-package absent (expected any)"
    assert found.told == told


def test_missing_data_are_named(elsewhere, locks, tmp_path):
    found = by_subject(examine(Choice(elsewhere), tmp_path, locks))
    assert not found["data.train"].ok
    assert f"{tmp_path}/gone.npz" in found["data.train"].told
    assert "launch.prepare" in found["data.train"].told
    assert found["experiment"].ok


def test_checkpoints_that_do_not_fit_on_the_disk(locks, tmp_path, monkeypatch):
    found = by_subject(examine(Choice(FILE), tmp_path / "runs", locks))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(9, 9, doctor.SPARE + 99))
    less = by_subject(examine(Choice(FILE), tmp_path / "runs", locks))
    assert found["disk"].ok and not less["disk"].ok
    # Without an experiment, so much is enough.
    assert by_subject(examine(None, tmp_path, locks))["disk"].ok


@pytest.mark.parametrize(
    "choice, told",
    [
        (Choice("nowhere.py"), "no experiment file nowhere.py"),
        (Choice(FILE, overrides=("sede=1",)), "did you mean seed"),
        (Choice(FILE, mesh="data=3"), "needs 3 devices"),
    ],
)
def test_what_is_wrong_with_an_experiment(choice, told, locks, tmp_path):
    found = by_subject(examine(choice, tmp_path, locks))["experiment"]
    assert not found.ok
    assert told in found.told


def test_any_exception_is_a_finding(monkeypatch, locks, tmp_path):
    def broken():
        raise OSError("no backend")

    monkeypatch.setattr("jax.devices", broken)
    found = by_subject(examine(None, tmp_path, locks))
    assert found["devices"] == doctor.Finding("devices", "OSError: no backend", False)
    assert found["disk"].ok


def test_a_device_that_jax_does_not_use(monkeypatch):
    monkeypatch.setattr(Path, "exists", lambda path: str(path) == "/dev/nvidia0")
    used, unused = doctor._devices()
    assert used.ok and not unused.ok
    assert unused.told.startswith("/dev/nvidia0 is there, but JAX uses the CPU")


def ask(capsys, *arguments):
    with pytest.raises(SystemExit) as exited:
        run(doctor.main, arguments)
    return exited.value.code, *capsys.readouterr()


def test_command_says_all_is_well(capsys, monkeypatch, locks):
    monkeypatch.setattr(examine, "__defaults__", (Path("runs"), locks))
    code, out, err = ask(capsys, DIGITS)
    assert (code, err) == (0, "")
    assert out.splitlines()[-1] == "no problems"
    assert "748,737 parameters" in out


def test_command_lists_problems_and_exits_1(capsys, elsewhere, monkeypatch, locks):
    monkeypatch.setattr(examine, "__defaults__", (Path("runs"), locks))
    code, out, err = ask(capsys, elsewhere)
    assert (code, err) == (1, "")
    assert out.splitlines()[-1] == "1 problem"
    assert "PROBLEM  data.train" in out


def test_locks_hold_what_decides_the_numbers():
    paths = list(doctor.LOCKS.glob("*-cpu.txt"))
    assert len(paths) == 2
    for path in paths:
        names = {line.partition("==")[0] for line in path.read_text().splitlines()}
        assert names >= set(doctor.CORE), path
