import jax
import jax.numpy as jnp
import numpy as np

from research.layers.mlp import Mlp, gelu


def test_is_its_formula():
    x = jax.random.normal(jax.random.key(0), (3, 2))
    mlp = Mlp(widths=(4,), activation=jnp.tanh)
    variables = mlp.init(jax.random.key(1), x)
    params = variables["params"]
    hidden = np.tanh(x @ params["dense_0"]["kernel"] + params["dense_0"]["bias"][None])
    expected = hidden @ params["out"]["kernel"] + params["out"]["bias"][None]
    np.testing.assert_allclose(mlp.apply(variables, x), expected, rtol=1e-5, atol=1e-6)


def test_gelu_is_the_exact_one_and_so_is_its_slope():
    x = jnp.linspace(-8, 8, 401)
    # Far below zero 1 + erf has no digits left, at less than 1e-7 of x.
    np.testing.assert_allclose(gelu(x), jax.nn.gelu(x, approximate=False), atol=1e-6)
    slope = jax.vmap(jax.grad(gelu))(x)
    cdf, pdf = jax.scipy.stats.norm.cdf(x), jax.scipy.stats.norm.pdf(x)
    np.testing.assert_allclose(slope, cdf + x * pdf, atol=1e-6)
