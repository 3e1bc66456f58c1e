import jax
import numpy as np
import pytest

from research.errors import UserError
from research.train.sharding import batch_sharding, make_mesh
from tests.evals.fakes import make_context, make_images


def test_batches_are_sharded_and_padded():
    context = make_context(mesh=make_mesh({"data": 4, "fsdp": 2}))
    batches = list(context.batches("test", 8))
    assert len(batches) == 2
    for batch in batches:
        assert batch["image"].sharding == batch_sharding(context.mesh)
        assert batch["image"].addressable_shards[0].data.shape == (1, 4, 4, 1)
    mask = np.concatenate([batch["mask"] for batch in batches])
    images = np.concatenate([batch["image"] for batch in batches])
    np.testing.assert_array_equal(mask, [1] * 11 + [0] * 5)
    np.testing.assert_array_equal(images[mask > 0], make_images(11))


def test_host_batches_hold_examples_only():
    batches = list(make_context().host_batches("test", 8))
    assert [len(batch["label"]) for batch in batches] == [8, 3]
    assert not isinstance(batches[0]["image"], jax.Array)
    images = np.concatenate([batch["image"] for batch in batches])
    np.testing.assert_array_equal(images, make_images(11))


def test_train_is_a_split_unless_data_has_its_own():
    context = make_context()
    labels = [b["label"] for b in context.host_batches("train", 8)]
    np.testing.assert_array_equal(np.concatenate(labels), np.arange(20))
    context.data.eval["train"] = context.data.eval["test"]
    labels = [b["label"] for b in context.host_batches("train", 8)]
    np.testing.assert_array_equal(np.concatenate(labels), np.arange(11))


def test_errors():
    with pytest.raises(UserError, match="validation"):
        next(make_context().batches("validation", 8))
    with pytest.raises(UserError, match="multiple of 8"):
        next(make_context().batches("test", 9))
