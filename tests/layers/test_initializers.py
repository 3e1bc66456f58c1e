import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.experiment import describe, override
from research.layers import initializers
from research.layers.initializers import (
    Normal,
    Orthogonal,
    Readout,
    Scaled,
    TruncatedNormal,
    Uniform,
    VarianceScaling,
    depth_scaled,
    second_moment,
    t5_projection,
    t5_query,
    tuned,
    uniform_fan_avg,
    xavier,
)
from research.layers.mlp import FeedForward
from tests.layers import slow


def draw(initializer, *shape):
    return np.asarray(
        slow.jit(lambda: initializer(slow.key(0), shape, jnp.float32))(), np.float64
    )


@pytest.mark.parametrize("scale", [1.0, 0.1])
def test_variance_is_scale_over_the_mean_fan(scale):
    kernel = uniform_fan_avg(scale)(jax.random.key(0), (3, 3, 64, 192))
    variance = scale / (9 * (64 + 192) / 2)
    assert float(kernel.var()) == pytest.approx(variance, rel=0.02)
    # Uniform: nothing beyond sqrt(3) standard deviations, and something near.
    assert float(abs(kernel).max()) == pytest.approx((3 * variance) ** 0.5, rel=0.01)


def test_zero_scale_is_almost_zero():
    kernel = uniform_fan_avg(0.0)(jax.random.key(0), (128, 128))
    assert 0 < float(abs(kernel).max()) < 1e-5


@pytest.mark.parametrize(
    "initializer, farthest",
    [
        (Normal(0.3), None),
        # Where the normal is cut off, as a multiple of what its deviation becomes.
        (TruncatedNormal(0.3), 2 / 0.8796257),
        (Uniform(0.3), math.sqrt(3)),
    ],
)
def test_the_standard_deviation_is_what_was_asked_for(initializer, farthest):
    drawn = draw(initializer, 512, 512)
    assert drawn.std() == pytest.approx(0.3, rel=0.005)
    assert abs(drawn.mean()) < 0.003
    largest = abs(drawn).max() / 0.3
    if farthest is None:
        assert largest > 4
    else:
        assert largest == pytest.approx(farthest, rel=1e-3)


FAN_IN, FAN_OUT = 256, 1024


@pytest.mark.parametrize(
    "initializer, variance",
    [
        (initializers.lecun(), 1 / FAN_IN),
        (initializers.he(), 2 / FAN_IN),
        (xavier(), 2 / (FAN_IN + FAN_OUT)),
        (xavier(0.5), 0.5 / (FAN_IN + FAN_OUT)),
        (initializers.torch_linear(), 1 / (3 * FAN_IN)),
        (VarianceScaling(3.0, "fan_out", "normal"), 3 / FAN_OUT),
        (VarianceScaling(0.1), 0.1 / FAN_IN),  # Switch Transformer
        (depth_scaled(Normal(0.02), 12), 0.02**2 / 24),
        (depth_scaled(VarianceScaling(0.125**2), 48), 0.125**2 / FAN_IN / 96),
        (depth_scaled(Normal(1.0), 6, num_branches=3), 1 / 18),
        (t5_query(64), 1 / (FAN_IN * 64)),
        (t5_projection(), 1 / FAN_IN),
        (Readout(64), 64 / FAN_IN**2),
        (tuned(jax.nn.relu), 2 / FAN_IN),
        (tuned(jnp.tanh), 1 / (0.394 * FAN_IN)),
        (Scaled(Normal(1.0), 0.0), 0.0),
    ],
    ids=str,
)
def test_variance(initializer, variance):
    drawn = draw(initializer, FAN_IN, FAN_OUT)
    assert drawn.std() == pytest.approx(math.sqrt(variance), rel=0.01)


def test_uniform_stays_within_its_bound_and_comes_near():
    for initializer in (initializers.torch_linear(), initializers.within(1 / 8)):
        drawn = draw(initializer, 64, 256)
        assert 0.124 < drawn.max() < 0.1250001 and -0.1250001 < drawn.min() < -0.124


@pytest.mark.parametrize(
    "activation, moment",
    [
        (jax.nn.sigmoid, 0.293379),
        (jnp.tanh, 0.3943),
        (jax.nn.relu, 0.5),
        (jax.nn.silu, 0.3557),
        # scale^2 (alpha^2 E[(exp e - 1)^2; e < 0] + 1/2) is one by its two constants.
        (jax.nn.selu, 1.0),
    ],
)
def test_second_moments_of_activations(activation, moment):
    assert second_moment(activation) == pytest.approx(moment, abs=2e-4)


def test_second_moment_of_gelu_by_its_own_integral():
    x = np.linspace(-10, 10, 100_001)
    cdf = np.array([0.5 * (1 + math.erf(v / math.sqrt(2))) for v in x])
    density = np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)
    exact = np.trapezoid((x * cdf) ** 2 * density, x)
    assert exact == pytest.approx(0.4252, abs=1e-3)
    gelu = second_moment(lambda x: jax.nn.gelu(x, approximate=False))
    assert gelu == pytest.approx(exact, rel=1e-4)


@pytest.mark.parametrize("shape", [(8, 8), (8, 5), (5, 8)])
def test_orthogonal(shape):
    drawn = draw(Orthogonal(2.0), *shape)
    short = drawn if shape[0] <= shape[1] else drawn.T
    np.testing.assert_allclose(short @ short.T, 4 * np.eye(len(short)), atol=1e-5)


def test_a_stack_keeps_its_second_moment_or_does_not():
    """Fifty layers, without an activation and with a ReLU."""

    @jax.jit
    def moments():
        found = {}
        cases = {
            "lecun": (initializers.lecun(), lambda x: x),
            "orthogonal": (Orthogonal(), lambda x: x),
            "he": (initializers.he(), jax.nn.relu),
            "lecun with relu": (initializers.lecun(), jax.nn.relu),
        }
        for name, (init, activation) in cases.items():

            def layer(x, key, init=init, activation=activation):
                return activation(x @ init(key, (128, 128), jnp.float32)), None

            keys = jax.random.split(jax.random.key(0), 50)
            x = jax.random.normal(jax.random.key(1), (64, 128))
            found[name] = jnp.square(jax.lax.scan(layer, x, keys)[0]).mean()
        return found

    found = {name: float(value) for name, value in moments().items()}
    assert 0.3 < found["lecun"] < 3
    assert 0.9 < found["orthogonal"] < 1.1
    assert 0.1 < found["he"] < 5
    assert found["lecun with relu"] < 1e-10


def test_an_experiment_shows_and_sets_their_numbers():
    slot = FeedForward(8, kernel_init=depth_scaled(Normal(0.02), 12))
    assert "kernel_init.base.std = 0.02\n" in describe(slot)
    changed = override(slot, ["kernel_init.base.std=0.5"])
    assert changed.kernel_init.base == Normal(0.5)
    changed = override(slot, ["kernel_init=research.layers.initializers.xavier(0.1)"])
    assert changed.kernel_init == xavier(0.1)
