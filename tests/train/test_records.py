"""Schedules, optimizers, metrics, the clock, and the count of FLOPs."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from research.train import flops, metrics
from research.train.clock import BUCKETS, Clock
from research.train.optimizers import Adam
from research.train.schedules import Constant, Cosine


def test_constant_warms_up_linearly():
    schedule = Constant(2.0, warmup_steps=4)
    rates = [float(schedule(step)) for step in (0, 1, 4, 100)]
    assert rates == [0.0, 0.5, 2.0, 2.0]
    assert float(Constant(2.0)(0)) == 2.0


def test_cosine_has_its_ends_and_its_middle():
    schedule = Cosine(1.0, num_steps=110, warmup_steps=10, end=0.2)
    rates = [float(schedule(step)) for step in (0, 5, 10, 60, 110, 200)]
    np.testing.assert_allclose(rates, [0, 0.5, 1.0, 0.6, 0.2, 0.2], atol=1e-6)


def test_adam_takes_the_written_out_step():
    """First update: -rate * g / (|g| + eps), g clipped to norm 1, then the decay."""
    rate, decay = 0.1, 0.5
    adam = Adam(Constant(rate), eps=1e-3, weight_decay=decay, clip_norm=1.0)()
    params = {"kernel": jnp.full((1, 2), 3.0), "bias": jnp.full((2,), 3.0)}
    grads = {"kernel": jnp.full((1, 2), 4.0), "bias": jnp.full((2,), 3.0)}
    updates, _ = adam.update(grads, adam.init(params), params)
    norm = float(optax.tree.norm(grads))
    for name, g, decayed in (("kernel", 4.0, 3.0 * decay), ("bias", 3.0, 0.0)):
        expected = -rate * ((g / norm) / (g / norm + 1e-3) + decayed)
        np.testing.assert_allclose(updates[name], expected, rtol=1e-5)


def test_metrics_pool_exactly():
    parts = [{"loss": (np.float32(6), np.float32(3))}, {"loss": (1.0, 1.0)}]
    assert metrics.pool(parts) == {"loss": 7 / 4}
    assert metrics.mean(metrics.add(*parts)) == {"loss": 7 / 4}
    assert np.isnan(metrics.mean({"loss": (0.0, 0.0)})["loss"])
    with pytest.raises(ValueError, match="no batch"):
        metrics.pool([])


def test_the_clock_is_always_in_one_bucket():
    now = [0.0]
    clock = Clock(lambda: now[0])

    def wait(seconds):
        now[0] += seconds

    wait(1)
    with clock.measure("step"):
        wait(2)
        with clock.measure("data_wait"):
            wait(4)
        wait(8)
    wait(16)
    seconds = clock.seconds()
    assert {k: v for k, v in seconds.items() if v} == {
        "init": 17,
        "step": 10,
        "data_wait": 4,
    }
    assert set(seconds) == set(BUCKETS)
    assert sum(seconds.values()) == clock.wall() == 31
    with pytest.raises(ValueError, match="no bucket 'steps'"):
        with clock.measure("steps"):
            pass


def test_flops_of_products_scans_and_branches():
    a, b = jnp.ones((4, 5)), jnp.ones((5, 6))
    assert flops.count(jnp.matmul, a, b) == 2 * 4 * 5 * 6
    square = jnp.ones((6, 6))

    def loop(x):
        return jax.lax.scan(lambda c, _: (c @ square, None), x, None, length=7)[0]

    assert flops.count(loop, square) == 7 * 2 * 6**3
    branch = lambda x: jax.lax.cond(True, lambda: x @ x, lambda: x)  # noqa: E731
    assert flops.count(branch, square) == 2 * 6**3


@pytest.mark.parametrize("stride", [1, 2])
def test_flops_of_convolutions_and_their_gradients(stride):
    x, kernel = jnp.ones((2, 8, 8, 3)), jnp.ones((3, 3, 3, 4))

    def loss(x, kernel):
        y = jax.lax.conv_general_dilated(
            x,
            kernel,
            (stride, stride),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return jnp.sum(y * y)

    forward = 2 * 2 * (8 // stride) ** 2 * 4 * 9 * 3
    assert flops.count(loss, x, kernel) == forward
    # The gradient has the forward pass and one convolution for each argument.
    assert flops.count(jax.grad(loss, argnums=(0, 1)), x, kernel) == 3 * forward
