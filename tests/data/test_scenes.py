"""Scenes: what is told of them, held against their pixels."""

import pickle
import re
import zlib

import numpy as np
import pytest

from research.data.scenes import BACKGROUNDS, COLORS, SHAPES, Scenes
from research.detection.masks import boxes_of
from research.errors import UserError

SCENES = Scenes(60, sizes=((48, 64), (64, 48)), panoptic=True, most=5, seed=3)


@pytest.fixture(scope="module")
def scenes() -> list[dict]:
    return [SCENES[i] for i in range(len(SCENES))]


def same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(
        np.array_equal(one[name], other[name]) for name in one
    )


def test_a_scene_depends_on_seed_and_index_alone(scenes):
    again = pickle.loads(pickle.dumps(SCENES))
    assert again == SCENES and hash(again) == hash(SCENES)
    assert same(again[7], scenes[7]) and not same(again[8], scenes[7])
    assert not same(Scenes(60, SCENES.sizes, seed=4, panoptic=True)[7], scenes[7])
    for beyond in (60, -1):
        with pytest.raises(IndexError):
            SCENES[beyond]


def test_scenes_are_fixed_for_ever():
    # Runs are resumed, and compared, under later versions.
    scene = Scenes(10**12, panoptic=True)[10**11]
    assert scene["caption"] == (
        "a red cross above a red diamond, and a green cross, and an orange diamond, "
        "grass under sky"
    )
    assert zlib.crc32(scene["image"].tobytes()) == 3200169985
    assert zlib.crc32(scene["segments"].tobytes()) == 4106438092


def test_sizes_and_numbers_are_those_asked(scenes):
    assert {scene["image"].shape for scene in scenes} == {(48, 64, 3), (64, 48, 3)}
    counts = {(scene["colors"] >= 0).sum() for scene in scenes}
    assert counts == {1, 2, 3, 4, 5}
    assert [scene["image_id"] for scene in scenes] == list(range(60))
    empty = Scenes(3, fewest=0, most=0)[1]
    assert empty["boxes"].shape == (0, 4) and empty["classes"].shape == (0,)
    assert not empty["segments"].any()
    assert re.fullmatch(r"\w+ under \w+", empty["caption"])


def test_boxes_and_areas_are_those_of_the_segments(scenes):
    for scene in scenes:
        for row, box in enumerate(scene["boxes"]):
            y, x = np.nonzero(scene["segments"] == row + 1)
            assert box.tolist() == [x.min(), y.min(), x.max() + 1, y.max() + 1]
            assert scene["areas"][row] == len(y)
        kinds = {
            n: (v.dtype.name, len(v))
            for n, v in scene.items()
            if v is not None and n in ("boxes", "classes", "colors", "areas", "crowd")
        }
        num = len(scene["boxes"])
        assert kinds == {
            "boxes": ("float32", num),
            "classes": ("int32", num),
            "colors": ("int32", num),
            "areas": ("float32", num),
            "crowd": ("bool", num),
        }


def test_every_pixel_of_a_panoptic_scene_belongs_to_one(scenes):
    for scene in scenes:
        segments, classes = scene["segments"], scene["classes"]
        assert set(np.unique(segments)) == set(range(1, 1 + len(classes)))
        below, above = re.search(r"(\w+) under (\w+)$", scene["caption"]).groups()
        backgrounds = [SCENES.names[c] for c in classes if c >= len(SHAPES)]
        assert backgrounds == [above, below]
        assert ((scene["colors"] < 0) == (classes >= len(SHAPES))).all()
        rows = [np.nonzero(segments == len(classes) - i)[0].mean() for i in (0, 1)]
        assert rows[0] > rows[1]
    seen = {int(c) for scene in scenes for c in scene["classes"]}
    assert seen == set(range(len(SHAPES) + len(BACKGROUNDS))) == set(SCENES.names)


def test_plain_scenes_have_the_objects_alone(scenes):
    plain = Scenes(60, SCENES.sizes, most=5, seed=3)
    assert plain.names == dict(enumerate(SHAPES))
    for index in range(5):
        scene, whole = plain[index], scenes[index]
        num = len(scene["classes"])
        assert num == len(whole["classes"]) - 2
        np.testing.assert_array_equal(scene["image"], whole["image"])
        np.testing.assert_array_equal(
            scene["segments"], np.where(whole["segments"] > num, 0, whole["segments"])
        )


def test_objects_have_their_colors(scenes):
    for scene in scenes:
        for row, color in enumerate(scene["colors"]):
            if color >= 0:
                pixels = scene["image"][scene["segments"] == row + 1].astype(float)
                wanted = np.array([*COLORS.values()][color])
                assert abs(np.median(pixels, axis=0) - wanted).max() < 22


def test_shapes_are_what_their_class_says():
    """Of single ones: how much of the box is filled, and whether its middle is."""
    for shape, share, middle in (
        ("circle", np.pi / 4, True),
        ("ring", 0.7 * np.pi / 4, False),
        ("triangle", None, True),
        ("cross", None, True),
    ):
        source = Scenes(20, ((96, 96),), (shape,), most=1, radii=(0.2, 0.4))
        for scene in map(source.__getitem__, range(20)):
            assert SHAPES[scene["classes"][0]] == shape
            x0, y0, x1, y1 = scene["boxes"][0].astype(int)
            mask = scene["segments"][y0:y1, x0:x1] > 0
            assert share is None or abs(mask.mean() - share) < 0.03
            assert mask[len(mask) // 2, mask.shape[1] // 2] == middle
            if shape == "triangle":  # it points upwards
                assert mask[: len(mask) // 2].sum() < 0.8 * mask[len(mask) // 2 :].sum()


def test_no_object_is_hidden_by_more_than_asked():
    """The same scenes without a limit hide more: theirs have the same draws."""
    crowd = {"sizes": ((64, 64),), "shapes": ("circle",), "fewest": 6, "most": 6}
    least = []
    for share in (0.0, 0.7):
        source = Scenes(40, **crowd, least_seen=share, radii=(0.2, 0.2))
        whole = np.pi * (0.2 * 64) ** 2
        areas = np.concatenate([source[i]["areas"] for i in range(40)])
        least.append(areas.min() / whole)
    assert least[0] < 0.5 and 0.68 < least[1]


def test_captions_tell_the_objects_and_how_two_of_them_stand(scenes):
    told = set()
    for scene in scenes:
        words = re.findall(r"an? (\w+) (\w+)", scene["caption"])
        things = [
            (list(COLORS)[color], SHAPES[kind])
            for color, kind in zip(scene["colors"], scene["classes"], strict=True)
            if color >= 0
        ]
        assert words == things
        relation = re.search(r"left of|right of|above|below", scene["caption"])
        assert (relation is None) == (len(things) == 1)
        if relation:
            centers = scene["boxes"][:2].reshape(2, 2, 2).mean(axis=1)
            right, down = centers[1] - centers[0]
            if abs(abs(right) - abs(down)) > 12:  # what hides them moves boxes a little
                expected = (
                    ("left of", "right of")
                    if abs(right) > abs(down)
                    else ("above", "below")
                )
                negative = (right if abs(right) > abs(down) else down) < 0
                assert relation[0] == expected[int(negative)]
                told.add(relation[0])
    assert told == {"left of", "right of", "above", "below"}
    assert any(" an orange" in scene["caption"] for scene in scenes)


def test_an_annotation_is_all_but_the_image(scenes):
    annotation = SCENES.annotation(5)
    assert annotation.pop("size").tolist() == list(scenes[5]["image"].shape[:2])
    assert same(annotation, {n: v for n, v in scenes[5].items() if n != "image"})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"shapes": ("circle", "star")}, "no shapes star: it has circle, square"),
        ({"fewest": 3, "most": 2}, "of 3 to 2 objects: expected 0 <= fewest <= most"),
        ({"radii": (0.3, 0.2)}, r"radii \(0.3, 0.2\): expected 0 < smallest"),
    ],
)
def test_scenes_that_cannot_be_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        Scenes(1, **settings)


def test_a_segment_without_pixels_has_no_box():
    segments = np.array([[0, 3], [0, 3]], np.int32)
    assert boxes_of(segments, 3).tolist() == [[0] * 4, [0] * 4, [1, 0, 2, 2]]
