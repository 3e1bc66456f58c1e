import re
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.layers.attention import Attention
from research.layers.linear import (
    Dense,
    NtkDense,
    SpectralNormDense,
    WeightNormDense,
)
from research.layers.mlp import FeedForward
from research.layers.stack import Stack, TransformerBlock
from tests.layers import slow

X = np.random.default_rng(0).normal(size=(2, 5, 6))
LAYERS = [NtkDense, WeightNormDense, SpectralNormDense]


def init(layer, x=X):
    return slow.jit(layer.init_with_output)(slow.key(0), jnp.asarray(x))


@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize("layer", LAYERS)
def test_slow_formula(layer, use_bias):
    layer = layer(4, use_bias=use_bias)
    _, variables = init(layer)
    params = slow.random_params(layer, jnp.asarray(X))
    assert ("bias" in params) == use_bias
    kernel = np.float64(params["kernel"])
    if isinstance(layer, NtkDense):
        kernel = kernel / np.sqrt(6)
    elif isinstance(layer, WeightNormDense):
        columns = [
            params["scale"][i] * column / np.linalg.norm(column)
            for i, column in enumerate(kernel.T)
        ]
        kernel = np.stack(columns, axis=1)
    else:
        u = kernel @ np.float64(variables["spectral"]["right"])
        u /= np.linalg.norm(u)
        v = u @ kernel
        v /= np.linalg.norm(v)
        kernel = kernel / (u @ kernel @ v)
    expected = X @ kernel + np.float64(params.get("bias", 0.0))
    ours = slow.jit(layer.apply)({**variables, "params": params}, jnp.asarray(X))
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kernel_init", [None, nn.initializers.xavier_uniform()])
@pytest.mark.parametrize("layer", [NtkDense, WeightNormDense])
def test_starts_as_the_plain_layer(layer, kernel_init):
    options = {"kernel_init": kernel_init} if kernel_init else {}
    ours, variables = init(layer(4, **options))
    plain, theirs = init(nn.Dense(4, **options))
    np.testing.assert_allclose(ours, plain, rtol=1e-5, atol=1e-6)
    assert variables["params"]["kernel"].shape == theirs["params"]["kernel"].shape


def test_ntk_kernels_are_standard_normal():
    layer = NtkDense(512, use_bias=False)
    kernel = init(layer, np.ones((1, 256)))[1]["params"]["kernel"]
    assert float(kernel.std()) == pytest.approx(1, rel=0.01)


def test_spectral_norm_converges_to_the_largest_singular_value():
    layer = SpectralNormDense(4, use_bias=False)
    _, variables = init(layer)
    kernel = variables["params"]["kernel"]
    x = jnp.eye(6)

    @slow.jit
    def train(spectral):
        variables = {"params": {"kernel": kernel}, "spectral": spectral}
        return layer.apply(variables, x, mutable=["spectral"])

    spectral = variables["spectral"]
    first = y = None
    for _ in range(60):
        y, changed = train(spectral)
        first = y if first is None else first
        spectral = changed["spectral"]
    largest = np.linalg.svd(np.float64(kernel), compute_uv=False)[0]
    np.testing.assert_allclose(y, kernel / largest, rtol=1e-5, atol=1e-6)
    assert not np.allclose(first, y, rtol=1e-3)

    evaluate = slow.jit(layer.apply)({**variables, "spectral": spectral}, x)
    np.testing.assert_allclose(evaluate, y, rtol=1e-5, atol=1e-6)


def test_spectral_gradient_takes_the_vectors_as_given():
    """d (W / sigma) = dW / sigma - W (u v^T : dW) / sigma^2."""
    layer = SpectralNormDense(4, use_bias=False)
    _, variables = init(layer)
    weights = np.random.default_rng(1).normal(size=(6, 4))
    kernel = np.float64(variables["params"]["kernel"])

    def loss(params):
        y = layer.apply({**variables, "params": params}, jnp.eye(6))
        return (y * weights).sum()

    u = kernel @ np.float64(variables["spectral"]["right"])
    u /= np.linalg.norm(u)
    v = u @ kernel
    v /= np.linalg.norm(v)
    sigma = u @ kernel @ v
    expected = weights / sigma - (kernel * weights).sum() * np.outer(u, v) / sigma**2
    gradient = slow.jit(jax.grad(loss))(variables["params"])["kernel"]
    np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layer", LAYERS)
def test_parameters_are_float32_in_bfloat16(layer):
    y, variables = init(layer(4, dtype="bfloat16"))
    assert y.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}


@pytest.mark.parametrize("layer", LAYERS)
def test_stands_in_a_stack(layer):
    """Every layer's state is its own, and training changes it."""
    block = partial(
        TransformerBlock,
        mixer=partial(Attention, num_heads=2, dense=layer),
        mlp=partial(FeedForward, mlp_dim=4, dense=layer),
    )
    stack = Stack(num_layers=3, blocks=(block,))
    _, variables = init(stack)
    kernel = variables["params"]["layers"]["block_0"]["mlp"]["up"]["kernel"]
    assert kernel.shape == (3, 6, 4)
    if layer is SpectralNormDense:

        @slow.jit
        def train(variables):
            return stack.apply(
                variables, jnp.asarray(X), train=True, mutable=["spectral"]
            )[1]

        old, new = variables["spectral"], train(variables)["spectral"]
        for before, after in zip(
            jax.tree.leaves(old), jax.tree.leaves(new), strict=True
        ):
            assert before.shape[0] == 3 and not np.array_equal(before, after)


def test_dense_is_that_of_flax_and_learns_alike():
    x = jax.random.normal(jax.random.key(0), (2, 3, 5))
    ours, theirs = Dense(4), nn.Dense(4)
    variables = ours.init(jax.random.key(1), x)
    same = theirs.init(jax.random.key(1), x)
    jax.tree.map(np.testing.assert_array_equal, variables, same)

    def loss(layer):
        return lambda variables, x: jnp.sum(jnp.sin(layer.apply(variables, x)))

    for argument in (0, 1):
        found = jax.grad(loss(ours), argument)(variables, x)
        wanted = jax.grad(loss(theirs), argument)(variables, x)
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5), found, wanted)

    # Of matrices: XLA sums over several axes slowly on CPUs.
    gradient = jax.jit(jax.grad(loss(ours), (0, 1))).lower(variables, x).as_text()
    products = re.findall(r"stablehlo.dot_general.*: (.*)", gradient)
    assert len(products) == 3
    assert all(re.fullmatch(r"[^>]*<\d+x\d+xf32>.*", p) for p in products)
    assert not any(re.search(r"\d+x\d+x\d+xf32", p) for p in products)
