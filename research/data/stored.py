"""Sequences that are made once: kept in files, and read from there in any order."""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int32

from research.data.sources import (
    Example,
    Lazy,
    Source,
    all_missing,
    prepare_all,
)
from research.errors import UserError

FORMAT = 1
RECORD = "stored.json"


@dataclass(frozen=True)
class Stored(Lazy):
    """The sequences of a source in a folder, for those that take long to make.

    `launch.prepare` makes it; from then on neither the source nor its tokenizer is
    needed, and all processes share what the system holds of the files in memory. Parts
    are whole numbers along one axis, each of 2 bytes where that is enough for all.

    Attributes:
      source: has the sequences: `Packed(...)`, `Windows(...)`, `Transformed(lines,
        (Tokenize(...), AppendEos()))`.
      path: of the folder. Beside the numbers it says what they were made from.
    """

    source: Source
    path: str

    @property
    def _folder(self) -> Path:
        return Path(self.path).expanduser()

    @cached_property
    def _record(self) -> dict[str, Any]:
        if self.missing():
            raise UserError(
                f"no {self._folder}: python -m launch.prepare EXPERIMENT makes it"
            )
        file = self._folder / RECORD
        try:
            record = json.loads(file.read_text())
            told = record["source"], record["digest"], record["format"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{file} cannot be read: {error}: {_ANEW.format(self._folder)}"
            ) from error
        text = _text(self.source)
        if told[1:] != (_digest(text), FORMAT):
            raise UserError(
                f"{self._folder} was made from {told[0]!r:.200}, not from "
                f"{text!r:.200}, or is of another version: "
                f"{_ANEW.format(self._folder)}, or choose another path"
            )
        return record

    @cached_property
    def _parts(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Of each part where its sequences end, and all of their elements."""
        return {
            name: (
                _open(self._folder / f"{name}.ends", "<i8", self._record["num"]),
                _open(self._folder / f"{name}.values", dtype, size),
            )
            for name, (dtype, size) in self._record["parts"].items()
        }

    def __len__(self) -> int:
        return self._record["num"]

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < len(self):
            raise IndexError(index)
        example: Example = {}
        for name, (ends, values) in self._parts.items():
            start = ends[index - 1] if index else 0
            example[name] = values[start : ends[index]].astype(np.int32)
        return example

    def lengths(self, parts: Sequence[str]) -> Int32[np.ndarray, "examples parts"]:
        """How many elements each example has, without reading them."""
        columns = [np.diff(self._parts[name][0], prepend=0) for name in parts]
        return np.stack(columns, axis=1).astype(np.int32)

    def missing(self) -> list[str]:
        """The folder, if it is not there."""
        return [] if self._folder.is_dir() else [str(self._folder)]

    def prepare(self) -> str:
        """Make the folder unless it is there; compare some examples with the source."""
        told = ""
        if self.missing():
            told = prepare_all([self.source])
            _write(self.source, self._folder)
            self.__dict__.pop("_record", None)
        count = f"{len(self)} stored"
        if not all_missing([self.source]):
            self._compare()
        return f"{told}; {count}" if told else count

    def _compare(self) -> None:
        """As a tokenizer may have been trained anew, or a corpus fetched again."""
        if len(self.source) != len(self):
            raise UserError(
                f"{self._folder} holds {len(self)} examples, but {self.source!r:.200} "
                f"has {len(self.source)}: {_ANEW.format(self._folder)}"
            )
        for index in np.unique(np.linspace(0, len(self) - 1, 20).astype(int)).tolist():
            ours, theirs = self[index], self.source[index]
            if any(not np.array_equal(ours[name], theirs[name]) for name in ours):
                raise UserError(
                    f"example {index} in {self._folder} is not that of "
                    f"{self.source!r:.200} any more: {_ANEW.format(self._folder)}"
                )


_ANEW = "remove {} and run python -m launch.prepare EXPERIMENT to make it anew"


def _text(source: Source) -> str:
    """What a source is, for as long as its settings are the same."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(source))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _open(path: Path, dtype: str, size: int) -> np.ndarray:
    found = path.stat().st_size if path.is_file() else 0
    if found != size * np.dtype(dtype).itemsize:
        raise UserError(
            f"{path} has {found} bytes, expected {size * np.dtype(dtype).itemsize}: "
            f"{_ANEW.format(path.parent)}"
        )
    return np.memmap(path, dtype, "r") if size else np.zeros(0, dtype)


class _Column:
    """Appends the sequences of one part to its files."""

    def __init__(self, folder: Path, name: str):
        self._path, self.dtype, self.size = folder / f"{name}.values", "<u2", 0
        self._values = self._path.open("wb")
        self._ends = (folder / f"{name}.ends").open("wb")

    def append(self, values: np.ndarray, where: str) -> None:
        if values.ndim != 1 or values.dtype.kind not in "iu":
            raise UserError(
                f"{where} is {values.dtype} of shape {values.shape}: only whole "
                "numbers along one axis can be stored"
            )
        if self.dtype == "<u2" and values.size:
            if values.min() < 0 or values.max() >= 2**16:
                self._widen()
        self._values.write(values.astype(self.dtype).tobytes())
        self.size += values.size
        self._ends.write(np.array(self.size, "<i8").tobytes())

    def _widen(self) -> None:
        """4 bytes an element from the first one on."""
        self._values.close()
        wide = np.fromfile(self._path, self.dtype).astype("<i4")
        self.dtype, self._values = "<i4", self._path.open("wb")
        self._values.write(wide.tobytes())

    def close(self) -> None:
        self._values.close()
        self._ends.close()


def _write(source: Source, folder: Path) -> None:
    """At once or not at all, whoever else is writing or reading."""
    partial = folder.with_name(f"{folder.name}.{os.getpid()}.partial")
    partial.mkdir(parents=True)
    columns: dict[str, _Column] = {}
    try:
        for index in range(len(source)):
            example = source[index]
            if not index:
                columns = {name: _Column(partial, name) for name in example}
            if example.keys() != columns.keys():
                raise UserError(
                    f"example {index} of {source!r:.200} has {', '.join(example)}, "
                    f"but the first one {', '.join(columns)}: to be stored, all must "
                    "have the same parts"
                )
            for name, values in example.items():
                where = f"{name!r} of example {index} of {source!r:.200}"
                columns[name].append(np.asarray(values), where)
        for column in columns.values():
            column.close()
        text = _text(source)
        record = {
            "format": FORMAT,
            "num": len(source),
            "parts": {name: (c.dtype, c.size) for name, c in columns.items()},
            "source": text[:2000],
            "digest": _digest(text),
        }
        (partial / RECORD).write_text(json.dumps(record, indent=1))
        partial.rename(folder)
    except OSError as error:
        if not folder.is_dir():  # else another process has made it meanwhile
            raise UserError(f"{folder} cannot be made: {error}") from error
    finally:
        for column in columns.values():
            column.close()
        shutil.rmtree(partial, ignore_errors=True)
