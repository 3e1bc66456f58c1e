"""Pascal VOC: objects with boxes, from a folder of XML files and images.

M. Everingham et al., "The Pascal Visual Object Classes (VOC) Challenge", IJCV 2010.
"""

import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from research.data.detection import counted
from research.data.sources import Example, Lazy, image_size, read_image, require
from research.errors import UserError

VOC_CLASSES = tuple(
    "aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse "
    "motorbike person pottedplant sheep sofa train tvmonitor".split()
)
"""The 20 classes of VOC 2007 and after, in the usual order."""


@dataclass(frozen=True)
class Voc(Lazy):
    """The images that a split's list names, with their objects.

    An example is as in `research.data.detection`, with `areas` of the boxes; `classes`
    are places in `classes`, and `image_id` is the place in the list. Objects marked
    difficult have `crowd`: not to be learnt, and no error to be found or missed.

    Attributes:
      folder: `VOC2012`, say: holds `Annotations/NAME.xml`, `JPEGImages/NAME.jpg` and
        `ImageSets/Main/SPLIT.txt`.
      split: which list.
      classes: names of the objects, in the XML files.
      difficult: whether objects marked difficult are objects like all others.
      one_based: whether boxes count pixels from 1 and include the last, as VOC's do;
        without it they are edges from 0, as other programs that write such files mean
        them.
    """

    folder: str
    split: str = "train"
    classes: tuple[str, ...] = VOC_CLASSES
    difficult: bool = False
    one_based: bool = True

    @property
    def _root(self) -> Path:
        return Path(self.folder).expanduser()

    @property
    def _list(self) -> Path:
        return self._root / "ImageSets" / "Main" / f"{self.split}.txt"

    @cached_property
    def _stems(self) -> tuple[str, ...]:
        require(self, "folder")
        # A class's own list has 1, 0 or -1 after the name.
        lines = self._list.read_text(encoding="utf-8").splitlines()
        stems = tuple(line.split()[0] for line in lines if line.strip())
        if not stems:
            raise UserError(f"{self._list} names no images: expected one a line")
        return stems

    @property
    def names(self) -> dict[int, str]:
        """The classes by number."""
        return dict(enumerate(self.classes))

    def __len__(self) -> int:
        return len(self._stems)

    def __getitem__(self, index: int) -> Example:
        example = self.annotation(index)
        size = tuple(example.pop("size").tolist())
        path = self._image(index)
        image = read_image(path)
        if image.shape[:2] != size:
            raise UserError(
                f"{path} is {image.shape[0]} pixels high and {image.shape[1]} wide, "
                f"but {self._xml(index)} is of {size[0]} and {size[1]}: fetch both "
                "from one set"
            )
        return {"image": image, **example}

    def annotation(self, index: int) -> Example:
        """All but the image, and its `size`: int32, height and width."""
        path = self._xml(index)
        try:
            root = ElementTree.parse(path).getroot()
        except (OSError, ElementTree.ParseError) as error:
            raise UserError(
                f"{path} cannot be read as XML: {error}: fetch it again"
            ) from error
        boxes, classes, crowd = [], [], []
        for thing in root.iter("object"):
            name = thing.findtext("name", "").strip()
            if name not in self.classes:
                raise UserError(
                    f"{path} has an object {name!r}, which is none of the classes: "
                    f"{', '.join(self.classes)}: set classes"
                )
            corners = ("xmin", "ymin", "xmax", "ymax")
            box = [_number(path, thing, f"bndbox/{corner}") for corner in corners]
            boxes.append(box)
            classes.append(self.classes.index(name))
            marked = thing.findtext("difficult", "0").strip() == "1"
            crowd.append(marked and not self.difficult)
        edges = np.array(boxes, np.float32).reshape(-1, 4)
        if self.one_based:
            edges[:, :2] -= 1
        width, height = (
            int(_number(path, root, f"size/{side}", 0.0))
            for side in ("width", "height")
        )
        if not height or not width:
            height, width = image_size(self._image(index))
        return {
            "image_id": np.int32(index),
            "boxes": edges,
            "classes": np.array(classes, np.int32),
            "crowd": np.array(crowd, bool),
            "areas": (edges[:, 2:] - edges[:, :2]).prod(axis=1),
            "size": np.array([height, width], np.int32),
        }

    def _xml(self, index: int) -> Path:
        return self._root / "Annotations" / f"{self._stems[index]}.xml"

    def _image(self, index: int) -> Path:
        return self._root / "JPEGImages" / f"{self._stems[index]}.jpg"

    def missing(self) -> list[str]:
        """The list, and the two folders."""
        folders = [self._root / name for name in ("Annotations", "JPEGImages")]
        return [str(path) for path in (self._list, *folders) if not path.exists()]

    def prepare(self) -> str:
        """Find every image, read every XML file, and count the objects."""
        for index in range(len(self)):
            if not self._image(index).is_file():
                raise UserError(
                    f"no {self._image(index)}, which {self._list} names: put it there, "
                    "or take its name out"
                )
        told = counted(self)
        self[0]
        return told


def _number(
    path: Path, entry: ElementTree.Element, name: str, default: float | None = None
) -> float:
    text = entry.findtext(name)
    if text is None and default is not None:
        return default
    try:
        return float(text or "")
    except ValueError as error:
        raise UserError(
            f"{path} has {name} {text!r} in <{entry.tag}>: expected a number"
        ) from error
