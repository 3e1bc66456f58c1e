"""The mean of checkpoints, of states whose values are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.errors import UserError
from research.train.averaging import mean_variables
from research.train.checkpoints import Checkpoints, CheckpointStore
from research.train.sharding import make_mesh
from tests.train.runs import assert_bitwise, leaves
from tests.train.test_checkpoints import META, like, make_state

STEPS = (5, 10, 15, 20)


def half_of(step):
    """A bfloat16 parameter, whose rounding errors would pile up."""
    values = np.random.default_rng(step).standard_normal(64)
    return jnp.asarray(values, jnp.bfloat16)


def make(step, mesh):
    state = make_state(step, mesh)
    half = jax.device_put(half_of(step), state.params["bias"].sharding)
    return state.replace(params={**state.params, "half": half}, ema=None)


def mean_in(folder, step, num, target, average=False):
    with CheckpointStore(folder, Checkpoints(), read_only=True) as store:
        return mean_variables(store, step, num, like(target), average)


@pytest.fixture(scope="module")
def four(tmp_path_factory):
    folder, mesh = tmp_path_factory.mktemp("four"), make_mesh({"fsdp": 8})
    with CheckpointStore(folder, Checkpoints(keep_last=10)) as store:
        for step in STEPS:
            store.save(make(step, mesh), META)
    return folder


def test_is_the_mean_up_to_a_step(four):
    mesh = make_mesh({"data": 2, "fsdp": 4})
    target = make(15, mesh)
    found = mean_in(four, 15, 3, target)
    for name in ("dense/kernel", "bias"):
        parts = [leaves(make_state(step, mesh).params)[name] for step in (5, 10, 15)]
        mean = np.mean(np.float64(parts), axis=0)
        # An ulp of the parts.
        np.testing.assert_allclose(
            leaves(found["params"])[name], mean, rtol=1e-6, atol=2e-7
        )
    mean = np.mean([np.float64(half_of(step)) for step in (5, 10, 15)], axis=0)
    np.testing.assert_array_equal(
        found["params"]["half"], jnp.asarray(mean, jnp.bfloat16)
    )
    np.testing.assert_array_equal(found["batch_stats"]["mean"], np.full(5, 15.0))
    for leaf, wanted in zip(
        jax.tree.leaves(found), jax.tree.leaves(target.variables()), strict=True
    ):
        assert leaf.sharding.is_equivalent_to(wanted.sharding, leaf.ndim)
    one = mean_in(four, 15, 1, target)
    assert_bitwise(leaves(one), leaves(target.variables()))


def test_of_equal_ones_is_the_same_to_the_bit(tmp_path):
    state = make_state(3, make_mesh())
    with CheckpointStore(tmp_path, Checkpoints(keep_last=10)) as store:
        for step in range(7):
            store.save(state.replace(step=jnp.int32(step)), META)
    for average in (False, True):
        found = mean_in(tmp_path, 6, 7, state, average)
        assert_bitwise(leaves(found), leaves(state.variables(average)))


def test_what_is_not_there_has_no_mean(four):
    target = make(15, make_mesh())
    with pytest.raises(UserError, match=r"4 checkpoints .* 3 up to step 15: \[5, 10,"):
        mean_in(four, 15, 4, target)
    with pytest.raises(UserError, match="mean of 0 checkpoints: expected at least 1"):
        mean_in(four, 15, 0, target)
