"""The losses of detection by hand, on one device and on eight."""

from dataclasses import replace
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from launch.hlo import Hlo
from research.detection.boxes import generalized_iou, to_corners
from research.errors import UserError
from research.layers.attention import Attention
from research.layers.initializers import Normal
from research.layers.mlp import FeedForward
from research.layers.norms import LayerNorm
from research.layers.stack import Stack, TransformerBlock
from research.models.detr import DETR
from research.models.resnet import FrozenBatchNorm, ResNet
from research.tasks.detection import Detection
from research.train import sharding
from tests.detection.test_matching import by_scipy
from tests.layers import slow
from tests.models.training import told_to_train

LAYERS, ROWS, QUERIES, CLASSES, OBJECTS = 2, 8, 4, 3, 3


class Answers(nn.Module):
    """Learnt logits, boxes and masks of every row, whatever the image."""

    masks: bool = True

    @nn.compact
    def __call__(self, image, valid, train):
        def leaf(name, *shape):
            return self.param(name, Normal(1.0), shape)

        rows = image.mean((1, 2, 3)).reshape(1, -1, 1, 1)
        found = {
            "logits": leaf("logits", LAYERS, 1, QUERIES, CLASSES + 1) * (1 + rows),
            "boxes": nn.sigmoid(leaf("boxes", LAYERS, 1, QUERIES, 4) + rows),
        }
        if self.masks:
            found["masks"] = leaf("masks", 1, QUERIES, 3, 2) + rows[0][..., None]
        return found


def make_batch(rows=ROWS, size=6):
    rng = np.random.default_rng(0)
    present = np.arange(OBJECTS)[None] < rng.integers(0, OBJECTS + 1, (rows, 1))
    present[0] = False
    sides = np.stack([np.full(rows, size), rng.integers(2, size + 1, rows)], axis=1)
    segments = rng.integers(0, OBJECTS + 1, (rows, size, size))
    return {
        "image": rng.integers(0, 256, (rows, size, size, 3)).astype(np.uint8),
        "size": sides.astype(np.int32),
        "boxes": rng.uniform(0.2, 0.5, (rows, OBJECTS, 4)).astype(np.float32),
        "classes": rng.integers(0, CLASSES, (rows, OBJECTS)).astype(np.int32),
        "present": present.astype(np.float32),
        "segments": segments.astype(np.int32),
    }


TASK, BATCH = Detection(Answers(), no_object_weight=0.3), make_batch()
RNG = jax.random.key(0)


@pytest.fixture(scope="module")
def params():
    return slow.jit(TASK.init)(RNG, BATCH)["params"]


def loss_of(task, params, batch):
    return slow.jit(lambda p, b: task.loss({"params": p}, b, RNG, True))(params, batch)


def by_hand(params, batch):
    """The metrics by name, one image, one layer, one object after the other."""
    values: dict[str, list] = {}

    def tell(name, value, weight=1.0):
        values.setdefault(name, []).append((value, weight))

    mean, std = np.array(TASK.mean), np.array(TASK.std)
    total_boxes = 0
    for row in range(ROWS):
        height, width = batch["size"][row]
        image = np.zeros((6, 6, 3))
        part = batch["image"][row, :height, :width] / 255
        image[:height, :width] = (part - mean) / std
        shift = image.mean()
        objects = int(batch["present"][row].sum())
        total_boxes += objects
        classes, targets = batch["classes"][row], batch["boxes"][row]
        for layer in range(LAYERS):
            suffix = "" if layer == LAYERS - 1 else f"_{layer}"
            logits = np.float64(params["logits"])[layer, 0] * (1 + shift)
            boxes = 1 / (1 + np.exp(-np.float64(params["boxes"])[layer, 0] - shift))
            chances = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)

            def overlap(i, q, targets=targets, boxes=boxes):
                pair = (jnp.float32(b) for b in (targets[i], boxes[q]))
                return float(generalized_iou(*map(to_corners, pair)))

            costs = np.array(
                [
                    [
                        5 * abs(boxes[q] - targets[i]).sum()
                        - 2 * overlap(i, q)
                        - chances[q, classes[i]]
                        for q in range(QUERIES)
                    ]
                    for i in range(OBJECTS)
                ]
            )
            index = by_scipy(costs[None], np.arange(OBJECTS)[None] < objects)[0]
            wanted = np.full(QUERIES, CLASSES)
            wanted[index[:objects]] = classes[:objects]
            for q in range(QUERIES):
                weight = 0.3 if wanted[q] == CLASSES else 1.0
                tell(f"loss_ce{suffix}", -np.log(chances[q, wanted[q]]), weight)
            found = (logits.argmax(-1) != CLASSES).sum()
            tell(f"cardinality_error{suffix}", abs(found - objects))
            for i, q in enumerate(index[:objects]):
                tell(f"loss_bbox{suffix}", abs(boxes[q] - targets[i]).sum())
                tell(f"loss_giou{suffix}", 1 - overlap(i, q))
                wrong = logits[q].argmax() != classes[i]
                tell(f"class_error{suffix}", 100 * wrong)
                if layer == LAYERS - 1:
                    mask = np.float64(params["masks"])[0, q] + shift
                    mask = upsampled(mask, 6, 6).reshape(-1)
                    target = (batch["segments"][row] == i + 1).reshape(-1)
                    p = 1 / (1 + np.exp(-mask))
                    right = np.where(target, p, 1 - p)
                    alpha = np.where(target, 0.25, 0.75)
                    focal = -alpha * (1 - right) ** 2 * np.log(right)
                    tell("loss_mask", focal.mean())
                    both = 2 * (p * target).sum() + 1
                    tell("loss_dice", 1 - both / (p.sum() + target.sum() + 1))
    return {
        name: sum(value * weight for value, weight in pairs)
        / sum(weight for _, weight in pairs)
        for name, pairs in values.items()
    }


def upsampled(mask, height, width):
    """Bilinear, centres aligned, the border repeated."""

    def along(values, size):
        place = (np.arange(size) + 0.5) * len(values) / size - 0.5
        place = place.clip(0, len(values) - 1)
        low = np.floor(place).astype(int)
        high = np.minimum(low + 1, len(values) - 1)
        part = (place - low)[:, None]
        return values[low] * (1 - part) + values[high] * part

    return along(along(mask, height).T, width).T


def test_losses_by_hand(params):
    loss, (metrics, _) = loss_of(TASK, params, BATCH)
    values = {name: float(total / count) for name, (total, count) in metrics.items()}
    np.testing.assert_allclose(values.pop("loss"), loss, rtol=1e-6)
    expected = by_hand(params, BATCH)
    assert values.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(values[name], value, rtol=1e-4, err_msg=name)
    weights = {"ce": 1, "bbox": 5, "giou": 2, "mask": 1, "dice": 1}
    total = sum(
        weights[name.split("_")[1]] * value
        for name, value in expected.items()
        if name.startswith("loss")
    )
    np.testing.assert_allclose(loss, total, rtol=1e-4)
    heavier = replace(TASK, l1_weight=7.0, dice_weight=3.0, class_weight=0.5)
    changed, _ = loss_of(heavier, params, BATCH)
    change = 2 * (expected["loss_bbox"] + expected["loss_bbox_0"])
    change += 2 * expected["loss_dice"]
    change -= 0.5 * (expected["loss_ce"] + expected["loss_ce_0"])
    np.testing.assert_allclose(changed - loss, change, rtol=1e-3)


def test_rows_that_are_no_examples_do_not_count(params):
    some = {name: part[:5] for name, part in BATCH.items()}
    expected, _ = loss_of(TASK, params, some)
    mask = np.float32(np.arange(ROWS) < 5)
    loss, (metrics, _) = loss_of(TASK, params, {**BATCH, "mask": mask})
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    assert metrics["loss"][1] == 5


def test_without_any_object(params):
    batch = {**BATCH, "present": np.zeros((ROWS, OBJECTS), np.float32)}
    loss, (metrics, _) = loss_of(TASK, params, batch)
    boxes = ("loss_bbox", "loss_giou", "loss_mask", "loss_dice", "class_error")
    assert all(metrics[name] == (0, 1) for name in boxes)
    ce = sum(metrics[name][0] / metrics[name][1] for name in ("loss_ce", "loss_ce_0"))
    np.testing.assert_allclose(loss, ce, rtol=1e-6)


def test_an_unknown_class_stops_the_run(params):
    for wrong in (CLASSES, -1):
        classes = np.where(BATCH["present"] > 0, wrong, BATCH["classes"])
        loss, _ = loss_of(TASK, params, {**BATCH, "classes": classes.astype(np.int32)})
        assert np.isnan(loss)


def test_masks_need_segments(params):
    batch = {name: part for name, part in BATCH.items() if name != "segments"}
    with pytest.raises(UserError, match="no segments"):
        loss_of(TASK, params, batch)


def test_eight_devices_are_one_and_wait_for_no_loop(params):
    mesh = sharding.make_mesh({"data": 4, "fsdp": 2})
    rows, whole = sharding.batch_sharding(mesh), sharding.replicated(mesh)
    grad = jax.value_and_grad(
        lambda p, b: TASK.loss({"params": p}, b, RNG, True), has_aux=True
    )
    step = slow.jit(grad, in_shardings=(whole, rows), out_shardings=whole)
    text = step.lower(params, BATCH).compile().as_text()
    program = Hlo(text)
    assert program.unknown_loops == 1
    kinds = {collective.kind for collective in program.collectives()}
    assert kinds == {"all-reduce"}
    # In no loop: those of the matching are the only ones.
    loops = [
        instruction.named("body")
        for computation in program.computations.values()
        for instruction in computation.values()
        if instruction.opcode == "while"
    ]
    assert len(loops) == 1
    inside = program.computations[loops[0]]
    assert not any("all-reduce" in i.opcode for i in inside.values())
    eight = step(params, sharding.to_global(BATCH, mesh, ROWS))
    one = slow.jit(grad)(params, BATCH)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), eight, one)


def test_what_is_detected(params):
    found = slow.jit(lambda p, b: TASK.detect({"params": p}, b))(params, BATCH)
    shapes = {name: part.shape for name, part in found.items()}
    assert shapes == {
        "scores": (ROWS, QUERIES),
        "classes": (ROWS, QUERIES),
        "boxes": (ROWS, QUERIES, 4),
        "masks": (ROWS, QUERIES, 3, 2),
    }
    logits = params["logits"][-1, 0]
    still = {**BATCH, "image": np.full((ROWS, 6, 6, 3), 0, np.uint8)}
    plain = slow.jit(
        lambda p, b: replace(TASK, mean=(0.0,) * 3).detect({"params": p}, b)
    )(params, still)
    chances = jax.nn.softmax(logits)[:, :-1]
    np.testing.assert_allclose(plain["scores"][3], chances.max(-1), rtol=1e-5)
    np.testing.assert_array_equal(plain["classes"][3], chances.argmax(-1))


@pytest.mark.parametrize("train", [True, False])
def test_only_training_trains(params, train):
    with told_to_train() as told:
        jax.eval_shape(
            lambda p, b: TASK.loss({"params": p}, b, RNG, train), params, BATCH
        )
    assert told == {"": train}
    with told_to_train() as told:
        jax.eval_shape(lambda p, b: TASK.detect({"params": p}, b), params, BATCH)
    assert told == {"": False}


def test_a_batch_can_be_learnt():
    attention = partial(Attention, num_heads=2)
    block = partial(
        TransformerBlock, mixer=attention, mlp=partial(FeedForward, mlp_dim=32)
    )
    task = Detection(
        DETR(
            backbone=ResNet(depths=(1, 1), channels=4, norm=FrozenBatchNorm),
            encoder=Stack(1, (block,)),
            decoder=Stack(1, (partial(block, cross=attention),), final_norm=LayerNorm),
            embed_dim=16,
            num_queries=4,
            num_classes=CLASSES,
        )
    )
    batch = make_batch(size=16).items()
    batch = {name: jnp.asarray(part[:4]) for name, part in batch}
    optimizer = optax.adam(1e-2)

    @jax.jit
    def run(variables):
        params, frozen = variables["params"], {"frozen": variables["frozen"]}

        grad = jax.value_and_grad(
            lambda p: task.loss({"params": p, **frozen}, batch, RNG, True), has_aux=True
        )

        def step(carry, _):
            params, state = carry
            (value, (metrics, _)), grads = grad(params)
            updates, state = optimizer.update(grads, state)
            return (optax.apply_updates(params, updates), state), (value, metrics)

        carry = (params, optimizer.init(params))
        return jax.lax.scan(step, carry, None, length=200)[1]

    losses, metrics = run(task.init(RNG, batch))
    assert losses[-1] < 0.15 * losses[0]
    assert metrics["class_error"][0][-1] == 0
    assert metrics["cardinality_error"][0][-1] == 0
