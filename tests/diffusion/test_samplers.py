import math
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gaussian import Gaussian
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from research.diffusion.karras import Karras
from research.diffusion.processes import VE, VP, Process, SubVP
from research.diffusion.samplers import (
    DDIM,
    AnnealedCorrector,
    AnnealedLangevin,
    Clipped,
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


VE_DATA, SUB_VP_DATA = Gaussian(VE(0.01, 20.0)), Gaussian(SubVP())
ON_OTHERS = {
    "ve_reverse_diffusion": (VE_DATA, PredictorCorrector(reverse_diffusion, None, 400)),
    "ve_ancestral": (VE_DATA, PredictorCorrector(ancestral, None, 400, 1e-5)),
    "ve_corrected": (
        VE_DATA,
        PredictorCorrector(reverse_diffusion, Langevin(0.05), 200, 1e-5),
    ),
    "ve_flow": (VE_DATA, ProbabilityFlow(min_time=1e-5)),
    "ve_ddim": (VE_DATA, DDIM(200, min_time=1e-5)),
    "ve_ddim_fresh": (VE_DATA, DDIM(400, eta=1.0, min_time=1e-5)),
    "ve_corrector_only": (
        VE_DATA,
        PredictorCorrector(None, AnnealedCorrector(0.2, 30), 100, 1e-5),
    ),
    "sub_vp_euler_maruyama": (SUB_VP_DATA, PredictorCorrector(num_steps=400)),
    "sub_vp_corrected": (
        SUB_VP_DATA,
        PredictorCorrector(euler_maruyama, Langevin(0.05), 200),
    ),
    "sub_vp_flow": (SUB_VP_DATA, ProbabilityFlow()),
    "sub_vp_ddim": (SUB_VP_DATA, DDIM(200)),
    "vp_ddim": (DATA, DDIM(200)),
    "vp_ddim_half_fresh": (DATA, DDIM(400, eta=0.5)),
    # Its variance, that of a known x0, is too small by O(1/N).
    "vp_ddim_fresh": (DATA, DDIM(1000, eta=1.0)),
}


@pytest.mark.parametrize("name", ON_OTHERS)
def test_samplers_return_the_data_of_any_process(name):
    data, sampler = ON_OTHERS[name]
    x, _ = draw(sampler, SHAPE, data)
    np.testing.assert_allclose(x.mean(), data.mean, rtol=0.03)
    np.testing.assert_allclose(x.var(), data.std**2, rtol=0.03)


def test_annealed_langevin_returns_the_data():
    """Enough steps to forget the level before, small enough to have its variance."""
    data = Gaussian(VE(0.2, 5.0))
    sampler = AnnealedLangevin(num_levels=20, num_steps=100, step_size=6e-3)
    x, evaluations = draw(sampler, SHAPE, data)
    assert evaluations == 20 * 100 + 1
    # The denoised mean of N(m, v) under noise s^2 has variance v^2 / (v + s^2).
    left = data.std**4 / (data.std**2 + 0.2**2)
    np.testing.assert_allclose(x.mean(), data.mean, rtol=0.03)
    np.testing.assert_allclose(x.var(), left, rtol=0.03)
    noisy, evaluations = draw(replace(sampler, denoise=False), SHAPE, data)
    np.testing.assert_allclose(noisy.var(), data.std**2 + 0.2**2, rtol=0.03)
    assert evaluations == 20 * 100


def test_annealed_langevin_takes_ncsn_steps():
    """One step a level from a uniform start: x + a score + sqrt(2 a) z."""
    sampler = AnnealedLangevin(2, 1, step_size=1e-3, denoise=False)
    with pytest.raises(UserError, match="num_levels=1: expected at least 2"):
        AnnealedLangevin(num_levels=1)
    flat = lambda x, t: jnp.full_like(x, 3.0)  # noqa: E731
    x, _ = sampler(jax.random.key(0), flat, VE(0.1, 1.0), (200, 1000))
    steps = 1e-3 * np.array([100, 1])  # (sigma_i / sigma_min)^2
    np.testing.assert_allclose(x.mean(), 0.5 + 3 * steps.sum(), atol=0.005)
    np.testing.assert_allclose(x.var(), 1 / 12 + 2 * steps.sum(), rtol=0.01)


@pytest.mark.parametrize(
    "snr, ladder, step_size",
    [(0.316, (0.01, 1.0), 2e-5), (0.176, (0.01, 50.0), 6.2e-6)],
)
def test_annealed_corrector_takes_ncsn_steps(snr, ladder, step_size):
    """With a flat score of 1, x moves by its step size: published, within 1 %."""
    process, t = VE(*ladder), jnp.array([0.0])
    x = AnnealedCorrector(snr, 1)(
        jax.random.key(0),
        jnp.zeros((1, 1_000_000)),
        t,
        1e-3,
        lambda x, t: jnp.ones_like(x),
        process,
    )
    np.testing.assert_allclose(x.var(), 2 * step_size, rtol=0.01)


def test_ddim_is_one_euler_step_of_the_flow_in_noise_over_signal():
    """d(x/a)/d(s/a) = noise (arXiv:2010.02502, Eq. 14), whatever the process."""
    first, second = 1.0, 0.4
    for data in (DATA, VE_DATA, SUB_VP_DATA):
        sampler = DDIM(1, min_time=second, denoise=False)
        x, evaluations = draw(sampler, (64, 3), data)
        assert evaluations == 1
        start = data.process.prior(jax.random.split(jax.random.key(0))[0], (64, 3))
        times = jnp.array([first, second])
        a, s = np.asarray(data.process.marginal(jnp.ones(2), times))
        noise = -s[0] * data.score(start, jnp.full(64, first))
        ratio = start / a[0] + (s[1] / a[1] - s[0] / a[0]) * noise
        np.testing.assert_allclose(x, a[1] * ratio, rtol=2e-3, atol=2e-3)


def test_ddim_is_first_order():
    def error(num_steps):
        fine, _ = draw(DDIM(1600), (512, 4))
        return float(
            jnp.sqrt(jnp.mean((draw(DDIM(num_steps), (512, 4))[0] - fine) ** 2))
        )

    assert 1.6 < error(50) / error(100) < 2.4


def test_ddim_starts_from_the_prior_at_any_time():
    sampler = DDIM(1, min_time=0.2, denoise=False, max_time=0.6)
    start = DATA.process.prior(jax.random.split(jax.random.key(0))[0], (64, 3))
    (a, b), (s, r) = DATA.process.marginal(jnp.ones(2), jnp.array([0.6, 0.2]))
    noise = -s * DATA.score(start, jnp.full(64, 0.6))
    expected = b * (start - s * noise) / a + r * noise
    np.testing.assert_allclose(draw(sampler, (64, 3))[0], expected, rtol=1e-4)


def test_clipped_data():
    """Of N(0.7, 0.5^2), kept in [-0.2, 1]: what a jump to the data has, clipped."""
    jump = DDIM(1, max_time=0.1)
    free, _ = draw(jump, (256, 4))
    assert free.min() < -0.3 and free.max() > 1.1
    x, evaluations = draw(Clipped(jump, -0.2, 1.0), (256, 4))
    np.testing.assert_allclose(x, jnp.clip(free, -0.2, 1.0), atol=1e-5)
    assert evaluations == 1


def test_ddim_keeps_the_data_in_a_range_and_the_noise_as_it_is():
    jump = DDIM(1, min_time=0.2, denoise=False, max_time=0.6)
    free, _ = draw(jump, (64, 3))
    x, _ = draw(replace(jump, max_data=0.5), (64, 3))
    start = DATA.process.prior(jax.random.split(jax.random.key(0))[0], (64, 3))
    (a, b), (s, _) = DATA.process.marginal(jnp.ones(2), jnp.array([0.6, 0.2]))
    x0 = (start + s**2 * DATA.score(start, jnp.full(64, 0.6))) / a
    assert (jnp.abs(x0) > 0.6).any()
    np.testing.assert_allclose(x - free, b * (jnp.clip(x0, -0.5, 0.5) - x0), atol=1e-5)


def test_without_a_predictor_only_the_corrector_acts():
    sampler = PredictorCorrector(None, Langevin(0.05, 2), num_steps=25)
    assert draw(sampler, (3, 2))[1] == 50
    flat = replace(sampler, corrector=None)
    x, evaluations = draw(flat, (3, 2))
    assert evaluations == 0
    np.testing.assert_array_equal(
        x, DATA.process.prior(jax.random.split(jax.random.key(0))[0], (3, 2))
    )


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
    ("sampler", "data"),
    [
        (PredictorCorrector(reverse_diffusion, Langevin(), num_steps=50), DATA),
        (ProbabilityFlow(), DATA),
        (DDIM(20, eta=0.5), DATA),
        (Karras(10, churn=5.0), DATA),
        (AnnealedLangevin(10, 2, step_size=6e-3), Gaussian(VE(0.2, 5.0))),
    ],
    ids=["predictor_corrector", "probability_flow", "ddim", "karras", "annealed"],
)
def test_samples_do_not_depend_on_the_number_of_devices(sampler, data):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    rows = NamedSharding(mesh, PartitionSpec("data"))
    whole = NamedSharding(mesh, PartitionSpec())

    def run(rng):
        return sampler(rng, data.score, data.process, (48, 5, 3))

    rng = jax.random.key(0)
    sharded = jax.jit(run, out_shardings=(rows, whole)).lower(rng).compile()
    x, evaluations = sharded(rng)
    assert x.addressable_shards[0].data.shape == (6, 5, 3)
    # No device ever holds the whole batch.
    assert "[48,5,3]" not in sharded.as_text()
    expected, expected_evaluations = jax.jit(run)(rng)
    np.testing.assert_allclose(x, expected, atol=1e-4)
    assert evaluations == expected_evaluations
