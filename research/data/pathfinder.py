"""Pathfinder: are two dots joined by a dashed path?"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from research.data.sources import Example, Lazy, known, require
from research.errors import UserError

_PARTS = {"train": (0.0, 0.8), "validation": (0.8, 0.9), "test": (0.9, 1.0)}


@dataclass(frozen=True)
class Pathfinder(Lazy):
    """Images of the Pathfinder challenge: `image`, uint8 (side, side, 1), and `label`.

    Linsley et al. 2018, arXiv:1805.08315, as the Long Range Arena released them (Tay et
    al. 2021, arXiv:2011.04006): `folder` holds `metadata/*.npy`, which are text whose
    lines give an image's folder, its name, a number, and the label, and the images.
    Images that are empty files, of which the release has some, are left out.

    Attributes:
      folder: such as `lra_release/pathfinder32/curv_contour_length_14`, the hard ones.
      split: 80, 10 and 10 percent, in the order of the files.
    """

    folder: str
    split: Literal["train", "validation", "test"] = "train"

    @cached_property
    def _examples(self) -> list[tuple[Path, int]]:
        require(self, "folder")
        folder = Path(self.folder).expanduser()
        files = sorted((folder / "metadata").glob("*.npy"), key=_number)
        found = []
        for file in files:
            for number, line in enumerate(file.read_text().splitlines(), start=1):
                cells = line.split()
                if len(cells) < 4 or cells[3] not in ("0", "1"):
                    raise UserError(
                        f"line {number} of {file} is {line!r}: expected an image's "
                        "folder, its name, a number and 0 or 1"
                    )
                image = folder / cells[0] / cells[1]
                if image.stat().st_size:
                    found.append((image, int(cells[3])))
        start, end = _PARTS[known(self.split, _PARTS)]
        return found[round(start * len(found)) : round(end * len(found))]

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> Example:
        path, label = self._examples[index]
        with Image.open(path) as image:
            grey = np.asarray(image.convert("L"))[..., None]
        return {"image": grey, "label": np.int32(label)}

    def missing(self) -> list[str]:
        """The folder of the metadata, if it is not there."""
        path = Path(self.folder).expanduser() / "metadata"
        return [] if path.is_dir() else [str(path)]

    def prepare(self) -> str:
        """Read the metadata, and the first image and the last."""
        for index in {0, len(self) - 1}:
            self[index]
        return "metadata, first and last image"


def _number(path: Path) -> tuple[int, str]:
    return (int(path.stem), "") if path.stem.isdigit() else (-1, path.stem)
