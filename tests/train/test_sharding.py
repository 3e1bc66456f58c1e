"""Meshes, the rule table, and global batches."""

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from research.errors import UserError
from research.train import sharding


def mesh(**shape):
    return sharding.make_mesh(shape, jax.devices()[: np.prod(list(shape.values()))])


def test_mesh_fills_the_rest():
    assert dict(sharding.make_mesh({"data": -1, "fsdp": 2}).shape) == {
        "data": 4,
        "fsdp": 2,
        "tensor": 1,
    }
    assert sharding.make_mesh().shape["data"] == 8


@pytest.mark.parametrize(
    "shape, told",
    [
        ({"dta": 8}, "unknown mesh axis dta"),
        ({"data": 3}, "needs 3 devices, but there are 8"),
        ({"data": -1, "fsdp": 3}, "needs 6 devices, but there are 8"),
        ({"data": -1, "fsdp": -1}, "at most one"),
        ({"data": 0}, "positive"),
    ],
)
def test_bad_meshes_are_told(shape, told):
    with pytest.raises(UserError, match=told):
        sharding.make_mesh(shape)


def test_fsdp_takes_the_largest_divisible_dimension():
    where = mesh(fsdp=4)
    assert sharding.leaf_spec("x/kernel", (3, 3, 64, 128), where) == PartitionSpec(
        None, None, None, "fsdp"
    )
    assert sharding.leaf_spec("x/kernel", (3, 3, 128, 6), where) == PartitionSpec(
        None, None, "fsdp", None
    )
    assert sharding.leaf_spec("x/bias", (3,), where) == PartitionSpec(None)


def test_fsdp_leaves_small_leaves_whole(monkeypatch):
    monkeypatch.setattr(sharding, "SMALL", 4096)
    where = mesh(fsdp=2, tensor=4)
    spec = sharding.leaf_spec("x/kernel", (64, 64), where)
    assert spec == PartitionSpec("fsdp", None)
    assert sharding.leaf_spec("x/kernel", (64, 62), where) == PartitionSpec(None, None)
    # A rule is for the layer, whatever its size.
    spec = sharding.leaf_spec("a/query/kernel", (8, 32), where)
    assert spec == PartitionSpec(None, "tensor")


def test_rules_go_first_and_fsdp_fills_in():
    where = mesh(fsdp=2, tensor=4)
    spec = sharding.leaf_spec("params/attention/query/kernel", (64, 32), where)
    assert spec == PartitionSpec("fsdp", "tensor")
    assert sharding.leaf_spec("a/query/kernel", (64, 30), where) == PartitionSpec(
        "fsdp", None
    )


def test_a_large_leaf_that_nothing_splits_raises():
    odd = (1031, 1033)  # over a million, and prime
    with pytest.raises(UserError, match=r"big/kernel .*fsdp=4"):
        sharding.leaf_spec("big/kernel", odd, mesh(fsdp=4))
    whole = PartitionSpec(None, None)
    assert sharding.leaf_spec("big/kernel", odd, mesh(data=4)) == whole


def test_batches_become_global_and_keep_their_order():
    where = mesh(data=2, fsdp=4)
    rows = sharding.local_rows(where, 16)
    assert rows == list(range(16))
    values = np.arange(32).reshape(16, 2)
    whole = sharding.to_global({"x": values}, where, 16)["x"]
    np.testing.assert_array_equal(whole, values)
    assert {shard.data.shape for shard in whole.addressable_shards} == {(2, 2)}


def test_batches_that_do_not_split_are_told():
    with pytest.raises(UserError, match="batch of 12 cannot be split over 8 devices"):
        sharding.local_rows(mesh(data=8), 12)
    with pytest.raises(ValueError, match="got 3 rows"):
        sharding.to_global({"x": np.zeros((3, 1))}, mesh(data=2), 4)
