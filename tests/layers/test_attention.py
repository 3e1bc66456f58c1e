import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.errors import UserError
from research.layers.attention import PixelAttention
from tests.layers import slow

X = np.random.default_rng(0).normal(size=(2, 3, 4, 8))


@pytest.mark.parametrize("num_heads", [1, 2])
def test_slow_formula(num_heads):
    attention = PixelAttention(num_heads)
    params = slow.random_params(attention, jnp.asarray(X))
    ours = slow.apply(attention, params, jnp.asarray(X))

    h = slow.group_norm(params["norm"], X, 2).reshape(2, 12, 8)
    query, key, value = (
        slow.dense(params[name], h) for name in ("query", "key", "value")
    )
    mixed = np.empty_like(h)
    size = 8 // num_heads
    for example in range(2):
        for head in range(num_heads):
            part = slice(head * size, head * size + size)
            for pixel in range(12):
                logits = key[example, :, part] @ query[example, pixel, part]
                weights = np.exp(logits / size**0.5)
                weights /= weights.sum()
                mixed[example, pixel, part] = weights @ value[example, :, part]
    expected = (X + slow.dense(params["out"], mixed).reshape(X.shape)) / 2**0.5
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-4)


def test_starts_as_the_rescaled_input():
    init = slow.jit(PixelAttention().init_with_output)
    y, _ = init(slow.key(0), jnp.asarray(X))
    np.testing.assert_allclose(y, X / 2**0.5, atol=1e-4)


def test_order_of_the_pixels_does_not_matter():
    attention = PixelAttention()
    params = slow.random_params(attention, jnp.asarray(X))
    order = np.random.default_rng(1).permutation(12)

    def shuffle(x):
        return jnp.asarray(x).reshape(2, 12, 8)[:, order].reshape(2, 3, 4, 8)

    np.testing.assert_allclose(
        slow.apply(attention, params, shuffle(X)),
        shuffle(slow.apply(attention, params, jnp.asarray(X))),
        atol=1e-5,
    )


def test_softmax_is_float32_in_bfloat16():
    attention = PixelAttention(dtype="bfloat16")
    params = slow.random_params(attention, jnp.asarray(X))
    text = str(jax.make_jaxpr(attention.apply)({"params": params}, jnp.asarray(X)))
    exponentials = [line for line in text.splitlines() if " = exp " in line]
    assert exponentials and all(":f32[" in line for line in exponentials)
    assert slow.apply(attention, params, jnp.asarray(X)).dtype == jnp.bfloat16


def test_another_core():
    def mean(query, key, value):
        return jnp.broadcast_to(value.mean(1, keepdims=True), value.shape)

    attention = PixelAttention(core=mean)
    params = slow.random_params(attention, jnp.asarray(X))
    h = slow.group_norm(params["norm"], X, 2)
    mixed = slow.dense(params["value"], h).mean((1, 2), keepdims=True)
    expected = (X + slow.dense(params["out"], mixed)) / 2**0.5
    ours = slow.apply(attention, params, jnp.asarray(X))
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-4)


def test_heads_must_divide_the_channels():
    with pytest.raises(UserError, match="8 channels .* 3 heads"):
        PixelAttention(3).init(slow.key(0), jnp.asarray(X))
