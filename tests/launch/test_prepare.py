"""What `launch.prepare` says of data that are there, and of those that are not."""

import dataclasses
import gzip
import struct
import sys
from pathlib import Path

import numpy as np
import pytest

from launch.cli import run
from launch.prepare import Split, main, prepare
from research.data.buckets import BucketedData, length_buckets
from research.data.generated import english
from research.data.loader import Data
from research.data.sequences import Tokenize
from research.data.sources import Digits, IdxImages, ImageFolder, Tfds
from research.data.subwords import SentencePiece, Training
from research.data.transforms import Pad
from research.errors import UserError


def write_idx(path, array: np.ndarray) -> None:
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    path.write_bytes(gzip.compress(header + array.tobytes()))


@pytest.fixture
def fashion(tmp_path):
    """Data of a folder with a training set only."""
    write_idx(tmp_path / "train-images-idx3-ubyte.gz", np.zeros((6, 4, 4), np.uint8))
    write_idx(tmp_path / "train-labels-idx1-ubyte.gz", np.zeros(6, np.uint8))
    folder = str(tmp_path)
    return Data(
        train=IdxImages(folder),
        eval={"test": IdxImages(folder, "test"), "digits": Digits("test")},
        batch_size=2,
        transforms=(Pad(8),),
    )


def test_what_is_ready_is_counted_and_described():
    data = Data(train=Digits(), eval={"test": Digits("test")}, batch_size=2000)
    held = "image uint8 (8, 8, 1), label int32 ()"
    assert prepare(data) == [
        Split("data.train", 1437, held, "", "Digits(split='train')"),
        Split("data.eval.test", 360, held, "", "Digits(split='test')"),
    ]


def test_examples_are_described_after_the_transforms(fashion):
    data = Data(train=fashion.train, transforms=(Pad(8),), batch_size=2)
    (split,) = prepare(data)
    assert split.num_examples == 6
    assert split.verified == "headers and lengths"
    assert split.example == "image uint8 (8, 8, 1), label int32 ()"


def test_every_problem_is_told_at_once(fashion, tmp_path):
    data = Data(
        train=ImageFolder(str(tmp_path / "none")),
        eval={**fashion.eval, "tfds": Tfds("never_heard_of", data_dir=str(tmp_path))},
        batch_size=2,
    )
    with pytest.raises(UserError) as error:
        prepare(data)
    lines = str(error.value).splitlines()
    assert [line.split(":")[0] for line in lines[:3]] == [
        "data.train",
        "data.eval.test",
        "data.eval.tfds",
    ]
    assert f"no {tmp_path}/none: " in lines[0]
    test_files = [
        tmp_path / f"t10k-{n}-ubyte.gz" for n in ("images-idx3", "labels-idx1")
    ]
    assert f"no {test_files[0]} and no {test_files[1]}: " in lines[1]
    assert f"TFDS could not prepare never_heard_of below {tmp_path}" in lines[2]


def test_a_failed_download_is_not_tried_again(monkeypatch, tmp_path):
    tried = []

    def fail(source):
        tried.append(source.split)
        raise UserError("the site is down")

    monkeypatch.setattr(Tfds, "_download", fail)
    folder = str(tmp_path)
    tfds = {part: Tfds("mnist", part, folder) for part in ("test", "train[:9]")}
    data = Data(train=Tfds("mnist", "train", folder), eval=tfds, batch_size=2)
    message = "^data.train, data.eval.test, data.eval.train.:9.: the site is down$"
    with pytest.raises(UserError, match=message):
        prepare(data)
    assert tried == ["train"]
    with pytest.raises(UserError, match=f": no {tmp_path}/mnist/3.0.1: put it there"):
        prepare(data, download=False)
    assert tried == ["train"]


def test_examples_that_make_no_batch_are_found(fashion):
    data = Data(train=fashion.train, transforms=(Pad(3),), batch_size=2)
    with pytest.raises(UserError, match=r"^data.train: Pad\(3\): an image is already"):
        prepare(data)


def test_the_command_shows_what_is_ready_or_fails_with_a_sentence(tmp_path, capsys):
    folder = tmp_path / "fashion"
    folder.mkdir()
    path = (
        Path(__file__).parents[2] / "experiments/score_sde/vp_ddpmpp_fashion_mnist.py"
    )
    splits = ("data.train", "data.eval.train", "data.eval.test")
    command = [str(path), "--no-download", "--with", "batch_size=2"]
    for split in splits:
        command += ["--set", f"{split}.folder={folder}", "--set", f"{split}.md5=None"]

    with pytest.raises(SystemExit) as end:
        run(main, command)
    assert end.value.code == 2
    told = capsys.readouterr().err
    assert told.startswith(
        f"UserError: data.train, data.eval.train: no {folder}/train-"
    )
    assert "Traceback" not in told

    for name, size in (("train", 6), ("t10k", 3)):
        images, labels = np.zeros((size, 28, 28), np.uint8), np.zeros(size, np.uint8)
        write_idx(folder / f"{name}-images-idx3-ubyte.gz", images)
        write_idx(folder / f"{name}-labels-idx1-ubyte.gz", labels)
    with pytest.raises(SystemExit) as end:
        run(main, command)
    assert end.value.code == 0
    table = capsys.readouterr().out
    assert all(text in table for text in (*splits, "headers and", " 6 ", " 3 "))


def test_preparing_starts_no_workers(fashion, monkeypatch):
    monkeypatch.setitem(sys.modules, "grain", None)  # to ask for it warns
    data = Data(train=fashion.train, batch_size=2, num_workers=2)
    assert prepare(data)[0].num_examples == 6


def test_what_transforms_and_buckets_read_is_made_ready_too(tmp_path):
    """A vocabulary is trained before the batch that needs it; one is not there."""
    lines = tuple({"text": english(number)} for number in range(1, 5000, 17))
    model = tmp_path / "a.model"
    tokenize = Tokenize(SentencePiece(str(model), Training(lines, 40)))
    *smaller, largest = length_buckets((16, 64), 512)
    data = BucketedData(
        train=lines,
        transforms=(tokenize,),
        batch_size=largest.batch_size,
        spec=largest.spec,
        smaller=tuple(smaller),
    )
    with pytest.raises(UserError, match=f"data.train: no {model}: put it there"):
        prepare(data, download=False)
    (split,) = prepare(data)
    assert split.verified == "40 pieces, trained from this corpus"
    assert split.num_examples == len(lines) and model.is_file()
    few = dataclasses.replace(data, train=lines[:3])
    with pytest.raises(UserError, match="^data.train: .*trained with other settings"):
        other = Tokenize(SentencePiece(str(model), Training(lines[:3], 40)))
        prepare(dataclasses.replace(few, transforms=(other,)))
    with pytest.raises(UserError, match="^data.train: .* do not make one"):
        prepare(few)
