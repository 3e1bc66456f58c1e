"""What a user gets wrong: one clear sentence, exit code 2, nothing overwritten."""

import os
import shutil
import tempfile
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from launch import cli, evaluate, replay, sample, train
from research.errors import UserError
from research.train import builder
from tests.train.runs import content, run


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The workdir of a run with checkpoints 5 and 10."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    run(folder, stop_at=10)
    return folder


@pytest.fixture
def copy(trained, tmp_path):
    """One of one's own, to break."""
    return shutil.copytree(trained, tmp_path / "run")


@pytest.fixture
def refused(capsys, monkeypatch):
    """Calls a command that has to be refused; returns what it says."""
    monkeypatch.setattr("research.train.hardware.measure_matmul", lambda: 1e10)

    def refused(main, *arguments) -> str:
        with pytest.raises(SystemExit) as ended:
            cli.run(main, [str(argument) for argument in arguments])
        told = capsys.readouterr()
        assert ended.value.code == 2, told.err
        assert told.out == "" and "Traceback" not in told.err
        return told.err

    return refused


def one_sentence(told: str) -> str:
    assert told.startswith("UserError: ") and told.count("\n") == 1, told
    return told


@pytest.mark.parametrize(
    "arguments, words",
    [
        (
            ["launch.tinny"],
            "no experiment launch.tinny: No module named 'launch.tinny'",
        ),
        (["nowhere/tiny.py"], "no experiment file nowhere/tiny.py: expected a path"),
        (["launch.tiny:experment"], "defines no function experment()"),
        (
            ["--with", "num_step=5"],
            "no argument 'num_step' in launch.tiny: did you mean",
        ),
        (["--with", "num_steps=many"], "num_steps=many"),
        (["--with", "num_steps"], "--with num_steps: expected NAME=VALUE"),
        (["--set", "optimizer.lerning_rate.peak=1.0"], "did you mean learning_rate?"),
        (["--set", "optimizer.learning_rate.peak=high"], "expected float"),
        (["--set", "num_steps=0"], "num_steps=0: expected at least 1"),
        (["--set", "num_steps=2.5"], "num_steps=2.5: expected int"),
        (["--set", "log_every"], "--set log_every: expected PATH=VALUE"),
        (["--set", "on_nonfinite='ignore'"], "expected 'stop' or 'skip'"),
        (["--set", "num_microbatches=3"], "cannot be cut into num_microbatches=3"),
        (["--set", "data.batch_size=12"], "a batch of 12 cannot be split over 8"),
        (["--set", "trainable='decoder'"], "trainable='decoder' matches no parameter"),
        (["--set", "task.image_shape=(16,16,1)"], "image_shape is (16, 16, 1) but the"),
        (["--set", "evals.test.split='tests'"], "data.eval has test"),
        (["--mesh", "data"], "--mesh data: expected AXIS=NUMBER"),
        (["--mesh", "dota=8"], "unknown mesh axis dota: the axes are data, fsdp"),
        (["--mesh", "data=3"], "needs 3 devices, but there are 8"),
        (["--stop-at", "0"], "stop_at=0: expected a positive number"),
        (["--watchdog-seconds", "-1"], "watchdog_seconds=-1.0: expected a positive"),
        (["--num-processes", "2"], "give --coordinator, --num-processes and"),
        (["--coordinator", "localhost:1"], "give --coordinator, --num-processes and"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_bad_command_line_is_told_in_words(refused, tmp_path, arguments, words):
    if arguments[0].startswith("--"):
        arguments = ["launch.tiny", *arguments]
    told = refused(train.main, *arguments, "--workdir", tmp_path / "run")
    assert words in one_sentence(told)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "main, arguments, words",
    [
        (train.main, ["launch.tiny", "--wokdir", "x"], "--workdir"),
        (train.main, ["launch.tiny", "--stop-at", "ten"], "--stop-at"),
        (train.main, [], "Path of an experiment file"),
        (evaluate.main, ["x", "--stp", "5"], "--step"),
    ],
    ids=["option", "value", "missing", "evaluate"],
)
def test_a_misspelt_option_shows_the_right_one(
    refused, tmp_path, main, arguments, words
):
    assert words in refused(main, *arguments)


def data_of(kind: str, folder: Path) -> str:
    """A source of images that are not as they should be."""
    images = folder / "images"
    if kind == "unreadable":
        (images / "class").mkdir(parents=True)
        for number in range(16):
            (images / "class" / f"{number}.png").write_bytes(b"no picture")
    elif kind == "wrong size":
        (images / "class").mkdir(parents=True)
        for number in range(16):
            picture = Image.fromarray(np.zeros((9, 8), np.uint8))
            picture.save(images / "class" / f"{number}.png")
    elif kind == "empty":
        images.mkdir()
    elif kind == "empty class":
        (images / "class").mkdir(parents=True)
    source = "research.data.sources"
    return {
        "no npz": f'{source}.Npz("{folder}/none.npz")',
        "no idx": f'{source}.IdxImages("{folder}/none")',
        "no tfds": f'{source}.Tfds("mnist",data_dir="{folder}/none")',
    }.get(kind, f'{source}.ImageFolder("{images}",mode="L")')


@pytest.mark.parametrize(
    "kind, words",
    [
        ("no npz", "data.train is not there: no {}/none.npz: "),
        (
            "no idx",
            "data.train is not there: no {}/none/train-images-idx3-ubyte.gz and ",
        ),
        ("no tfds", "data.train is not there: no {}/none/mnist"),
        ("no folder", "data.train is not there: no {}/images: "),
        ("empty", "{}/images has no subfolders: expected one a class"),
        ("empty class", "{}/images/class holds no images: put some there"),
        ("unreadable", ".png cannot be read as an image: "),
        ("wrong size", "'image' of example "),
    ],
)
def test_data_that_cannot_be_used_are_told(refused, tmp_path, kind, words):
    source = data_of(kind, tmp_path)
    workdir = tmp_path / "run"
    command = ["launch.tiny", "--workdir", workdir]
    told = refused(train.main, *command, "--set", f"data.train={source}")
    assert words.format(tmp_path) in one_sentence(told)
    assert not workdir.exists()


@pytest.mark.parametrize("main", [evaluate.main, sample.main], ids=["eval", "sample"])
def test_what_is_no_run_cannot_be_read(refused, tmp_path, main):
    for folder in (tmp_path, tmp_path / "nowhere"):
        told = one_sentence(refused(main, folder))
        assert f"{folder} is not the workdir of a run: expected run.json" in told
    assert content(tmp_path) == {}


@pytest.mark.parametrize(
    "main, arguments, words",
    [
        (evaluate.main, ["--step", "7"], "no checkpoint 7 in {}: there are [5, 10]"),
        (sample.main, ["--step", "7"], "no checkpoint 7 in {}: there are [5, 10]"),
        (evaluate.main, ["--only", "fid"], "no evaluator fid: the experiment has test"),
        (evaluate.main, ["--split", "dev"], "no evaluation split 'dev'"),
        (evaluate.main, ["--set", "task.sampler.steps=1"], "did you mean num_steps?"),
        (evaluate.main, ["--set", "task.network.width=8"], "does not fit this experi"),
        (sample.main, ["--num", "0"], "--num 0 --batch-size 64: both are at least 1"),
        (evaluate.main, ["--mesh", "data=3"], "needs 3 devices, but there are 8"),
    ],
)
def test_a_checkpoint_is_asked_for_in_vain(refused, trained, main, arguments, words):
    before = content(trained)
    told = one_sentence(refused(main, trained, *arguments))
    assert words.format(trained / "checkpoints") in told
    assert content(trained) == before


@pytest.mark.parametrize("main", [evaluate.main, sample.main], ids=["eval", "sample"])
def test_a_damaged_checkpoint_is_not_read_and_others_are_offered(refused, copy, main):
    (victim,) = (copy / "checkpoints" / "10" / "state" / "d").iterdir()
    victim.write_bytes(victim.read_bytes()[:-1])
    told = one_sentence(refused(main, copy))
    name = f"state/d/{victim.name}"
    assert f"is damaged: {name} does not match its digest; choose another" in told
    assert told.endswith("--step: there are [5]\n")


@pytest.mark.parametrize("name", ["run.json", "experiment.py"])
def test_a_workdir_with_a_broken_record_is_told(refused, copy, name):
    (copy / name).write_text("{")
    told = one_sentence(refused(evaluate.main, copy))
    assert str(copy) in told


def test_a_run_of_another_experiment_is_not_overwritten(refused, trained):
    before = content(trained)
    told = refused(train.main, "launch.tiny", "--workdir", trained, "--set", "seed=7")
    assert "-seed = 42\n  +seed = 7\n" in told and "--adopt" in told
    assert content(trained) == before


def test_a_workdir_below_a_file_cannot_be_made(refused, tmp_path):
    (tmp_path / "file").write_text("precious")
    told = refused(train.main, "launch.tiny", "--workdir", tmp_path / "file" / "run")
    assert f"workdir {tmp_path}/file/run cannot be written: " in one_sentence(told)
    assert (tmp_path / "file").read_text() == "precious"


def test_a_read_only_workdir_is_told(refused, trained):
    """As an ordinary user: nothing is read-only to root."""
    root = Path(tempfile.mkdtemp())
    root.chmod(0o755)
    folder = shutil.copytree(trained, root / "run")
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = content(folder)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        told = refused(train.main, "launch.tiny", "--workdir", folder)
        os.seteuid(user)
        assert f"workdir {folder} cannot be written: " in one_sentence(told)
        assert "Permission denied" in told
        assert content(folder) == before
    finally:
        os.seteuid(user)
        for path in [folder, *folder.rglob("*")]:
            path.chmod(0o755)
        shutil.rmtree(root)


def test_a_compilation_cache_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    try:
        with pytest.raises(UserError, match="JAX_COMPILATION_CACHE_DIR"):
            builder.enable_compile_cache(tmp_path / "file" / "cache")
    finally:
        jax.config.update("jax_compilation_cache_dir", before)


def test_replay_of_what_is_no_bundle(refused, trained):
    told = one_sentence(refused(replay.main, trained))
    assert f"{trained} is not a bundle: " in told
