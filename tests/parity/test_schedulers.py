"""Our samplers against diffusers' schedulers: whole trajectories, from the same noise.

The noise that ours draws is recorded, in order, and dealt to theirs. The score is that
of no data at all, but smooth and far from linear.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import diffusers.schedulers.deprecated.scheduling_karras_ve as karras_ve
import diffusers.schedulers.deprecated.scheduling_sde_vp as sde_vp
import diffusers.schedulers.scheduling_ddim as ddim
import diffusers.schedulers.scheduling_ddpm as ddpm
import diffusers.schedulers.scheduling_sde_ve as sde_ve
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import DDPMPipeline, UNet2DModel
from diffusers.pipelines.deprecated.score_sde_ve import (
    ScoreSdeVePipeline,
    pipeline_score_sde_ve,
)
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
from diffusers.schedulers.scheduling_heun_discrete import HeunDiscreteScheduler

from research.diffusion.karras import Karras, noise_level
from research.diffusion.processes import DDPM, VE, VP, batch_mul
from research.diffusion.samplers import (
    DDIM,
    Clipped,
    Langevin,
    PredictorCorrector,
    ancestral,
    euler_maruyama,
    reverse_diffusion,
)
from research.pretrained import schedulers
from tests.parity.test_unet2d import randomized

TOLERANCE = 1e-5  # of the largest element of the samples
SHAPE = (3, 2, 4, 1)
MODULES = (ddim, ddpm, sde_ve, sde_vp, karras_ve)


def toy(numpy, x, t):
    """What plays the network, in either library: x and a time."""
    return 0.8 * numpy.tanh(1.3 * x + 0.2) + 0.3 * numpy.sin(2 * x + t)


def toy_of_level(numpy, y, sigma):
    """The same at a noise level, of what is divided by the scale of its signal.

    Rounding does not grow with the level, which makes y large.
    """
    return toy(numpy, y / (1 + sigma), numpy.log(sigma))


@contextmanager
def recorded(monkeypatch) -> Iterator[list[torch.Tensor]]:
    """What ours draws, as theirs takes it."""
    noises, normal = [], jax.random.normal

    def record(*args, **kwargs):
        noise = normal(*args, **kwargs)
        noises.append(torch.from_numpy(np.array(noise)))
        return noise

    monkeypatch.setattr(jax.random, "normal", record)
    # Scans are loops then.
    with jax.disable_jit():
        yield noises
    for module in MODULES:
        monkeypatch.setattr(module, "randn_tensor", lambda *_, **__: noises.pop(0))


def run(monkeypatch, sampler, process, noise_of: Callable) -> tuple[np.ndarray, list]:
    """Our samples, given the noise that the network sees, and what we drew."""

    def score(x, t):
        a, s = process.marginal(jnp.ones_like(t), t)
        return batch_mul(-1 / s, noise_of(x, t, a, s))

    with recorded(monkeypatch) as noises:
        x, _ = sampler(jax.random.key(0), score, process, SHAPE)
    assert len(noises) > 0 and np.isfinite(x).all()
    return np.asarray(x), noises


def assert_same(ours: np.ndarray, theirs: torch.Tensor) -> None:
    scale = np.abs(ours).max()
    gap = np.abs(ours - theirs.numpy()).max() / scale
    print(f"{gap:.1e} of {scale:.2f}")
    assert gap < TOLERANCE


def settings_of(scheduler) -> dict[str, Any]:
    config = scheduler.config.items()
    return {key: value for key, value in config if not key.startswith("_")}


NUM_LEVELS = 60
CHAIN = DDPM(0.06, 12.0, NUM_LEVELS)
BETAS: dict[str, Any] = dict(
    num_train_timesteps=NUM_LEVELS, beta_start=1e-3, beta_end=0.2
)


def of_chain(x, t, a, s):
    return toy(jnp, x, batch_mul(t, jnp.ones_like(x)))


def run_chain(monkeypatch, sampler, scheduler, num_steps, **options):
    ours, noises = run(monkeypatch, sampler, CHAIN, of_chain)
    scheduler.set_timesteps(num_steps)
    x = noises.pop(0)
    for step in scheduler.timesteps:
        output = toy(torch, x, step / (NUM_LEVELS - 1))
        x = scheduler.step(output, step, x, **options).prev_sample
    assert_same(ours, x)


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("variance", ["fixed_large", "fixed_small"])
def test_ddpm(variance, clip, monkeypatch):
    """The whole chain: with the variance of x0, ours is DDIM's with all noise anew."""
    sampler = {
        "fixed_large": PredictorCorrector(ancestral, None, NUM_LEVELS, min_time=0.0),
        "fixed_small": DDIM(NUM_LEVELS, eta=1.0, min_time=0.0),
    }[variance]
    scheduler = ddpm.DDPMScheduler(**BETAS, variance_type=variance, clip_sample=clip)
    sampler = Clipped(sampler) if clip else sampler
    run_chain(monkeypatch, sampler, scheduler, NUM_LEVELS)


def test_ddpm_in_fewer_steps(monkeypatch):
    """Every fourth step, the noisiest left out: 56, 52, ..., 0 of 59."""
    scheduler = ddpm.DDPMScheduler(**BETAS, clip_sample=False)
    sampler = DDIM(15, eta=1.0, min_time=0.0, max_time=56 / 59)
    run_chain(monkeypatch, sampler, scheduler, 15)


# Their spacings, with the ends of our even times. "linspace" is not among them but for
# the whole chain: they step by N // num_steps whatever the times, so the time that a
# step goes to is not the one that the next step starts from. Nor is "trailing" with a
# number of steps that does not divide the chain's, whose times are rounded.
SPACINGS: dict[str, tuple[int, dict[str, Any], tuple[int, int]]] = {
    "leading": (15, {}, (56, 0)),
    "leading-7": (7, {}, (48, 0)),
    "leading-offset": (15, {"steps_offset": 1}, (57, 1)),
    "trailing": (15, {"timestep_spacing": "trailing"}, (59, 3)),
    "linspace": (NUM_LEVELS, {"timestep_spacing": "linspace"}, (59, 0)),
}


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize(
    ("num_steps", "spacing", "ends"), SPACINGS.values(), ids=SPACINGS
)
def test_ddim(num_steps, spacing, ends, eta, monkeypatch):
    scheduler = ddim.DDIMScheduler(**BETAS, **spacing, clip_sample=False)
    first, last = (end / (NUM_LEVELS - 1) for end in ends)
    sampler = DDIM(num_steps, eta, min_time=last, max_time=first)
    run_chain(monkeypatch, sampler, scheduler, num_steps, eta=eta)


def test_clipped_ddim(monkeypatch):
    """With the noise of the clipped data, as in GLIDE, not that of the unclipped."""
    scheduler = ddim.DDIMScheduler(**BETAS, clip_sample=True, clip_sample_range=0.5)
    sampler = Clipped(DDIM(15, eta=0.6, min_time=0.0, max_time=56 / 59), -0.5, 0.5)
    options = dict(eta=0.6, use_clipped_model_output=True)
    run_chain(monkeypatch, sampler, scheduler, 15, **options)


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_ddim_by_its_config(spacing, monkeypatch):
    """Of a chain of 1000, clipped as their pipeline clips: not the noise."""
    scheduler = ddim.DDIMScheduler(clip_sample_range=0.7, timestep_spacing=spacing)
    sampler = schedulers.ddim_of(
        {"_class_name": "DDIMScheduler", **settings_of(scheduler)}, 10, eta=0.5
    )
    chain = DDPM()
    ours, noises = run(monkeypatch, sampler, chain, of_chain)
    scheduler.set_timesteps(10)
    x = noises.pop(0)
    for step in scheduler.timesteps:
        output = toy(torch, x, step / 999)
        x = scheduler.step(output, step, x, eta=0.5).prev_sample
    assert_same(ours, x)


def by_level(x, t, a, s):
    return toy_of_level(jnp, batch_mul(1 / a, x), batch_mul(s / a, jnp.ones_like(x)))


@pytest.mark.parametrize("num_corrections", [1, 2])
def test_score_sde_ve(num_corrections, monkeypatch):
    """Predictor and corrector; the score of both, and `scale` by the level."""
    settings: dict[str, Any] = dict(
        snr=0.2, sigma_min=0.02, sigma_max=30.0, sampling_eps=1e-4
    )
    sampler = PredictorCorrector(
        reverse_diffusion, Langevin(0.2, num_corrections), 25, min_time=1e-4
    )
    ours, noises = run(monkeypatch, sampler, VE(0.02, 30.0), by_level)
    scheduler = sde_ve.ScoreSdeVeScheduler(25, **settings)
    scheduler.set_timesteps(25)
    scheduler.set_sigmas(25)
    x = scheduler.init_noise_sigma * noises.pop(0)
    mean = x
    for t, sigma in zip(scheduler.timesteps, scheduler.sigmas, strict=True):
        for _ in range(num_corrections):
            score = -toy_of_level(torch, x, sigma) / sigma
            x = scheduler.step_correct(score, x).prev_sample
        score = -toy_of_level(torch, x, sigma) / sigma
        x, mean = scheduler.step_pred(score, t, x, return_dict=False)
    assert_same(ours, mean)
    assert noises == []


def test_score_sde_vp(monkeypatch):
    sampler = PredictorCorrector(euler_maruyama, None, 40, min_time=2e-3)
    process = VP(0.2, 15.0)
    ours, noises = run(monkeypatch, sampler, process, of_chain)
    scheduler = sde_vp.ScoreSdeVpScheduler(40, 0.2, 15.0, 2e-3)
    scheduler.set_timesteps(40)
    x, mean = noises.pop(0), None
    for t in scheduler.timesteps:
        x, mean = scheduler.step_pred(toy(torch, x, t), x, t)
    assert mean is not None
    assert_same(ours, mean)


@pytest.mark.parametrize("churn", [0.0, 6.0, 80.0])
def test_karras_ve(churn, monkeypatch):
    """What they call a schedule of sigmas is geometric, from sigma_max^2 down."""
    settings: dict[str, Any] = dict(s_min=0.05, s_max=5.0, s_noise=1.007, s_churn=churn)
    sampler = Karras(
        num_steps=20,
        rho=math.inf,
        churn=churn,
        min_churned=0.05,
        max_churned=5.0,
        noise_scale=1.007,
        min_time=0.0,
    )
    ours, noises = run(monkeypatch, sampler, VE(0.1**2, 4.0**2), by_level)
    scheduler = karras_ve.KarrasVeScheduler(0.1, 4.0, **settings)
    scheduler.set_timesteps(20)
    x = scheduler.init_noise_sigma**2 * noises.pop(0)
    for t in scheduler.timesteps:
        sigma = scheduler.schedule[t]
        following = scheduler.schedule[t - 1] if t > 0 else 0
        x, sigma = scheduler.add_noise_to_input(x, sigma)
        score = -toy_of_level(torch, x, sigma)
        euler, slope = scheduler.step(score, sigma, following, x, return_dict=False)
        if following == 0:
            x = euler
            break
        score = -toy_of_level(torch, euler, following)
        x, _ = scheduler.step_correct(
            score, sigma, following, x, euler, slope, return_dict=False
        )
    assert_same(ours, x)
    assert noises == []


@pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")  # numpy 2, theirs
def test_heun_at_karras_levels(monkeypatch):
    """Rho 7 between the first and last level of their chain."""
    scheduler = HeunDiscreteScheduler(**BETAS, use_karras_sigmas=True)
    scheduler.set_timesteps(12)
    high, low = float(scheduler.sigmas[0]), float(scheduler.sigmas[-2])
    ends = noise_level(CHAIN, jnp.array([1.0, 0.0]))
    np.testing.assert_allclose([high, low], ends, rtol=1e-5)
    process, sampler = VE(low, high), Karras(12, min_time=0.0)
    ours, noises = run(monkeypatch, sampler, process, by_level)
    x = high * noises.pop(0)
    for step in scheduler.timesteps:
        scheduler.scale_model_input(x, step)
        sigma = scheduler.sigmas[scheduler.step_index]
        x = scheduler.step(toy_of_level(torch, x, sigma), step, x).prev_sample
    assert_same(ours, x)


@pytest.mark.parametrize("num_steps", [2, 9])
@pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")
def test_karras_levels(num_steps):
    scheduler = EulerDiscreteScheduler(**BETAS, use_karras_sigmas=True)
    scheduler.set_timesteps(num_steps)
    ours = Karras(num_steps, min_time=0.0).levels(CHAIN)
    np.testing.assert_allclose(ours, scheduler.sigmas[:-1], rtol=1e-5)


NCSNPP: dict[str, Any] = dict(
    sample_size=8,
    layers_per_block=1,
    block_out_channels=[8, 16],
    down_block_types=["SkipDownBlock2D"] * 2,
    up_block_types=["SkipUpBlock2D"] * 2,
    time_embedding_type="fourier",
    norm_num_groups=None,
    attention_head_dim=None,
    mid_block_scale_factor=math.sqrt(2),
    center_input_sample=True,
)


def test_pipeline_of_ncsnpp(monkeypatch, tmp_path):
    """A folder of theirs, our samples: a network and all its corrections and steps."""
    unet = randomized(UNet2DModel(**NCSNPP)).eval()
    scheduler = sde_ve.ScoreSdeVeScheduler(6, 0.2, 0.02, 30.0, correct_steps=1)
    pipeline = ScoreSdeVePipeline(unet, scheduler)
    pipeline.save_pretrained(tmp_path / "theirs")
    task, variables = schedulers.load(str(tmp_path / "theirs"))
    shape = (2, *task.image_shape)
    compiled = jax.jit(partial(task.score, variables))

    def score(x, t):
        with jax.disable_jit(False):
            return compiled(x, t)

    with recorded(monkeypatch) as noises:
        ours, evaluations = task.sampler(jax.random.key(0), score, task.process, shape)
    assert evaluations == 12
    assert task.image_shape == (8, 8, 3)

    def channels_first(*_, **__):
        return noises.pop(0).permute(0, 3, 1, 2)

    for module in (sde_ve, pipeline_score_sde_ve):
        monkeypatch.setattr(module, "randn_tensor", channels_first)
    pipeline.set_progress_bar_config(disable=True)
    monkeypatch.setattr(torch.Tensor, "clamp", lambda x, *_: x)
    theirs = pipeline(2, num_inference_steps=6, output_type="numpy").images
    assert_same(np.asarray(ours), torch.from_numpy(theirs))

    schedulers.save(str(tmp_path / "ours"), task, variables)
    again = ScoreSdeVePipeline.from_pretrained(tmp_path / "ours")
    assert settings_of(again.scheduler) == settings_of(scheduler)
    for name, weight in again.unet.state_dict().items():
        assert torch.equal(weight, unet.state_dict()[name])


def test_pipeline_of_ddpm(tmp_path):
    """Its trajectory is tested above; here is the score that it follows."""
    unet = UNet2DModel(
        sample_size=8,
        layers_per_block=1,
        block_out_channels=[8],
        down_block_types=["DownBlock2D"],
        up_block_types=["UpBlock2D"],
        norm_num_groups=4,
    )
    unet = randomized(unet).eval()
    scheduler = ddpm.DDPMScheduler(variance_type="fixed_large", clip_sample_range=2.0)
    DDPMPipeline(unet, scheduler).save_pretrained(tmp_path / "theirs")
    task, variables = schedulers.load(str(tmp_path / "theirs"))
    steps = torch.tensor([0, 371, 999])
    x = np.random.default_rng(0).standard_normal((3, 8, 8, 3), np.float32)
    with torch.no_grad():
        noise = unet(torch.from_numpy(x).permute(0, 3, 1, 2), steps).sample
    # In float64: in float32, one minus theirs is off by 8e-5 at the first step.
    std = (1 - (1 - scheduler.betas.double()).cumprod(0)[steps]).sqrt()
    score = jax.jit(task.score)
    ours = score(variables, jnp.asarray(x), jnp.asarray(steps / 999))
    assert_same(
        np.asarray(batch_mul(jnp.asarray(std, jnp.float32), ours)),
        -noise.permute(0, 2, 3, 1),
    )
    schedulers.save(str(tmp_path / "ours"), task, variables)
    again = DDPMPipeline.from_pretrained(tmp_path / "ours")
    assert settings_of(again.scheduler) == settings_of(scheduler)
    for name, weight in again.unet.state_dict().items():
        assert torch.equal(weight, unet.state_dict()[name])
