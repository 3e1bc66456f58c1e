"""Schedules against their formulas, written out step by step."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.errors import UserError
from research.train.schedules import (
    Cosine,
    Exponential,
    InverseSqrt,
    Linear,
    Noam,
    Piecewise,
    Warmup,
)


def rates(schedule, steps):
    """As the optimizer calls it: jitted, with a counter of integers."""
    return jax.jit(jax.vmap(schedule))(jnp.asarray(steps, jnp.int32))


def test_linear_has_its_ends_and_its_middle():
    schedule = Linear(1.0, num_steps=110, warmup_steps=10, end=0.2)
    found = rates(schedule, [0, 5, 10, 60, 110, 200])
    np.testing.assert_allclose(found, [0, 0.5, 1.0, 0.6, 0.2, 0.2], rtol=1e-6)
    np.testing.assert_allclose(rates(Linear(2.0, 4), [0, 1, 4]), [2, 1.5, 0])


def test_warmup_rises_to_where_its_schedule_begins():
    schedule = Warmup(Cosine(1.0, num_steps=100, end=0.2), num_steps=10, initial=0.1)
    found = rates(schedule, [0, 5, 9, 10, 60, 110, 200])
    np.testing.assert_allclose(found, [0.1, 0.55, 0.91, 1, 0.6, 0.2, 0.2], rtol=1e-6)


@pytest.mark.parametrize(
    "embed_dim, warmup, factor", [(512, 4000, 1.0), (64, 8000, 2.0)]
)
def test_noam_is_equation_3(embed_dim, warmup, factor):
    steps = [0, 1, 99, warmup - 2, warmup - 1, warmup, 5 * warmup]
    expected = [
        factor * embed_dim**-0.5 * min((step + 1) ** -0.5, (step + 1) * warmup**-1.5)
        for step in steps
    ]
    found = rates(Noam(embed_dim, warmup, factor), steps)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert int(np.argmax(found)) == 4  # the warm-up's last update


def test_noam_peaks_where_the_paper_has_it():
    assert float(Noam(512)(3999)) == pytest.approx(6.99e-4, rel=1e-3)


def test_the_code_of_version_3_has_the_same_formula():
    def theirs(t):  # constant * linear_warmup * rsqrt_decay * rsqrt_hidden_size
        return 2.0 * min(1, t / 8000) * max(t, 8000) ** -0.5 * 512**-0.5

    steps = [1, 4000, 8000, 100_000]
    found = rates(Noam(512, 8000, 2.0), [step - 1 for step in steps])
    np.testing.assert_allclose(found, [theirs(t) for t in steps], rtol=1e-6)


def test_inverse_sqrt_rises_to_its_peak_and_falls():
    found = rates(InverseSqrt(0.3, warmup_steps=16), [0, 4, 16, 64, 256])
    np.testing.assert_allclose(found, [0, 0.075, 0.3, 0.15, 0.075], rtol=1e-6)


def test_inverse_sqrt_of_t5_is_flat_first():
    schedule = InverseSqrt(0.01, warmup_steps=10_000, initial=0.01)
    steps = [0, 500, 10_000, 40_000]
    expected = [1 / math.sqrt(max(step, 10_000)) for step in steps]
    np.testing.assert_allclose(rates(schedule, steps), expected, rtol=1e-6)


def test_inverse_sqrt_of_tfixup_needs_no_warm_up():
    steps = [0, 1, 4000, 12_000]
    expected = [5e-4 * (4000 / (4000 + step)) ** 0.5 for step in steps]
    found = rates(InverseSqrt(5e-4, shift=4000), steps)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_inverse_sqrt_alone_starts_at_its_peak():
    np.testing.assert_allclose(rates(InverseSqrt(2.0), [0, 1, 4]), [2, 2, 1])


def test_piecewise_holds_each_rate_until_the_next():
    schedule = Piecewise(((0, 1.0), (10, 0.5), (30, 0.1)))
    found = rates(schedule, [0, 9, 10, 29, 30, 1000])
    np.testing.assert_allclose(found, [1, 1, 0.5, 0.5, 0.1, 0.1])


def test_piecewise_lines():
    schedule = Piecewise(((0, 1.0), (10, 0.5), (30, 0.1)), linear=True)
    found = rates(schedule, [0, 5, 10, 20, 30, 1000])
    np.testing.assert_allclose(found, [1, 0.75, 0.5, 0.3, 0.1, 0.1], rtol=1e-6)


@pytest.mark.parametrize("points", [(), ((5, 1.0), (5, 0.5)), ((5, 1.0), (0, 0.5))])
def test_piecewise_needs_steps_that_increase(points):
    with pytest.raises(UserError, match="each step larger"):
        Piecewise(points)


def test_exponential_halves_in_every_period():
    smooth = Exponential(1.0, 0.5, period=10, start=20)
    found = rates(smooth, [0, 20, 25, 30, 50])
    np.testing.assert_allclose(found, [1, 1, 0.5**0.5, 0.5, 0.125], rtol=1e-6)
    stairs = Exponential(1.0, 0.5, period=10, start=20, stairs=True)
    found = rates(stairs, [0, 20, 29, 30, 39, 40])
    np.testing.assert_allclose(found, [1, 1, 1, 0.5, 0.5, 0.25])
