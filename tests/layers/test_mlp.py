import jax
import jax.numpy as jnp
import numpy as np

from research.layers.mlp import Mlp


def test_is_its_formula():
    x = jax.random.normal(jax.random.key(0), (3, 2))
    mlp = Mlp(widths=(4,), activation=jnp.tanh)
    variables = mlp.init(jax.random.key(1), x)
    params = variables["params"]
    hidden = np.tanh(x @ params["dense_0"]["kernel"] + params["dense_0"]["bias"][None])
    expected = hidden @ params["out"]["kernel"] + params["out"]["bias"][None]
    np.testing.assert_allclose(mlp.apply(variables, x), expected, rtol=1e-5, atol=1e-6)
