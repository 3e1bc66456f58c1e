"""What every attention core must do, whatever its weights are."""

import jax
import jax.numpy as jnp
import numpy as np

from research.layers.cores import Mask
from tests.layers import slow

SEGMENTS = np.array([[1] * 5 + [2] * 2 + [3] * 10, [1] * 9 + [2] * 4 + [0] * 4])
VALID = np.ones((2, 17), bool)
VALID[0, 3], VALID[1, 12:] = False, False


def arrays(num_queries=17, num_keys=17, heads=4, kv_heads=2, dim=8, value_dim=5):
    """A query, a key and a value, large enough for weights that differ."""
    draws = np.random.default_rng(0)
    shapes = [
        (2, num_queries, heads, dim),
        (2, num_keys, kv_heads, dim),
        (2, num_keys, kv_heads, value_dim),
    ]
    return [jnp.asarray(draws.normal(size=shape), jnp.float32) for shape in shapes]


def masks(causal):
    """Of 17 queries and keys: padded, packed, and both."""
    segments = (jnp.asarray(SEGMENTS), jnp.asarray(SEGMENTS))
    return {
        "all": Mask(causal=causal),
        "padded": Mask(causal=causal, valid=jnp.asarray(VALID)),
        "packed": Mask(causal=causal, segments=segments),
        "both": Mask(causal=causal, segments=segments, valid=jnp.asarray(VALID)),
    }


def crossed():
    """Of 11 queries and 17 keys."""
    segments = (jnp.asarray(SEGMENTS[:, 3:14]), jnp.asarray(SEGMENTS))
    return {
        "all": Mask(),
        "padded": Mask(valid=jnp.asarray(VALID)),
        "packed": Mask(segments=segments),
    }


def run(core, inputs, mask, variables=None, **options):
    """The output, or that and the changed variables where some are `mutable`."""

    def apply(variables, inputs, mask):
        return core.apply(variables, *inputs, mask=mask, **options)

    return slow.jit(apply)(variables or {}, inputs, mask)


def run_all(core, inputs, masks, variables=None, **options):
    """The output for each of several masks."""

    def apply(variables, inputs, masks):
        return {
            name: core.apply(variables, *inputs, mask=mask, **options)
            for name, mask in masks.items()
        }

    return slow.jit(apply)(variables or {}, inputs, masks)


def check_masks(core, weights, inputs, masks, variables=None, **options):
    """With each of the masks, what these weights (see `weighted`) make of values."""
    outputs = run_all(core, inputs, masks, variables, **options)
    for name, mask in masks.items():
        expected = weighted(weights, inputs[2], mask)
        np.testing.assert_allclose(outputs[name], expected, atol=1e-5, err_msg=name)


def weighted(weights, value, mask):
    """What weights (batch, heads, queries, keys) make of values; zeros where none."""
    seen = mask.dense(*weights.shape[2:])
    weights = np.float64(weights)
    if seen is not None:
        weights = weights * np.asarray(seen)
    total = weights.sum(-1, keepdims=True)
    weights = weights / np.where(total == 0, 1, total)
    group = weights.shape[1] // value.shape[2]
    return np.einsum("bhqk,bkhd->bqhd", weights, np.float64(value).repeat(group, 2))


def pairs(of_pair, query, key):
    """`of_pair(query, key)` of all pairs of vectors: (batch, heads, queries, keys)."""
    query, key = np.float64(query), np.float64(key)
    key = key.repeat(query.shape[2] // key.shape[2], 2)
    return np.array(
        [
            [
                [
                    [of_pair(q, k) for k in key[row, :, head]]
                    for q in query[row, :, head]
                ]
                for head in range(query.shape[2])
            ]
            for row in range(len(query))
        ]
    )


def check_causal(core, variables=None, length=11, kv_heads=2, atol=1e-6, **options):
    """Nothing reaches back: by derivatives, and by changing what is ahead."""
    inputs = arrays(length, length, kv_heads=kv_heads)

    def out(inputs):
        return core.apply(
            variables or {}, *inputs, mask=Mask(causal=True), **options
        ).sum((0, 2, 3))

    derivatives, before, after = slow.jit(
        lambda x: (
            jax.jacrev(out)(x),
            out(x),
            out([part.at[:, 6:].multiply(-3.0) for part in x]),
        )
    )(inputs)
    for of_input in derivatives:
        reach = np.abs(of_input).sum((1, 3, 4))  # of positions to positions
        assert (np.triu(reach, 1) == 0).all()
        assert (np.tril(reach).sum(1)[1:] > 0).all()
    np.testing.assert_allclose(before[:6], after[:6], rtol=0, atol=atol)
    assert (np.abs(before[6:] - after[6:]) > 1e-3).all()


def check_decodes(core, variables=None, inputs=None, atol=1e-5, padded=False):
    """Token by token, after a prompt of six, it gives what it gives at once."""
    inputs = arrays() if inputs is None else inputs
    variables = variables or {}
    valid = None
    if padded:
        valid = jnp.arange(17)[None] >= jnp.array([0, 2])[:, None]
    mask = Mask(causal=True, valid=valid)
    step = slow.jit(
        lambda cache, inputs: core.apply(
            {**variables, **cache}, *inputs, mask=mask, decode=True, mutable=["cache"]
        )
    )
    expected = run(core, inputs, mask, variables)
    first, cache = step({}, inputs)
    np.testing.assert_allclose(first, expected, atol=atol)
    cache = jax.tree.map(jnp.zeros_like, cache)
    parts = []
    for start, stop in [(0, 6), *((i, i + 1) for i in range(6, 17))]:
        out, cache = step(cache, [part[:, start:stop] for part in inputs])
        parts.append(out)
    np.testing.assert_allclose(np.concatenate(parts, 1), expected, atol=atol)
    return cache["cache"]


def check_bfloat16(core, variables=None, causal=True, **options):
    """Takes it and gives it, as exactly as it can."""
    inputs = [part.astype(jnp.bfloat16) for part in arrays()]
    mask = Mask(causal=causal)
    ours = run(core, inputs, mask, variables, **options)
    assert ours.dtype == jnp.bfloat16
    exact = [part.astype(jnp.float32) for part in inputs]
    expected = run(core, exact, mask, variables, **options)
    np.testing.assert_allclose(np.float32(ours), expected, atol=0.02, rtol=0.02)


def check_finite(core, variables=None, causal=True, segments=True, **options):
    """Derivatives are numbers, with a row of padding alone and with large inputs."""
    valid = jnp.asarray(VALID).at[1].set(False)
    own = (jnp.asarray(SEGMENTS), jnp.asarray(SEGMENTS)) if segments else None
    mask = Mask(causal=causal, valid=valid, segments=own)

    def total(inputs):
        out = core.apply(variables or {}, *inputs, mask=mask, **options)
        return (out**2).sum(), out

    derive = slow.jit(jax.grad(total, has_aux=True))
    query, key, value = arrays()
    for size in (1, 30):
        derivatives, out = derive([size * query, size * key, value])
        assert np.isfinite(out).all()
        np.testing.assert_array_equal(out[1], 0)
        for part in derivatives:
            assert np.isfinite(part).all() and (size > 1 or (part[0] != 0).any())
            np.testing.assert_array_equal(part[1], 0)
