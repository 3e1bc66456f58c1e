import pickle
from dataclasses import replace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from research.diffusion.guidance import left_half
from research.diffusion.parameterizations import Level, RawScore, ScaledScore, log_std
from research.diffusion.pixels import Pixels
from research.diffusion.processes import VE, VP
from research.diffusion.samplers import PredictorCorrector, ProbabilityFlow
from research.errors import UserError
from research.losses import half_sum_over_dims
from research.tasks.score_matching import ScoreMatching, UniformLevels, uniform

SHAPE = (4, 4, 1)


class Mlp(nn.Module):
    dropout_rate: float = 0.0

    @nn.compact
    def __call__(self, x, t, train):
        flat = x.reshape(x.shape[0], -1)
        y = jnp.concatenate([flat, t[:, None], jnp.log(t)[:, None]], axis=-1)
        for _ in range(2):
            y = nn.swish(nn.Dense(128)(y))
            y = nn.Dropout(self.dropout_rate)(y, deterministic=not train)
        return nn.Dense(flat.shape[-1])(y).reshape(x.shape)


class Normalized(nn.Module):
    @nn.compact
    def __call__(self, x, t, train):
        return nn.BatchNorm(use_running_average=not train)(x)


class WhiteNoise(nn.Module):
    """The exact network for data N(0, I): the score is -x at all times."""

    scale: float = 1.0

    @nn.compact
    def __call__(self, x, t, train):
        _, std = VP().marginal(x, t)
        return self.scale * std[:, None, None, None] * x


TASK = ScoreMatching(
    network=Mlp(),
    process=VP(),
    pixels=Pixels(levels=17),
    sampler=PredictorCorrector(num_steps=20),
    image_shape=SHAPE,
)


def make_batch(num=8):
    image = jax.random.randint(jax.random.key(5), (num, *SHAPE), 0, 17)
    return {"image": image.astype(jnp.uint8)}


@pytest.fixture(scope="module")
def variables():
    return TASK.init(jax.random.key(0), make_batch())


def loss(variables, batch, seed=0, train=False, task=TASK):
    value, (metrics, changed) = task.loss(variables, batch, jax.random.key(seed), train)
    return value, metrics, changed


def test_overfits_one_batch(variables):
    """A loss that no linear denoiser can reach, and samples that match the images."""
    batch, optimizer = make_batch(), optax.adam(3e-3)
    repeated = {"image": jnp.tile(batch["image"], (16, 1, 1, 1))}
    task = replace(TASK, sampler=PredictorCorrector(num_steps=200))

    @jax.jit
    def train(params):
        def step(carry, rng):
            params, state = carry
            grads, (metrics, _) = jax.grad(
                lambda p: task.loss({"params": p}, repeated, rng, True), has_aux=True
            )(params)
            updates, state = optimizer.update(grads, state)
            return (optax.apply_updates(params, updates), state), metrics["loss"]

        rngs = jax.random.split(jax.random.key(1), 1500)
        (params, _), losses = jax.lax.scan(step, (params, optimizer.init(params)), rngs)
        return params, losses

    params, (totals, counts) = train(variables["params"])
    final = totals[-100:].sum() / counts[-100:].sum()
    assert final < 0.85 * linear_optimum(task.pixels.to_data(batch["image"]))

    sample = jax.jit(task.sample, static_argnums=2)
    drawn = sample({"params": params}, jax.random.key(2), 64)
    gaps = drawn["image"].astype(float)[:, None] - batch["image"].astype(float)[None]
    distance = jnp.sqrt(jnp.mean(gaps**2, axis=(2, 3, 4))).min(axis=1)
    assert jnp.median(distance) < 2 and drawn["finite"]


def linear_optimum(x0):
    """The loss of the exact score for a Gaussian with the covariance of `x0`.

    Mean over times and eigenvalues c of a c / (a c + 1 - a), a the signal's energy.
    """
    variances = np.linalg.eigvalsh(np.cov(x0.reshape(len(x0), -1).T)).clip(0)
    t = np.linspace(1e-5, 1, 10_000)[:, None]
    energy = np.exp(-(0.1 * t + 19.9 * t**2 / 2))
    return np.mean(energy * variances / (energy * variances + 1 - energy))


def test_mask_counts_padding_in_neither(variables):
    batch = make_batch()
    value, metrics, _ = loss(variables, batch)
    total, count = metrics["loss"]
    assert set(metrics) == {"loss"} and count == 8
    np.testing.assert_allclose(value, total / count, rtol=1e-6)

    first = jnp.array([1.0, 1, 1, 0, 0, 0, 0, 0])
    parts = []
    for mask in (first, 1 - first):
        part, part_metrics, _ = loss(variables, {**batch, "mask": mask})
        parts.append(part_metrics["loss"])
        np.testing.assert_allclose(part, parts[-1][0] / parts[-1][1], rtol=1e-6)
    assert parts[0][1] == 3 and parts[1][1] == 5
    np.testing.assert_allclose(parts[0][0] + parts[1][0], total, rtol=1e-5)

    other = {"image": batch["image"].at[3:].set(0), "mask": first}
    assert loss(variables, other)[0] == loss(variables, {**batch, "mask": first})[0]
    empty, empty_metrics, _ = loss(variables, {**batch, "mask": jnp.zeros(8)})
    assert empty == 0 and empty_metrics["loss"][1] == 0


def test_loss_options_reach_the_loss(variables):
    batch = make_batch()
    value, *_ = loss(variables, batch)
    half_sum, *_ = loss(
        variables, batch, task=replace(TASK, reduction=half_sum_over_dims)
    )
    np.testing.assert_allclose(half_sum, value * 16 / 2, rtol=1e-5)
    # With times near 1 alone the weight g^2 / std^2 is 20 / 1.
    late = replace(TASK, min_time=0.9999)
    weighted, *_ = loss(variables, batch, task=replace(late, likelihood_weighting=True))
    np.testing.assert_allclose(
        weighted, 20 * loss(variables, batch, task=late)[0], rtol=1e-3
    )


def test_dropout_acts_in_training_only(variables):
    batch, task = make_batch(), replace(TASK, network=Mlp(dropout_rate=0.5))
    evaluated, *_ = loss(variables, batch, task=task)
    trained, *_ = loss(variables, batch, train=True, task=task)
    assert evaluated == loss(variables, batch)[0] != trained
    # Another key draws another dropout, time and noise.
    assert trained != loss(variables, batch, seed=1, train=True, task=task)[0]
    assert trained == loss(variables, batch, train=True, task=task)[0]


def test_changed_collections_come_back():
    batch, task = make_batch(), replace(TASK, network=Normalized())
    variables = task.init(jax.random.key(0), batch)
    _, _, changed = loss(variables, batch, train=True, task=task)
    before = variables["batch_stats"]["BatchNorm_0"]["mean"]
    assert set(changed) == {"batch_stats"}
    assert not np.allclose(changed["batch_stats"]["BatchNorm_0"]["mean"], before)
    assert not loss(variables, batch, task=task)[2]


def test_init_refuses_images_of_another_shape():
    with pytest.raises(UserError, match="image_shape"):
        TASK.init(jax.random.key(0), {"image": jnp.zeros((2, 8, 8, 1), jnp.uint8)})


def test_score_divides_the_predicted_noise_by_the_deviation(variables):
    x = jax.random.normal(jax.random.key(1), (3, *SHAPE))
    t = jnp.array([1e-4, 0.3, 1.0])
    _, std = VP().marginal(x, t)
    noise = TASK.network.apply(variables, x, t, train=False)
    expected = -noise / np.asarray(std)[:, None, None, None]
    np.testing.assert_allclose(TASK.score(variables, x, t), expected, rtol=1e-5)


class Echo(nn.Module):
    """What it is told of the time, at every pixel."""

    @nn.compact
    def __call__(self, x, t, train):
        return jnp.broadcast_to(t[:, None, None, None], x.shape)


def test_networks_are_told_and_read_as_the_task_says():
    x, t = jnp.ones((3, *SHAPE)), jnp.array([0.0, 0.5, 1.0])
    sigma = np.array([0.01, 0.1, 1.0])
    task = replace(TASK, network=Echo(), process=VE(0.01, 1.0))
    told = replace(task, condition=log_std, predicts=ScaledScore())
    score = told.score({}, x, t)[:, 0, 0, 0]
    np.testing.assert_allclose(score, np.log(sigma) / sigma, rtol=1e-4, atol=1e-4)
    told = replace(task, condition=Level(3), predicts=RawScore())
    np.testing.assert_allclose(told.score({}, x, t)[:, 0, 0, 0], [2, 1, 0], atol=1e-6)


def test_times():
    rng = jax.random.key(0)
    levels = UniformLevels(5)(rng, 5000, 1e-5)
    values, counts = np.unique(levels, return_counts=True)
    np.testing.assert_allclose(values, np.arange(5) / 4)
    assert counts.min() > 900
    with pytest.raises(UserError, match="num_levels=1: expected at least 2"):
        UniformLevels(1)
    times = uniform(rng, 5000, 0.25)
    assert 0.25 <= times.min() < 0.26 and 0.99 < times.max() <= 1


def test_ncsn_objective_by_hand():
    """half the mean over levels of sigma^2 |score + noise / sigma|^2, summed."""
    sigmas = np.geomspace(0.01, 1, 3)
    task = replace(
        TASK,
        network=Echo(),
        process=VE(0.01, 1.0),
        times=UniformLevels(3),
        condition=Level(3),
        predicts=RawScore(),
        reduction=half_sum_over_dims,
    )
    # E 1/2 |sigma (2 - i) + noise|^2 = D/2 (sigma^2 (2 - i)^2 + 1) at level i.
    expected = 8 * np.mean(sigmas**2 * np.array([2, 1, 0]) ** 2 + 1)
    value, *_ = loss({}, make_batch(4096), task=task)
    np.testing.assert_allclose(value, expected, rtol=0.02)


def test_sample_is_a_pure_function_of_its_key(variables):
    sample = jax.jit(TASK.sample, static_argnums=2)
    first = sample(variables, jax.random.key(0), 6)
    again = sample(variables, jax.random.key(0), 6)
    other = sample(variables, jax.random.key(1), 6)
    assert first["image"].shape == (6, *SHAPE) and first["image"].dtype == jnp.uint8
    assert first["image"].max() <= 16
    assert first["nfe"].shape == () and first["nfe"] == 20
    assert first["finite"]
    np.testing.assert_array_equal(first["image"], again["image"])
    assert (first["image"] != other["image"]).any()


def test_sample_tells_of_its_failure():
    task = replace(TASK, network=WhiteNoise(scale=float("nan")))
    sample = jax.jit(task.sample, static_argnums=2)
    assert not sample({}, jax.random.key(0), 2)["finite"]


def test_log_likelihood_is_that_of_the_dequantized_image():
    """White noise: the ODE stands still, and all bits come from the prior."""
    task = replace(TASK, network=WhiteNoise(), pixels=Pixels(levels=256))
    image = np.random.default_rng(0).integers(0, 256, (5, *SHAPE)).astype(np.uint8)
    run = jax.jit(lambda rng: task.log_likelihood({}, jnp.asarray(image), rng))
    bits, evaluations = run(jax.random.key(1))
    centre = (image + 0.5) / 128 - 1
    nats = -0.5 * (centre**2 + np.log(2 * np.pi)).mean(axis=(1, 2, 3))
    np.testing.assert_allclose(bits, 7 - nats / np.log(2), atol=0.01)
    assert evaluations > 0
    np.testing.assert_array_equal(bits, run(jax.random.key(1))[0])
    assert (bits != run(jax.random.key(2))[0]).all()


def test_the_record_is_hashable_and_picklable():
    assert pickle.loads(pickle.dumps(TASK)) == TASK
    assert hash(TASK) == hash(replace(TASK)) and TASK != replace(TASK, min_time=0.1)


def test_restore_keeps_what_is_measured():
    task = replace(
        TASK,
        network=WhiteNoise(),
        sampler=PredictorCorrector(num_steps=50, min_time=1e-5),
    )
    image = make_batch(6)["image"]
    drawn = task.restore({}, image, jax.random.key(0), left_half)
    assert drawn["image"].shape == image.shape and drawn["nfe"] == 50
    np.testing.assert_array_equal(drawn["image"][:, :, :2], image[:, :, :2])
    assert (drawn["image"][:, :, 2:] != image[:, :, 2:]).mean() > 0.5
    with pytest.raises(UserError, match="sampler is a ProbabilityFlow"):
        replace(task, sampler=ProbabilityFlow()).restore(
            {}, image, jax.random.key(0), left_half
        )
