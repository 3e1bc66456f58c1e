from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from research.layers.norms import BatchNorm
from research.models.resnet import FrozenBatchNorm, ResNet
from research.train.state import split
from tests.layers import slow
from tests.models.training import told_to_train

IMAGE = jnp.asarray(np.random.default_rng(0).normal(size=(2, 13, 18, 3)), jnp.float32)
SMALL = ResNet(depths=(1, 1, 2), channels=2, output_stride=8, norm=FrozenBatchNorm)


def random_variables(model):
    """Of a network with frozen norms, whose variances are positive."""
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), IMAGE))
    rng = np.random.default_rng(1)

    def draw(path, leaf):
        values = np.float32(rng.normal(size=leaf.shape) / 2)
        return np.abs(values) + 0.1 if path[-1].key == "var" else values

    return jax.tree_util.tree_map_with_path(draw, shapes)


def conv(kernel, x, stride=1, dilation=1):
    rows = np.zeros(((len(kernel) - 1) * dilation + 1,) * 2 + kernel.shape[2:])
    rows[::dilation, ::dilation] = kernel
    y = slow.conv({"kernel": rows, "bias": np.zeros(kernel.shape[-1])}, x)
    return y[:, ::stride, ::stride]


def max_pool(x):
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
    height, width = x.shape[1:3]
    return np.max(
        [padded[:, i : i + height, j : j + width] for i in range(3) for j in range(3)],
        axis=0,
    )[:, ::2, ::2]


def reference(variables, x):
    params, frozen = variables["params"], variables["frozen"]

    def norm(constants, h):
        c = {name: np.float64(value) for name, value in constants.items()}
        return (h - c["mean"]) / np.sqrt(c["var"] + 1e-5) * c["scale"] + c["bias"]

    def relu(h):
        return np.maximum(h, 0)

    x = conv(params["stem"]["kernel"], x, stride=2)
    x = max_pool(relu(norm(frozen["stem_norm"], x)))
    maps = []
    # The third stage would have stride 16: its second block is dilated.
    for name, stride, dilation in (
        ("stage_0_block_0", 1, 1),
        ("stage_1_block_0", 2, 1),
        ("stage_2_block_0", 1, 1),
        ("stage_2_block_1", 1, 2),
    ):
        kernels, norms = params[name], frozen[name]
        h = relu(norm(norms["norm_0"], conv(kernels["conv_0"]["kernel"], x)))
        h = conv(kernels["conv_1"]["kernel"], h, stride, dilation)
        h = relu(norm(norms["norm_1"], h))
        h = norm(norms["norm_2"], conv(kernels["conv_2"]["kernel"], h))
        if "skip" in kernels:
            x = norm(norms["skip_norm"], conv(kernels["skip"]["kernel"], x, stride))
        x = relu(x + h)
        maps.append(x)
    return maps[0], maps[1], maps[3]


def test_equals_its_formula():
    variables = random_variables(SMALL)
    maps = slow.jit(SMALL.apply)(variables, IMAGE)
    assert [m.shape for m in maps] == [(2, 4, 5, 8), (2, 2, 3, 16), (2, 2, 3, 32)]
    for ours, expected in zip(
        maps, reference(variables, np.float64(IMAGE)), strict=True
    ):
        scale = abs(expected).max()
        np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-5 * scale)


@pytest.mark.parametrize(
    ("depths", "norm", "num_params"),
    [
        # Those of a classifier, less its last layer and, where frozen, the norms.
        ((3, 4, 6, 3), BatchNorm, 25_557_032 - 2_049_000),
        ((3, 4, 6, 3), FrozenBatchNorm, 25_557_032 - 2_049_000 - 53_120),
        ((3, 4, 23, 3), FrozenBatchNorm, 44_549_160 - 2_049_000 - 105_344),
    ],
)
def test_published_sizes(depths, norm, num_params):
    model = ResNet(depths, norm=norm)
    image = jnp.zeros((1, 64, 64, 3))
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), image))

    def size(tree):
        return sum(leaf.size for leaf in jax.tree.leaves(tree))

    assert size(variables["params"]) == num_params
    if norm is FrozenBatchNorm:
        assert size(variables["frozen"]) == 2 * (53_120 if depths[2] == 6 else 105_344)
        moving, _ = split(variables["params"], "^(?!stem|stage_0)")
        assert size(moving) == num_params - 222_400


def test_a_frozen_norm_is_an_evaluated_one():
    x = jnp.asarray(np.random.default_rng(3).normal(size=(2, 3, 4, 5)), jnp.float32)
    draws = np.abs(np.random.default_rng(4).normal(size=(4, 5))) + 0.1
    names = ("scale", "bias", "mean", "var")
    leaves = dict(zip(names, map(jnp.asarray, np.float32(draws)), strict=True))
    learnt = {
        "params": {name: leaves[name] for name in names[:2]},
        "batch_stats": {name: leaves[name] for name in names[2:]},
    }
    expected = BatchNorm().apply(learnt, x)
    frozen = partial(FrozenBatchNorm().apply, {"frozen": leaves})
    for train in (False, True):
        np.testing.assert_allclose(frozen(x, train), expected, atol=1e-5)
    fresh = FrozenBatchNorm(epsilon=0.0).init_with_output(jax.random.key(0), x)
    np.testing.assert_array_equal(fresh[0], x)


def test_what_is_frozen_has_no_gradient():
    """Neither the collection nor the first stages, whose backward pass is not there."""
    variables = random_variables(SMALL)
    moving, still = split(variables["params"], "^(?!stem|stage_0)")

    def loss(moving):
        params = jax.tree.map(
            lambda a, b: b if a is None else a,
            moving,
            still,
            is_leaf=lambda leaf: leaf is None,
        )
        maps = SMALL.apply({**variables, "params": params}, IMAGE, train=True)
        return sum(jnp.square(m).mean() for m in maps)

    grads = slow.jit(jax.grad(loss))(moving)
    assert grads["stem"] == {"kernel": None}
    assert all(optax.tree.norm(g) > 0 for g in jax.tree.leaves(grads))
    assert len(jax.tree.leaves(grads)) == 11


def test_every_norm_is_told_to_train():
    """Batch norms take moments of the batch, and keep averages of all of them."""
    model = SMALL.clone(norm=BatchNorm)
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), IMAGE))
    apply = partial(model.apply, train=True, mutable="batch_stats")
    with told_to_train() as told:
        _, changed = jax.eval_shape(apply, variables, IMAGE)
    assert set(told.values()) == {True}, told
    assert {"stem_norm", "stage_0_block_0/skip_norm"} <= told.keys()
    assert jax.tree.structure(changed["batch_stats"]) == jax.tree.structure(
        variables["batch_stats"]
    )
