import jax.numpy as jnp
import numpy as np

from research.layers.embeddings import SinusoidalEmbedding


def test_slow_formula():
    t = [0.0, 1e-5, 0.3, 1.0]
    ours = SinusoidalEmbedding(8).apply({}, jnp.array(t))
    for row, time in zip(np.asarray(ours), t, strict=True):
        for i in range(4):
            # Four frequencies from 1 to 1/10000, both ends included.
            angle = 999 * np.float32(time) * 10_000.0 ** (-i / 3)
            np.testing.assert_allclose(row[i], np.sin(angle), atol=1e-4)
            np.testing.assert_allclose(row[4 + i], np.cos(angle), atol=1e-4)
