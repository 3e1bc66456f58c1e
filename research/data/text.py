"""Sources of text: lines, pairs of lines, tables, files.

Their examples hold `str`: `Tokenize`, in `research.data.sequences`, makes ids of it.
What is compressed ends in `.gz`. Files are UTF-8 unless `encoding` says otherwise.
"""

import gzip
import hashlib
import os
import platform
import sysconfig
import zlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np

from research.data.sources import Example, Lazy, known, require
from research.errors import UserError


class _Lines:
    """The lines of a file by number: its bytes, and where each line begins."""

    def __init__(self, path: Path, encoding: str):
        # Only \n ends a line: splitlines() also cuts at U+2028 and others, which occur
        # within lines of parallel corpora and would shift all that follow.
        data = _read(path)
        if data and not data.endswith(b"\n"):
            data += b"\n"
        ends = np.flatnonzero(np.frombuffer(data, np.uint8) == ord("\n"))
        self._starts = np.concatenate([np.zeros(1, np.int64), ends + 1])
        self._data, self._path, self._encoding = data, path, encoding

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __getitem__(self, index: int) -> str:
        start, end = self._starts[index], self._starts[index + 1] - 1
        line = self._data[start:end].removesuffix(b"\r")
        return _decode(line, self._encoding, f"line {index + 1} of {self._path}")

    def blank(self) -> np.ndarray:
        """Which lines have nothing but spaces."""
        pairs = zip(self._starts[:-1], self._starts[1:], strict=True)
        return np.array([self._data[a:b].isspace() for a, b in pairs], bool)


@dataclass(frozen=True)
class ParallelText(Lazy):
    """Pairs of lines of two files: `source` and `target`.

    Multi30k's files are named this way: `train.en.gz`, `val.de.gz`.

    Attributes:
      folder: holds `split.language` for both languages; each may end in `.gz`.
      split: as the files are named.
      languages: of `source` and `target`.
    """

    folder: str
    split: str = "train"
    languages: tuple[str, str] = ("en", "de")

    def _files(self) -> list[Path]:
        folder = Path(self.folder).expanduser()
        return [_or_gz(folder / f"{self.split}.{name}") for name in self.languages]

    @cached_property
    def _sides(self) -> tuple[_Lines, _Lines]:
        require(self, "folder")
        source, target = (_Lines(path, "utf-8") for path in self._files())
        if len(source) != len(target):
            one, other = self._files()
            raise UserError(
                f"{one} has {len(source)} lines but {other} has {len(target)}: "
                "expected files of one corpus, line by line"
            )
        return source, target

    def __len__(self) -> int:
        return len(self._sides[0])

    def __getitem__(self, index: int) -> Example:
        source, target = self._sides
        return {"source": source[index].strip(), "target": target[index].strip()}

    def missing(self) -> list[str]:
        """The files that are there neither plain nor compressed."""
        return [str(path) for path in self._files() if not path.is_file()]

    def prepare(self) -> str:
        """Compare the numbers of lines; decode them all."""
        for index in range(len(self)):
            self[index]
        return "pairs of lines"


@dataclass(frozen=True)
class Lines(Lazy):
    """The lines of a file that are not blank: `text`, without the end of the line.

    Attributes:
      path: of the file, which may end in `.gz`.
      encoding: of its text.
    """

    path: str
    encoding: str = "utf-8"

    @cached_property
    def _lines(self) -> _Lines:
        require(self, "path")
        return _Lines(Path(self.path).expanduser(), self.encoding)

    @cached_property
    def _numbers(self) -> np.ndarray:
        return np.flatnonzero(~self._lines.blank())

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, index: int) -> Example:
        return {"text": self._lines[int(self._numbers[index])]}

    def missing(self) -> list[str]:
        """The file, if it is not there."""
        return _missing_file(self.path)

    def prepare(self) -> str:
        """Decode every line."""
        for index in range(len(self)):
            self[index]
        return "lines"


_TEXT = (".txt", ".txt.gz")


@dataclass(frozen=True)
class TextFile(Lazy):
    """Whole files: `text`, one example a file. `Windows` cuts it for language models.

    Attributes:
      path: a file, which may end in `.gz`, or a folder: then the sorted files in it
        that end in `.txt` or `.txt.gz`.
      between: the part of each file to take, as fractions of its length: (0, 0.9) and
        (0.9, 1) are two that do not overlap.
      encoding: of the text.
      unit: what the length is counted in. Bytes are those of the file, for the
        published parts of enwik8 and text8. Of a character that such a cut goes
        through, each side has its bytes, as Python's surrogateescape writes them:
        `Bytes` gives them back, and others take them for unknown.
    """

    path: str
    between: tuple[float, float] = (0.0, 1.0)
    encoding: str = "utf-8"
    unit: Literal["characters", "bytes"] = "characters"

    def __post_init__(self):
        start, end = self.between
        if not 0 <= start < end <= 1:
            raise UserError(
                f"TextFile.between={self.between}: expected two increasing fractions, "
                "such as (0, 0.9)"
            )

    @cached_property
    def _files(self) -> list[Path]:
        require(self, "path")
        path = Path(self.path).expanduser()
        if path.is_file():
            return [path]
        files = sorted(p for p in path.iterdir() if p.name.endswith(_TEXT))
        if not files:
            raise UserError(f"{path} holds no files that end in {' or '.join(_TEXT)}")
        return files

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Example:
        path = self._files[index]
        data = _read(path)
        if known(self.unit, ("characters", "bytes")) == "bytes":
            start, end = (round(fraction * len(data)) for fraction in self.between)
            # The whole would be refused for what is no text in it.
            _decode(data, self.encoding, str(path))
            return {"text": data[start:end].decode(self.encoding, "surrogateescape")}
        text = _decode(data, self.encoding, str(path))
        start, end = (round(fraction * len(text)) for fraction in self.between)
        return {"text": text[start:end]}

    def missing(self) -> list[str]:
        """The path, if nothing is there."""
        path = Path(self.path).expanduser()
        return [] if path.exists() else [str(path)]

    def prepare(self) -> str:
        """Decode every file."""
        size = sum(len(self[index]["text"]) for index in range(len(self)))
        return f"{size} characters"


_NO_LIBRARY = {"site-packages", "dist-packages", "test", "tests", "idle_test"}


def _held_out(name: str) -> bool:
    return hashlib.sha256(name.encode()).digest()[0] % 10 == 0


@dataclass(frozen=True)
class StandardLibrary(Lazy):
    """The source files of this Python's standard library: `text`, one example a file.

    Real text that is on every machine. One file in ten is held out, chosen by a hash of
    its name. What the files hold depends on the version, which `prepare` tells; tests,
    installed packages and what is no UTF-8 are left out.
    """

    split: Literal["train", "test"] = "train"

    @property
    def _root(self) -> Path:
        return Path(sysconfig.get_paths()["stdlib"])

    @cached_property
    def _files(self) -> list[Path]:
        held_out = known(self.split, ("train", "test")) == "test"
        names = []
        for folder, subfolders, files in os.walk(self._root):
            # In place, so that what is installed there is not even listed.
            subfolders[:] = [name for name in subfolders if name not in _NO_LIBRARY]
            here = Path(folder).relative_to(self._root)
            names += [(here / n).as_posix() for n in files if n.endswith(".py")]
        chosen = [name for name in sorted(names) if _held_out(name) == held_out]
        return [self._root / name for name in chosen if self._is_text(name)]

    def _is_text(self, name: str) -> bool:
        try:
            return bool((self._root / name).read_bytes().decode())
        except UnicodeDecodeError:
            return False

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Example:
        return {"text": self._files[index].read_bytes().decode()}

    def missing(self) -> list[str]:
        """The folder, if this Python keeps its library elsewhere, such as in a zip."""
        return [] if (self._root / "os.py").is_file() else [str(self._root)]

    def prepare(self) -> str:
        """List the files."""
        return f"Python {platform.python_version()}: {len(self)} files"


@dataclass(frozen=True)
class TsvText(Lazy):
    """Lines of tab-separated columns: `text` and `label`, int32.

    For SST-2 of GLUE: `TsvText(path, text="sentence", label="label")`; for ListOps of
    the Long Range Arena: `TsvText(path, text="Source", label="Target")`.

    Attributes:
      path: of the file, which may end in `.gz`.
      text: the column of that name.
      label: another, of whole numbers, or of the names in `classes`.
      columns: names of the columns of a file whose first line does not say them.
      classes: names of the labels 0, 1, 2, ...
      other: the column of a second text, which is called so; "" for none.
    """

    path: str
    text: str
    label: str
    columns: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    other: str = ""

    @cached_property
    def _lines(self) -> _Lines:
        require(self, "path")
        return _Lines(Path(self.path).expanduser(), "utf-8")

    @cached_property
    def _places(self) -> dict[str, int]:
        """Of the columns, by what they become."""
        names = self.columns or tuple(self._lines[0].split("\t"))
        wanted = {"text": self.text, "label": self.label}
        if self.other:
            wanted["other"] = self.other
        for name in wanted.values():
            if name not in names:
                raise UserError(
                    f"{self.path} has no column {name!r}: it has {', '.join(names)}; "
                    "name them with columns, if its first line does not"
                )
        return {part: names.index(name) for part, name in wanted.items()}

    def __len__(self) -> int:
        return len(self._lines) - (not self.columns)

    def __getitem__(self, index: int) -> Example:
        number = index + (not self.columns)
        cells = self._lines[number].split("\t")
        if len(cells) <= max(self._places.values()):
            raise UserError(
                f"line {number + 1} of {self.path} has {len(cells)} columns, expected "
                f"at least {max(self._places.values()) + 1}"
            )
        row: Example = {part: cells[place] for part, place in self._places.items()}
        return {**row, "label": self._number(row["label"], number)}

    def _number(self, label: str, number: int) -> np.int32:
        try:
            return np.int32(
                self.classes.index(label) if self.classes else int(label, 10)
            )
        except ValueError:
            told = f"one of {', '.join(self.classes)}" if self.classes else "a number"
            raise UserError(
                f"line {number + 1} of {self.path} has the label {label!r}, expected "
                f"{told}"
            ) from None

    def missing(self) -> list[str]:
        """The file, if it is not there."""
        return _missing_file(self.path)

    def prepare(self) -> str:
        """Read every line."""
        labels = {int(self[index]["label"]) for index in range(len(self))}
        return f"{len(labels)} labels"


@dataclass(frozen=True)
class TextFolder(Lazy):
    """Text files in one subfolder a class: `text`, and `label`, int32.

    `label` is the position of the subfolder among the sorted names. IMDb and the movie
    reviews of Pang and Lee lie this way; the ten published folds of the latter are
    those of `num_folds=10`.

    Attributes:
      folder: holds `class/name.txt`.
      num_folds: how many equal parts each class's sorted files are cut into.
      folds: which of them to take.
      encoding: of the text.
    """

    folder: str
    num_folds: int = 1
    folds: tuple[int, ...] = (0,)
    encoding: str = "utf-8"

    def __post_init__(self):
        if not self.folds or not set(self.folds) <= set(range(self.num_folds)):
            raise UserError(
                f"TextFolder.folds={self.folds}: expected some of 0 to "
                f"{self.num_folds - 1}, as num_folds={self.num_folds}"
            )

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """Names by label."""
        require(self, "folder")
        root = Path(self.folder).expanduser()
        names = sorted(p.name for p in root.iterdir() if p.is_dir())
        if not names:
            raise UserError(
                f"{root} has no subfolders: expected one a class, each with its texts"
            )
        return tuple(names)

    @cached_property
    def _files(self) -> list[tuple[Path, int]]:
        files = []
        for label, name in enumerate(self.classes):
            folder = Path(self.folder).expanduser() / name
            found = sorted(p for p in folder.iterdir() if p.suffix == ".txt")
            if not found:
                raise UserError(
                    f"{folder} holds no .txt files: put some there, or remove the "
                    "folder if it is not a class"
                )
            for place, path in enumerate(found):
                if place * self.num_folds // len(found) in self.folds:
                    files.append((path, label))
        return files

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Example:
        path, label = self._files[index]
        text = _decode(_read(path), self.encoding, str(path))
        return {"text": text, "label": np.int32(label)}

    def missing(self) -> list[str]:
        """The folder, if it is not there."""
        folder = Path(self.folder).expanduser()
        return [] if folder.is_dir() else [str(folder)]

    def prepare(self) -> str:
        """Decode every file."""
        for index in range(len(self)):
            self[index]
        return f"{len(self.classes)} classes, {len(self)} files"


# Files


def _or_gz(path: Path) -> Path:
    return path if path.is_file() else path.with_name(f"{path.name}.gz")


def _missing_file(path: str) -> list[str]:
    file = Path(path).expanduser()
    return [] if file.is_file() else [str(file)]


def _read(path: Path) -> bytes:
    try:
        data = path.read_bytes()
        return gzip.decompress(data) if path.suffix == ".gz" else data
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} cannot be read: {error}: fetch it again") from error


def _decode(data: bytes, encoding: str, where: str) -> str:
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        raise UserError(
            f"{where} is not {encoding}: {error}: give its encoding, where the source "
            "takes one, or convert the file"
        ) from error
    except LookupError as error:
        raise UserError(f"encoding={encoding!r}: {error}") from error
