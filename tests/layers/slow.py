"""The layers' formulas in the most obvious way, in NumPy and float64."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
"""Compiling takes most of the time of these tests: what they run is small."""


def key(seed):
    """A key whose draws compile in a third of the default's time."""
    return jax.random.key(seed, impl="rbg")


def random_params(module, *args):
    """Parameters of the module's own shapes, none of them zero or one."""
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), *args))["params"]
    leaves, tree = jax.tree.flatten(shapes)
    draws = np.random.default_rng(0)
    return jax.tree.unflatten(
        tree, [jnp.asarray(draws.normal(size=leaf.shape) / 3) for leaf in leaves]
    )


def apply(module, params, *args, **rngs):
    """The module's output, compiled as a whole, which takes less time than eagerly."""
    return jit(lambda p, rngs: module.apply({"params": p}, *args, rngs=rngs))(
        params, rngs
    )


def swish(x):
    return x / (1 + np.exp(-x))


def dense(params, x):
    return x @ np.float64(params["kernel"]) + np.float64(params["bias"])


def group_norm(params, x, num_groups, epsilon=1e-6):
    y = np.empty_like(x)
    size = x.shape[-1] // num_groups
    for example in range(len(x)):
        for start in range(0, x.shape[-1], size):
            group = x[example, :, :, start : start + size]
            y[example, :, :, start : start + size] = (group - group.mean()) / np.sqrt(
                group.var() + epsilon
            )
    return y * np.float64(params["scale"]) + np.float64(params["bias"])


def conv(params, x):
    """Odd kernels, stride 1, zeros around the image."""
    kernel = np.float64(params["kernel"])
    size = len(kernel)
    _, height, width, _ = x.shape
    margin = (size // 2, size // 2)
    padded = np.pad(x, ((0, 0), margin, margin, (0, 0)))
    y = np.zeros((*x.shape[:3], kernel.shape[-1]))
    for row in range(height):
        for column in range(width):
            window = padded[:, row : row + size, column : column + size]
            y[:, row, column] = np.tensordot(window, kernel, 3)
    return y + np.float64(params["bias"])
