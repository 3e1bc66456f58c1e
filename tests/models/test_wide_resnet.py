from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.errors import UserError
from research.models.wide_resnet import WideResNet
from tests.layers import slow

SMALL = WideResNet(num_classes=3, depth=10, width=1, data_range=(0.0, 1.0))
X = jax.random.uniform(jax.random.key(0), (2, 4, 6, 3))
T = jnp.array([0.5, -2.0])


def test_published_size():
    """36,479,194, 36.5 million in the paper, without what the noise level adds."""
    variables = jax.eval_shape(
        lambda: WideResNet().init(jax.random.key(0), X, T, train=False)
    )
    leaves = jax.tree_util.tree_leaves_with_path(variables)
    sizes = {jax.tree_util.keystr(path): leaf.size for path, leaf in leaves}
    assert sum(n for path, n in sizes.items() if "time" not in path) == 36_479_194


def conv(params, x, stride=1):
    bias = np.zeros(params["kernel"].shape[-1])
    return slow.conv({**params, "bias": bias}, x)[:, ::stride, ::stride]


def reference(params, x, t):
    """The blocks one after the other, in NumPy."""

    def norm(name, h):
        return np.maximum(slow.group_norm(params[name], h, h.shape[-1] // 4), 0)

    angles = 2 * np.pi * t[:, None] * params["time_embedding"]["frequencies"][None]
    time = np.concatenate([np.sin(angles), np.cos(angles)], axis=-1)
    for name in ("time_hidden", "time"):
        time = slow.swish(slow.dense(params[name], time))
    h = conv(params["conv_in"], 2 * x - 1)
    for group in range(3):
        name = f"group_{group}_block_0"
        stride = 1 if group == 0 else 2
        normed = norm(f"{name}_norm_0", h)
        if group:
            h = conv(params[f"{name}_skip"], normed, stride)
        y = conv(params[f"{name}_conv_0"], normed, stride)
        y = y + slow.dense(params[f"{name}_time"], time)[:, None, None]
        h = h + conv(params[f"{name}_conv_1"], norm(f"{name}_norm_1", y))
    return slow.dense(params["logits"], norm("norm_out", h).mean((1, 2)))


def test_equals_its_formula():
    init = slow.jit(lambda key: SMALL.init(key, X, T, train=False))
    shapes = init(slow.key(0))["params"]
    rng = np.random.default_rng(1)
    params = jax.tree.map(
        lambda leaf: np.float32(rng.normal(size=leaf.shape) / 3), shapes
    )
    logits = slow.apply(SMALL, params, X, T, False)
    expected = reference(params, np.float64(X), np.float64(T))
    np.testing.assert_allclose(
        logits, expected, rtol=0, atol=1e-4 * abs(expected).max()
    )


def test_refuses_other_depths():
    with pytest.raises(UserError, match="6 n \\+ 4"):
        jax.eval_shape(
            lambda: replace(SMALL, depth=12).init(jax.random.key(0), X, T, train=False)
        )
