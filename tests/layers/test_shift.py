from functools import partial

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from research.layers.attention import Attention
from research.layers.cores.base import Mask
from research.layers.shift import TokenShift
from tests.layers import slow

X = jnp.asarray(np.random.default_rng(0).normal(size=(2, 6, 5)), jnp.float32)
SEGMENTS = jnp.array([[1, 1, 1, 2, 2, 2], [1, 2, 2, 2, 2, 0]])
CAUSAL = Mask(causal=True)


def shifted(x, starts):
    out = np.array(x)
    for row, position in np.ndindex(2, 6):
        start = position in starts[row]
        out[row, position, :3] = 0 if start else x[row, position - 1, :3]
    return jnp.asarray(out)


class Echo(nn.Module):
    def __call__(self, x, **options):
        return x


def test_slow_formula():
    shift = TokenShift(Echo)
    segments = (SEGMENTS, SEGMENTS)
    for mask, starts in (
        (CAUSAL, ([0], [0])),
        (Mask(segments=segments), ([0, 3], [0, 1, 5])),
    ):
        np.testing.assert_array_equal(shift.apply({}, X, mask=mask), shifted(X, starts))


def test_decodes_as_it_trains():
    shift = TokenShift(partial(Attention, 1))
    params = slow.random_params(shift, X)
    step = slow.jit(partial(shift.apply, mask=CAUSAL, decode=True, mutable=["cache"]))
    expected, state = step({"params": params}, X)
    for start, stop in ((0, 2), (2, 3), (3, 4), (4, 6)):
        out, state = step({"params": params, **state}, X[:, start:stop])
        np.testing.assert_allclose(out, expected[:, start:stop], rtol=1e-5, atol=1e-6)
