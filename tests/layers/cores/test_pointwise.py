from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf

from research.layers.cores.base import SEES_ALL, Mask
from research.layers.cores.counts import Fixed, all_keys
from research.layers.cores.pointwise import (
    Pointwise,
    laplace,
    per_key,
    squared_relu,
    unchanged,
)
from tests.layers import slow

DRAWS = np.random.default_rng(0)
QUERY = DRAWS.normal(size=(2, 5, 4, 3))
KEY = DRAWS.normal(size=(2, 5, 2, 3))  # each head of keys serves two of queries
VALUE = DRAWS.normal(size=(2, 5, 2, 6))
BIAS = DRAWS.normal(size=(4, 5, 5))
VALID = np.array([[1, 1, 1, 1, 1], [0, 1, 1, 0, 0]], bool)
SEGMENTS = np.array([[1, 1, 2, 2, 2], [1, 1, 1, 2, 0]])


def bias(queries, keys):
    return jnp.asarray(BIAS)[:, queries][:, :, keys]


def seen_by(valid=None, segments=None, causal=False):
    """(batch, query, key), one at a time."""
    seen = np.ones((2, 5, 5), bool)
    for row, query, key in np.ndindex(2, 5, 5):
        if causal and key > query:
            seen[row, query, key] = False
        if valid is not None and not valid[row, key]:
            seen[row, query, key] = False
        if segments is not None and segments[row, query] != segments[row, key]:
            seen[row, query, key] = False
    return seen


def slow_pointwise(seen, weight):
    """`weight(product, bias, keys seen)` of each query and key that it sees."""
    out = np.zeros((2, 5, 4, 6))
    for row, query, head in np.ndindex(2, 5, 4):
        count = seen[row, query].sum()
        for key in range(5):
            if seen[row, query, key]:
                product = QUERY[row, query, head] @ KEY[row, key, head // 2]
                weighted = weight(product, BIAS[head, query, key], count)
                out[row, query, head] += weighted * VALUE[row, key, head // 2]
    return out


def relu2(x):
    return max(x, 0) ** 2


def published(product, added, count):
    return relu2(product / 3**0.5 + added) / count


MASKS = [
    {},
    {"causal": True},
    {"valid": VALID},
    {"valid": VALID, "segments": SEGMENTS, "causal": True},
]


@pytest.mark.parametrize("parts", MASKS, ids=lambda parts: "-".join(parts) or "all")
def test_slow_formula(parts):
    mask = {name: jnp.asarray(part) for name, part in parts.items()}
    if "segments" in parts:
        mask["segments"] = (mask["segments"], mask["segments"])
    mask = Mask(**mask | {"causal": "causal" in parts})
    ours = run(Pointwise(), mask)
    np.testing.assert_allclose(
        ours, slow_pointwise(seen_by(**parts), published), rtol=1e-5, atol=1e-6
    )


def run(core, mask=SEES_ALL, key=KEY, value=VALUE, bias=bias, **options):
    arrays = (jnp.asarray(x, jnp.float32) for x in (QUERY, key, value))
    return slow.jit(partial(core.apply, {}, mask=mask, bias=bias, **options))(*arrays)


@pytest.mark.parametrize(
    ("core", "weight"),
    [
        (
            Pointwise(inside=per_key, outside=unchanged),
            lambda product, added, count: relu2(product / count + added),
        ),
        (
            Pointwise(laplace, inside=per_key, outside=unchanged),
            lambda product, added, count: (
                (1 + erf((product / count + added - 0.5**0.5) * (2 * np.pi) ** 0.5)) / 2
            ),
        ),
        (
            Pointwise(count=all_keys),
            lambda product, added, count: relu2(product / 3**0.5 + added) / 5,
        ),
        (
            Pointwise(count=Fixed(512)),
            lambda product, added, count: relu2(product / 3**0.5 + added) / 512,
        ),
    ],
    ids=["pseudocode", "laplace", "all_keys", "fixed"],
)
def test_variants(core, weight):
    seen = seen_by(valid=VALID, causal=True)
    ours = run(core, Mask(valid=jnp.asarray(VALID), causal=True))
    np.testing.assert_allclose(ours, slow_pointwise(seen, weight), rtol=1e-5, atol=1e-6)


def weights_of(core, mask, **options):
    """With the unit matrix for values, what comes out is the weights."""
    value = np.broadcast_to(np.eye(5)[None, :, None], (2, 5, 2, 5))
    return run(core, mask, value=value, **options)


def test_the_unseen_have_no_weight_at_all():
    mask = Mask(valid=jnp.asarray(VALID), causal=True)
    seen = seen_by(valid=VALID, causal=True)
    for core in (Pointwise(), Pointwise(laplace)):
        weights = np.asarray(weights_of(core, mask)).swapaxes(1, 2)
        assert (weights[~np.repeat(seen[:, None], 4, axis=1)] == 0).all()
        assert (weights >= 0).all() and (weights > 0).any()


def test_the_mean_is_over_what_is_seen():
    # Whatever the number of keys, alike ones bring what a single one does.
    same = np.ones((2, 5, 2, 3))
    ends = [(1, 3), (2, 3), (5, 4)]
    outs = [
        run(
            Pointwise(),
            Mask(valid=jnp.arange(5)[None] < jnp.array(end)[:, None]),
            key=same,
            value=same,
            bias=None,
        )
        for end in ends
    ]
    for out in outs[1:]:
        np.testing.assert_allclose(out, outs[0], rtol=1e-6)
    assert np.abs(outs[0]).max() > 0.1


def test_dropout_keeps_the_mean_of_the_weights():
    mask = Mask(causal=True)
    plain = np.asarray(weights_of(Pointwise(), mask))
    core = Pointwise(dropout_rate=0.5)
    np.testing.assert_array_equal(weights_of(core, mask), plain)
    dropped = np.asarray(
        weights_of(core, mask, train=True, rngs={"dropout": slow.key(0)})
    )
    kept = dropped != 0
    np.testing.assert_allclose(dropped[kept], 2 * plain[kept], rtol=1e-6)
    share = kept.sum() / (plain != 0).sum()
    assert 0.25 < share < 0.75


def test_laplace_touches_the_squared_relu():
    x = jnp.sqrt(0.5)
    for function in (lambda f: f(x), lambda f: jax.grad(f)(x)):
        np.testing.assert_allclose(function(laplace), function(squared_relu), rtol=1e-6)
    assert laplace(jnp.float32(100)) == 1
    assert laplace(jnp.float32(-100)) == 0


def test_weights_are_float32_in_bfloat16():
    arrays = [jnp.asarray(x, jnp.bfloat16) for x in (QUERY, KEY, VALUE)]
    jaxpr = jax.make_jaxpr(partial(Pointwise().apply, {}))(*arrays)
    squares = [line for line in str(jaxpr).splitlines() if "square" in line]
    assert squares and all(":f32[" in line for line in squares)
    assert jaxpr.out_avals[0].dtype == jnp.bfloat16
