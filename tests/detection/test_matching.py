"""Assignments are SciPy's, and no device waits for another."""

from itertools import permutations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from launch.bench_matching import problems
from launch.hlo import Hlo
from research.detection.boxes import generalized_iou, to_corners
from research.detection.matching import PairCosts, assign, match
from research.train import sharding

run = jax.jit(assign)


def by_scipy(costs, present):
    found = np.full(present.shape, -1)
    for number, problem in enumerate(costs):
        rows = np.flatnonzero(present[number])
        row, column = linear_sum_assignment(problem[rows])
        found[number, rows[row]] = column
    return found


def cost(costs, found):
    taken = np.take_along_axis(costs, np.maximum(found, 0)[..., None], axis=-1)
    return np.where(found[..., None] >= 0, taken, 0).sum((1, 2), dtype=np.float64)


def some(*shape):
    """Rows that are there, none in the first problem and all in the second."""
    present = np.random.default_rng(1).random(shape) < 0.6
    present[0], present[1] = False, True
    return present


@pytest.mark.parametrize(
    "shape",
    [
        pytest.param((12, 63, 100), id="as DETR's"),
        pytest.param((12, 9, 9), id="square"),
        pytest.param((12, 11, 6), id="more objects than queries"),
        pytest.param((12, 1, 1), id="one"),
    ],
)
@pytest.mark.parametrize("spread", [1.0, 0.01])
def test_random_costs_as_scipy(shape, spread):
    """With little between queries, which then want the same, and with much."""
    rng = np.random.default_rng(0)
    costs = rng.normal(size=(shape[0], shape[1], 1)) + spread * rng.normal(size=shape)
    costs = costs.astype(np.float32)
    present = some(*shape[:2])
    found, expected = np.asarray(run(costs, present)), by_scipy(costs, present)
    np.testing.assert_array_equal(found, expected)
    assert (found[0] == -1).all()


@pytest.mark.parametrize("spread", [0.05, 0.4])
def test_costs_of_boxes_as_scipy(spread):
    costs, present = problems(4, 63, 30.0, spread)
    found = np.asarray(run(costs, present))
    np.testing.assert_array_equal(found, by_scipy(np.asarray(costs), present))


def test_ties_cost_the_same():
    costs = np.random.default_rng(0).integers(0, 4, (30, 7, 8)).astype(np.float32)
    present = some(30, 7)
    found, expected = np.asarray(run(costs, present)), by_scipy(costs, present)
    np.testing.assert_array_equal(cost(costs, found), cost(costs, expected))
    for problem, row in zip(present, found, strict=True):
        assert (row[~problem] == -1).all()
        assert len(set(row[problem])) == problem.sum() and (row[problem] >= 0).all()


def test_brute_force():
    costs = np.random.default_rng(0).normal(size=(20, 4, 5)).astype(np.float32)
    found = run(costs, np.ones((20, 4), bool))
    for problem, row in zip(costs, np.asarray(found), strict=True):
        best = min(permutations(range(5), 4), key=lambda p: problem[range(4), p].sum())
        np.testing.assert_array_equal(row, best)


def test_costs_that_are_no_numbers_come_last():
    costs = np.random.default_rng(0).normal(size=(3, 3, 4)).astype(np.float32)
    costs[0, :, 2], costs[1, 1, :3], costs[2] = np.nan, np.inf, -np.inf
    found = np.asarray(run(costs, np.ones((3, 3), bool)))
    assert 2 not in found[0] and found[1, 1] == 3
    assert all(len(set(row)) == 3 and min(row) >= 0 for row in found)


def test_pair_costs_one_by_one():
    rng = np.random.default_rng(0)
    logits, boxes = rng.normal(size=(2, 3, 5)), rng.uniform(0.2, 0.6, (2, 3, 4))
    classes, targets = rng.integers(0, 4, (2, 4)), rng.uniform(0.2, 0.6, (2, 4, 4))
    costs = PairCosts()(
        jnp.asarray(logits, jnp.float32),
        jnp.asarray(boxes, jnp.float32),
        jnp.asarray(classes, jnp.int32),
        jnp.asarray(targets, jnp.float32),
    )
    chances = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    for image, found in enumerate(np.asarray(costs)):
        for i, target in enumerate(targets[image]):
            for q, box in enumerate(boxes[image]):
                pair = (to_corners(jnp.asarray(b, jnp.float32)) for b in (box, target))
                expected = 5 * abs(box - target).sum() - 2 * generalized_iou(*pair)
                expected -= chances[image, q, classes[image, i]]
                np.testing.assert_allclose(found[i, q], expected, rtol=1e-5, atol=1e-5)


def test_each_device_matches_its_own_rows():
    """Under a gradient; and nothing of the costs comes back as one."""
    costs, present = problems(4, 12, 6.0, 0.05)
    mesh = sharding.make_mesh({"data": 4, "fsdp": 2})
    rows = sharding.batch_sharding(mesh)

    def loss(costs, present):
        found = match(costs, present)
        index = jnp.maximum(found, 0)[..., None]
        taken = jnp.take_along_axis(costs, index, axis=-1)[..., 0]
        return jnp.where(found >= 0, taken, 0).sum(), found

    step = jax.jit(jax.grad(loss, has_aux=True), in_shardings=(rows, rows))
    compiled = step.lower(costs, present).compile()
    program = Hlo(compiled.as_text())
    assert program.unknown_loops == 1
    assert not program.collectives()
    grad, found = compiled(*jax.device_put((costs, present), rows))
    expected = by_scipy(np.asarray(costs), np.asarray(present))
    np.testing.assert_array_equal(found, expected)
    ones = (expected[..., None] == np.arange(100)).astype(np.float32)
    np.testing.assert_array_equal(grad, ones)
    alone = np.asarray(jax.jit(match)(costs[:5], present[:5]))
    np.testing.assert_array_equal(alone, expected[:5])
