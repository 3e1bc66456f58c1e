from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.layers.alignment import (
    Additive,
    Concat,
    Dot,
    General,
    LastState,
    LocalP,
    Location,
)
from tests.layers import slow

BATCH, KEYS, DIM = 3, 7, 4
LENGTHS = np.array([7, 5, 1])
VALID = jnp.arange(KEYS)[None] < LENGTHS[:, None]
_draws = np.random.default_rng(0)
QUERY = jnp.asarray(_draws.normal(size=(BATCH, DIM)), jnp.float32)
MEMORY = jnp.asarray(_draws.normal(size=(BATCH, KEYS, DIM)), jnp.float32)


def random_params(alignment):
    if isinstance(alignment, LastState) or alignment == Dot():
        return {}
    return slow.random_params(alignment, QUERY, MEMORY)


def kernel(params, name):
    return np.float64(params[name]["kernel"])


def additive(params, q, k):
    hidden = q @ kernel(params, "query") + k @ kernel(params, "key")
    return np.tanh(hidden) @ np.float64(params["vector"])[:, 0]


def concat(params, q, k):
    both = np.concatenate([kernel(params, "query"), kernel(params, "key")])
    return np.tanh(np.concatenate([q, k]) @ both) @ np.float64(params["vector"])[:, 0]


def normed(params, q, k):
    hidden = q @ kernel(params, "query") + k @ kernel(params, "key")
    v = np.float64(params["vector"])[:, 0]
    v = params["gain"] * v / np.sqrt((v**2).sum())
    return np.tanh(hidden + params["bias"]) @ v


def dot(params, q, k):
    return q @ k


def scaled_dot(params, q, k):
    return params["scale"] * (q @ k)


def general(params, q, k):
    return q @ (k @ kernel(params, "key"))


def scaled_general(params, q, k):
    return params["scale"] * general(params, q, k)


CASES = {
    "additive": (Additive(6), additive),
    "concat": (Concat(6), concat),
    "normed": (Additive(6, normed=True), normed),
    "dot": (Dot(), dot),
    "scaled_dot": (Dot(scaled=True), scaled_dot),
    "general": (General(DIM), general),
    "scaled_general": (General(DIM, scaled=True), scaled_general),
}


@pytest.mark.parametrize("alignment, score", CASES.values(), ids=CASES)
def test_slow_formula(alignment, score):
    params = random_params(alignment)
    context, weights = slow.apply(alignment, params, QUERY, MEMORY, VALID)
    for b, length in enumerate(LENGTHS):
        q, keys = np.float64(QUERY[b]), np.float64(MEMORY[b])
        expected = np.exp([score(params, q, k) for k in keys[:length]])
        expected /= expected.sum()
        np.testing.assert_allclose(weights[b, :length], expected, atol=1e-6)
        assert (weights[b, length:] == 0).all()
        np.testing.assert_allclose(context[b], expected @ keys[:length], atol=1e-6)


@pytest.mark.parametrize(
    "alignment",
    [Additive(6), General(DIM), LocalP(General(DIM), window=2, dim=3), LastState()],
    ids=lambda alignment: type(alignment).__name__,
)
def test_padding_and_projection(alignment):
    """Keys of padding play no part; nothing is seen where there is nothing else."""
    params = random_params(alignment)
    valid = VALID.at[2].set(False)
    noisy = jnp.where(valid[..., None], MEMORY, 1e3)

    @slow.jit
    def run(keys):
        bound = alignment.bind({"params": params})
        projected = bound.project(keys)
        return bound(QUERY, keys, valid), bound(QUERY, keys, valid, projected)

    plain, given = run(MEMORY)
    changed, _ = run(noisy)
    jax.tree.map(np.testing.assert_array_equal, plain, given)
    for found in plain[1], changed[1]:
        np.testing.assert_allclose(found[:2], plain[1][:2], atol=1e-6)
        assert (found[:2] * ~valid[:2] == 0).all() and (found[2] == 0).all()
    np.testing.assert_allclose(changed[0][:2], plain[0][:2], atol=1e-5)
    # Without a mask all are seen.
    y, _ = slow.apply(alignment, params, QUERY[:1], MEMORY[:1])
    np.testing.assert_allclose(y, plain[0][:1], atol=1e-6)


@pytest.mark.parametrize("num_places", [5, 7, 9])
def test_scores_of_places(num_places):
    """Of as many places as there are, whatever the keys hold."""
    alignment = Location(num_places)
    params = random_params(alignment)
    context, weights = slow.apply(alignment, params, QUERY, MEMORY, VALID)
    for b, length in enumerate(LENGTHS):
        seen = min(length, num_places)
        scores = (np.float64(QUERY[b]) @ kernel(params, "query"))[:seen]
        expected = np.exp(scores) / np.exp(scores).sum()
        np.testing.assert_allclose(weights[b, :seen], expected, atol=1e-6)
        assert (weights[b, seen:] == 0).all()
        mean = expected @ np.float64(MEMORY[b, :seen])
        np.testing.assert_allclose(context[b], mean, atol=1e-6)


def test_what_is_projected_is_not_projected_again():
    alignment = General(DIM)
    params = random_params(alignment)
    _, weights = slow.apply(alignment, params, QUERY, MEMORY, VALID, 0 * MEMORY)
    np.testing.assert_allclose(weights, VALID / VALID.sum(1, keepdims=True), atol=1e-6)


def test_window():
    """Luong et al. 2015, Eq. 7 and 9-10, one key at a time."""
    alignment = LocalP(Dot(), window=2, dim=3)
    params = random_params(alignment)
    context, weights = slow.apply(alignment, params, QUERY, MEMORY, VALID)
    some_beyond = False
    for b, length in enumerate(LENGTHS):
        q, keys = np.float64(QUERY[b]), np.float64(MEMORY[b])
        hidden = np.tanh(q @ kernel(params, "place_hidden"))
        place = length / (1 + np.exp(-(hidden @ kernel(params, "place"))[0]))
        near = [s for s in range(length) if place - 2 <= s <= place + 2]
        some_beyond |= len(near) < length
        scores = np.exp([q @ keys[s] for s in near])
        expected = np.zeros(KEYS)
        expected[near] = scores / scores.sum()
        expected *= np.exp(-((np.arange(KEYS) - place) ** 2) / (2 * (2 / 2) ** 2))
        np.testing.assert_allclose(weights[b], expected, atol=1e-6)
        np.testing.assert_allclose(context[b], expected @ keys, atol=1e-6)
    assert some_beyond

    @slow.jit
    @partial(jax.grad, argnums=0)
    def gradient(params):
        return alignment.apply({"params": params}, QUERY, MEMORY, VALID)[0].sum()

    for leaf in jax.tree.leaves(gradient(params)):
        assert (leaf != 0).any()


def test_last_state():
    context, weights = LastState().apply({}, QUERY, MEMORY, VALID)
    last = [MEMORY[b, n - 1] for b, n in enumerate(LENGTHS)]
    np.testing.assert_array_equal(context, jnp.stack(last))
    np.testing.assert_array_equal(weights.argmax(1), LENGTHS - 1)
    context, _ = LastState(bidirectional=True).apply({}, QUERY, MEMORY, VALID)
    np.testing.assert_array_equal(context[:, :2], jnp.stack(last)[:, :2])
    np.testing.assert_array_equal(context[:, 2:], MEMORY[:, 0, 2:])
