from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.errors import UserError
from research.layers.cores import LSH, Mask
from research.layers.cores.lsh import _hash
from tests.layers import slow
from tests.layers.cores import contract


def vectors(length=17, heads=4, kv_heads=2):
    """Queries that are keys, too, and values; what is given as keys is not read."""
    query, _, value = contract.arrays(length, length, heads, kv_heads)
    return [query, query[:, :, :kv_heads] + jnp.nan, value]


def features(num_rounds, half_buckets, heads=4):
    draws = np.random.default_rng(1)
    rotations = draws.normal(size=(heads, 8, num_rounds, half_buckets))
    return {"features": {"rotations": jnp.asarray(rotations, jnp.float32)}}


def full(mask, inputs):
    """Attention to all others with shared vectors; to oneself if there are none."""
    query, _, value = inputs
    logits = contract.pairs(lambda q, k: q @ k / np.linalg.norm(k), query, query)
    length = query.shape[1]
    seen = mask.dense(length, length)
    seen = np.ones((1, 1, length, length), bool) if seen is None else np.asarray(seen)
    others = seen & ~np.eye(length, dtype=bool)
    seen = np.where(others.any(-1, keepdims=True), others, seen)
    return contract.weighted(np.exp(logits) * seen, value, Mask())


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("num_rounds", [1, 3])
def test_one_chunk_is_full_attention_without_oneself(num_rounds, causal):
    inputs = vectors()
    masks = contract.masks(causal)
    core = LSH(2, chunk_size=64, num_rounds=num_rounds)
    outputs = contract.run_all(core, inputs, masks, features(num_rounds, 1))
    for name, mask in masks.items():
        expected = full(mask, inputs)
        np.testing.assert_allclose(outputs[name], expected, atol=1e-5, err_msg=name)


def by_hand(inputs, rotations, size, mask, num_buckets):
    """One round after the other, one query after the other."""
    query, _, value = (np.float64(part) for part in inputs)
    batch, length, heads, _ = query.shape
    num_rounds = rotations.shape[2]
    padded = length + -length % size
    out = np.zeros((*query.shape[:3], value.shape[-1]))
    valid = np.ones((batch, padded), bool)
    valid[:, :length] = True if mask.valid is None else mask.valid
    valid[:, length:] = False
    for row, head in np.ndindex(batch, heads):
        line = []  # of all rounds, sorted
        for number in range(num_rounds):
            bucket = np.full(padded, num_buckets)
            for position in range(length):
                rotated = query[row, position, head] @ rotations[head, :, number]
                if valid[row, position]:
                    bucket[position] = np.argmax(np.concatenate([rotated, -rotated]))
            line += sorted(range(padded), key=lambda i, b=bucket: (b[i], i))
        chunks = [line[i : i + size] for i in range(0, len(line), size)]
        for position in range(length):
            q = query[row, position, head]
            found = []
            for number in range(num_rounds):
                per_round = padded // size
                (here,) = [
                    i
                    for i in range(number * per_round, (number + 1) * per_round)
                    if position in chunks[i]
                ]
                keys = chunks[here] + chunks[here - 1]
                keys = [
                    k
                    for k in keys
                    if valid[row, k] and (k <= position or not mask.causal)
                ]
                others = [k for k in keys if k != position]
                logits = [
                    q @ query[row, k, head] / np.linalg.norm(query[row, k, head])
                    for k in others
                ]
                if others:
                    found += list(zip(logits, others, strict=True))
                elif keys:
                    found.append((-1e5, position))
            if found:
                logits, keys = zip(*found, strict=True)
                weights = np.exp(np.array(logits) - max(logits))
                weights /= weights.sum()
                out[row, position, head] = weights @ value[row, list(keys), head // 2]
    return out


@pytest.mark.parametrize("causal", [False, True])
def test_slow_formula(causal):
    inputs = vectors()
    variables = features(2, 3)
    masks = contract.masks(causal)
    masks = {name: masks[name] for name in ("all", "padded")}
    core = LSH(6, chunk_size=4, num_rounds=2)
    outputs = contract.run_all(core, inputs, masks, variables)
    rotations = np.float64(variables["features"]["rotations"])
    for name, mask in masks.items():
        expected = by_hand(inputs, rotations, 4, mask, 6)
        np.testing.assert_allclose(outputs[name], expected, atol=1e-5, err_msg=name)


def test_buckets():
    query = jnp.asarray(np.random.default_rng(0).normal(size=(2, 4, 50, 8)))
    rotations = features(3, 4)["features"]["rotations"]
    one = _hash(query, rotations, 8)
    assert one.shape == (2, 4, 3, 50)
    rotated = np.einsum("bhld,hdrs->bhrls", query, rotations)
    nearest = np.argmax(np.concatenate([rotated, -rotated], -1), -1)
    np.testing.assert_array_equal(one, nearest)
    # Of like vectors, however long; the opposite is in the opposite bucket.
    np.testing.assert_array_equal(_hash(3 * query, rotations, 8), one)
    np.testing.assert_array_equal(_hash(-query, rotations, 8), (one + 4) % 8)
    factored = _hash(query, rotations, (2, 6))
    np.testing.assert_array_equal(
        factored,
        _hash(query, rotations[..., :1], 2) + 2 * _hash(query, rotations[..., 1:], 6),
    )
    assert factored.max() == 11


def test_derivatives_do_not_reach_back():
    core = LSH(4, chunk_size=2, num_rounds=2)
    variables = features(2, 2)
    query, _, value = vectors(11)

    def out(query, value):
        inputs = (query, query[:, :, :2], value)
        return core.apply(variables, *inputs, mask=Mask(causal=True)).sum((0, 2, 3))

    parts = slow.jit(jax.jacrev(out, argnums=(0, 1)))(query, value)
    of_query, of_value = (np.abs(part).sum((1, 3, 4)) for part in parts)
    assert (np.triu(of_query, 1) == 0).all() and (of_query > 0).any()
    assert (np.triu(of_value, 1) == 0).all() and (of_value.sum(1) > 0).all()


def test_decodes_what_the_prefix_gives():
    inputs = vectors()
    core = LSH(4, chunk_size=4, num_rounds=2)
    variables = features(2, 2)
    step = slow.jit(
        lambda cache, inputs: core.apply(
            {**variables, **cache}, *inputs, decode=True, mutable=["cache"]
        )
    )
    _, cache = step({}, inputs)
    cache = jax.tree.map(jnp.zeros_like, cache)
    at_once = slow.jit(partial(core.apply, variables))
    for start, stop in [(0, 6), *((i, i + 1) for i in range(6, 17))]:
        out, cache = step(cache, [part[:, start:stop] for part in inputs])
        valid = jnp.broadcast_to(jnp.arange(17) < stop, (2, 17))
        expected = at_once(*inputs, mask=Mask(causal=True, valid=valid))
        np.testing.assert_allclose(out, expected[:, start:stop], atol=1e-5)


def test_more_rounds_find_more():
    query, _, value = contract.arrays(128, 128, heads=1, kv_heads=1)
    inputs = [2 * query, 2 * query, value]
    exact = full(Mask(), inputs)
    errors = []
    for num_rounds in (1, 2, 8):
        core = LSH(16, chunk_size=8, num_rounds=num_rounds)
        ours = contract.run(core, inputs, Mask(), features(num_rounds, 8, heads=1))
        errors.append(np.abs(ours - exact).mean())
    assert errors[0] > 1.2 * errors[1] > 1.5 * errors[2]


def test_finite():
    core = LSH(4, chunk_size=4, num_rounds=2)
    query, _, value = contract.arrays()
    valid = jnp.asarray(contract.VALID).at[1].set(False)
    variables = features(2, 2)

    def total(query, value, scale):
        mask = Mask(causal=True, valid=valid)
        out = core.apply(variables, scale * query, query[:, :, :2], value, mask=mask)
        return (out**2).sum(), out

    derive = slow.jit(jax.grad(total, argnums=(0, 1), has_aux=True))
    for scale in (0.0, 1.0, 100.0):
        derivatives, out = derive(query, value, scale)
        assert np.isfinite(out).all() and (out[1] == 0).all()
        for part in derivatives:
            assert np.isfinite(part).all() and (part[1] == 0).all()
    narrow = [part.astype(jnp.bfloat16) for part in vectors()]
    one_chunk = LSH(2, chunk_size=64)
    ours = contract.run(one_chunk, narrow, Mask(causal=True), features(1, 1))
    assert ours.dtype == jnp.bfloat16
    expected = full(Mask(causal=True), narrow)
    np.testing.assert_allclose(np.float32(ours), expected, atol=0.03)


def test_redraws_in_training():
    inputs = vectors()
    core = LSH((2, 4), chunk_size=4, num_rounds=2)
    variables = core.init(slow.key(0), *inputs)
    assert variables["features"]["rotations"].shape == (4, 8, 2, 3)

    def run(core, seed, train):
        rngs = {"features": slow.key(seed)}
        return core.apply(variables, *inputs, train=train, rngs=rngs)

    fixed = LSH((2, 4), chunk_size=4, num_rounds=2, redraw=False)
    first, second, third, kept = slow.jit(
        lambda: (
            run(core, 1, False),
            run(core, 1, True),
            run(core, 2, True),
            run(fixed, 1, True),
        )
    )()
    for one, other in [(first, second), (second, third)]:
        assert np.abs(one - other).max() > 0.01
    np.testing.assert_array_equal(first, kept)


def test_refusals():
    with pytest.raises(UserError, match="11 queries and 17 keys"):
        LSH(2).apply({}, *contract.arrays(num_queries=11))
    with pytest.raises(UserError, match="even numbers"):
        LSH(3).apply({}, *vectors())
    with pytest.raises(UserError, match="no logits to add a bias to"):
        LSH(2).apply({}, *vectors(), bias=lambda q, k: jnp.zeros((4, 17, 17)))
