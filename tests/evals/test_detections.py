"""Evaluators of detection, of a task that finds what the batch says is there."""

from dataclasses import dataclass, field, replace
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from research.data.detection import (
    CleanObjects,
    ResizeObjects,
    ToTargets,
    targets_spec,
)
from research.data.groups import GroupedData
from research.data.scenes import BACKGROUNDS, SHAPES, Scenes
from research.detection.masks import upsampled
from research.errors import UserError
from research.evals.base import Context
from research.evals.coco import CocoAP
from research.evals.detection_samples import DetectionSamples, annotated, color_of
from research.evals.detections import Truth, as_logits, as_pixels, detections
from research.evals.panoptic import PanopticQuality
from research.train.sharding import make_mesh

STUFF = tuple(range(len(SHAPES), len(SHAPES) + len(BACKGROUNDS)))
THINGS = tuple(range(len(SHAPES)))
SCENES = Scenes(19, ((24, 32), (32, 24)), fewest=2, most=3, panoptic=True, seed=2)


@dataclass(frozen=True)
class Oracle:
    """Finds what is there, `moved` to the right by a part of the width of the box."""

    masks: bool = True
    moved: float = 0.0
    score: float = 0.9
    wrong_stuff: bool = False
    traces: list = field(default_factory=list, hash=False, compare=False)

    def detect(self, variables, batch):
        self.traces.append(batch["image"].shape)
        boxes, classes = batch["boxes"], batch["classes"]
        if self.wrong_stuff:
            other = len(SHAPES) + (classes + 1) % len(STUFF)
            classes = jnp.where(classes >= len(SHAPES), other, classes)
        found = {
            "scores": (batch["present"] * self.score).astype(jnp.bfloat16),
            "classes": classes,
            "boxes": boxes.at[..., 0].add(self.moved * boxes[..., 2]),
        }
        if self.masks:
            rows = 1 + jnp.arange(boxes.shape[1])[None, :, None, None]
            found["masks"] = jnp.where(batch["segments"][:, None] == rows, 9.0, -9.0)
        return found


def context(folder="", source=SCENES, segments=True) -> Context:
    """Images scaled by two, in batches of three shapes."""
    data = GroupedData(
        train=source,
        eval={"val": source},
        batch_size=8,
        spec=targets_spec((64, 64), 6, segments),
        smaller=((48, 64), (64, 48)),
        eval_transforms=(CleanObjects(), ResizeObjects((48,)), ToTargets(6)),
    )
    return Context(data, make_mesh(), step=70, seed=3, folder=Path(folder))


class WithCrowds:
    """The scenes, where the object at the back is a crowd."""

    def __len__(self):
        return len(SCENES)

    def __getitem__(self, index):
        example = SCENES[index]
        example["crowd"][0] = True
        return example


def test_what_is_found_comes_image_for_image():
    """Whatever batch an image was in, without its padding."""
    task = Oracle(score=0.8)  # an equal one might be compiled already, and not traced
    found = list(detections(task, {}, context(), "val", 8, as_logits))
    assert sorted(one.image_id for one in found) == list(range(19))
    assert [one.image_id for one in found] != list(range(19))
    shapes = {shape[1:3] for shape in task.traces}
    assert (64, 64) in shapes and len(shapes) > 1
    for one in found:
        scene = SCENES[one.image_id]
        num = len(scene["boxes"])
        assert one.original_size == scene["image"].shape[:2]
        assert one.image.shape == (
            2 * one.original_size[0],
            2 * one.original_size[1],
            3,
        )
        np.testing.assert_allclose(
            one.boxes_in(one.original_size)[:num], scene["boxes"], atol=1e-4
        )
        assert one.classes[:num].tolist() == scene["classes"].tolist()
        assert one.scores.dtype == np.float32 and not one.scores[num:].any()
        assert one.masks.shape == (6, *one.padded_size)


def test_what_is_found_exactly_has_precision_one(tmp_path):
    here = context(tmp_path)
    values = CocoAP(masks=True, by_class=True)(Oracle(), {}, here)
    assert values["ap"] == pytest.approx(1) and values["mask_ap"] == pytest.approx(1)
    assert values["ap/circle"] == pytest.approx(1)
    assert values["mask_ap/grass"] == pytest.approx(1)
    moved = CocoAP(by_class=True)(Oracle(moved=0.2), {}, here)
    # An overlap of 2/3: four of ten thresholds.
    assert moved["ap50"] == pytest.approx(1) and moved["ap75"] == 0
    assert moved["ap"] == pytest.approx(0.4) and "mask_ap" not in moved
    things = CocoAP(classes=THINGS, by_class=True, split="train")
    values = things(Oracle(wrong_stuff=True), {}, here)
    assert "ap/grass" not in values and values["ap/square"] == pytest.approx(1)
    assert CocoAP(classes=STUFF)(Oracle(wrong_stuff=True), {}, here)["ap"] == 0


def test_crowds_of_the_source_are_no_error():
    here = context(source=WithCrowds())
    assert CocoAP(masks=True)(Oracle(), {}, here)["mask_ap"] == pytest.approx(1)
    assert not Truth(here, "val").names


def test_the_objects_are_scored_in_the_image_s_own_size():
    """All of these are small, though the network sees them four times as large."""
    values = CocoAP(masks=True)(Oracle(), {}, context())
    areas = np.concatenate(
        [scene["areas"] for scene in map(SCENES.__getitem__, range(19))]
    )
    assert areas.max() < 32**2
    assert values["ap_small"] == values["ap"] and np.isnan(values["ap_medium"])
    assert values["mask_ap_small"] == values["mask_ap"]


def test_sizes_of_objects_are_those_of_the_areas_that_the_source_tells():
    source = [{**SCENES[i], "areas": 0 * SCENES[i]["areas"] + 5000} for i in range(4)]
    values = CocoAP(masks=True)(Oracle(), {}, context(source=source))
    for kind in ("ap", "mask_ap"):
        assert values[f"{kind}_medium"] == values[kind] == pytest.approx(1)
        assert np.isnan(values[f"{kind}_small"])


def test_masks_are_scaled_before_they_are_cut_off():
    logits = np.random.default_rng(0).normal(size=(2, 3, 4, 5)).astype(np.float32)
    found = np.asarray(as_pixels(jnp.asarray(logits), (9, 20)))
    expected = np.stack([upsampled(masks, 9, 20) > 0 for masks in logits])
    np.testing.assert_array_equal(found, expected)


def test_crowds_are_missed_by_no_panoptic_map():
    """The pixels of the crowd, which is not found, go to the other segment."""
    segments = np.full((24, 32), 1, np.int32)
    segments[18:] = 2
    scene = {
        "image": np.zeros((24, 32, 3), np.uint8),
        "image_id": np.int32(0),
        "boxes": np.array([[0, 0, 32, 18], [0, 18, 32, 24]], np.float32),
        "classes": np.array([0, 1], np.int32),
        "crowd": np.array([False, True]),
        "segments": segments,
    }
    values = PanopticQuality(STUFF)(Oracle(), {}, context(source=[scene]))
    assert (values["pq"], values["rq"]) == pytest.approx((18 / 24, 1))


def test_panoptic_quality_of_things_and_of_stuff():
    here = context()
    names = [m + kind for kind in ("", "_things", "_stuff") for m in ("pq", "sq", "rq")]
    values = PanopticQuality(STUFF)(Oracle(), {}, here)
    assert list(values) == names and all(v == pytest.approx(1) for v in values.values())
    values = PanopticQuality(STUFF)(Oracle(score=0.8), {}, here)
    assert values["pq"] == 0 and values["rq_things"] == 0
    values = PanopticQuality(STUFF, threshold=0.7)(Oracle(score=0.8), {}, here)
    assert values["pq"] == pytest.approx(1)
    wrong = PanopticQuality(STUFF)(Oracle(wrong_stuff=True), {}, here)
    assert wrong["pq_things"] == pytest.approx(1) and wrong["pq_stuff"] == 0
    # Nothing is so large.
    values = PanopticQuality(STUFF, least=32 * 24)(Oracle(), {}, here)
    assert values["pq"] == 0


def test_pictures_show_what_is_there_beside_what_is_found(tmp_path):
    here = context(tmp_path / "new")
    evaluate = DetectionSamples(num=5, columns=2, side=60)
    values = evaluate(Oracle(), {}, here)
    mean = np.mean([len(SCENES[i]["boxes"]) for i in range(5)])
    assert values == {"found": mean, "there": mean}
    (path,) = (tmp_path / "new").iterdir()
    picture = np.asarray(Image.open(path))
    # Three rows of two pairs; tiles of 64, as long as any, and lines of 2.
    assert path.name == "00000070.png" and picture.shape == (3 * 66 + 2, 4 * 66 + 2, 3)
    scene = SCENES[3]
    names = [SCENES.names[kind] for kind in scene["classes"].tolist()]
    masks = [scene["segments"] == row + 1 for row in range(len(names))]
    for column, labels in ((2, names), (3, [f"{name} 0.90" for name in names])):
        expected = annotated(
            scene["image"], scene["boxes"], scene["classes"], labels, masks, scale=2
        )
        height, width = expected.shape[:2]
        top, left = 2 + 66, 2 + 66 * column
        np.testing.assert_array_equal(
            picture[top : top + height, left : left + width], expected
        )
    without = evaluate.find(Oracle(masks=False), {}, here)
    assert evaluate.draw(without, here, tmp_path / "b.png") == values
    assert DetectionSamples(threshold=0.95)(Oracle(), {}, here)["found"] == 0


def test_boxes_masks_and_labels_are_drawn():
    image = np.full((20, 30, 1), 100, np.uint8)
    mask = np.zeros((20, 30), bool)
    mask[12:15, 8:20] = True
    boxes = np.array([[5, 10, 25, 18]], np.float32)
    plain = annotated(image, boxes, np.array([2]), [""], [mask])
    color = color_of(2)
    assert plain.shape == (20, 30, 3)
    assert plain[10, 5:25].tolist() == [list(color)] * 20
    assert plain[17, 5:25].tolist() == plain[11, 5:25].tolist() == [list(color)] * 20
    assert plain[12:18, 5].tolist() == [list(color)] * 6
    assert plain[13, 10].tolist() == [(100 + part) // 2 for part in color]
    assert plain[15, 10].tolist() == plain[19, 29].tolist() == [100] * 3
    named = annotated(image, boxes, np.array([2]), ["cat"], [mask], scale=4)
    assert named.shape == (80, 120, 3)
    changed = (named != plain.repeat(4, 0).repeat(4, 1)).any(axis=-1)
    assert changed[:40].sum() > 100  # the label, above the box
    colors = {color_of(kind) for kind in range(91)}
    assert len(colors) == 91
    nothing = annotated(image, boxes[:0], np.zeros(0, int), [])
    assert (nothing == 100).all()


@dataclass(frozen=True)
class Same:
    """Two images that cannot be told apart."""

    def __len__(self):
        return 2

    def __getitem__(self, index):
        return SCENES[0]


def test_what_cannot_be_evaluated_is_told():
    here, blind = context(), Oracle(masks=False)
    for evaluate in (CocoAP(masks=True), PanopticQuality(STUFF)):
        with pytest.raises(UserError, match="the task finds no masks"):
            evaluate(blind, {}, here)
    bare = [{n: v for n, v in SCENES[0].items() if n != "segments"}]
    for evaluate, words in (
        (CocoAP(masks=True), "image 0 has no masks: expected a source with"),
        (PanopticQuality(STUFF), "image 0 of 'val' has no segments"),
    ):
        source = context(source=bare, segments=False)
        with pytest.raises(UserError, match=words):
            evaluate(replace(blind, masks=False), {}, source)
    with pytest.raises(UserError, match="2 images, but 1 different image_ids"):
        CocoAP()(blind, {}, context(source=Same()))
    for evaluate in (CocoAP("test"), DetectionSamples("test")):
        with pytest.raises(UserError, match="no split 'test': it has train, val"):
            evaluate(blind, {}, here)
