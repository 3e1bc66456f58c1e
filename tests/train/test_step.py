"""The step: equal on every mesh, exact in what it counts, safe from NaN."""

import jax
import numpy as np
import optax
import pytest

from research.errors import UserError
from research.train.state import Ema, merge, split
from tests.train import tiny


def assert_close(left, right, **tolerances):
    def check(a, b):
        np.testing.assert_allclose(a, b, **tolerances)

    jax.tree.map(check, left, right)


@pytest.fixture(scope="module")
def one_device():
    return tiny.run({"data": 1}, 1)


@pytest.mark.parametrize(
    "shape", [{"data": 8}, {"fsdp": 8}, {"data": 2, "fsdp": 4}], ids=str
)
def test_eight_devices_are_one_device(one_device, shape):
    state, history = tiny.run(shape, 8)
    assert_close(one_device[0], state, rtol=1e-5, atol=1e-6)
    assert_close(one_device[1], history, rtol=1e-5, atol=1e-6)


def test_training_learns(one_device):
    losses = [total / count for total, count in (h["loss"] for h in one_device[1])]
    same = tiny.run({"data": 1}, 1, num_steps=40, batches=lambda _: tiny.batch(0))[1]
    assert same[-1]["loss"][0] < 0.3 * same[0]["loss"][0]
    assert len(set(losses)) == len(losses)


def test_accumulation_is_the_big_batch(one_device):
    state, history = tiny.run({"data": 2}, 2, num_microbatches=4)
    extra = {"counts": {"calls": np.float32(20)}}  # four calls a step
    assert_close(one_device[0].replace(extra=extra), state, rtol=1e-5, atol=1e-6)
    assert_close(one_device[1][-1]["loss"], history[-1]["loss"], rtol=1e-5)


def test_accumulation_weighs_microbatches_by_what_they_count():
    def masked(step):
        data = tiny.batch(step)
        return {**data, "mask": (np.arange(16) % 3 == 0).astype(np.float32)}

    whole, _ = tiny.run({"data": 1}, 1, batches=masked)
    parts, _ = tiny.run({"data": 1}, 1, batches=masked, num_microbatches=2)
    assert_close(whole.params, parts.params, rtol=1e-5, atol=1e-6)


def test_microbatches_must_divide():
    with pytest.raises(UserError, match="num_microbatches=3"):
        tiny.run({"data": 1}, 1, num_microbatches=3)


def test_collections_come_back(one_device):
    assert one_device[0].extra["counts"]["calls"] == 5


def test_dropout_follows_the_step_alone():
    task = tiny.Autoencode(tiny.Network(dropout_rate=0.5))
    first, _ = tiny.run({"data": 1}, 1, task=task)
    again, _ = tiny.run({"data": 1}, 1, task=task)
    other, _ = tiny.run({"data": 1}, 1, task=task, seed=1)
    jax.tree.map(np.testing.assert_array_equal, first, again)
    kernels = [s.params["first"]["kernel"] for s in (first, other)]
    assert not np.array_equal(*kernels)


def test_only_what_is_trainable_moves_and_has_state():
    state, history = tiny.run({"data": 1}, 1, trainable="second/")
    start, _ = tiny.run({"data": 1}, 1, num_steps=0, trainable="second/")
    np.testing.assert_array_equal(
        state.params["first"]["kernel"], start.params["first"]["kernel"]
    )
    assert not np.array_equal(
        state.params["second"]["kernel"], start.params["second"]["kernel"]
    )
    names = [
        jax.tree_util.keystr(path)
        for path, _ in jax.tree_util.tree_leaves_with_path((state.opt_state, state.ema))
    ]
    assert any("second" in name for name in names)
    assert not any("first" in name for name in names)
    assert "grad_norm/second" in history[0] and "grad_norm/first" not in history[0]


def test_trainable_that_matches_nothing_is_refused():
    with pytest.raises(UserError, match="matches no parameter"):
        split({"a": np.zeros(1)}, "nowhere")


def test_split_and_merge_are_inverse():
    params = {"a": {"x": np.ones(1), "y": np.zeros(2)}, "b": np.full(3, 2.0)}
    moving, frozen = split(params, "/y|b")
    assert len(jax.tree.leaves(moving)) == 2 and len(jax.tree.leaves(frozen)) == 1
    jax.tree.map(np.testing.assert_array_equal, merge(moving, frozen), params)


def test_average_is_the_recursion():
    """Of the parameters after each update, from the initial ones."""
    average = tiny.run({"data": 1}, 1, num_steps=0)[0].params["first"]["kernel"]
    for number in range(1, 4):
        state, _ = tiny.run({"data": 1}, 1, num_steps=number)
        average = 0.9 * average + 0.1 * state.params["first"]["kernel"]
    np.testing.assert_allclose(state.ema["first"]["kernel"], average, rtol=1e-5)


def test_average_warms_up():
    ema = Ema(rate=0.999, warmup=True)
    # After the first update n = 1: (1 + 1) / (10 + 1).
    np.testing.assert_allclose(ema(1.0, 0.0, 0), 2 / 11, rtol=1e-6)
    np.testing.assert_allclose(ema(1.0, 0.0, 10**6), 0.999, rtol=1e-6)


def test_norms_are_those_of_the_gradient(one_device):
    values = one_device[1][2]
    groups = [values[f"grad_norm/{name}"][0] for name in ("first", "second")]
    np.testing.assert_allclose(values["grad_norm"][0], np.hypot(*groups), rtol=1e-5)
    state, history = tiny.run({"data": 1}, 1, num_steps=1)
    np.testing.assert_allclose(
        history[0]["param_norm"][0], optax.tree.norm(state.params), rtol=1e-5
    )
    assert history[0]["update_norm"][0] == 0  # the warm-up's first rate is zero
    assert history[1 - 1]["skipped"][0] == 0


def broken(step):
    data = tiny.batch(step)
    if step == 2:
        data["x"][3, 1] = np.nan
    return data


@pytest.mark.parametrize("shape, num_devices", [({"data": 1}, 1), ({"fsdp": 8}, 8)])
def test_stop_keeps_the_state_before_the_bad_batch(shape, num_devices):
    good, _ = tiny.run(shape, num_devices, num_steps=2)
    state, history = tiny.run(shape, num_devices, batches=broken, on_nonfinite="stop")
    jax.tree.map(
        np.testing.assert_array_equal, good, state.replace(skipped=good.skipped)
    )
    assert [int(h["skipped"][0]) for h in history] == [0, 0, 1, 1, 1]


def test_skip_goes_on_without_the_bad_batch():
    state, history = tiny.run({"data": 2}, 2, batches=broken, on_nonfinite="skip")
    assert state.step == 5 and state.skipped == 1
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))
    assert [int(h["skipped"][0]) for h in history] == [0, 0, 1, 1, 1]
    before, _ = tiny.run({"data": 2}, 2, num_steps=2)
    after, _ = tiny.run(
        {"data": 2}, 2, num_steps=3, batches=broken, on_nonfinite="skip"
    )
    jax.tree.map(np.testing.assert_array_equal, before.params, after.params)
    assert not np.array_equal(
        state.params["first"]["kernel"], before.params["first"]["kernel"]
    )
