"""Random changes to images: operations by their formulas, draws by frequencies."""

import itertools
import math
import pickle
from collections import Counter
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from research.data import augment
from research.data.augment import (
    IMAGENET_GREY,
    INCREASING,
    ORIGINAL,
    ColorJitter,
    RandAugment,
    RandomCrop,
    RandomErasing,
    RandomResizedCrop,
    Stretch,
    imagenet,
)
from research.errors import UserError

NOISE = np.random.default_rng(0).integers(0, 256, (9, 14, 3), np.uint8)
DARK = NOISE // 2 + 20
PIXELS = np.float64(NOISE)


def generator(sign):
    """One by which operations go the one way or the other."""
    seed = {1: 2, -1: 0}[sign]
    assert (np.random.default_rng(seed).random() < 0.5) == (sign > 0)
    return np.random.default_rng(seed)


def run(op, level, sign=1, pixels=NOISE, fill=IMAGENET_GREY):
    image = op(Image.fromarray(pixels), level, generator(sign), fill)
    assert image.mode == "RGB" and image.size == (pixels.shape[1], pixels.shape[0])
    return np.asarray(image)


def apply(transform, pixels, seed=0):
    example = {"image": pixels.copy(), "label": 7}
    result = transform(example, np.random.default_rng(seed))
    assert result["label"] == 7
    np.testing.assert_array_equal(example["image"], pixels)  # not changed in place
    assert result["image"].dtype == np.uint8
    return result["image"]


# Operations


def grey_of(pixels):
    """ITU-R 601-2, as Pillow rounds it."""
    weights = np.array([19595, 38470, 7471])
    return (pixels.astype(np.int64) @ weights + 0x8000) >> 16


def smooth_of(pixels):
    """A 3x3 mean that counts the middle five times; the border stays."""
    smooth = np.float64(pixels)
    for row in range(1, pixels.shape[0] - 1):
        for column in range(1, pixels.shape[1] - 1):
            part = PIXELS[row - 1 : row + 2, column - 1 : column + 2]
            total = part.sum((0, 1)) + 4 * part[1, 1]
            smooth[row, column] = np.floor(total / 13 + 0.5)
    return smooth


DULL = {
    "color": grey_of(NOISE)[..., None],
    "contrast": math.floor(grey_of(NOISE).mean() + 0.5),
    "brightness": 0.0,
    "sharpness": smooth_of(NOISE),
}


@pytest.mark.parametrize("name", DULL)
def test_enhancements_move_away_from_what_is_dull(name):
    """dull + factor (image - dull), cut off at 0 and 255, rounded down."""

    def expected(factor):
        return np.clip(DULL[name] + factor * (PIXELS - DULL[name]), 0, 255)

    op = getattr(augment, name)
    for level, sign, factor in ((0.9, 1, 1.81), (0.9, -1, 0.19), (0.0, 1, 1.0)):
        result = run(op, level, sign)
        np.testing.assert_allclose(result, expected(factor), atol=1)
        assert factor == 1 or np.abs(expected(1) - result).mean() > 5
    rising = getattr(augment, f"{name}_rising")
    for level, factor in ((0.0, 0.1), (0.5, 1.0), (1.0, 1.9)):
        np.testing.assert_allclose(run(rising, level), expected(factor), atol=1)


def test_operations_on_single_levels():
    np.testing.assert_array_equal(run(augment.invert, 0.9), 255 - NOISE)
    for level, threshold in ((0.0, 256), (0.9, 26), (1.0, 0)):
        expected = np.where(NOISE < threshold, NOISE, 255 - NOISE)
        np.testing.assert_array_equal(run(augment.solarize, level), expected)
    expected = np.where(NOISE < 230, NOISE, 255 - NOISE)
    np.testing.assert_array_equal(run(augment.solarize_less, 0.9), expected)
    for level, more in ((0.0, 0), (0.9, 99), (1.0, 110)):
        expected = np.where(NOISE < 128, NOISE + np.uint8(more), NOISE)
        np.testing.assert_array_equal(run(augment.solarize_add, level), expected)
    for level, step in ((0.0, 16), (0.5, 64), (0.9, 128), (1.0, 256)):
        expected = NOISE.astype(int) // step * step
        np.testing.assert_array_equal(run(augment.posterize, level), expected)
    expected = NOISE // 32 * 32
    np.testing.assert_array_equal(run(augment.posterize_less, 0.9), expected)


def test_auto_contrast_stretches_each_channel():
    low, high = DARK.min((0, 1)), DARK.max((0, 1))
    expected = (DARK - low) * (255.0 / (high - low))
    result = run(augment.auto_contrast, 0.9, pixels=DARK)
    np.testing.assert_allclose(result, expected, atol=1)
    assert result.min() == 0 and result.max() >= 254


def test_equalize_makes_levels_equally_frequent():
    """Each level becomes the part of all pixels that are below it."""
    result = run(augment.equalize, 0.9, pixels=DARK)
    for channel in range(3):
        levels, counts = np.unique(DARK[..., channel], return_counts=True)
        step = (DARK[..., channel].size - counts[-1]) // 255 or 1
        # With less than 255 pixels nothing happens: Pillow's integer steps.
        assert step == 1
    np.testing.assert_array_equal(result, DARK)
    large = np.tile(DARK, (20, 10, 1))
    result = run(augment.equalize, 0.9, pixels=large)
    for channel in range(3):
        levels, counts = np.unique(large[..., channel], return_counts=True)
        step = (large[..., channel].size - counts[-1]) // 255
        below = np.cumsum(counts) - counts
        expected = np.minimum((step // 2 + below) // step, 255)
        place = np.searchsorted(levels, large[..., channel])
        np.testing.assert_array_equal(result[..., channel], expected[place])


def cubic(t):
    """Keys' kernel with a = -1, which Pillow's transforms have."""
    t = np.abs(t)
    near = t**3 - 2 * t**2 + 1
    far = -(t**3) + 5 * t**2 - 8 * t + 4
    return np.where(t < 1, near, np.where(t < 2, far, 0))


def slow_affine(matrix):
    """Bicubic, the border repeated, from the centres of pixels."""
    height, width, _ = NOISE.shape
    result = np.tile(np.float64(IMAGENET_GREY), (height, width, 1))
    a, b, c, d, e, f = matrix
    for row in range(height):
        for column in range(width):
            x = a * (column + 0.5) + b * (row + 0.5) + c
            y = d * (column + 0.5) + e * (row + 0.5) + f
            if not (0 <= x < width and 0 <= y < height):
                continue
            x, y = x - 0.5, y - 0.5
            columns = np.floor(x) + np.arange(-1, 3)
            rows = np.floor(y) + np.arange(-1, 3)
            part = PIXELS[np.ix_(rows.clip(0, height - 1).astype(int),
                                 columns.clip(0, width - 1).astype(int))]  # fmt: skip
            result[row, column] = np.einsum(
                "y,x,yxc->c", cubic(y - rows), cubic(x - columns), part
            )
    return np.clip(result, 0, 255)


def rotation(degrees):
    """About the middle, counter-clockwise."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    height, width, _ = NOISE.shape
    x, y = width / 2, height / 2
    return (cos, -sin, x - cos * x + sin * y, sin, cos, y - sin * x - cos * y)


@pytest.mark.parametrize(
    ("op", "matrix"),
    [
        (augment.shear_x, lambda v: (1, 0.3 * v, 0, 0, 1, 0)),
        (augment.shear_y, lambda v: (1, 0, 0, 0.3 * v, 1, 0)),
        (augment.translate_x, lambda v: (1, 0, 0.45 * v * 14, 0, 1, 0)),
        (augment.translate_y, lambda v: (1, 0, 0, 0, 1, 0.45 * v * 9)),
        (augment.rotate, lambda v: rotation(30 * v)),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_geometry_is_bicubic_and_grey_outside(op, matrix):
    for sign in (1, -1):
        expected = slow_affine(matrix(0.8 * sign))
        grey = (expected == IMAGENET_GREY).all(-1)
        assert 4 < grey.sum() < 80
        np.testing.assert_allclose(run(op, 0.8, sign), expected, atol=1)
    np.testing.assert_array_equal(run(op, 0.0), NOISE)


def test_the_sets_are_those_of_timm():
    assert len(set(INCREASING)) == len(set(ORIGINAL)) == 15
    assert len(set(INCREASING) & set(ORIGINAL)) == 9


def record(log, index, image, level, rng, fill):
    log.append((index, level))
    return image


def test_randaugment_draws_two_and_applies_half_of_them():
    log: list[tuple[int, float]] = []
    ops = tuple(partial(record, log, index) for index in range(15))
    counts = []
    for seed in range(3000):
        before = len(log)
        transform = RandAugment(ops=ops)
        np.testing.assert_array_equal(apply(transform, NOISE, seed), NOISE)
        counts.append(len(log) - before)
    frequencies = np.bincount(counts, minlength=3)
    assert len(frequencies) == 3
    assert stats.chisquare(frequencies, [750, 1500, 750]).pvalue > 0.01
    kinds = np.bincount([index for index, _ in log])
    assert stats.chisquare(kinds).pvalue > 0.01
    levels = np.array([level for _, level in log])
    assert levels.max() == 1.0 and abs((levels == 1).mean() - 0.0228) < 0.01
    below = levels[levels < 1]
    expected = stats.truncnorm(-18, 2, 0.9, 0.05)
    assert stats.kstest(below, expected.cdf).pvalue > 0.01


def test_randaugment_changes_most_images_and_keeps_single_channels():
    changed = [
        not np.array_equal(apply(RandAugment(), DARK, s), DARK) for s in range(99)
    ]
    assert 50 < sum(changed) < 90
    grey = NOISE[..., :1]
    transform = RandAugment(fill=(100,), num_ops=15, prob=1.0)
    for seed in range(20):
        assert apply(transform, grey, seed).shape == grey.shape


# Crops


def test_random_resized_crop_scales_a_part():
    transform = RandomResizedCrop(6, scale=(0.3, 0.9))
    for seed in range(20):
        top, left, height, width = transform._part(9, 14, np.random.default_rng(seed))
        part = Image.fromarray(NOISE[top : top + height, left : left + width])
        expected = np.asarray(part.resize((6, 6), Image.Resampling.BICUBIC))
        np.testing.assert_array_equal(apply(transform, NOISE, seed), expected)


def test_parts_have_the_areas_and_proportions_asked_for():
    rng = np.random.default_rng(0)
    parts = np.array([RandomResizedCrop(1)._part(400, 500, rng) for _ in range(5000)])
    top, left, height, width = parts.T
    assert np.all((top >= 0) & (top + height <= 400))
    assert np.all((left >= 0) & (left + width <= 500))
    area, ratio = height * width / 200_000, width / height
    assert 0.08 <= area.min() < 0.085 and 0.95 < area.max() <= 1.0
    assert 0.74 < ratio.min() < 0.76 and 1.32 < ratio.max() < 1.35
    # Small ones fit whatever their shape: uniform there, and the logarithm's too.
    small = area < 0.55
    assert stats.kstest(area[small], stats.uniform(0.08, 0.47).cdf).pvalue > 0.01
    spread = stats.uniform(math.log(3 / 4), 2 * math.log(4 / 3))
    assert stats.kstest(np.log(ratio[small]), spread.cdf).pvalue > 0.01
    for first, room in ((top, 401 - height), (left, 501 - width)):
        place = (first + rng.random(5000)) / room
        assert stats.kstest(place, stats.uniform.cdf).pvalue > 0.01


def test_parts_lie_everywhere_and_may_be_wide():
    square = RandomResizedCrop(1, scale=(0.25, 0.25), ratio=(1.0, 1.0))
    rng = np.random.default_rng(0)
    places = {square._part(4, 4, rng)[:2] for _ in range(100)}
    assert places == set(itertools.product(range(3), range(3)))
    wide = RandomResizedCrop(1, scale=(0.02, 0.02), ratio=(2.0, 2.0))
    assert wide._part(100, 100, rng)[2:] == (10, 20)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((10, 100), (0, 43, 10, 13)), ((100, 10), (43, 0, 13, 10))],
)
def test_what_never_fits_is_cut_from_the_middle(shape, expected):
    rng = np.random.default_rng(0)
    assert RandomResizedCrop(4, scale=(0.9, 1.0))._part(*shape, rng) == expected


def test_random_crop_takes_every_place():
    pixels = np.arange(1, 17, dtype=np.uint8).reshape(4, 4, 1)
    padded = np.pad(pixels[..., 0], 1)
    seen = set()
    for seed in range(200):
        result = apply(RandomCrop(4, padding=1), pixels, seed)[..., 0]
        for place in np.ndindex(3, 3):
            part = padded[place[0] : place[0] + 4, place[1] : place[1] + 4]
            if np.array_equal(part, result):
                seen.add(place)
    assert len(seen) == 9
    with pytest.raises(UserError, match="only 6x6: put Resize"):
        apply(RandomCrop(7, padding=1), pixels)


@pytest.mark.parametrize("channels", [1, 3])
def test_stretch_ignores_proportions(channels):
    result = apply(Stretch(5), NOISE[..., :channels])
    assert result.shape == (5, 5, channels)
    expected = Image.fromarray(NOISE[..., 0]).resize((5, 5), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(result[..., 0], expected)


# Colours and holes


def test_color_jitter_scales_each_property_by_its_own_factor():
    pixels = np.full((4, 4, 3), 100, np.uint8)
    # Of one grey, only its brightness can change: uniform between 0.6 and 1.4.
    levels = [apply(ColorJitter(), pixels, seed)[0, 0] for seed in range(1000)]
    assert np.ptp(levels, axis=1).max() <= 1
    first = np.array(levels)[:, 0]
    assert 60 <= first.min() < 63 and 137 < first.max() <= 140
    assert stats.kstest(first + 0.5, stats.uniform(60, 80).cdf).pvalue > 1e-4
    only = replace(ColorJitter(), brightness=0.0, contrast=0.0)
    greys = [grey_of(apply(only, DARK, seed)) for seed in range(20)]
    np.testing.assert_allclose(greys, np.stack([grey_of(DARK)] * 20), atol=2)
    assert not np.array_equal(apply(only, DARK), DARK)
    still = ColorJitter(0.0, 0.0, 0.0)
    np.testing.assert_array_equal(apply(still, NOISE), NOISE)


def test_color_jitter_changes_its_order(monkeypatch):
    orders = []

    def recorder(name):
        def enhancer(image):
            orders[-1].append(name)
            return SimpleNamespace(enhance=lambda factor: image)

        return enhancer

    names = ("Brightness", "Contrast", "Color")
    fakes = SimpleNamespace(**{name: recorder(name) for name in names})
    monkeypatch.setattr(augment, "ImageEnhance", fakes)
    for seed in range(120):
        orders.append([])
        apply(ColorJitter(), NOISE, seed)
    counts = Counter(map(tuple, orders))
    assert set(counts) == set(itertools.permutations(names))
    assert stats.chisquare(list(counts.values())).pvalue > 0.01


def test_random_erasing_puts_noise_of_the_data_into_a_box():
    pixels = np.full((60, 80, 3), 3, np.uint8)
    boxes, noise = [], []
    for seed in range(4000):
        hole = (apply(RandomErasing(std=(0.05,) * 3), pixels, seed) != 3).any(-1)
        if hole.any():
            rows, columns = np.flatnonzero(hole.any(1)), np.flatnonzero(hole.any(0))
            assert hole[np.ix_(rows, columns)].all()
            boxes.append((rows[0], columns[0], len(rows), len(columns)))
            noise.append(apply(RandomErasing(std=(0.05,) * 3), pixels, seed)[hole][:50])
    assert abs(len(boxes) / 4000 - 0.25) < 4 * math.sqrt(0.1875 / 4000)
    top, left, height, width = np.array(boxes).T
    area, ratio = height * width / 4800, height / width
    assert 0.01 < area.min() < 0.03 and 0.3 < area.max() < 0.35
    assert ratio.min() < 0.4 and ratio.max() > 2.4
    small = area < 0.12
    spread = stats.uniform(math.log(0.3), 2 * math.log(1 / 0.3))
    assert stats.kstest(np.log(ratio[small]), spread.cdf).pvalue > 1e-3
    # The last row and column are as good as any.
    assert (top + height == 60).any() and (left + width == 80).any()
    values = np.concatenate(noise)
    np.testing.assert_allclose(values.mean(0) / 255, augment.IMAGENET_MEAN, atol=2e-3)
    np.testing.assert_allclose(values.std(0) / 255, 0.05, atol=1e-3)


def test_holes_may_be_high():
    pixels = np.zeros((100, 100, 3), np.uint8)
    erase = RandomErasing(prob=1.0, area=(0.02, 0.02), ratio=(2.0, 2.0))
    hole = apply(erase, pixels).any(-1)
    assert (hole.any(1).sum(), hole.any(0).sum()) == (20, 10)


def test_noise_is_cut_off_at_the_levels():
    transform = RandomErasing(prob=1.0, mean=(0.5,), std=(10.0,))
    values = apply(transform, np.full((40, 40, 1), 100, np.uint8))
    assert {0, 255} <= set(np.unique(values))
    assert set(np.unique(values)) & set(range(101, 255)) or len(np.unique(values)) > 2


@pytest.mark.parametrize("transform", [RandAugment(), RandomErasing()])
def test_other_channels_are_refused(transform):
    with pytest.raises(UserError, match="image of 1 channels, but"):
        apply(transform, NOISE[..., :1])


def test_the_recipe_is_a_function_of_the_generator_and_survives_pickling():
    transforms = pickle.loads(pickle.dumps(imagenet(8)))
    assert transforms == imagenet(8)

    def through(seed):
        example, rng = {"image": NOISE}, np.random.default_rng(seed)
        for transform in transforms:
            example = transform(example, rng)
        assert example["image"].shape == (8, 8, 3)
        return example["image"]

    results = [through(seed) for seed in range(10)]
    assert len({result.tobytes() for result in results}) == 10
    np.testing.assert_array_equal(results[3], through(3))
