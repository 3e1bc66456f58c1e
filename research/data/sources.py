"""Where examples come from: random access, nothing read before the first one is.

A source is any object with `__len__` and `__getitem__(index) -> {name: value}`, so a
list of dicts is one, and so is a dataset of another library. Those here are frozen
records: equal by their fields, loaded on first access, and pickled as their fields
alone, so that a worker process loads its own copy.

Images are uint8 (height, width, channels) and labels integers.
"""

import gzip
import hashlib
import importlib
import io
import itertools
import zipfile
import zlib
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from research.errors import UserError

Example = dict[str, Any]
"""What an example holds, by name: arrays, numbers, images, text."""

ELSEWHERE = "--set data.train.{field}=PATH, or data.eval.NAME.{field}, points elsewhere"


@runtime_checkable
class Source(Protocol):
    """Examples by index."""

    def __len__(self) -> int:
        """The number of examples."""
        ...

    def __getitem__(self, index: int) -> Example:
        """The example at `0 <= index < len(self)`: the same one at every call."""
        ...


@runtime_checkable
class Preparable(Protocol):
    """A source that lives in files, which may be absent or damaged."""

    def missing(self) -> list[str]:
        """Full paths of what is not there. Quick; reads no data and no network."""
        ...

    def prepare(self) -> str:
        """Download what is missing, where the source can, and verify what is there.

        Returns:
          What was verified, in a few words.

        Raises:
          UserError: something is missing or damaged; it names the path.
        """
        ...


@dataclass(frozen=True)
class Lazy:
    """A record that is pickled as its fields, without what it has loaded."""

    def __getstate__(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in fields(self)}


@dataclass(frozen=True)
class Arrays(Lazy):
    """A source whose examples are the rows of arrays of equal length in memory."""

    def _load(self) -> dict[str, np.ndarray]:
        raise NotImplementedError

    @cached_property
    def _columns(self) -> dict[str, np.ndarray]:
        return self._load()

    def __len__(self) -> int:
        return len(next(iter(self._columns.values())))

    def __getitem__(self, index: int) -> Example:
        return {name: column[index] for name, column in self._columns.items()}


@dataclass(frozen=True)
class Digits(Arrays):
    """The 1797 handwritten digits that scikit-learn carries: 1437 train, 360 test.

    `image` is uint8 (8, 8, 1) with the 17 grey levels 0..16, `label` 0..9. The set has
    no official split, and its order follows the writers: it is shuffled, then cut.

    Source: E. Alpaydin, C. Kaynak, "Optical Recognition of Handwritten Digits", UCI
    Machine Learning Repository, 1998 (its test part).
    """

    split: Literal["train", "test"] = "train"

    def _load(self) -> dict[str, np.ndarray]:
        from sklearn.datasets import load_digits

        parts = {"train": slice(None, 1437), "test": slice(1437, None)}
        part = parts[known(self.split, parts)]
        images, labels = load_digits(return_X_y=True)
        # RandomState's stream is frozen; a Generator's may change with NumPy (NEP 19).
        chosen = np.random.RandomState(0).permutation(len(labels))[part]
        return {
            "image": images[chosen].reshape(-1, 8, 8, 1).astype(np.uint8),
            "label": labels[chosen].astype(np.int32),
        }


FASHION_MNIST_MD5 = {
    "train": ("8d4fb7e6c68d591d4c3dfef9ec88bf0d", "25c81989df183df01b3e8a0aad5dffbe"),
    "test": ("bef4ecab320f06d8554ea6380940ec79", "bb300cfdad3c16e7a12a480ee83cd310"),
}
"""For `IdxImages.md5`, from the README of zalandoresearch/fashion-mnist."""

MNIST_MD5 = {
    "train": ("f68b3c2dcbeaaa9fbdd348bbdeb94873", "d53e105ee54ea40749a09fcbcd1e9432"),
    "test": ("9fb629c4189551a2d022fa330f9573f3", "ec29112dd5afa0611ce80d1b7f02629c"),
}
"""For `IdxImages.md5`, from torchvision/datasets/mnist.py of pytorch/vision."""


@dataclass(frozen=True)
class IdxImages(Arrays):
    """MNIST's original files, or those of a set that took over its names.

    `image` is uint8 (height, width, 1), `label` int32.

    Attributes:
      folder: holds `train-images-idx3-ubyte`, `train-labels-idx1-ubyte` and the two of
        the test set, which start with `t10k`; each may end in `.gz`.
      split: which two of them.
      md5: of the images' and the labels' `.gz` file, if published.
    """

    folder: str
    split: Literal["train", "test"] = "train"
    md5: tuple[str, str] | None = field(
        default=None, repr=False, metadata={"operational": True}
    )

    def _files(self) -> list[Path]:
        """The images' and the labels' file; the `.gz` where there is neither."""
        prefixes = {"train": "train", "test": "t10k"}
        prefix = prefixes[known(self.split, prefixes)]
        folder = Path(self.folder).expanduser()
        plain = [
            folder / f"{prefix}-{name}-ubyte" for name in ("images-idx3", "labels-idx1")
        ]
        return [p if p.exists() else p.with_name(f"{p.name}.gz") for p in plain]

    def _load(self) -> dict[str, np.ndarray]:
        require(self, "folder")
        images_file, labels_file = self._files()
        images = _read_idx(images_file, num_dims=3)
        labels = _read_idx(labels_file, num_dims=1)
        if len(images) != len(labels):
            raise UserError(
                f"{images_file} holds {len(images)} images but {labels_file} holds "
                f"{len(labels)} labels: expected files of one set"
            )
        return {"image": images[..., None], "label": labels.astype(np.int32)}

    def missing(self) -> list[str]:
        """The files that are there neither plain nor compressed."""
        return [str(path) for path in self._files() if not path.exists()]

    def prepare(self) -> str:
        """Read both files and compare the MD5 of the compressed ones, if given."""
        self._load()
        compressed = [path for path in self._files() if path.suffix == ".gz"]
        if self.md5 is None or len(compressed) < 2:
            return "headers and lengths"
        for path, expected in zip(compressed, self.md5, strict=True):
            with path.open("rb") as file:
                found = hashlib.file_digest(file, "md5").hexdigest()
            if found != expected:
                raise UserError(
                    f"{path} has MD5 {found}, expected {expected}: fetch it again"
                )
        return "published MD5"


def _read_idx(path: Path, num_dims: int) -> UInt8[np.ndarray, "..."]:
    """The array of an IDX file of unsigned bytes.

    Four bytes (0, 0, type, number of dimensions), big-endian int32 sizes, the values:
    Y. LeCun, C. Cortes, C. Burges, "The MNIST database", section "File formats".
    """
    try:
        data = path.read_bytes()
        if path.suffix == ".gz":
            data = gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} cannot be read: {error}: fetch it again") from error
    header = 4 + 4 * num_dims
    if data[:4] != bytes([0, 0, 8, num_dims]) or len(data) < header:
        raise UserError(
            f"{path} starts with {data[:4].hex(' ') or 'nothing'}, expected 00 00 08 "
            f"{num_dims:02x}: it is no IDX file of bytes in {num_dims} dimensions"
        )
    shape = np.frombuffer(data, ">i4", num_dims, offset=4)
    values = np.frombuffer(data, np.uint8, offset=header)
    if values.size != np.prod(shape, dtype=np.int64):
        raise UserError(
            f"{path} holds {values.size} values, but its header says "
            f"{' x '.join(map(str, shape))}: fetch it again"
        )
    return values.reshape(shape)


# Pillow raises the last two for damaged PNG and TIFF files.
_UNREADABLE = (OSError, Image.DecompressionBombError, SyntaxError, ValueError)


def read_image(
    path: Path, mode: str = "RGB"
) -> UInt8[np.ndarray, "height width *rest"]:
    """The pixels of a file in any format that Pillow reads, in one of its modes.

    Raises:
      UserError: there is no such file, or it is damaged.
    """
    try:
        with Image.open(path) as file:
            return np.asarray(file.convert(mode))
    except _UNREADABLE as error:
        raise UserError(
            f"{path} cannot be read as an image: {error}: replace or remove it"
        ) from error


def image_size(file: Path | bytes, name: str = "") -> tuple[int, int]:
    """Height and width of an image, from the head of its file or of its bytes.

    Raises:
      UserError: as `read_image`; `name` says which bytes they are.
    """
    try:
        with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file) as head:
            return head.height, head.width
    except _UNREADABLE as error:
        raise UserError(
            f"{name or file} cannot be read as an image: {error}: replace or remove it"
        ) from error


@dataclass(frozen=True)
class ImageFolder(Lazy):
    """Images in one subfolder a class, decoded when they are read.

    `image` is uint8 (height, width, 3), or 1 channel with `mode="L"`; `label` is the
    position of the subfolder among the sorted names.

    Attributes:
      folder: holds `class/name.jpg`, in any format that Pillow reads.
      size: (height, width) that every image must have; None leaves that to transforms.
      mode: "RGB", or "L" for grey.
    """

    folder: str
    size: tuple[int, int] | None = None
    mode: Literal["RGB", "L"] = "RGB"

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """Names by label."""
        require(self, "folder")
        root = Path(self.folder).expanduser()
        names = sorted(p.name for p in root.iterdir() if p.is_dir())
        if not names:
            raise UserError(
                f"{root} has no subfolders: expected one a class, each with its images"
            )
        return tuple(names)

    @cached_property
    def _files(self) -> list[tuple[Path, int]]:
        suffixes = Image.registered_extensions()
        files = []
        for label, name in enumerate(self.classes):
            folder = Path(self.folder).expanduser() / name
            images = sorted(p for p in folder.iterdir() if p.suffix.lower() in suffixes)
            if not images:
                raise UserError(
                    f"{folder} holds no images: put some there, or remove the folder "
                    "if it is not a class"
                )
            files += [(path, label) for path in images]
        return files

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Example:
        path, label = self._files[index]
        image = read_image(path, self.mode)
        if self.size is not None and image.shape[:2] != tuple(self.size):
            raise UserError(
                f"{path} is {image.shape[0]} pixels high and {image.shape[1]} wide, "
                f"expected {self.size[0]} and {self.size[1]}: resize the files, or set "
                "size=None and use the transforms Resize and CenterCrop"
            )
        return {
            "image": image.reshape(*image.shape[:2], -1),
            "label": np.int32(label),
        }

    def missing(self) -> list[str]:
        """The folder, if it is not there."""
        folder = Path(self.folder).expanduser()
        return [] if folder.is_dir() else [str(folder)]

    def prepare(self) -> str:
        """List the images of every class; none is decoded."""
        return f"{len(self.classes)} classes, {len(self)} files"


@dataclass(frozen=True)
class Npz(Arrays):
    """The arrays of a `.npz` file, by name: example i is row i of each.

    Write one with `numpy.savez_compressed(path, image=images, label=labels)`.
    """

    path: str

    def _load(self) -> dict[str, np.ndarray]:
        require(self, "path")
        path = Path(self.path).expanduser()
        try:
            # Pickled arrays could run any code: they are refused, not opened.
            with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                columns = {name: arrays[name] for name in arrays.files}
        except (
            OSError,
            ValueError,
            EOFError,
            TypeError,  # one array, as in a .npy file
            zipfile.BadZipFile,
            zlib.error,
        ) as error:
            raise UserError(
                f"{path} cannot be read as a .npz of plain arrays: {error}"
            ) from error
        shapes = {name: column.shape for name, column in columns.items()}
        lengths = {shape[:1] for shape in shapes.values()}
        if len(lengths) != 1 or () in lengths:
            raise UserError(
                f"{path} holds arrays of shapes {shapes}: expected at least one, all "
                "with the same number of rows"
            )
        return columns

    def missing(self) -> list[str]:
        """The file, if it is not there."""
        path = Path(self.path).expanduser()
        return [] if path.is_file() else [str(path)]

    def prepare(self) -> str:
        """Read every array."""
        return f"arrays {', '.join(self._columns)}"


@dataclass(frozen=True)
class Tfds(Lazy):
    """A split of a TensorFlow Datasets set that was prepared as ArrayRecord files.

    Reading needs no TensorFlow. Preparing it, which only `prepare` does, needs it for
    the sets whose builder encodes images from arrays.

    Numbers and images come as arrays, text as bytes (UTF-8).

    Attributes:
      name: as TFDS spells it: `mnist`, `mnist:3.0.1`, `set/config:1.0.0`.
      split: `train`, or a part such as `train[:90%]`.
      data_dir: the folder that holds `name/version`.
    """

    name: str
    split: str = "train"
    data_dir: str = field(
        default="~/data/twelvefold/tfds", metadata={"operational": True}
    )

    @property
    def _root(self) -> str:
        return str(Path(self.data_dir).expanduser())

    def _builder(self) -> Any:
        """What reads the prepared files, or None where there are none."""
        tfds = _import_tfds()
        try:
            return tfds.core.read_only_builder.builder_from_files(
                self.name, data_dir=self._root
            )
        except tfds.core.DatasetNotFoundError:
            return None

    @cached_property
    def _records(self) -> Sequence[Any]:
        require(self, "data_dir")
        builder = self._builder()
        try:
            return builder.as_data_source(self.split)
        except NotImplementedError as error:
            raise UserError(
                f"{builder.data_dir} holds {builder.info.file_format}, expected "
                "array_record: move it away and run python -m launch.prepare EXPERIMENT"
            ) from error
        except ValueError as error:
            raise UserError(
                f"{builder.data_dir} has no split {self.split!r}: "
                f"it has {', '.join(sorted(builder.info.splits))}"
            ) from error

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Example:
        return _plain(self._records[index])

    def missing(self) -> list[str]:
        """The folder of the version that would be prepared."""
        if self._builder() is not None:
            return []
        try:
            builder = _import_tfds().builder(self.name, data_dir=self._root)
            return [str(builder.data_dir)]
        # Unknown to TFDS, or its code needs TensorFlow: then the version is not known.
        except (ImportError, ValueError):
            return [str(Path(self._root, self.name.replace(":", "/")))]

    def prepare(self) -> str:
        """Download and prepare the set unless it is there; read its two ends."""
        if self.missing():
            self._download()
        for index in {0, len(self) - 1}:
            self[index]
        return "first and last record"

    def _download(self) -> None:
        try:
            _import_tfds().builder(
                self.name, data_dir=self._root, file_format="array_record"
            ).download_and_prepare()
        except ImportError as error:
            # TFDS loses the name when the import fails while it encodes an example.
            raise UserError(
                f"TFDS needs {error.name or 'tensorflow'} to prepare {self.name}: "
                "install it here, or prepare the set elsewhere as array_record and "
                f"copy it to {self._root}"
            ) from error
        # Sites, checksums, disks, files to fetch by hand: each with its own exception.
        except Exception as error:
            raise UserError(
                f"TFDS could not prepare {self.name} below {self._root}: {error}"
            ) from error


TFDS_KINDS = ("image", "image_classification", "object_detection", "text", "translate")


def _import_tfds() -> Any:
    try:
        import tensorflow_datasets
    except ImportError as error:
        raise UserError(
            "this experiment reads TFDS data: pip install tensorflow-datasets"
        ) from error
    # Sets of these kinds are known by name only once their package is imported.
    for kind in TFDS_KINDS:
        importlib.import_module(f"tensorflow_datasets.{kind}")
    return tensorflow_datasets


def _plain(value: Any) -> Any:
    """One type for what TFDS gives as several: int, array and str, bytes."""
    match value:
        case dict():
            return {name: _plain(part) for name, part in value.items()}
        case list():
            return [_plain(part) for part in value]
        case bytes():
            return value
        case str():
            return value.encode()
    return np.asarray(value)


def known(split: str, splits: Collection[str]) -> str:
    """`split`, if it is one of `splits`; else raises UserError with those there are."""
    if split not in splits:
        raise UserError(f"no split {split!r}: it has {', '.join(splits)}")
    return split


def require(source: Preparable, where: str) -> None:
    """Raises UserError if anything is missing; the field `where` says where it is."""
    if missing := source.missing():
        raise UserError(
            f"no {' and no '.join(missing)}: python -m launch.prepare EXPERIMENT says "
            f"what it can download; {ELSEWHERE.format(field=where)}"
        )


def all_missing(things: Iterable[Any]) -> list[str]:
    """What is missing of each of them, for a record that is made of several."""
    paths = [thing.missing() for thing in things if isinstance(thing, Preparable)]
    return list(dict.fromkeys(itertools.chain.from_iterable(paths)))


def prepare_all(things: Iterable[Any]) -> str:
    """What was verified of each of them, in their order; as `Preparable.prepare`."""
    told = [thing.prepare() for thing in things if isinstance(thing, Preparable)]
    return "; ".join(filter(None, dict.fromkeys(told)))
