"""Sources on real files: what they read, and what they say of damaged ones."""

import gzip
import hashlib
import io
import json
import os
import pickle
import shutil
import struct

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from research.data.sources import (
    Digits,
    IdxImages,
    ImageFolder,
    Npz,
    Preparable,
    Source,
    Tfds,
)
from research.errors import UserError

# Digits


def test_digits_are_split_without_overlap():
    from sklearn.datasets import load_digits

    train, test = Digits("train"), Digits("test")
    assert (len(train), len(test)) == (1437, 360)
    examples = [source[i] for source in (train, test) for i in range(len(source))]
    assert examples[0]["image"].shape == (8, 8, 1)
    assert examples[0]["image"].dtype == np.uint8
    assert max(example["image"].max() for example in examples) == 16
    ours = sorted((e["image"].tobytes(), int(e["label"])) for e in examples)
    images, labels = load_digits(return_X_y=True)
    theirs = zip(images.astype(np.uint8), labels, strict=True)
    assert ours == sorted((image.tobytes(), int(label)) for image, label in theirs)


def test_the_split_of_the_digits_is_fixed_for_ever():
    train, test = Digits("train"), Digits("test")
    assert [train[i]["label"] for i in range(8)] == [2, 8, 2, 6, 6, 7, 1, 9]
    assert [test[i]["label"] for i in range(8)] == [7, 9, 4, 7, 0, 2, 6, 1]


def test_both_parts_of_the_digits_hold_every_class():
    for split in ("train", "test"):
        source = Digits(split)
        counts = np.bincount([source[i]["label"] for i in range(len(source))])
        assert counts.min() > 0.07 * len(source)


def test_an_unknown_split_is_refused_with_those_there_are():
    for source in (Digits(), IdxImages("")):
        object.__setattr__(source, "split", "val")  # as if no type had been checked
        with pytest.raises(UserError, match="no split 'val': it has train, test"):
            len(source)


def test_a_loaded_source_pickles_as_its_fields():
    source = Digits()
    fresh = pickle.dumps(source)
    source[0]
    assert pickle.dumps(source) == fresh
    assert len(fresh) < 200
    assert pickle.loads(fresh) == source
    assert hash(pickle.loads(fresh)) == hash(source)
    np.testing.assert_array_equal(pickle.loads(fresh)[5]["image"], source[5]["image"])


# IDX


def idx(array: np.ndarray) -> bytes:
    """The bytes of an IDX file, written as its specification reads."""
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + bytes(
        array.ravel().tolist()
    )


IMAGES = np.random.default_rng(0).integers(0, 256, (5, 3, 4), np.uint8)
LABELS = np.array([3, 1, 4, 1, 5], np.uint8)


@pytest.fixture
def idx_folder(tmp_path):
    """A training set of five images, compressed, and a test set of two, plain."""
    files = {"train-images-idx3": IMAGES, "train-labels-idx1": LABELS}
    for name, array in files.items():
        (tmp_path / f"{name}-ubyte.gz").write_bytes(gzip.compress(idx(array), mtime=0))
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(idx(IMAGES[:2]))
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(idx(LABELS[:2]))
    return tmp_path


def test_idx_round_trip(idx_folder):
    for split, number in (("train", 5), ("test", 2)):
        source = IdxImages(str(idx_folder), split)
        assert source.missing() == []
        assert len(source) == number
        for i in range(number):
            example = source[i]
            np.testing.assert_array_equal(example["image"], IMAGES[i][..., None])
            assert (example["label"], example["label"].dtype) == (LABELS[i], np.int32)


def test_idx_files_are_verified_by_their_md5(idx_folder):
    digests = [
        hashlib.md5((idx_folder / f"train-{name}-ubyte.gz").read_bytes()).hexdigest()
        for name in ("images-idx3", "labels-idx1")
    ]
    source = IdxImages(str(idx_folder), md5=(digests[0], digests[1]))
    assert source.prepare() == "published MD5"
    wrong = IdxImages(str(idx_folder), md5=(digests[0], "0" * 32))
    with pytest.raises(
        UserError, match=f"labels-idx1-ubyte.gz has MD5 {digests[1]}, expected 000"
    ):
        wrong.prepare()
    assert IdxImages(str(idx_folder), "test").prepare() == "headers and lengths"


def test_missing_idx_files_are_named(idx_folder):
    path = idx_folder / "train-labels-idx1-ubyte.gz"
    path.unlink()
    source = IdxImages(str(idx_folder))
    assert source.missing() == [str(path)]
    for use in (lambda: source[0], lambda: len(source), source.prepare):
        with pytest.raises(UserError, match=f"no {path}: .*--set data.train.folder="):
            use()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[:-1], "holds 59 values, but its header says 5 x 3 x 4"),
        (lambda data: data + b"0", "holds 61 values, but its header says 5 x 3 x 4"),
        (lambda data: b"\0\0\x0d\3" + data[4:], "starts with 00 00 0d 03, expected"),
        (lambda data: idx(LABELS), "starts with 00 00 08 01, expected 00 00 08 03"),
        (lambda data: data[:9], "starts with 00 00 08 03, expected"),
        (lambda data: b"", "starts with nothing"),
    ],
)
def test_damaged_idx_files_are_told(idx_folder, damage, message):
    path = idx_folder / "train-images-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(damage(idx(IMAGES))))
    with pytest.raises(UserError, match=f"{path} {message}"):
        IdxImages(str(idx_folder))[0]


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-12],  # truncated
        lambda data: b"<html>not found</html>",
        lambda data: data[:20] + bytes(4) + data[24:],
        lambda data: data[:10] + b"\xff" + data[11:],  # no such kind of block
    ],
)
def test_damaged_gzip_files_are_told(idx_folder, damage):
    path = idx_folder / "train-images-idx3-ubyte.gz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=f"{path} cannot be read: .*fetch it again"):
        IdxImages(str(idx_folder))[0]


def test_images_and_labels_of_different_sets_are_refused(idx_folder):
    path = idx_folder / "t10k-labels-idx1-ubyte"
    path.write_bytes(idx(LABELS))
    with pytest.raises(UserError, match="holds 2 images but .* holds 5 labels"):
        IdxImages(str(idx_folder), "test")[0]


# Folders of images


@pytest.fixture
def image_folder(tmp_path):
    """Two bees of one size, an ant of another, and what is no image."""
    for name, size in (("bees/b.png", 6), ("bees/a.JPG", 6), ("ants/c.png", 4)):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (size, 5), (size, 0, 200)).save(path)
    (tmp_path / "bees" / "notes.txt").write_text("none")
    (tmp_path / "LICENSE").write_text("none")
    return tmp_path


def test_image_folder_reads_classes_in_order(image_folder):
    source = ImageFolder(str(image_folder))
    assert source.classes == ("ants", "bees")
    assert len(source) == 3
    assert [int(source[i]["label"]) for i in range(3)] == [0, 1, 1]
    assert source[0]["label"].dtype == np.int32
    expected = np.broadcast_to(np.array([4, 0, 200], np.uint8), (5, 4, 3))
    np.testing.assert_array_equal(source[0]["image"], expected)
    assert source[1]["image"].shape == (5, 6, 3)  # a.JPG comes before b.png
    assert source[1]["image"][0, 0].tolist() != source[2]["image"][0, 0].tolist()
    assert ImageFolder(str(image_folder), mode="L")[0]["image"].shape == (5, 4, 1)
    assert source.prepare() == "2 classes, 3 files"


def test_image_folder_does_not_depend_on_the_order_of_the_disk(tmp_path):
    (tmp_path / "shades").mkdir()
    for shade in (5, 2, 7, 0, 4, 9, 1, 3, 8, 6):
        Image.new("L", (1, 1), shade).save(tmp_path / "shades" / f"{shade}.png")
    source = ImageFolder(str(tmp_path), mode="L")
    assert [int(source[i]["image"].item()) for i in range(10)] == list(range(10))


def test_an_unreadable_image_is_named(image_folder):
    path = image_folder / "bees" / "b.png"
    whole = path.read_bytes()
    for data in (b"no image", whole[:-30], whole[:30] + b"damage" + whole[36:]):
        path.write_bytes(data)
        with pytest.raises(UserError, match=f"{path} cannot be read as an image"):
            ImageFolder(str(image_folder))[2]


def test_an_image_of_another_size_is_told_with_both(image_folder):
    source = ImageFolder(str(image_folder), size=(5, 6))
    assert source[1]["image"].shape == (5, 6, 3)
    message = "c.png is 5 pixels high and 4 wide, expected 5 and 6: resize .* Resize"
    with pytest.raises(UserError, match=message):
        source[0]


def test_empty_and_missing_folders_are_told(image_folder):
    (image_folder / "wasps").mkdir()
    with pytest.raises(UserError, match=f"{image_folder}/wasps holds no images"):
        len(ImageFolder(str(image_folder)))
    with pytest.raises(UserError, match=f"{image_folder}/wasps has no subfolders"):
        len(ImageFolder(str(image_folder / "wasps")))
    absent = ImageFolder(str(image_folder / "none"))
    assert absent.missing() == [str(image_folder / "none")]
    with pytest.raises(UserError, match=f"no {image_folder}/none: .*data.train.folder"):
        absent[0]


def test_home_folders_are_expanded(image_folder, monkeypatch):
    monkeypatch.setenv("HOME", str(image_folder.parent))
    assert len(ImageFolder(f"~/{image_folder.name}")) == 3
    assert Tfds("mnist").missing() == [
        f"{image_folder.parent}/data/twelvefold/tfds/mnist/3.0.1"
    ]


# NumPy files


def test_npz_rows_are_examples(tmp_path):
    path = tmp_path / "data.npz"
    np.savez(path, image=IMAGES, weight=np.arange(5.0))
    source = Npz(str(path))
    assert len(source) == 5
    np.testing.assert_array_equal(source[3]["image"], IMAGES[3])
    assert source[3]["weight"] == 3.0
    assert source.prepare() == "arrays image, weight"


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"a": np.zeros((3, 2)), "b": np.zeros(4)}, r"'a': \(3, 2\), 'b': \(4,\)"),
        ({"a": np.zeros(3), "b": np.zeros(())}, r"'b': \(\).*same number of rows"),
        ({}, r"shapes \{\}: expected at least one"),
        ({"a": np.array([{}, {}], object)}, "cannot be read as a .npz of plain arrays"),
    ],
)
def test_npz_arrays_that_are_no_set_are_refused(tmp_path, arrays, message):
    np.savez(tmp_path / "data.npz", **arrays)
    with pytest.raises(UserError, match=message):
        len(Npz(str(tmp_path / "data.npz")))


def test_damaged_and_missing_npz_files_are_told(tmp_path):
    path = tmp_path / "data.npz"
    source = Npz(str(path))
    assert source.missing() == [str(path)]
    with pytest.raises(UserError, match=f"no {path}: .*--set data.train.path=PATH"):
        source[0]
    np.savez_compressed(path, image=IMAGES)
    whole = path.read_bytes()
    single = io.BytesIO()
    np.save(single, IMAGES)
    damaged = whole[:60] + bytes(8) + whole[68:]
    for data in (b"", b"text", whole[:-10], damaged, single.getvalue()):
        path.write_bytes(data)
        with pytest.raises(UserError, match=f"{path} cannot be read as a .npz"):
            Npz(str(path))[0]


# TensorFlow Datasets, without TensorFlow


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


class TinyThings(tfds.core.GeneratorBasedBuilder):
    """Six images with a class, a caption and boxes; TFDS finds it by name."""

    VERSION = tfds.core.Version("1.2.0")

    def _info(self):
        features = tfds.features.FeaturesDict(
            {
                "image": tfds.features.Image(shape=(3, 4, 3)),
                "label": tfds.features.ClassLabel(num_classes=3),
                "caption": tfds.features.Text(),
                "boxes": tfds.features.Sequence(
                    {"left": tfds.features.Scalar(np.float32)}
                ),
            }
        )
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(6), "test": self._generate_examples(2)}

    def _generate_examples(self, number):
        for i in range(number):
            yield i, self.example(i)

    @staticmethod
    def pixels(i: int) -> np.ndarray:
        return np.random.default_rng(i).integers(0, 256, (3, 4, 3), np.uint8)

    @classmethod
    def example(cls, i: int):
        return {
            "image": png(cls.pixels(i)),
            "label": i % 3,
            "caption": f"é {i}",
            "boxes": [{"left": 0.5 * j} for j in range(i)],
        }


class TinyArrays(TinyThings):
    """The same, whose images TFDS encodes itself, with TensorFlow."""

    @classmethod
    def example(cls, i: int):
        return {**super().example(i), "image": cls.pixels(i)}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Where `tiny_things` is prepared."""
    folder = str(tmp_path_factory.mktemp("tfds"))
    assert Tfds("tiny_things", data_dir=folder).missing() == [
        f"{folder}/tiny_things/1.2.0"
    ]
    assert Tfds("tiny_things", data_dir=folder).prepare() == "first and last record"
    return folder


def test_tfds_reads_back_what_was_prepared(prepared):
    source = Tfds("tiny_things", data_dir=prepared)
    assert source.missing() == []
    assert len(source) == 6
    examples = sorted((source[i] for i in range(6)), key=lambda e: e["caption"])
    for i, example in enumerate(examples):
        np.testing.assert_array_equal(example["image"], TinyThings.pixels(i))
        assert (example["label"].shape, int(example["label"])) == ((), i % 3)
        assert example["caption"] == f"é {i}".encode()
        assert example["boxes"]["left"] == [0.5 * j for j in range(i)]


def test_tfds_splits_can_be_cut(prepared):
    assert len(Tfds("tiny_things", "test", prepared)) == 2
    first = Tfds("tiny_things:1.2.0", "train[:4]", prepared)
    assert len(first) == 4
    whole = Tfds("tiny_things", data_dir=prepared)
    assert first[3]["caption"] == whole[3]["caption"]


def test_mocked_tfds_data_have_the_types_of_real_ones(prepared):
    real = Tfds("tiny_things", data_dir=prepared)[0]
    mocked = Tfds("tiny_things")
    # tfds.testing.mock_data gives arrays for what is an int on disk, and str for bytes.
    vars(mocked)["_records"] = [{"label": np.array(2), "caption": "text", "n": 3}]
    for name, value in mocked[0].items():
        assert type(value) is type(real.get(name, real["label"]))


def test_a_loaded_tfds_source_pickles_as_its_fields(prepared):
    source = Tfds("tiny_things", data_dir=prepared)
    source[0]
    copy = pickle.loads(pickle.dumps(source))
    assert len(pickle.dumps(source)) < 300
    assert copy[1]["caption"] == source[1]["caption"]


def test_an_unknown_tfds_split_is_refused_with_those_there_are(prepared):
    with pytest.raises(UserError, match="has no split 'val': it has test, train"):
        len(Tfds("tiny_things", "val", prepared))


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("mnist", "mnist/3.0.1"),
        ("glue/sst2", "glue/sst2/2.0.0"),  # known once its kind of sets is
        ("never_heard_of:2.0.0", "never_heard_of/2.0.0"),
    ],
)
def test_missing_tfds_data_are_told_and_not_downloaded(tmp_path, name, folder):
    source = Tfds(name, data_dir=str(tmp_path))
    message = (
        f"no {tmp_path}/{folder}: python -m launch.prepare EXPERIMENT .*"
        "--set data.train.data_dir=PATH"
    )
    for use in (lambda: source[0], lambda: len(source)):
        with pytest.raises(UserError, match=message):
            use()
    assert os.listdir(tmp_path) == []


def test_what_tfds_cannot_prepare_is_told(tmp_path):
    message = f"TFDS needs tensorflow to prepare tiny_arrays: .* to {tmp_path}"
    with pytest.raises(UserError, match=message):
        Tfds("tiny_arrays", data_dir=str(tmp_path)).prepare()
    with pytest.raises(UserError, match="could not prepare never_heard_of below"):
        Tfds("never_heard_of", data_dir=str(tmp_path)).prepare()


def test_tfds_data_in_another_format_are_refused(prepared, tmp_path):
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "tiny_things" / "1.2.0" / "dataset_info.json"
    info = json.loads(path.read_text())
    path.write_text(json.dumps({**info, "fileFormat": "tfrecord"}))
    message = f"{path.parent} holds .*expected array_record: move it away and run"
    with pytest.raises(UserError, match=message):
        len(Tfds("tiny_things", data_dir=str(tmp_path)))


# Protocols


def test_what_is_a_source_and_what_can_be_prepared():
    mine = [{"image": np.zeros((2, 2, 1), np.uint8)}]
    assert isinstance(mine, Source) and not isinstance(mine, Preparable)
    assert isinstance(Digits(), Source) and not isinstance(Digits(), Preparable)
    for source in (IdxImages(""), ImageFolder(""), Npz(""), Tfds("")):
        assert isinstance(source, Source) and isinstance(source, Preparable)
