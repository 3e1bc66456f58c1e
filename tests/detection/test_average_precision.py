"""What goes to pycocotools and what comes back, on cases that a pencil can do."""

import math

import numpy as np
import pytest

from research.detection.average_precision import METRICS, Objects, average_precision
from research.detection.masks import encode


def objects(boxes, classes, **rest) -> Objects:
    arrays = {n: np.array(v) for n, v in rest.items() if n != "masks"}
    return Objects(
        np.array(boxes, np.float32).reshape(-1, 4),
        np.array(classes, np.int32),
        **arrays,
        masks=rest.get("masks"),
    )


def approx(*values):
    """pycocotools adds the smallest float to what it divides by."""
    return pytest.approx(values if len(values) > 1 else values[0], abs=1e-12)


NONE = objects([], [], scores=np.zeros(0))


def test_what_is_found_exactly_has_precision_one():
    there = [objects([[0, 0, 9, 9], [20, 20, 30, 60]], [3, 7]), objects([], [])]
    found = [
        objects([[20, 20, 30, 60], [0, 0, 9, 9]], [7, 3], scores=[0.6, 0.1]),
        objects([[1, 1, 2, 2]], [3], scores=[0.01]),
    ]
    values, by_class = average_precision(there, found, (3, 7, 8))
    assert tuple(values) == METRICS
    assert tuple(values[n] for n in ("ap", "ap50", "ap_small", "ar100")) == approx(
        1, 1, 1, 1
    )
    assert math.isnan(values["ap_medium"]) and math.isnan(values["ar_large"])
    assert (by_class[3], by_class[7]) == approx(1, 1) and math.isnan(by_class[8])


def test_a_wrong_guess_costs_what_follows_it():
    """Two objects; the second guess of three is wrong: 1/1, 1/2, 2/3."""
    there = [objects([[0, 0, 10, 10], [50, 50, 60, 60]], [1, 1])]
    found = [
        objects(
            [[0, 0, 10, 10], [80, 0, 90, 10], [50, 50, 60, 60]],
            [1, 1, 1],
            scores=[0.9, 0.8, 0.7],
        )
    ]
    values, by_class = average_precision(there, found, (1,))
    # Levels of recall 0 to 0.50 have precision 1, the 50 others 2/3.
    assert values["ap50"] == approx((51 + 50 * 2 / 3) / 101)
    assert by_class == {1: approx(values["ap"])} and values["ar1"] == 0.5
    # A threshold between 0.5 and 0.95 that the overlap of 0.8 does not reach counts 0.
    found = [objects([[0, 0, 10, 8]], [1], scores=[0.9])]
    values, _ = average_precision([objects([[0, 0, 10, 10]], [1])], found, (1,))
    assert (values["ap"], values["ap75"]) == approx(0.7, 1)


def test_crowds_are_no_error_to_find_or_to_miss():
    box = [[0, 0, 40, 40]]
    there = [objects([[50, 50, 60, 60], *box], [1, 1], crowd=[False, True])]
    found = [
        objects(
            [[0, 0, 9, 9], [5, 5, 30, 30], [50, 50, 60, 60]],
            [1, 1, 1],
            scores=[0.9, 0.8, 0.7],
        )
    ]
    assert average_precision(there, found, (1,))[0]["ap"] == approx(1)
    plain = [objects([[50, 50, 60, 60], *box], [1, 1])]
    assert average_precision(plain, found, (1,))[0]["ap"] < 0.3
    missed = average_precision(there, [NONE], (1,))[0]
    assert missed["ap"] == 0 and missed["ar100"] == 0


def test_sizes_are_those_of_the_areas_told():
    there = [objects([[0, 0, 100, 100]], [1], areas=[500.0])]
    found = [objects([[0, 0, 100, 100]], [1], scores=[0.5])]
    values, _ = average_precision(there, found, (1,))
    assert values["ap_small"] == approx(1) and math.isnan(values["ap_large"])
    values, _ = average_precision([objects([[0, 0, 100, 100]], [1])], found, (1,))
    assert values["ap_large"] == approx(1) and math.isnan(values["ap_small"])


def test_classes_that_do_not_count_are_left_out():
    there = [objects([[0, 0, 9, 9], [20, 20, 30, 30]], [1, 2])]
    found = [objects([[0, 0, 9, 9]] * 2, [1, 2], scores=[0.5, 0.9])]
    assert average_precision(there, found, (1,))[0]["ap"] == approx(1)
    assert average_precision(there, found, (1, 2))[0]["ap"] == approx(0.5)
    assert math.isnan(average_precision(there, found, (5,))[0]["ap"])


def test_masks_are_compared_by_their_pixels():
    mask = np.zeros((60, 60), bool)
    mask[10:50, 10:50] = True
    half = mask.copy()
    half[:, :26] = False  # 24 of 40 columns: 0.6
    box = [[10, 10, 50, 50]]
    there = [objects(box, [1], masks=[encode(mask)])]
    found = [objects(box, [1], scores=[0.5], masks=[encode(half)])]
    boxes, _ = average_precision(there, found, (1,))
    masks, _ = average_precision(there, found, (1,), masks=True)
    assert boxes["ap"] == approx(1)
    assert (masks["ap50"], masks["ap75"]) == approx(1, 0)
    # 0.50, 0.55 and 0.60 of ten.
    assert masks["ap"] == approx(0.3) and masks["ap_medium"] == masks["ap"]


def test_masks_have_the_areas_of_their_pixels():
    """Where none are told: of a box of 50x50 pixels these are few."""
    mask = np.zeros((60, 60), bool)
    mask[:50, 0] = mask[0, :50] = True
    there = [objects([[0, 0, 50, 50]], [1], masks=[encode(mask)])]
    found = [objects([[0, 0, 50, 50]], [1], scores=[0.5], masks=[encode(mask)])]
    boxes, _ = average_precision(there, found, (1,))
    masks, _ = average_precision(there, found, (1,), masks=True)
    assert boxes["ap_medium"] == masks["ap_small"] == approx(1)
    assert math.isnan(boxes["ap_small"]) and math.isnan(masks["ap_medium"])
