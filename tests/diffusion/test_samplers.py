import math
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gaussian import Gaussian
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from research.diffusion.processes import VP, Process
from research.diffusion.samplers import (
    Langevin,
    PredictorCorrector,
    ProbabilityFlow,
    ancestral,
    euler_maruyama,
    integrate,
    reverse_diffusion,
)
from research.errors import UserError

DATA = Gaussian(VP())


def draw(sampler, shape, data=DATA, seed=0):
    run = jax.jit(lambda rng: sampler(rng, data.score, data.process, shape))
    return run(jax.random.key(seed))


SHAPE = (4096, 4, 4, 1)
SAMPLERS = {
    "euler_maruyama": PredictorCorrector(num_steps=200),
    "reverse_diffusion": PredictorCorrector(reverse_diffusion, num_steps=200),
    "ancestral": PredictorCorrector(ancestral, num_steps=200),
    "half_noise": PredictorCorrector(
        partial(euler_maruyama, noise_scale=0.5), num_steps=200
    ),
    "langevin": PredictorCorrector(reverse_diffusion, Langevin(0.1, 2), num_steps=200),
    "probability_flow": ProbabilityFlow(),
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_samplers_return_the_data(name):
    """65,536 numbers: the standard error of the variance is 0.6 %."""
    x, evaluations = draw(SAMPLERS[name], SHAPE)
    assert x.shape == SHAPE and x.dtype == jnp.float32
    np.testing.assert_allclose(x.mean(), DATA.mean, rtol=0.03)
    np.testing.assert_allclose(x.var(), DATA.std**2, rtol=0.03)
    assert evaluations.dtype == jnp.int32 and evaluations.shape == ()
    if name == "probability_flow":
        assert 30 < evaluations < 200
    else:
        assert evaluations == (600 if name == "langevin" else 200)


def test_denoising_removes_the_last_noise():
    sampler = SAMPLERS["reverse_diffusion"]
    clean, _ = draw(sampler, SHAPE)
    noisy, _ = draw(replace(sampler, denoise=False), SHAPE)
    # The first beta of a chain of 200 steps is 0.1 / 200.
    np.testing.assert_allclose(jnp.var(noisy - clean), 0.1 / 200, rtol=0.03)


def test_denoising_the_flow_is_one_step_of_reverse_diffusion():
    clean, evaluations = draw(ProbabilityFlow(), SHAPE)
    noisy, evaluations_before = draw(ProbabilityFlow(denoise=False), SHAPE)
    assert evaluations == evaluations_before + 1
    beta, score = 1e-4, DATA.score(noisy, jnp.full(SHAPE[:1], 1e-3))
    expected = (2 - math.sqrt(1 - beta)) * noisy + beta * score
    np.testing.assert_allclose(clean - noisy, expected - noisy, atol=1e-6)
    assert jnp.abs(clean - noisy).max() > 1e-4


def test_ancestral_and_reverse_diffusion_agree_to_second_order():
    """With the same noise they differ by O(beta_i^2) in a step, O(1/N) in all."""

    def gap(num_steps):
        first, _ = draw(PredictorCorrector(ancestral, num_steps=num_steps), SHAPE)
        second, _ = draw(
            PredictorCorrector(reverse_diffusion, num_steps=num_steps), SHAPE
        )
        return float(jnp.sqrt(jnp.mean((first - second) ** 2)))

    assert 3 < gap(50) / gap(200) < 5


@pytest.mark.parametrize("predictor", [euler_maruyama, reverse_diffusion, ancestral])
def test_predictors_take_the_published_step(predictor):
    """One step in float64 numpy, at step 699 of DDPM's chain."""
    x, t, dt = 1.5, 0.7, 1e-3
    beta = np.linspace(1e-4, 0.02, 1000)[699]
    score = -2.0 * x
    expected, variance = {
        euler_maruyama: (x - dt * (0.1 + 0.7 * 19.9) * (-x / 2 - score), 0.01403),
        reverse_diffusion: ((2 - math.sqrt(1 - beta)) * x + beta * score, beta),
        ancestral: ((x + beta * score) / math.sqrt(1 - beta), beta),
    }[predictor]
    step = jax.jit(lambda *args: predictor(*args, dt, lambda x, t: -2 * x, VP()))
    next_x, mean = step(jax.random.key(0), jnp.full(50_000, x), jnp.full(50_000, t))
    np.testing.assert_allclose(mean, expected, rtol=1e-6)
    np.testing.assert_allclose(jnp.var(next_x - mean), variance, rtol=0.02)


@pytest.mark.parametrize("snr, dt", [(0.16, 1e-3), (0.5, 1 / 25)])
def test_langevin_keeps_the_density(snr, dt):
    """The variance v of a Gaussian becomes v (1 + alpha snr^2), the method's own bias.

    With x of variance V the step is 2 alpha snr^2 v^2 / V, and
    V = (1 - step/v)^2 V + 2 step has the solution V = v (1 + alpha snr^2).
    """
    shape, time = (16_384, 16), 0.9
    _, std = DATA.moments(jnp.array([time]))
    last = round(1 / dt) - 1
    alpha = 1 - dt * (0.1 + 19.9 * math.floor(time * last) / last)

    @jax.jit
    def correct(rng):
        x = DATA.draw(rng, shape, time)
        t = jnp.full(shape[:1], time)
        return Langevin(snr, 60)(rng, x, t, dt, DATA.score, DATA.process)

    variance = correct(jax.random.key(0)).var()
    np.testing.assert_allclose(variance / std[0] ** 2, 1 + alpha * snr**2, rtol=0.01)


def test_langevin_takes_one_step_size_for_the_whole_batch():
    """Scores of norms 1 and 3 times sqrt(dims): both steps are 2 alpha (snr / 2)^2."""
    t, alpha = jnp.full(2, 0.9), 1 - 1e-3 * (0.1 + 19.9 * 899 / 999)
    x = Langevin(snr=0.5)(
        jax.random.key(0),
        jnp.zeros((2, 100_000)),
        t,
        1e-3,
        lambda x, t: jnp.array([[1.0], [3.0]]) * jnp.ones((1, 100_000)),
        VP(),
    )
    step = 2 * alpha * 0.25**2
    np.testing.assert_allclose(x.mean(axis=1), [step, 3 * step], atol=5e-3)
    np.testing.assert_allclose(x.var(axis=1), [2 * step, 2 * step], rtol=0.02)


def test_the_corrector_acts_before_the_predictor():
    """The last act is the predictor's, so `denoise` returns what it ends on."""

    class Trace:
        num_steps = 1

        def __call__(self, rng, x, t, dt, score, process):
            return 10 * x

    def add_one(rng, x, t, dt, score, process):
        return x + 1, x + 2

    sampler = PredictorCorrector(add_one, Trace(), num_steps=2, denoise=False)
    x, evaluations = draw(sampler, (3,))
    start = draw(PredictorCorrector(add_one, num_steps=1, denoise=False), (3,))[0] - 1
    np.testing.assert_allclose(x, 100 * start + 11, rtol=1e-5)
    assert evaluations == 4
    denoised, _ = draw(PredictorCorrector(add_one, Trace(), num_steps=2), (3,))
    np.testing.assert_allclose(denoised, x + 1, rtol=1e-5)


def test_ancestral_refuses_a_process_without_the_rule():
    class Flat(Process):
        def prior(self, rng, shape):
            return jnp.zeros(shape)

    with pytest.raises(UserError, match="Flat has not"):
        PredictorCorrector(ancestral)(jax.random.key(0), lambda x, t: x, Flat(), (2, 2))


@pytest.mark.parametrize("start, stop", [(0.0, 2.0), (2.0, 0.0)])
def test_integrate_runs_in_both_directions(start, stop):
    state = {"decay": jnp.array([1.0, 2.0]), "time": jnp.zeros(())}
    field = lambda t, y: {"decay": -y["decay"], "time": 2 * t}  # noqa: E731
    end, _ = jax.jit(lambda y: integrate(field, y, start, stop))(state)
    np.testing.assert_allclose(
        end["decay"], state["decay"] * math.exp(start - stop), rtol=1e-4
    )
    np.testing.assert_allclose(end["time"], stop**2 - start**2, rtol=1e-4)


@pytest.mark.parametrize("rate", [1.0, 500.0])
def test_integrate_counts_every_evaluation(rate):
    """At rate 500 the first step is rejected several times."""
    calls = []

    def field(t, y):
        jax.debug.callback(lambda: calls.append(None))
        return -rate * (y - jnp.cos(t))

    _, evaluations = jax.jit(lambda y: integrate(field, y, 0.0, 1.0))(jnp.zeros(3))
    jax.block_until_ready(evaluations)
    jax.effects_barrier()
    assert evaluations == len(calls)


def test_a_failed_solve_is_nan():
    x, evaluations = draw(ProbabilityFlow(max_steps=3), (2, 2))
    assert jnp.isnan(x).all() and evaluations == 1 + 6 * 3 + 1
    # No step of a field without values can succeed; it must not take all max_steps.
    solve = jax.jit(lambda y: integrate(lambda t, y: y * jnp.nan, y, 0.0, 1.0))
    y, evaluations = solve(jnp.ones(2))
    assert jnp.isnan(y).all() and evaluations < 100


def test_failure_needs_no_host_callback():
    run = jax.jit(lambda rng: ProbabilityFlow()(rng, DATA.score, VP(), (8, 2)))
    assert "callback" not in run.lower(jax.random.key(0)).as_text()


@pytest.mark.parametrize(
    "sampler",
    [
        PredictorCorrector(reverse_diffusion, Langevin(), num_steps=50),
        ProbabilityFlow(),
    ],
    ids=["predictor_corrector", "probability_flow"],
)
def test_samples_do_not_depend_on_the_number_of_devices(sampler):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    rows = NamedSharding(mesh, PartitionSpec("data"))
    whole = NamedSharding(mesh, PartitionSpec())

    def run(rng):
        return sampler(rng, DATA.score, DATA.process, (48, 5, 3))

    rng = jax.random.key(0)
    sharded = jax.jit(run, out_shardings=(rows, whole)).lower(rng).compile()
    x, evaluations = sharded(rng)
    assert x.addressable_shards[0].data.shape == (6, 5, 3)
    # No device ever holds the whole batch.
    assert "[48,5,3]" not in sharded.as_text()
    expected, expected_evaluations = jax.jit(run)(rng)
    np.testing.assert_allclose(x, expected, atol=1e-4)
    assert evaluations == expected_evaluations
