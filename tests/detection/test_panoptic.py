"""Panoptic maps and their quality, against the published algorithms done slowly."""

import math
from collections import defaultdict

import numpy as np
import pytest
from PIL import Image

from research.detection.masks import upsampled
from research.detection.panoptic import Quality, Tally, compare, merge, quality

STUFF = (3, 4)


def slow_merge(scores, classes, masks, size, threshold, least):
    """PostProcessPanoptic of facebookresearch/detr, pixel by pixel."""
    chosen = [i for i in range(len(scores)) if scores[i] > threshold]
    height, width = masks.shape[1:]

    def paint(ids, once):
        owner = np.zeros((height, width), np.uint8)
        first = {}
        for k, i in enumerate(ids):
            first.setdefault(classes[i], k)
        for y in range(height):
            for x in range(width):
                best = max(range(len(ids)), key=lambda k: masks[ids[k], y, x])
                kind = classes[ids[best]]
                owner[y, x] = first[kind] if once and kind in STUFF else best
        image = Image.fromarray(owner).resize(size[::-1], Image.Resampling.NEAREST)
        return np.asarray(image)

    if not chosen:
        return np.zeros(size, int), []
    owner = paint(chosen, once=True)
    while True:
        areas = [(owner == k).sum() for k in range(len(chosen))]
        kept = [i for i, area in zip(chosen, areas, strict=True) if area > least]
        if not kept:
            return np.zeros(size, int), []
        if kept == chosen:
            return owner + 1, [classes[i] for i in chosen]
        chosen = kept
        owner = paint(chosen, once=False)


@pytest.mark.parametrize("seed", range(8))
def test_maps_are_those_of_detr(seed):
    rng = np.random.default_rng(seed)
    scores = rng.uniform(0.6, 1, 9).astype(np.float32)
    classes = rng.integers(0, 5, 9).astype(np.int32)
    # Smooth ones, of which some win few pixels or none.
    masks = upsampled(rng.normal(0, 1, (9, 3, 4)).astype(np.float32), 12, 16)
    masks += rng.normal(0, 1, (9, 1, 1)).astype(np.float32)
    size = ((12, 16), (24, 32), (17, 23))[seed % 3]
    found, kinds = merge(scores, classes, masks, size, STUFF, 0.7, least=10)
    expected, classes_kept = slow_merge(scores, classes, masks, size, 0.7, 10)
    np.testing.assert_array_equal(found, expected)
    assert kinds.tolist() == classes_kept and found.dtype == np.int32


def test_maps_of_nothing_are_empty():
    masks = np.ones((2, 3, 4), np.float32)
    scores, classes = np.array([0.5, 0.8], np.float32), np.array([1, 3], np.int32)
    for threshold, least in ((0.85, 4), (0.1, 12)):
        found, kinds = merge(scores, classes, masks, (3, 4), STUFF, threshold, least)
        assert found.shape == (3, 4) and not found.any() and not len(kinds)


def test_stuff_of_a_class_is_one_segment_and_things_are_not():
    scores = np.full(4, 0.9, np.float32)
    masks = np.full((4, 2, 8), -9, np.float32)
    for i in range(4):
        masks[i, :, 2 * i : 2 * i + 2] = 9
    classes = np.array([3, 1, 3, 1], np.int32)
    found, kinds = merge(scores, classes, masks, (2, 8), STUFF, least=2)
    assert kinds.tolist() == [3, 1, 1]
    # The second stretch of stuff was dropped as empty, and all the others are as sure.
    assert found[0].tolist() == [1, 1, 2, 2, 1, 1, 3, 3]
    found, kinds = merge(scores, classes, masks, (2, 8), (), least=2)
    assert kinds.tolist() == [3, 1, 3, 1]
    assert found[0].tolist() == [1, 1, 2, 2, 3, 3, 4, 4]


def slow_quality(images):
    """pq_compute_single_core and pq_average of cocodataset/panopticapi, plainly."""
    stat = defaultdict(lambda: [0.0, 0, 0, 0])
    for truth, truth_classes, crowd, found, found_classes in images:
        pixels = defaultdict(int)
        for t, f in zip(truth.ravel().tolist(), found.ravel().tolist(), strict=True):
            pixels[t, f] += 1
        there = range(1, 1 + len(truth_classes))
        told = range(1, 1 + len(found_classes))
        area_t = {t: sum(n for (a, _), n in pixels.items() if a == t) for t in there}
        area_f = {f: sum(n for (_, b), n in pixels.items() if b == f) for f in told}
        matched_t, matched_f = set(), set()
        for t in there:
            for f in told:
                kind = truth_classes[t - 1]
                if crowd[t - 1] or kind != found_classes[f - 1] or not pixels[t, f]:
                    continue
                union = area_f[f] + area_t[t] - pixels[t, f] - pixels[0, f]
                if pixels[t, f] / union > 0.5:
                    stat[kind][0] += pixels[t, f] / union
                    stat[kind][1] += 1
                    matched_t.add(t)
                    matched_f.add(f)
        crowds = {}
        for t in there:
            if t in matched_t:
                continue
            if crowd[t - 1]:
                crowds[truth_classes[t - 1]] = t
            else:
                stat[truth_classes[t - 1]][2] += 1
        for f in told:
            if f in matched_f:
                continue
            kind = found_classes[f - 1]
            ignored = pixels[0, f] + (pixels[crowds[kind], f] if kind in crowds else 0)
            if ignored / area_f[f] <= 0.5:
                stat[kind][3] += 1
    return stat


def maps(rng):
    """Blocks of segments, and the same a little off with some classes changed."""
    truth = rng.integers(0, 7, (4, 5)).repeat(6, 0).repeat(6, 1).astype(np.int32)
    found = np.where(rng.random(truth.shape) < 0.2, np.roll(truth, 3, 1), truth)
    found = np.where(found == 5, rng.integers(0, 3, truth.shape), found)
    number = int(found.max())
    for row in range(1, 1 + number):  # every segment has pixels
        found[row, row] = row
    classes = rng.integers(0, 4, 6).astype(np.int32)
    told = np.where(rng.random(6) < 0.2, (classes + 1) % 4, classes)[:number]
    crowd = np.zeros(6, bool)
    crowd[rng.integers(6)] = True
    return truth, classes, crowd, found.astype(np.int32), told.astype(np.int32)


def test_quality_is_that_of_panopticapi():
    rng = np.random.default_rng(0)
    images = [maps(rng) for _ in range(12)]
    tallies = defaultdict(Tally)
    for image in images:
        for kind, tally in compare(*image).items():
            tallies[kind] = tallies[kind].plus(tally)
    expected = slow_quality(images)
    assert {k: t for k, t in tallies.items() if any(t)}.keys() == expected.keys()
    for kind, (overlap, *numbers) in expected.items():
        assert tallies[kind][1:] == tuple(numbers)
        assert tallies[kind].overlap == pytest.approx(overlap, abs=1e-9)
    assert all(sum(tally[i] for tally in tallies.values()) > 4 for i in (1, 2, 3))
    parts = [
        (o / (f + (m + w) / 2), o / f, f / (f + (m + w) / 2))
        for o, f, m, w in expected.values()
    ]
    assert quality(tallies.values()) == pytest.approx(np.mean(parts, axis=0))


def test_a_perfect_map_has_quality_one():
    truth, classes, crowd, _, _ = maps(np.random.default_rng(1))
    crowd[:] = False
    # Void is filled with a segment: it is no error.
    found = np.where(truth == 0, 7, truth).astype(np.int32)
    told = np.append(classes, 0).astype(np.int32)
    tallies = compare(truth, classes, crowd, found, told)
    assert quality(tallies.values()) == Quality(1, 1, 1)
    nothing = np.zeros_like(truth)
    tallies = compare(truth, classes, crowd, nothing, told[:0])
    assert quality(tallies.values()) == Quality(0, 0, 0)
    assert all(math.isnan(part) for part in quality([]))
    assert all(math.isnan(part) for part in quality([Tally()]))


def test_a_half_is_not_more_than_a_half():
    """Of an overlap, and of what lies nowhere; and a score at the threshold."""
    truth = np.array([[1, 1, 1, 1], [0, 0, 2, 2]], np.int32)
    found = np.array([[1, 1, 0, 0], [2, 2, 2, 2]], np.int32)
    kinds = np.array([5, 6], np.int32)
    nothing = np.zeros(2, bool)
    tallies = compare(truth, kinds, nothing, found, np.array([5, 7], np.int32))
    assert tallies == {5: Tally(0, 0, 1, 1), 6: Tally(0, 0, 1, 0), 7: Tally(0, 0, 0, 1)}
    scores, masks = np.array([0.75, 0.5], np.float32), np.ones((2, 3, 4), np.float32)
    _, told = merge(scores, kinds, masks, (3, 4), STUFF, threshold=0.75)
    assert not len(told)


def test_masks_are_scaled_between_the_centers_of_pixels():
    """Against the plain formula; the outermost reach to the border."""
    rng = np.random.default_rng(0)
    masks = rng.normal(size=(2, 3, 5)).astype(np.float32)
    result = upsampled(masks, 7, 10)
    for y in range(7):
        for x in range(10):
            at = [(y + 0.5) * 3 / 7 - 0.5, (x + 0.5) * 5 / 10 - 0.5]
            expected = np.zeros(2)
            total = 0.0
            for i in range(3):
                for j in range(5):
                    near = [
                        min(max(a, 0), n - 1) for a, n in zip(at, (3, 5), strict=True)
                    ]
                    weight = max(0, 1 - abs(near[0] - i)) * max(0, 1 - abs(near[1] - j))
                    expected += weight * masks[:, i, j]
                    total += weight
            assert total == pytest.approx(1)
            np.testing.assert_allclose(result[:, y, x], expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(upsampled(masks, 3, 5), masks)
