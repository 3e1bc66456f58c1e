"""COCO: objects with boxes and masks, and panoptic maps, from its own files and TFDS.

T.-Y. Lin et al., "Microsoft COCO: Common Objects in Context", 2014, arXiv:1405.0312;
A. Kirillov et al., "Panoptic Segmentation", 2019, arXiv:1801.00868. Other sets in these
formats are read alike.

An example has, for n objects, as the files tell them: crowds, boxes that stick out of
the image and boxes without area included, which `research.data.detection.CleanObjects`
takes out for the training, and which the evaluation needs.

- `image`, uint8 (height, width, 3), and `image_id`, int32;
- `boxes`, float32 (n, 4), (x0, y0, x1, y1) in pixels;
- `classes`, int32 (n,): the file's own category ids, 1 to 90 in COCO;
- `crowd`, bool (n,): whether it is a group of objects under one box;
- `areas`, float32 (n,), in pixels.
"""

import gzip
import itertools
import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Int32, Int64, UInt8

from research.data.detection import counted
from research.data.sources import (
    Example,
    Lazy,
    Preparable,
    Tfds,
    image_size,
    read_image,
    require,
)
from research.detection.masks import decode
from research.errors import UserError

COCO_IDS = tuple(
    i for i in range(1, 91) if i not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)
)
"""The 80 category ids of COCO's objects, by their place in the list of categories."""


class _Picture(NamedTuple):
    """An entry of the JSON's `images`."""

    id: int
    file_name: str
    height: int
    width: int


class _Objects(NamedTuple):
    """The objects of all images, one image's after the other's."""

    ends: Int64[np.ndarray, "images"]
    boxes: Float32[np.ndarray, "objects 4"]
    classes: Int32[np.ndarray, "objects"]
    crowd: Bool[np.ndarray, "objects"]
    areas: Float32[np.ndarray, "objects"]

    def of(self, index: int) -> Example:
        """Those of one image."""
        rows = self.rows(index)
        parts = {name: part[rows] for name, part in self._asdict().items()}
        del parts["ends"]
        return parts

    def rows(self, index: int) -> slice:
        start = int(self.ends[index - 1]) if index else 0
        return slice(start, int(self.ends[index]))


class _Read(NamedTuple):
    """What a JSON file holds, without what no one asked for."""

    pictures: tuple[_Picture, ...]
    names: dict[int, str]
    objects: _Objects
    segmentations: tuple[Any, ...]
    strays: int
    """Annotations of images that the file does not list."""


@dataclass(frozen=True)
class CocoInstances(Lazy):
    """Objects with boxes, from a JSON file such as `instances_train2017.json`.

    With `masks` an example also has `masks`, bool (n, height, width), which may
    overlap. The order is that of the image ids.

    Attributes:
      annotations: the JSON file; where there is none of this name, one that ends in
        `.gz` besides, compressed.
      folder: holds the images under their `file_name`.
      masks: whether polygons and run lengths are made into masks.
      split: of the images only those whose entry has this `split`, for files that hold
        several; "" for all.
    """

    annotations: str
    folder: str
    masks: bool = False
    split: str = ""

    @cached_property
    def _read(self) -> _Read:
        _require(self, "annotations", "folder")
        path = _json(self.annotations)
        data = _read_json(path)
        pictures = _pictures(path, data, self.split)
        names = _names(path, data)
        found: dict[int, list[dict[str, Any]]] = {p.id: [] for p in pictures}
        known = {image["id"] for image in data["images"]}
        strays = 0
        for annotation in _list(path, data, "annotations"):
            image = annotation.get("image_id")
            if image in found:
                found[image].append(annotation)
            strays += image not in known
        objects = [annotation for picture in found.values() for annotation in picture]
        ends = np.cumsum([len(picture) for picture in found.values()], dtype=np.int64)
        segmentations: tuple[Any, ...] = ()
        if self.masks:
            segmentations = tuple(
                _value(path, annotation, "segmentation", (list, dict))
                for annotation in objects
            )
        columns = _columns(path, objects, ends, names)
        return _Read(pictures, names, columns, segmentations, strays)

    @property
    def names(self) -> dict[int, str]:
        """The categories by id."""
        return self._read.names

    def __len__(self) -> int:
        return len(self._read.pictures)

    def annotation(self, index: int) -> Example:
        """All but the image and the masks, and its `size`: int32, height and width."""
        return _annotation(self._read.pictures[index], self._read.objects.of(index))

    def __getitem__(self, index: int) -> Example:
        picture = self._read.pictures[index]
        example = {**_image(self.folder, picture), **self._read.objects.of(index)}
        if self.masks:
            example["masks"] = self._masks(index)
        return example

    def _masks(self, index: int) -> Bool[np.ndarray, "objects height width"]:
        picture = self._read.pictures[index]
        masks = np.zeros((0, picture.height, picture.width), bool)
        found = self._read.segmentations[self._read.objects.rows(index)]
        if not found:
            return masks
        try:
            return np.stack([decode(s, picture.height, picture.width) for s in found])
        except (ValueError, TypeError) as error:
            raise UserError(
                f"{self.annotations}: image {picture.id} has a segmentation that is "
                f"{error}: correct it, or set masks=False"
            ) from error

    def missing(self) -> list[str]:
        """The file and the folder, if they are not there."""
        return _absent(_json(self.annotations), self.folder)

    def prepare(self) -> str:
        """Read the file, find every image, and count the objects."""
        _require_files(Path(self.folder), [p.file_name for p in self._read.pictures])
        told = [counted(self)]
        if self._read.strays:
            told.append(f"{self._read.strays} annotations of images not listed")
        if len(self):
            self[0]
        return "; ".join(told)


@dataclass(frozen=True)
class CocoPanoptic(Lazy):
    """Panoptic maps, from a JSON file such as `panoptic_train2017.json` and its PNGs.

    Objects are countable things and stretches of stuff, such as sky. `segments`, int32
    (height, width), has i + 1 where object i is and 0 where none is; in the PNG that is
    the segment's id, R + 256 G + 65536 B. The order is that of the image ids.

    Attributes:
      annotations: the JSON file; where there is none of this name, one that ends in
        `.gz` besides, compressed.
      folder: holds the images.
      maps: the folder that holds the PNGs.
    """

    annotations: str
    folder: str
    maps: str

    @cached_property
    def _read(self) -> _Read:
        _require(self, "annotations", "folder", "maps")
        path = _json(self.annotations)
        data = _read_json(path)
        names = _names(path, data)
        by_image = {}
        for entry in _list(path, data, "annotations"):
            for name, kind in (("file_name", str), ("segments_info", list)):
                _value(path, entry, name, kind)
            by_image[entry.get("image_id")] = entry
        pictures = tuple(p for p in _pictures(path, data, "") if p.id in by_image)
        entries = [by_image[picture.id] for picture in pictures]
        segments = [segment for e in entries for segment in e["segments_info"]]
        ends = np.cumsum([len(e["segments_info"]) for e in entries], dtype=np.int64)
        columns = _columns(path, segments, ends, names)
        ids = np.array([_value(path, s, "id", int) for s in segments], np.int64)
        strays = len(by_image) - len(pictures)
        maps = [(e["file_name"], ids[columns.rows(i)]) for i, e in enumerate(entries)]
        return _Read(pictures, names, columns, tuple(maps), strays)

    @property
    def names(self) -> dict[int, str]:
        """The categories by id."""
        return self._read.names

    def __len__(self) -> int:
        return len(self._read.pictures)

    def annotation(self, index: int) -> Example:
        """All but the image and the map, and its `size`: int32, height and width."""
        return _annotation(self._read.pictures[index], self._read.objects.of(index))

    def __getitem__(self, index: int) -> Example:
        picture = self._read.pictures[index]
        return {
            **_image(self.folder, picture),
            **self._read.objects.of(index),
            "segments": self._segments(index),
        }

    def _segments(self, index: int) -> Int32[np.ndarray, "height width"]:
        picture = self._read.pictures[index]
        name, ids = self._read.segmentations[index]
        path = Path(self.maps).expanduser() / name
        colors = _sized(path, picture).astype(np.int32)
        pixels = colors @ np.array([1, 256, 65536], np.int32)
        # 0 belongs to no segment.
        order = np.argsort(np.concatenate([[0], ids]))
        ordered = np.concatenate([[0], ids])[order]
        places = np.searchsorted(ordered, pixels).clip(max=len(ids))
        if (ordered[places] != pixels).any():
            unknown = pixels[ordered[places] != pixels][0]
            raise UserError(
                f"{path} has pixels of segment {unknown}, which {self.annotations} "
                "does not list: expected files of one set"
            )
        return order.astype(np.int32)[places]

    def missing(self) -> list[str]:
        """The file and the folders, if they are not there."""
        return _absent(_json(self.annotations), self.folder, self.maps)

    def prepare(self) -> str:
        """Read the file, find every image and map, and count the segments."""
        _require_files(Path(self.folder), [p.file_name for p in self._read.pictures])
        _require_files(Path(self.maps), [name for name, _ in self._read.segmentations])
        told = [counted(self)]
        if self._read.strays:
            told.append(f"{self._read.strays} maps of images not listed")
        if len(self):
            self[0]
        return "; ".join(told)


@dataclass(frozen=True)
class TfdsCoco(Tfds):
    """Objects with boxes from TFDS, whose `coco/2017` has no masks.

    Differs from the JSON file: areas are rounded down to whole pixels, the order is
    TFDS's own, and boxes are kept relative to the image in float32.

    Attributes:
      name: a set with the features of `coco/2017`.
      ids: the category ids of the labels.
    """

    name: str = "coco/2017"
    ids: tuple[int, ...] = COCO_IDS

    @cached_property
    def _undecoded(self) -> Any:
        """The records with the images' files as they are."""
        import tensorflow_datasets as tfds

        # The split's name is checked there.
        assert self._records is not None
        return self._builder().as_data_source(
            self.split, decoders={"image": tfds.decode.SkipDecoding()}
        )

    @cached_property
    def _labels(self) -> list[str]:
        require(self, "data_dir")
        return self._builder().info.features["objects"]["label"].names

    @property
    def names(self) -> dict[int, str]:
        """The categories by id."""
        return dict(zip(self.ids, self._labels, strict=True))

    def __getitem__(self, index: int) -> Example:
        record = super().__getitem__(index)
        image = record["image"]
        return {"image": image, **self._objects(record, *image.shape[:2])}

    def annotation(self, index: int) -> Example:
        """All but the image, and its `size`: int32, height and width."""
        record = self._undecoded[index]
        height, width = image_size(record["image"], f"record {index} of {self.name}")
        size = np.array([height, width], np.int32)
        return {**self._objects(record, height, width), "size": size}

    def _objects(self, record: Mapping[str, Any], height: int, width: int) -> Example:
        objects = record["objects"]
        boxes = np.array(objects["bbox"], np.float32).reshape(-1, 4)
        scale = np.array([width, height, width, height], np.float32)
        labels = np.array(objects["label"], np.int64)
        return {
            "image_id": np.int32(record["image/id"]),
            "boxes": boxes[:, [1, 0, 3, 2]] * scale,
            "classes": np.array(self.ids, np.int32)[labels],
            "crowd": np.array(objects["is_crowd"], bool),
            "areas": np.array(objects["area"], np.float32),
        }

    def prepare(self) -> str:
        """As `Tfds`; then count the objects."""
        return f"{super().prepare()}; {counted(self)}"


# Files


def _json(path: str) -> Path:
    """The file, or the compressed one where there is only that."""
    plain = Path(path).expanduser()
    compressed = plain.with_name(f"{plain.name}.gz")
    return compressed if compressed.exists() and not plain.exists() else plain


def _absent(*paths: str | Path) -> list[str]:
    expanded = [Path(path).expanduser() for path in paths]
    return [str(path) for path in expanded if not path.exists()]


def _require(source: Preparable, *fields: str) -> None:
    for name in fields:
        path = getattr(source, name)
        if _absent(_json(path)):
            require(source, name)


def _require_files(folder: Path, names: list[str]) -> None:
    folder = folder.expanduser()
    absent = [name for name in names if not (folder / name).is_file()]
    if absent:
        raise UserError(
            f"{folder} has no {', '.join(absent[:3])}: {len(absent)} of {len(names)} "
            "files are not there: fetch them, or name another folder"
        )


def _image(folder: str, picture: _Picture) -> Example:
    image = _sized(Path(folder).expanduser() / picture.file_name, picture)
    return {"image": image, "image_id": np.int32(picture.id)}


def _sized(path: Path, picture: _Picture) -> UInt8[np.ndarray, "height width 3"]:
    """The pixels of a file, which has to be as large as its annotations say."""
    image = read_image(path)
    if image.shape[:2] != (picture.height, picture.width):
        raise UserError(
            f"{path} is {image.shape[0]} pixels high and {image.shape[1]} wide, but "
            f"its annotations are of {picture.height} and {picture.width}: fetch the "
            "files of one set, and do not resize them"
        )
    return image


def _annotation(picture: _Picture, objects: Example) -> Example:
    size = np.array([picture.height, picture.width], np.int32)
    return {"image_id": np.int32(picture.id), **objects, "size": size}


# The JSON


def _read_json(path: Path) -> dict[str, Any]:
    try:
        data = path.read_bytes()
        data = json.loads(gzip.decompress(data) if path.suffix == ".gz" else data)
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise UserError(
            f"{path} cannot be read as JSON: {error}: fetch it again"
        ) from error
    if not isinstance(data, dict):
        raise UserError(
            f"{path} holds a list: expected an object with images, annotations and "
            "categories, not detections"
        )
    return data


def _list(path: Path, data: dict[str, Any], name: str) -> list[dict[str, Any]]:
    found = data.get(name)
    if not isinstance(found, list):
        raise UserError(
            f"{path} has no list of {name}: it has {', '.join(data) or 'nothing'}: "
            "expected COCO's format"
        )
    return found


def _value(path: Path, entry: dict[str, Any], name: str, kind: Any) -> Any:
    found = entry.get(name)
    if not isinstance(found, kind):
        kinds = kind if isinstance(kind, tuple) else (kind,)
        expected = " or ".join(k.__name__ for k in kinds)
        which = {n: entry[n] for n in ("id", "image_id", "file_name") if n in entry}
        raise UserError(
            f"{path}: the entry {which or entry} has {name}={found!r:.60}: expected "
            f"{expected}"
        )
    return found


def _pictures(path: Path, data: dict[str, Any], split: str) -> tuple[_Picture, ...]:
    """In the order of their ids, as pycocotools and DETR read them."""
    kinds = {"id": int, "file_name": str, "height": int, "width": int}
    images = _list(path, data, "images")
    if split:
        splits = {str(image.get("split")) for image in images}
        images = [image for image in images if image.get("split") == split]
        if not images:
            raise UserError(
                f"{path} has no images of split {split!r}: it has "
                f"{', '.join(sorted(splits))}"
            )
    pictures = [
        _Picture(*(_value(path, image, name, kind) for name, kind in kinds.items()))
        for image in images
    ]
    pictures.sort(key=lambda picture: picture.id)
    for one, other in itertools.pairwise(pictures):
        if one.id == other.id:
            raise UserError(f"{path} has two images with id {one.id}: expected one")
    return tuple(pictures)


def _names(path: Path, data: dict[str, Any]) -> dict[int, str]:
    return {
        _value(path, category, "id", int): _value(path, category, "name", str)
        for category in _list(path, data, "categories")
    }


def _columns(
    path: Path,
    objects: list[dict[str, Any]],
    ends: Int64[np.ndarray, "images"],
    names: dict[int, str],
) -> _Objects:
    corners = np.zeros((len(objects), 4), np.float64)
    classes = np.zeros(len(objects), np.int32)
    crowd = np.zeros(len(objects), bool)
    areas = np.zeros(len(objects), np.float32)
    for row, entry in enumerate(objects):
        try:
            corners[row] = box = [float(number) for number in entry["bbox"]]
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{path}: annotation {entry.get('id')} of image "
                f"{entry.get('image_id')} has bbox={entry.get('bbox')!r:.60}: expected "
                "[x, y, width, height]"
            ) from error
        kind = entry.get("category_id")
        if kind not in names:
            raise UserError(
                f"{path}: annotation {entry.get('id')} of image "
                f"{entry.get('image_id')} has category {kind!r}, which is none of the "
                f"file's categories: {', '.join(map(str, names)) or 'none'}"
            )
        classes[row] = kind
        crowd[row] = bool(entry.get("iscrowd", 0))
        areas[row] = entry.get("area", box[2] * box[3])
    corners[:, 2:] += corners[:, :2]
    return _Objects(ends, corners.astype(np.float32), classes, crowd, areas)
