"""Transforms of single examples."""

import numpy as np
import pytest

from research.data.transforms import CenterCrop, Pad, RandomFlip, Rename, Resize
from research.errors import UserError


def image(height: int, width: int, channels: int = 3) -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (height, width, channels), np.uint8)


def apply(transform, pixels: np.ndarray, seed: int = 0) -> np.ndarray:
    example = {"image": pixels.copy(), "label": 7}
    result = transform(example, np.random.default_rng(seed))
    assert result["label"] == 7
    np.testing.assert_array_equal(example["image"], pixels)  # not changed in place
    assert result["image"].dtype == np.uint8
    return result["image"]


def test_random_flip_mirrors_the_width_half_of_the_time():
    pixels = image(4, 6)
    flips = 0
    for seed in range(400):
        result = apply(RandomFlip(), pixels, seed)
        if not np.array_equal(result, pixels):
            np.testing.assert_array_equal(result, np.flip(pixels, axis=1))
            flips += 1
    assert 160 < flips < 240  # four standard deviations


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("height", "width", "expected"), [(20, 40, (8, 16)), (30, 20, (12, 8))]
)
def test_resize_keeps_proportions_and_channels(height, width, expected, channels):
    assert apply(Resize(8), image(height, width, channels)).shape == (
        *expected,
        channels,
    )


def test_resize_drops_the_remainder_of_a_pixel():
    # torchvision's Resize: int(96 * 341 / 256) = int(127.9)
    assert apply(Resize(96), image(256, 341)).shape == (96, 127, 3)
    assert apply(Resize(96), image(341, 256)).shape == (127, 96, 3)


@pytest.mark.parametrize(
    ("interpolation", "extremes"), [("bilinear", (0, 200)), ("bicubic", (0, 214))]
)
def test_resize_interpolates_as_asked(interpolation, extremes):
    # Enlarging a step: bilinear weights stay within the levels, bicubic ones overshoot.
    pixels = np.zeros((4, 4, 1), np.uint8)
    pixels[:, 2:] = 200
    scaled = apply(Resize(16, interpolation), pixels)
    assert (scaled.min(), scaled.max()) == extremes


def test_resize_keeps_left_and_right():
    pixels = np.zeros((20, 40, 1), np.uint8)
    pixels[:, 20:] = 200
    scaled = apply(Resize(8), pixels)
    assert np.all(scaled[:, :6] == 0) and np.all(scaled[:, -6:] == 200)


def test_resize_averages_what_it_shrinks():
    # A one-pixel chessboard turns to grey: sampling single pixels would keep it.
    board = np.indices((64, 64)).sum(axis=0)[..., None] % 2 * np.uint8(255)
    grey = apply(Resize(8), board.astype(np.uint8))
    assert np.all(np.abs(grey.astype(int) - 127) < 10)


def test_resize_keeps_channels_apart():
    pixels = np.zeros((4, 4, 3), np.uint8)
    pixels[..., 1] = 200
    np.testing.assert_array_equal(apply(Resize(2), pixels)[0, 0], [0, 200, 0])


def test_center_crop_takes_the_middle():
    pixels = image(7, 10)
    np.testing.assert_array_equal(apply(CenterCrop(4), pixels), pixels[1:5, 3:7])
    np.testing.assert_array_equal(apply(CenterCrop(7), pixels), pixels[:, 1:8])


def test_pad_puts_the_image_into_the_middle_of_zeros():
    pixels = image(28, 27, 1)
    padded = apply(Pad(32), pixels)
    assert padded.shape == (32, 32, 1)
    np.testing.assert_array_equal(padded[2:30, 2:29], pixels)
    assert padded.sum(dtype=int) == pixels.sum(dtype=int)


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        (CenterCrop(9), r"CenterCrop\(9\): an image is only 8x12: put Resize\(9\)"),
        (Pad(10), r"Pad\(10\): an image is already 8x12"),
    ],
)
def test_sizes_that_cannot_be_are_refused(transform, message):
    with pytest.raises(UserError, match=message):
        apply(transform, image(8, 12))


def test_rename_keeps_what_it_names():
    rng = np.random.default_rng(0)
    rename = Rename((("en", "source"), ("de", "target")))
    example = {"en": "a", "de": "b", "id": 3}
    assert rename(example, rng) == {"source": "a", "target": "b"}
    with pytest.raises(UserError, match="no 'de'; it has en"):
        rename({"en": "a"}, rng)
