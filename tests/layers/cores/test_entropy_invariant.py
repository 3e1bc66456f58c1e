from functools import partial

import jax.numpy as jnp
import numpy as np
import pytest

from research.layers.cores.base import SEES_ALL, Mask
from research.layers.cores.entropy_invariant import EntropyInvariant
from research.layers.cores.softmax import Softmax
from tests.layers import slow

DRAWS = np.random.default_rng(0)


def arrays(num_queries, num_keys):
    shapes = [(2, num_queries, 1, 4), (2, num_keys, 1, 4), (2, num_keys, 1, 3)]
    return [jnp.asarray(DRAWS.normal(size=shape), jnp.float32) for shape in shapes]


def run(core, inputs, mask=SEES_ALL, state=None, decode=False):
    def apply(state, *inputs):
        return core.apply(state, *inputs, mask=mask, decode=decode, mutable=["cache"])

    return slow.jit(apply)(state or {}, *inputs)


def test_is_the_usual_scale_at_512_keys():
    inputs = arrays(2, 600)
    mask = Mask(valid=jnp.broadcast_to(jnp.arange(600) < 512, (2, 600)))
    ours, _ = run(EntropyInvariant(), inputs, mask)
    expected, _ = run(Softmax(), inputs, mask)
    np.testing.assert_array_equal(ours, expected)


def test_slow_formula():
    query, key, value = arrays(20, 20)
    mask = Mask(valid=jnp.arange(20)[None] >= jnp.array([0, 2])[:, None], causal=True)
    ours, _ = run(EntropyInvariant(least=16), (query, key, value), mask)
    expected = np.zeros((2, 20, 1, 3))
    for row, position in np.ndindex(2, 20):
        seen = range([0, 2][row], position + 1)
        if len(seen) == 0:
            continue
        scale = np.log(max(len(seen), 16)) / np.log(512) / 4**0.5
        logits = np.array([query[row, position, 0] @ key[row, k, 0] for k in seen])
        weights = np.exp(scale * np.float64(logits))
        weights /= weights.sum()
        expected[row, position, 0] = weights @ np.float64(value)[row, list(seen), 0]
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("padded", [0, 2])
def test_decodes_as_it_trains(padded):
    inputs = arrays(7, 7)
    valid = jnp.arange(7)[None] >= jnp.array([0, padded])[:, None] if padded else None
    mask = Mask(valid=valid, causal=True)
    core = EntropyInvariant(base=4.0)
    expected, _ = run(core, inputs, mask)
    step = slow.jit(partial(core.apply, mask=mask, decode=True, mutable=["cache"]))
    _, state = step({}, *inputs)
    for position in range(7):
        new = [x[:, position : position + 1] for x in inputs]
        out, state = step(state, *new)
        np.testing.assert_allclose(
            out, expected[:, position : position + 1], rtol=1e-5, atol=1e-6
        )
