"""What happens to boxes and masks between a source and a batch."""

import numpy as np
import pytest
from PIL import Image

from research.data.detection import (
    CleanObjects,
    CropObjects,
    FlipObjects,
    Measurable,
    OneOf,
    ResizeObjects,
    ToTargets,
    annotations,
    detr_evaluation,
    detr_training,
    names_of,
    targets_spec,
)
from research.data.scenes import Scenes
from research.detection.masks import boxes_of, paint, resized
from research.errors import UserError

SCENES = Scenes(20, sizes=((48, 64), (64, 48)), fewest=3, panoptic=True)


class Fixed(np.random.Generator):
    """A generator whose draws are given."""

    def __init__(self, *given):
        super().__init__(np.random.PCG64())
        self.given = list(given)

    def random(self):
        return self.given.pop(0)

    def integers(self, *limits):
        low, high = limits if len(limits) == 2 else (0, *limits)
        drawn = self.given.pop(0)
        assert low <= drawn < high
        return drawn


def rng(seed=0):
    return np.random.default_rng(seed)


def clean(index: int) -> dict:
    return CleanObjects()(SCENES[index], rng())


def grid(height: int, width: int) -> np.ndarray:
    """An image whose pixels say where they are."""
    y, x = np.mgrid[:height, :width]
    return np.stack([y, x, 0 * x], axis=-1).astype(np.uint8)


# Cleaning


def test_boxes_are_cut_and_objects_without_area_dropped():
    example = {
        "image": np.zeros((10, 20, 3), np.uint8),
        "image_id": 1,
        "boxes": np.array(
            [
                [-5, 2, 8, 30],
                [25, 1, 30, 4],
                [3, 3, 3, 9],
                [1, 1, 2, 2],
                [0, 0, 20, 10],
            ],
            np.float32,
        ),
        "classes": np.arange(5, dtype=np.int32),
        "crowd": np.array([False, False, False, False, True]),
        "areas": np.ones(5, np.float32),
        "segments": np.arange(200, dtype=np.int32).reshape(10, 20) % 6,
    }
    before = example["boxes"].copy(), example["segments"].copy()
    found = CleanObjects()(example, rng())
    assert found["boxes"].tolist() == [[0, 2, 8, 10], [1, 1, 2, 2]]
    assert found["classes"].tolist() == [0, 3]
    expected = np.array([0, 1, 0, 0, 2, 0])[before[1]]
    np.testing.assert_array_equal(found["segments"], expected)
    assert found["original_size"].tolist() == [10, 20] and "areas" not in found
    np.testing.assert_array_equal(example["boxes"], before[0])
    assert CleanObjects(crowds=True)(example, rng())["classes"].tolist() == [0, 3, 4]


def test_smaller_masks_are_painted_over_larger_ones():
    masks = np.zeros((3, 4, 4), bool)
    masks[0, 1, 1] = masks[1, :3] = masks[2, :2, :2] = True
    assert paint(masks).tolist() == [[3, 3, 2, 2], [3, 1, 2, 2], [2] * 4, [0] * 4]
    assert not paint(np.zeros((0, 2, 2), bool)).any()


# Geometry


@pytest.mark.parametrize(
    "transform",
    [FlipObjects(), ResizeObjects((96, 66)), ResizeObjects((96,), 100)],
    ids=str,
)
def test_boxes_stay_around_their_segments(transform):
    changed = 0
    for index in range(20):
        example = clean(index)
        result = transform(example, rng(index))
        changed += result["image"] is not example["image"]
        assert result["image"].dtype == np.uint8
        found = boxes_of(result["segments"], len(result["boxes"]))
        # To a pixel: segments end at whole ones.
        np.testing.assert_allclose(result["boxes"], found, atol=1.01)
        if isinstance(transform, FlipObjects):
            np.testing.assert_array_equal(result["boxes"], found)
        np.testing.assert_array_equal(result["classes"], example["classes"])
    assert changed > 5


def test_a_mirror_image_mirrors_everything():
    example = clean(1)
    same = FlipObjects()(example, Fixed(0.49))
    assert same is example
    mirrored = FlipObjects()(example, Fixed(0.5))
    np.testing.assert_array_equal(mirrored["image"], example["image"][:, ::-1])
    np.testing.assert_array_equal(mirrored["segments"], example["segments"][:, ::-1])
    again = FlipObjects()(mirrored, Fixed(0.5))
    np.testing.assert_array_equal(again["boxes"], example["boxes"])


@pytest.mark.parametrize(
    ("size", "shorter", "longest", "expected"),
    [
        # From get_size_with_aspect_ratio of facebookresearch/detr.
        ((480, 640), 800, 1333, (800, 1066)),
        ((640, 480), 800, 1333, (1066, 800)),
        ((427, 640), 800, 1333, (800, 1199)),
        ((300, 900), 800, 1333, (444, 1332)),
        ((900, 301), 800, 1333, (1333, 446)),
        ((375, 500), 400, 0, (400, 533)),
        ((800, 1000), 800, 1333, (800, 1000)),
        ((333, 333), 480, 1333, (480, 480)),
    ],
)
def test_sizes_are_those_of_detr(size, shorter, longest, expected):
    assert ResizeObjects((shorter,), longest).measure(size, rng()) == expected


def test_images_are_scaled_as_pillow_does():
    example = clean(0)
    height, width = example["image"].shape[:2]
    result = ResizeObjects((24,))(example, rng())
    wanted = Image.fromarray(example["image"]).resize((width // 2, height // 2), 2)
    np.testing.assert_array_equal(result["image"], np.asarray(wanted))
    np.testing.assert_array_equal(result["boxes"], example["boxes"] / 2)
    assert ResizeObjects((48,))(example, rng()) is example


def test_each_axis_has_a_scale_of_its_own():
    """Sides become whole numbers: 7x10 pixels 3x4, and not 3 by 4.29."""
    example = {
        "image": grid(7, 10),
        "boxes": np.array([[0, 0, 10, 7]], np.float32),
        "classes": np.zeros(1, np.int32),
    }
    result = ResizeObjects((3,))(example, rng())
    assert result["image"].shape == (3, 4, 3)
    np.testing.assert_allclose(result["boxes"], [[0, 0, 4, 3]], rtol=1e-6)


def test_segments_take_the_nearest_pixel():
    """As torch's interpolate(mode="nearest"), which DETR scales masks with."""
    segments = np.arange(12, dtype=np.int32).reshape(3, 4)
    result = resized(segments, 5, 2)
    for y in range(5):
        for x in range(2):
            assert result[y, x] == segments[int(y * 3 / 5), int(x * 4 / 2)]


def test_a_part_of_an_image_has_the_objects_inside():
    example = {
        "image": grid(20, 30),
        "boxes": np.array([[2, 3, 9, 8], [0, 0, 4, 4], [8, 6, 30, 20]], np.float32),
        "classes": np.array([7, 8, 9], np.int32),
        "segments": np.zeros((20, 30), np.int32),
    }
    example["segments"][3:8, 2:9] = 1
    example["segments"][:4, :4] = 2
    example["segments"][10, 12] = 3
    # Height 6, width 7, top 5, left 4.
    result = CropObjects(6, 12)(example, Fixed(6, 7, 5, 4))
    np.testing.assert_array_equal(result["image"], grid(20, 30)[5:11, 4:11])
    assert result["boxes"].tolist() == [[0, 0, 5, 3], [4, 1, 7, 6]]
    assert result["classes"].tolist() == [7, 9]
    expected = np.zeros((6, 7), np.int32)
    expected[:3, :5] = 1
    np.testing.assert_array_equal(result["segments"], expected)


def test_parts_have_all_sizes_and_places_asked():
    crop, sizes, corners = CropObjects(5, 9), set(), set()
    for seed in range(400):
        image = crop(
            {"image": grid(12, 7), "boxes": np.zeros((0, 4), np.float32)}, rng(seed)
        )["image"]
        sizes.add(image.shape[:2])
        corners.add(tuple(image[0, 0, :2].tolist()))
    assert sizes == {(h, w) for h in range(5, 10) for w in range(5, 8)}
    assert {y for y, _ in corners} == set(range(8))
    assert {x for _, x in corners} == {0, 1, 2}
    small = {"image": grid(3, 4), "boxes": np.zeros((0, 4), np.float32)}
    assert crop(small, rng())["image"].shape == (3, 4, 3)


def test_one_row_of_transforms_is_drawn():
    choices = OneOf(((ResizeObjects((10,)),), (FlipObjects(), ResizeObjects((20,)))))
    sizes = [choices.measure((48, 64), rng(seed))[0] for seed in range(40)]
    assert set(sizes) == {10, 20} and 8 < sizes.count(10) < 32


@pytest.mark.parametrize(
    "transforms",
    [detr_training(20, (40, 50, 60), 90), detr_evaluation(20, 60, 70)],
    ids=["training", "evaluation"],
)
def test_sizes_are_known_without_the_image(transforms):
    """As they come out, by the same draws."""
    seen = set()
    for number in range(60):
        example, size = SCENES[number % 20], SCENES[number % 20]["image"].shape[:2]
        mine, theirs = rng(number), rng(number)
        for transform in transforms:
            assert isinstance(transform, Measurable)
            example = transform(example, mine)
            size = transform.measure(size, theirs)
            assert example["image"].shape[:2] == size
        seen.add(size)
        assert max(size) <= 90
        assert mine.bit_generator.state == theirs.bit_generator.state
    assert len(seen) > (20 if len(transforms) > 3 else 1)


def test_detr_trains_at_its_scales():
    *_, choice, targets = detr_training()
    (scale,), (before, crop, after) = choice.choices
    assert (
        scale
        == after
        == ResizeObjects((480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800), 1333)
    )
    assert before == ResizeObjects((400, 500, 600))
    assert (crop.smallest, crop.largest, targets.num_objects) == (384, 600, 100)


# Batches


def test_targets_are_relative_and_padded():
    example = clean(2) | {"caption": "left out"}
    num = len(example["boxes"])
    height, width = example["image"].shape[:2]
    result = ToTargets(num + 2)(example, rng())
    spec = targets_spec((height, width), num + 2, segments=True)
    kinds = {name: (np.shape(v), v.dtype.name) for name, v in result.items()}
    assert kinds == spec
    assert "segments" not in targets_spec((9, 9), 3)
    assert result["present"].tolist() == [1] * num + [0, 0]
    assert not result["boxes"][num:].any() and not result["classes"][num:].any()
    np.testing.assert_array_equal(result["classes"][:num], example["classes"])
    assert result["size"].tolist() == result["original_size"].tolist()
    x, y, w, h = (result["boxes"][:num] * [width, height, width, height]).T
    corners = np.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], axis=1)
    np.testing.assert_allclose(corners, example["boxes"], atol=1e-4)
    assert ToTargets(num)(example, rng())["present"].all()
    with pytest.raises(UserError, match=f"image 2 has {num} objects: .* at most 1;"):
        ToTargets(1)(example, rng())
    with pytest.raises(UserError, match="no original_size: put CleanObjects before"):
        ToTargets(9)(SCENES[0], rng())


def test_sources_without_annotations_are_asked_for_the_example():
    found = annotations([SCENES[3]])(0)
    assert found["size"].tolist() == list(SCENES[3]["image"].shape[:2])
    assert "image" not in found
    assert names_of([SCENES[3]]) == {} and names_of(SCENES) == SCENES.names
