"""COCO's files: what is read of them, and what is said of damaged ones."""

import gzip
import io
import json
import pickle

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from research.data.coco import COCO_IDS, CocoInstances, CocoPanoptic, TfdsCoco
from research.data.detection import CleanObjects, annotations
from research.data.sources import Preparable
from research.detection.masks import decode, encode
from research.errors import UserError

HEIGHT, WIDTH = 6, 8


def rectangle(left, top, right, bottom) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[top:bottom, left:right] = True
    return mask


def runs(mask: np.ndarray) -> list[int]:
    """Lengths of zeros, ones, zeros, ... down the columns, counted one by one."""
    counts, value = [0], False
    for pixel in mask.T.ravel():
        if pixel != value:
            counts.append(0)
            value = pixel
        counts[-1] += 1
    return counts


CROWD = rectangle(0, 0, 3, 2) | rectangle(5, 0, 8, 2)
SMALL = rectangle(3, 2, 5, 4)


def instances() -> dict:
    return {
        "images": [
            {"id": i, "file_name": f"{i}.png", "height": HEIGHT, "width": WIDTH}
            for i in (7, 12, 3)
        ],
        "categories": [{"id": 1, "name": "person"}, {"id": 90, "name": "toothbrush"}],
        "annotations": [
            {
                "id": 1,
                "image_id": 7,
                "category_id": 90,
                "bbox": [2, 1, 4, 3],
                "area": 11.5,
                "iscrowd": 0,
                # Two corners enclose nothing, and are not a box.
                "segmentation": [[0, 0, 8, 6], [2, 1, 6, 1, 6, 4, 2, 4]],
            },
            {
                "id": 2,
                "image_id": 12,
                "category_id": 1,
                "bbox": [5.5, 3.0, 4.0, 5.0],
                "area": 7,
                "segmentation": [],
            },
            {
                "id": 3,
                "image_id": 7,
                "category_id": 1,
                "bbox": [0, 0, 8, 2],
                "area": 12,
                "iscrowd": 1,
                "segmentation": {"size": [HEIGHT, WIDTH], "counts": runs(CROWD)},
            },
            {
                "id": 4,
                "image_id": 7,
                "category_id": 1,
                "bbox": [3, 2, 2, 2],
                "area": 4,
                "iscrowd": 0,
                "segmentation": {
                    "size": [HEIGHT, WIDTH],
                    "counts": encode(SMALL)["counts"].decode(),
                },
            },
            {
                "id": 5,
                "image_id": 12,
                "category_id": 1,
                "bbox": [4, 4, 0, 1],
                "area": 0,
                "iscrowd": 0,
                "segmentation": [[4, 4, 4, 5, 4, 4.5]],
            },
        ],
    }


def pixels(number: int) -> np.ndarray:
    rng = np.random.default_rng(number)
    return rng.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)


def write(path, data) -> str:
    text = json.dumps(data).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return str(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("coco")
    for number in (3, 7, 12):
        Image.fromarray(pixels(number)).save(folder / f"{number}.png")
    write(folder / "instances.json", instances())
    return folder


@pytest.fixture
def source(folder):
    return CocoInstances(str(folder / "instances.json"), str(folder), masks=True)


# Instances


def test_objects_are_read_as_the_file_tells_them(source):
    assert isinstance(source, Preparable) and source.missing() == []
    assert source.names == {1: "person", 90: "toothbrush"}
    examples = [source[i] for i in range(len(source))]
    assert [e["image_id"] for e in examples] == [3, 7, 12]
    for example in examples:
        np.testing.assert_array_equal(example["image"], pixels(example["image_id"]))
    empty, first, last = examples
    assert empty["boxes"].shape == (0, 4) and empty["masks"].shape == (0, 6, 8)
    assert first["boxes"].tolist() == [[2, 1, 6, 4], [0, 0, 8, 2], [3, 2, 5, 4]]
    assert first["classes"].tolist() == [90, 1, 1]
    assert first["crowd"].tolist() == [False, True, False]
    assert first["areas"].tolist() == [11.5, 12, 4]
    assert last["boxes"].tolist() == [[5.5, 3, 9.5, 8], [4, 4, 4, 5]]
    kinds = {name: part.dtype.name for name, part in first.items()}
    assert kinds == {
        "image": "uint8",
        "image_id": "int32",
        "boxes": "float32",
        "classes": "int32",
        "crowd": "bool",
        "areas": "float32",
        "masks": "bool",
    }


def test_polygons_and_run_lengths_become_masks(source):
    masks = source[1]["masks"]
    np.testing.assert_array_equal(masks[0], rectangle(2, 1, 6, 4))
    np.testing.assert_array_equal(masks[1], CROWD)
    np.testing.assert_array_equal(masks[2], SMALL)
    assert not source[2]["masks"].any()


def test_masks_survive_encoding():
    rng = np.random.default_rng(0)
    for density in (0.0, 0.5, 1.0):
        mask = rng.random((HEIGHT, WIDTH)) < density
        np.testing.assert_array_equal(decode(encode(mask), HEIGHT, WIDTH), mask)


def test_what_can_be_learnt_is_kept(source):
    clean = CleanObjects()
    rng = np.random.default_rng(0)
    first, last = clean(source[1], rng), clean(source[2], rng)
    assert first["boxes"].tolist() == [[2, 1, 6, 4], [3, 2, 5, 4]]
    assert first["classes"].tolist() == [90, 1]
    assert first["original_size"].tolist() == [HEIGHT, WIDTH]
    expected = np.where(SMALL, 2, rectangle(2, 1, 6, 4))  # the smaller lies above
    np.testing.assert_array_equal(first["segments"], expected)
    assert last["boxes"].tolist() == [[5.5, 3, 8, 6]]
    assert len(CleanObjects(crowds=True)(source[1], rng)["boxes"]) == 3


def test_what_is_wrong_is_counted(source, folder):
    counts = (
        "5 objects: 1 crowds or difficult, 1 without area, 1 beyond the border; "
        "1 images without objects"
    )
    assert source.prepare() == counts
    data = instances()
    data["annotations"].append(data["annotations"][0] | {"image_id": 99})
    write(folder / "stray.json.gz", data)
    stray = CocoInstances(str(folder / "stray.json"), str(folder))
    assert stray.missing() == []
    assert stray.prepare() == f"{counts}; 1 annotations of images not listed"


def test_annotations_need_no_image(source, tmp_path):
    without = CocoInstances(source.annotations, str(tmp_path))
    for index in range(3):
        found, example = annotations(without)(index), source[index]
        assert found.pop("size").tolist() == [HEIGHT, WIDTH]
        assert "masks" not in found
        for name, part in found.items():
            np.testing.assert_array_equal(part, example[name])


def test_areas_that_are_not_told_are_those_of_the_boxes(folder):
    data = instances()
    for annotation in data["annotations"]:
        del annotation["area"]
    write(folder / "bare.json", data)
    source = CocoInstances(str(folder / "bare.json"), str(folder))
    assert source[1]["areas"].tolist() == [12, 16, 4]


def test_a_file_of_several_splits_is_cut(folder, tmp_path):
    data = instances()
    for image, split in zip(data["images"], ("train", "val", "train"), strict=True):
        image["split"] = split
    path = write(tmp_path / "all.json", data)
    train = CocoInstances(path, str(folder), split="train")
    assert [train[i]["image_id"] for i in range(len(train))] == [3, 7]
    assert "not listed" not in train.prepare()
    with pytest.raises(UserError, match="no images of split 'test': it has train, val"):
        len(CocoInstances(path, str(folder), split="test"))


def test_a_loaded_source_pickles_as_its_fields(source):
    source[0]
    assert len(pickle.dumps(source)) < 400
    np.testing.assert_array_equal(
        pickle.loads(pickle.dumps(source))[1]["masks"], source[1]["masks"]
    )


def test_missing_files_are_named(folder, tmp_path):
    source = CocoInstances(str(tmp_path / "none.json"), str(folder))
    assert source.missing() == [str(tmp_path / "none.json")]
    with pytest.raises(
        UserError, match="no .*none.json: .*data.train.annotations=PATH"
    ):
        len(source)
    source = CocoInstances(str(folder / "instances.json"), str(tmp_path / "images"))
    with pytest.raises(UserError, match="no .*images: .*data.train.folder=PATH"):
        source[0]
    source = CocoInstances(str(folder / "instances.json"), str(tmp_path))
    with pytest.raises(UserError, match="has no 3.png, 7.png, 12.png: 3 of 3 files"):
        source.prepare()
    with pytest.raises(UserError, match="3.png cannot be read as an image"):
        source[0]


def damaged(change) -> dict:
    data = instances()
    change(data)
    return data


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "holds a list: expected an object with images"),
        ({"images": []}, "has no list of categories|has no list of annotations"),
        (
            damaged(lambda d: d["images"][0].pop("height")),
            r"'file_name': '7.png'\} has height=None: expected int",
        ),
        (
            damaged(lambda d: d["images"][0].update(id=12)),
            "two images with id 12",
        ),
        (
            damaged(lambda d: d["images"][0].update(id="7")),
            "has id='7': expected int",
        ),
        (
            damaged(lambda d: d["annotations"][0].update(bbox=[1, 2, 3])),
            r"annotation 1 of image 7 has bbox=\[1, 2, 3\]: expected \[x, y, width",
        ),
        (
            damaged(lambda d: d["annotations"][0].update(category_id=91)),
            "annotation 1 of image 7 has category 91, which is none of .*: 1, 90",
        ),
        (
            damaged(lambda d: d["annotations"][2].pop("segmentation")),
            "'id': 3, 'image_id': 7.* has segmentation=None: expected list or dict",
        ),
        (
            damaged(lambda d: d["annotations"][2]["segmentation"].update(size=[8, 6])),
            r"image 7 has a segmentation .* size \[8, 6\], not \[6, 8\]",
        ),
        (
            damaged(lambda d: d["annotations"][2]["segmentation"].update(counts=[9])),
            "image 7 has a segmentation that is run lengths of 9 pixels",
        ),
        (
            damaged(lambda d: d["annotations"][0].update(segmentation=[[0] * 7])),
            "image 7 has a segmentation that is a polygon with an odd number",
        ),
        (
            damaged(lambda d: [i.update(height=5) for i in d["images"]]),
            "is 6 pixels high and 8 wide, but its annotations are of 5 and 8",
        ),
    ],
)
def test_files_that_are_not_coco_are_told(folder, tmp_path, data, message):
    path = write(tmp_path / "bad.json", data)
    source = CocoInstances(path, str(folder), masks=True)
    with pytest.raises(UserError, match=message):
        [source[i] for i in range(len(source))]


def test_files_that_are_no_json_are_told(folder, tmp_path):
    for name, content in (
        ("a.json", b'{"images": ['),
        ("b.json.gz", b"{}"),
        ("c.json.gz", gzip.compress(b"{}")[:-4]),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=f"{name} cannot be read as JSON"):
            len(CocoInstances(str(tmp_path / name), str(folder)))


# Panoptic maps

IDS = (300, 66_000, 5)
SEGMENTS = np.array([[0, 1, 1, 2], [3, 3, 1, 2]], np.int32)


def panoptic() -> dict:
    boxes = ([1, 0, 2, 2], [3, 0, 1, 2], [0, 1, 2, 1])
    return {
        "images": [{"id": 4, "file_name": "4.jpg", "height": 2, "width": 4}],
        "categories": [
            {"id": 17, "name": "cat", "isthing": 1},
            {"id": 187, "name": "sky", "isthing": 0},
        ],
        "annotations": [
            {
                "image_id": 4,
                "file_name": "map4.png",
                "segments_info": [
                    {"id": i, "category_id": c, "iscrowd": w, "bbox": b, "area": a}
                    for i, c, w, b, a in zip(
                        IDS, (17, 187, 17), (0, 0, 1), boxes, (3, 2, 2), strict=True
                    )
                ],
            }
        ],
    }


@pytest.fixture(scope="module")
def panoptic_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("panoptic")
    ids = np.array((0, *IDS))[SEGMENTS]
    colors = np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=-1)
    Image.fromarray(colors.astype(np.uint8)).save(folder / "map4.png")
    Image.new("RGB", (4, 2)).save(folder / "4.jpg")
    write(folder / "panoptic.json", panoptic())
    return folder


def panoptic_source(folder, name="panoptic.json"):
    return CocoPanoptic(str(folder / name), str(folder), str(folder))


def test_panoptic_maps_are_read(panoptic_folder):
    source = panoptic_source(panoptic_folder)
    assert source.missing() == [] and source.names == {17: "cat", 187: "sky"}
    assert source.prepare().startswith(
        "3 objects: 1 crowds or difficult, 0 without area, 0"
    )
    example = source[0]
    np.testing.assert_array_equal(example["segments"], SEGMENTS)
    assert example["segments"].dtype == np.int32
    assert example["classes"].tolist() == [17, 187, 17]
    assert example["boxes"].tolist() == [[1, 0, 3, 2], [3, 0, 4, 2], [0, 1, 2, 2]]
    assert example["areas"].tolist() == [3, 2, 2]
    clean = CleanObjects()(example, np.random.default_rng(0))
    np.testing.assert_array_equal(
        clean["segments"], np.where(SEGMENTS > 2, 0, SEGMENTS)
    )
    kept = CleanObjects(crowds=True)(example, np.random.default_rng(0))
    np.testing.assert_array_equal(kept["segments"], SEGMENTS)
    found = source.annotation(0)
    assert found["size"].tolist() == [2, 4] and "segments" not in found


def test_maps_of_another_set_are_told(panoptic_folder):
    data = panoptic()
    data["annotations"][0]["segments_info"].pop()
    write(panoptic_folder / "less.json", data)
    message = "map4.png has pixels of segment 5, which .*less.json does not list"
    with pytest.raises(UserError, match=message):
        panoptic_source(panoptic_folder, "less.json")[0]
    data["annotations"][0]["file_name"] = "none.png"
    write(panoptic_folder / "none.json", data)
    with pytest.raises(UserError, match="has no none.png: 1 of 1 files"):
        panoptic_source(panoptic_folder, "none.json").prepare()


# TFDS


class TinyCoco(tfds.core.GeneratorBasedBuilder):
    """Three images with the features of `coco/2017`; TFDS finds it by name."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        objects = {
            "id": np.int64,
            "area": np.int64,
            "bbox": tfds.features.BBoxFeature(),
            "label": tfds.features.ClassLabel(names=["person", "bicycle", "cat"]),
            "is_crowd": np.bool_,
        }
        features = {
            "image": tfds.features.Image(encoding_format="png"),
            "image/filename": tfds.features.Text(),
            "image/id": np.int64,
            "objects": tfds.features.Sequence(objects),
        }
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features)
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for number in range(3):
            file = io.BytesIO()
            Image.fromarray(pixels(number)).save(file, "png")
            box = tfds.features.BBox(ymin=0.5, xmin=0.25, ymax=1.0, xmax=0.5)
            thing = {"id": 9, "area": 6, "bbox": box, "label": "cat", "is_crowd": False}
            crowd = thing | {"label": "person", "is_crowd": True}
            yield (
                number,
                {
                    "image": file.getvalue(),
                    "image/filename": f"{number}.png",
                    "image/id": number,
                    "objects": [thing, crowd][:number],
                },
            )


def test_tfds_data_have_the_same_form(source, tmp_path):
    ids = (1, 2, 17)
    read = TfdsCoco("tiny_coco", data_dir=str(tmp_path), ids=ids)
    assert read.missing()
    told = read.prepare()
    assert told.startswith(
        "first and last record; 3 objects: 1 crowds or difficult, 0 with"
    )
    assert told.endswith("; 1 images without objects")
    assert read.names == {1: "person", 2: "bicycle", 17: "cat"}
    examples = sorted((read[i] for i in range(3)), key=lambda e: int(e["image_id"]))
    for number, example in enumerate(examples):
        np.testing.assert_array_equal(example["image"], pixels(number))
        assert example["boxes"].tolist() == [[2, 3, 4, 6]] * number
        assert example["classes"].tolist() == [17, 1][:number]
        assert example["crowd"].tolist() == [False, True][:number]
        assert example["areas"].tolist() == [6.0] * number
        wanted = {n: p.dtype for n, p in source[0].items() if n != "masks"}
        assert {n: p.dtype for n, p in example.items()} == wanted
    for index in range(3):
        found, example = read.annotation(index), read[index]
        assert found.pop("size").tolist() == [HEIGHT, WIDTH]
        assert all(np.array_equal(found[n], example[n]) for n in found)
        assert found.keys() == example.keys() - {"image"}


def test_the_ids_of_coco_are_its_80():
    assert len(COCO_IDS) == 80 and COCO_IDS[:12] == (*range(1, 12), 13)
    assert COCO_IDS[-3:] == (88, 89, 90) and TfdsCoco().name == "coco/2017"
