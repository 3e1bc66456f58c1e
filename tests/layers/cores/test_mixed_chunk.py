from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.errors import UserError
from research.layers.cores.base import Mask
from research.layers.cores.counts import Fixed, all_keys
from research.layers.cores.mixed_chunk import MixedChunk
from research.layers.cores.pointwise import Pointwise
from research.layers.cores.softmax import Softmax
from tests.layers import slow

LENGTH, SIZE = 14, 4  # three chunks and half of one
DRAWS = np.random.default_rng(0)
QUERY = DRAWS.normal(size=(2, LENGTH, 2, 6))
KEY = DRAWS.normal(size=(2, LENGTH, 1, 6))
VALUE = DRAWS.normal(size=(2, LENGTH, 1, 5))
BIAS = DRAWS.normal(size=2 * SIZE)
VALID = np.ones((2, LENGTH), bool)
VALID[0, 9:] = VALID[1, :2] = False
# Segments that end at a border, inside a chunk, and two within one chunk.
SEGMENTS = np.array([[1] * 4 + [2] * 5 + [3] * 2 + [4] + [0] * 2, [1] * 11 + [2] * 3])
EVERY = {"valid": VALID, "segments": SEGMENTS}


def bias(queries, keys):
    return jnp.asarray(BIAS)[SIZE + keys[None, :] - queries[:, None]][None].repeat(2, 0)


def run(core, parts=None, causal=False, inputs=(QUERY, KEY, VALUE), bias=bias):
    parts = {name: jnp.asarray(part) for name, part in (parts or {}).items()}
    if "segments" in parts:
        parts["segments"] = (parts["segments"], parts["segments"])
    apply = partial(core.apply, {}, mask=Mask(**parts, causal=causal), bias=bias)
    return slow.jit(apply)(*(jnp.asarray(x, jnp.float32) for x in inputs))


def slow_mixed_chunk(valid=None, segments=None, causal=False):
    out = np.zeros((2, LENGTH, 2, 5))
    for row, query, head in np.ndindex(2, LENGTH, 2):
        chunk = query // SIZE
        near, far = [], []
        for key in range(LENGTH):
            if valid is not None and not valid[row, key]:
                continue
            if segments is not None and segments[row, query] != segments[row, key]:
                continue
            if key // SIZE == chunk and not (causal and key > query):
                near.append(key)
            if key // SIZE < chunk or not causal:
                far.append(key)
        for key in near:
            logit = QUERY[row, query, head, :3] @ KEY[row, key, 0, :3] / 3**0.5
            logit += BIAS[SIZE + key - query]
            weight = max(logit, 0) ** 2 / len(near)
            out[row, query, head] += weight * VALUE[row, key, 0]
        for key in far:
            weight = QUERY[row, query, head, 3:] @ KEY[row, key, 0, 3:] / len(far)
            out[row, query, head] += weight * VALUE[row, key, 0]
    return out


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("names", ["", "valid", "segments", "valid segments"])
def test_slow_formula(names, causal):
    parts = {name: EVERY[name] for name in names.split()}
    ours = run(MixedChunk(SIZE), parts, causal)
    expected = slow_mixed_chunk(**parts, causal=causal)
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("causal", [False, True])
def test_one_chunk_without_the_linear_half_is_the_local_core(causal):
    silent = np.concatenate([QUERY[..., :3], np.zeros_like(QUERY[..., 3:])], -1)
    halves = (QUERY[..., :3], KEY[..., :3], VALUE)
    ours = run(MixedChunk(LENGTH), {"valid": VALID}, causal, (silent, KEY, VALUE), None)
    local = run(Pointwise(), {"valid": VALID}, causal, halves, None)
    np.testing.assert_array_equal(ours, local)


@pytest.mark.parametrize("causal", [False, True])
def test_counts_of_the_port(causal):
    # What was kept apart by the number of keys seen is now divided by a constant.
    loud = np.concatenate([np.zeros_like(QUERY[..., :3]), QUERY[..., 3:]], -1)
    inputs = (loud, KEY, VALUE)
    outs = [
        run(MixedChunk(SIZE, count=count), {"valid": VALID}, causal, inputs, None)
        for count in (Fixed(1), Fixed(7), all_keys)
    ]
    np.testing.assert_allclose(outs[1], outs[0] / 7, rtol=1e-5, atol=1e-6)
    num_keys = SIZE if causal else LENGTH
    np.testing.assert_allclose(outs[2], outs[0] / num_keys, rtol=1e-5, atol=1e-6)


def test_nothing_comes_from_the_future_nor_from_other_segments():
    segments = SEGMENTS[1:]
    mask = Mask(segments=(jnp.asarray(segments),) * 2, causal=True)

    @slow.jit
    @jax.jacobian
    def influence(value):
        query, key = jnp.asarray(QUERY[1:]), jnp.asarray(KEY[1:])
        values = value[None, :, None, None] * jnp.asarray(VALUE[1:])
        out = MixedChunk(SIZE).apply(
            {},
            query + values.sum(-1, keepdims=True),
            key + values.sum(-1, keepdims=True),
            values,
            mask=mask,
        )
        return out[0, :, 0, 0]

    influences = np.asarray(influence(jnp.ones(LENGTH)))
    query, key = np.indices((LENGTH, LENGTH))
    allowed = (key <= query) & (segments[0][query] == segments[0][key])
    assert (influences[~allowed] == 0).all()
    # Across the border of chunks there is influence, so the linear half is there.
    assert (influences[allowed & (query // SIZE > key // SIZE)] != 0).all()


@pytest.mark.parametrize("causal", [False, True])
def test_padding_changes_nothing(causal):
    rest = [np.full_like(x[:, :5], 1e3) for x in (QUERY, KEY, VALUE)]
    longer = [
        np.concatenate(pair, 1) for pair in zip((QUERY, KEY, VALUE), rest, strict=True)
    ]
    valid = np.arange(LENGTH + 5)[None].repeat(2, 0) < LENGTH
    padded = run(MixedChunk(SIZE), {"valid": valid}, causal, longer)
    alone = run(MixedChunk(SIZE), {}, causal)
    np.testing.assert_allclose(padded[:, :LENGTH], alone, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("inner", "parts"), [(Pointwise(), {"valid": VALID[::-1]}), (Softmax(), {})]
)
def test_decodes_as_it_trains(inner, parts):
    core = MixedChunk(SIZE, core=inner)
    expected = run(core, parts, causal=True)
    mask = Mask(
        **{name: jnp.asarray(part) for name, part in parts.items()}, causal=True
    )

    @slow.jit
    def step(state, *new):
        return core.apply(
            state, *new, mask=mask, bias=bias, decode=True, mutable=["cache"]
        )

    inputs = [jnp.asarray(x, jnp.float32) for x in (QUERY, KEY, VALUE)]
    first, empty = step({}, *inputs)
    np.testing.assert_allclose(first, expected, rtol=1e-6, atol=1e-6)
    for lengths in ([1] * LENGTH, [5, 1, 1, 1, 5, 1]):
        state, start = empty, 0
        for length in lengths:
            new = [x[:, start : start + length] for x in inputs]
            out, state = step(state, *new)
            np.testing.assert_allclose(
                out, expected[:, start : start + length], rtol=1e-5, atol=2e-6
            )
            start += length
    sizes = {leaf.shape[1] for leaf in jax.tree.leaves(state) if leaf.ndim > 1}
    assert max(sizes) <= SIZE  # however long it gets


def test_refusals():
    x = jnp.ones((1, 4, 1, 4))
    shapes = partial(jax.eval_shape, partial(MixedChunk(SIZE).apply, {}))
    with pytest.raises(UserError, match="3 dimensions"):
        shapes(x[..., :3], x[..., :3], x)
    with pytest.raises(UserError, match="2 queries and 4 keys"):
        shapes(x[:, :2], x, x)
    decode = partial(MixedChunk(SIZE).apply, decode=True, mutable=["cache"])
    _, state = jax.eval_shape(decode, {}, x, x, x)
    ones = jnp.ones((1, 4), int)
    decode = partial(decode, mask=Mask(segments=(ones, ones), causal=True))
    with pytest.raises(UserError, match="segments"):
        jax.eval_shape(decode, state, x, x, x)
