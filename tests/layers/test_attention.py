import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.errors import UserError
from research.layers.attention import Attention, PixelAttention
from research.layers.cores import LSH, Mask, Softmax
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


# Sequences


def heads_of(x, num_heads):
    return np.asarray(x, np.float64).reshape(*x.shape[:2], num_heads, -1)


def slow_attention(params, x, context, num_heads, num_kv_heads, seen):
    """One query of one head at a time."""
    query = heads_of(slow.dense(params["query"], x), num_heads)
    key = heads_of(slow.dense(params["key"], context), num_kv_heads)
    value = heads_of(slow.dense(params["value"], context), num_kv_heads)
    out = np.zeros((*x.shape[:2], num_heads, value.shape[-1]))
    for b, q, h in np.ndindex(*out.shape[:3]):
        shared = h // (num_heads // num_kv_heads)
        logits = key[b, :, shared] @ query[b, q, h] / query.shape[-1] ** 0.5
        weights = np.where(seen[b, q], np.exp(logits), 0)
        if weights.any():
            out[b, q, h] = weights / weights.sum() @ value[b, :, shared]
    return slow.dense(params["out"], out.reshape(*x.shape[:2], -1))


def attend(attention, params, *inputs, mask):
    run = slow.jit(lambda params, mask: attention.apply(params, *inputs, mask=mask))
    return run({"params": params}, mask)


SEQUENCE = np.random.default_rng(3).normal(size=(2, 5, 8))
OTHER = np.random.default_rng(4).normal(size=(2, 7, 6))
VALID = np.array([[1, 1, 0, 1, 1, 0, 1], [0, 0, 0, 1, 1, 1, 1]], bool)


@pytest.mark.parametrize("num_kv_heads", [1, 2, 4])
def test_self_attention_is_the_slow_formula(num_kv_heads):
    attention = Attention(num_heads=4, num_kv_heads=num_kv_heads, value_dim=3)
    x = jnp.asarray(SEQUENCE)
    params = slow.random_params(attention, x)
    segments = jnp.array([[1, 1, 2, 2, 2], [1, 1, 1, 1, 0]])
    mask = Mask(causal=True, segments=(segments, segments))
    seen = np.tril(np.ones((5, 5), bool)) & (
        np.asarray(segments)[:, :, None] == np.asarray(segments)[:, None]
    )
    expected = slow_attention(params, SEQUENCE, SEQUENCE, 4, num_kv_heads, seen)
    ours = attend(attention, params, x, mask=mask)
    np.testing.assert_allclose(ours, expected, atol=1e-5)


def test_cross_attention_is_the_slow_formula():
    attention = Attention(num_heads=2, head_dim=3, use_bias=False)
    x, context = jnp.asarray(SEQUENCE), jnp.asarray(OTHER)
    params = slow.random_params(attention, x, context)
    assert "bias" not in params["query"] and "bias" not in params["out"]
    zeros = {name: {**layer, "bias": 0} for name, layer in params.items()}
    seen = np.repeat(VALID[:, None], 5, axis=1)
    expected = slow_attention(zeros, SEQUENCE, OTHER, 2, 2, seen)
    mask = Mask(valid=jnp.asarray(VALID))
    ours = attend(attention, params, x, context, mask=mask)
    np.testing.assert_allclose(ours, expected, atol=1e-5)


def test_a_query_that_sees_nothing_gets_the_bias():
    attention = Attention(num_heads=2)
    params = slow.random_params(attention, jnp.asarray(SEQUENCE))
    valid = jnp.zeros((2, 5), bool)
    ours = attend(attention, params, jnp.asarray(SEQUENCE), mask=Mask(valid=valid))
    expected = np.broadcast_to(params["out"]["bias"], ours.shape)
    np.testing.assert_allclose(ours, expected, atol=1e-6)


def test_dropping_weights_draws_anew_and_keeps_the_mean():
    """And the way that drops is the way that does not, apart from that."""
    x = jnp.asarray(SEQUENCE)
    params = slow.random_params(Attention(num_heads=2), x)

    def run(rate, seed):
        attention = Attention(num_heads=2, core=Softmax(dropout_rate=rate))
        return attention.apply(
            {"params": params},
            x,
            mask=Mask(causal=True),
            train=True,
            rngs={"dropout": jax.random.key(seed)},
        )

    whole = run(0.0, 0)
    np.testing.assert_allclose(run(2e-5, 0), whole, atol=1e-3)
    draws = jax.vmap(lambda seed: run(0.5, seed))(jnp.arange(2000))
    assert float(draws.std(0).min()) > 0.01
    spread = draws.std(0) / 2000**0.5
    assert float(jnp.mean(abs(draws.mean(0) - whole) < 4 * spread)) > 0.99


def test_a_core_whose_queries_are_keys_has_no_other_keys():
    """With one bucket and chunk: attention to all others by normed queries."""
    x = jnp.asarray(SEQUENCE)
    attention = Attention(num_heads=2, core=LSH(2, chunk_size=8))
    variables = slow.jit(attention.init)(slow.key(0), x)
    params = slow.random_params(attention, x)
    assert set(params) == {"query", "value", "out"}
    ours = slow.jit(attention.apply)({**variables, "params": params}, x)
    query, value = (
        heads_of(slow.dense(params[n], SEQUENCE), 2) for n in ("query", "value")
    )
    key = query / np.linalg.norm(query, axis=-1, keepdims=True)
    logits = np.einsum("bqhd,bkhd->bhqk", query, key)
    weights = np.exp(logits) * ~np.eye(5, dtype=bool)
    weights /= weights.sum(-1, keepdims=True)
    out = np.einsum("bhqk,bkhd->bqhd", weights, value).reshape(2, 5, -1)
    np.testing.assert_allclose(ours, slow.dense(params["out"], out), atol=1e-5)
    pixels = jax.eval_shape(
        PixelAttention(core=LSH(2)).init, slow.key(0), jnp.asarray(X)
    )
    assert set(pixels["params"]) == {"norm", "query", "value", "out"}
    with pytest.raises(UserError, match="LSH takes queries for keys"):
        attention.init(slow.key(0), x, jnp.asarray(OTHER))


@pytest.mark.parametrize(
    "settings", [{"num_heads": 3}, {"num_heads": 4, "num_kv_heads": 3}]
)
def test_heads_that_do_not_fit_are_refused(settings):
    with pytest.raises(UserError, match="heads"):
        Attention(**settings).init(slow.key(0), jnp.asarray(SEQUENCE))
