"""Swin and Swin v2 against transformers', live, folders going both ways.

All in float32, with sizes that neither patches nor windows divide.
"""

from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import (
    SwinBackbone,
    SwinForImageClassification,
    SwinModel,
    Swinv2Backbone,
    Swinv2ForImageClassification,
    Swinv2Model,
)

from research import pretrained
from research.models.swin import Swin, resize
from tests.layers import slow

TOLERANCE = 1e-5  # of the largest element of the output

SMALL = dict(
    embed_dim=8,
    depths=[2, 2],
    num_heads=[2, 4],
    window_size=4,
    image_size=32,
    patch_size=2,
    num_labels=5,
)
ALL = dict(out_features=["stage1", "stage2"])
# Of a case the classes, the settings that differ, and the sizes of images.
CASES = {
    # Maps of 16x16 and 8x8; 9x13 and 5x7; 10x10 and 5x5.
    "classes": (SwinForImageClassification, {}, [(32, 32), (17, 26), (20, 20)]),
    "model": (
        SwinModel,
        dict(layer_norm_eps=1e-2, hidden_act="relu", qkv_bias=False, mlp_ratio=3),
        [(21, 30)],
    ),
    "backbone": (SwinBackbone, ALL, [(32, 23)]),
    "one-map": (SwinBackbone, dict(out_features=["stage1"]), [(17, 17)]),
    "absolute": (
        SwinForImageClassification,
        dict(use_absolute_embeddings=True),
        [(32, 32)],
    ),
    # The second stage's maps are as large as a window, or have one side as long.
    "last-window": (SwinModel, dict(window_size=8), [(32, 32), (32, 48)]),
    "odd-window": (SwinModel, dict(window_size=5), [(32, 32), (19, 27)]),
    "grey": (SwinForImageClassification, dict(num_channels=1), [(16, 24)]),
    "v2-classes": (Swinv2ForImageClassification, {}, [(32, 32), (17, 26), (12, 40)]),
    "v2-model": (
        Swinv2Model,
        dict(layer_norm_eps=1e-2, hidden_act="relu", qkv_bias=False),
        [(21, 30)],
    ),
    "v2-backbone": (Swinv2Backbone, ALL, [(32, 23)]),
    # Windows were made for smaller images: 8 and 8 of 10.
    "v2-windows": (Swinv2Model, dict(window_size=10), [(32, 32), (40, 25), (64, 64)]),
    "v2-grown": (
        Swinv2ForImageClassification,
        dict(window_size=8, pretrained_window_sizes=[4, 3]),
        [(32, 32)],
    ),
}


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """More only wait for each other, on models of this size."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@lru_cache
def reference(name):
    """Theirs, every number of it random, biases of positions no smaller than logits."""
    torch.manual_seed(0)
    kind, changed, _ = CASES[name]
    model = kind(kind.config_class(**SMALL | changed)).eval()
    with torch.no_grad():
        for path, leaf in model.named_parameters():
            std = 0.3 if leaf.ndim > 1 else 0.2
            is_scale = leaf.ndim == 1 and path.endswith("weight")
            leaf.copy_(std * torch.randn_like(leaf) + is_scale)
            if path.endswith("logit_scale"):
                leaf.copy_(torch.linspace(2, 10, len(leaf)).log()[:, None, None])
    return model


def fresh(name):
    """In float64; and after a small image theirs would not shift large ones."""
    model, kind = reference(name), CASES[name][0]
    again = kind(model.config).eval()
    again.load_state_dict(model.state_dict())
    return again.double()


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Of each case, written by their library when it is first asked for."""

    @lru_cache
    def folder(name):
        path = tmp_path_factory.mktemp(name)
        reference(name).save_pretrained(path)
        return path

    return folder


def image(size, channels=3):
    draws = np.random.default_rng(0)
    return jnp.asarray(draws.normal(size=(2, *size, channels)), jnp.float32)


def as_theirs(images, model):
    images = torch.tensor(np.asarray(images)).permute(0, 3, 1, 2)
    return images.to(next(model.parameters()).dtype)


def theirs(model, images):
    """Logits, pooled vectors or maps."""
    with torch.no_grad():
        out = model(as_theirs(images, model))
    if "feature_maps" in out:
        return [x.permute(0, 2, 3, 1).numpy() for x in out.feature_maps]
    return [(out.logits if "logits" in out else out.pooler_output).numpy()]


def assert_close(ours, theirs):
    for one, other in zip(ours, theirs, strict=True):
        one = np.asarray(one)
        assert one.shape == other.shape
        error = np.abs(one - other).max() / np.abs(other).max()
        assert error <= TOLERANCE, error


@pytest.mark.parametrize("name", CASES)
def test_both_ways(folders, tmp_path, name):
    kind, changed, sizes = CASES[name]
    channels = changed.get("num_channels", 3)
    model, variables = pretrained.load(str(folders(name)))
    run = slow.jit(model.apply)
    for size in sizes:
        images = image(size, channels)
        ours = run(variables, images)
        ours = ours if isinstance(model, Swin) else [ours]
        assert_close(ours, theirs(fresh(name), images))

    pretrained.save(str(tmp_path), model, variables)
    again, told = kind.from_pretrained(tmp_path, output_loading_info=True)
    unused = {"swin.layernorm.weight", "swin.layernorm.bias"}
    assert not any(set(what) - unused for what in told.values()), told
    written, state = again.state_dict(), reference(name).state_dict()
    assert written.keys() == state.keys()
    for leaf in state.keys() - unused:
        np.testing.assert_array_equal(written[leaf], state[leaf], err_msg=leaf)
    images = image(sizes[0], channels)
    assert_close(theirs(again.eval(), images), theirs(fresh(name), images))


@pytest.mark.parametrize("name", ["classes", "v2-classes"])
def test_gradients(folders, name):
    """Of every leaf; padding and shifts included."""
    there, images = fresh(name), image((17, 26))
    weights = np.random.default_rng(1).normal(size=(2, 5)).astype(np.float32)
    out = there(as_theirs(images, there)).logits
    (out * torch.tensor(weights)).sum().backward()
    expected = {path: leaf.grad.numpy() for path, leaf in there.named_parameters()}

    model, variables = pretrained.load(str(folders(name)))
    gradients = slow.jit(
        jax.grad(lambda v: jnp.sum(model.apply(v, images) * jnp.asarray(weights)))
    )(variables)
    with torch.no_grad():
        # Through the layout, which tells whose gradient is whose.
        for path, leaf in there.named_parameters():
            leaf.copy_(torch.tensor(expected[path]))
    folder = folders(name) / "gradients"
    there.float().save_pretrained(folder)
    _, theirs_as_ours = pretrained.load(str(folder))
    ours, theirs = (
        jax.tree_util.tree_leaves_with_path(tree)
        for tree in (gradients, theirs_as_ours)
    )
    largest = max(np.abs(leaf).max() for _, leaf in theirs)
    for (path, one), (same, other) in zip(ours, theirs, strict=True):
        assert path == same
        error = np.abs(one - other).max()
        assert error <= 1e-5 * largest, jax.tree_util.keystr(path)


@pytest.mark.parametrize(("size", "new_size"), [(7, 13), (13, 23), (9, 4)])
def test_bicubic(size, new_size):
    """Tables of distances as the official code resizes them."""
    table = np.random.default_rng(0).normal(size=(size**2, 3)).astype(np.float32)
    square = torch.tensor(table).double().T.reshape(1, 3, size, size)
    expected = torch.nn.functional.interpolate(
        square, size=(new_size, new_size), mode="bicubic"
    )
    expected = expected.reshape(3, -1).T.numpy()
    path = "params/stage_0_block_0/mixer/position/table"
    shape = jax.ShapeDtypeStruct((new_size**2, 3), jnp.float32)
    ours = resize({path: table}, {path: shape})[path]
    np.testing.assert_allclose(ours, expected, atol=1e-6)
