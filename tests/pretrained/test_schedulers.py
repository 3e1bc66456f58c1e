import json
from dataclasses import replace

import jax
import numpy as np
import pytest
from flax.traverse_util import unflatten_dict

from research.diffusion.parameterizations import Noise, Velocity, log_std, time
from research.diffusion.pixels import Pixels
from research.diffusion.processes import DDPM, VE, VP
from research.diffusion.samplers import (
    DDIM,
    AnnealedCorrector,
    Clipped,
    Langevin,
    PredictorCorrector,
    ancestral,
    euler_maruyama,
    reverse_diffusion,
)
from research.errors import UserError
from research.models.refinenet import RefineNet
from research.pretrained import schedulers, unet2d

# A network each, small, and what is published for google/ddpm-cifar10-32 and for NCSN++
# at 256 pixels (score_sde's configs/ve/celebahq_256_ncsnpp_continuous).
DDPM_NETWORK = unet2d.network_of(
    {
        "sample_size": 4,
        "block_out_channels": [4],
        "down_block_types": ["DownBlock2D"],
        "up_block_types": ["UpBlock2D"],
        "layers_per_block": 1,
        "norm_num_groups": 2,
        "attention_head_dim": None,
    }
)
NCSNPP_NETWORK = unet2d.network_of(
    {
        "sample_size": 4,
        "block_out_channels": [4],
        "down_block_types": ["SkipDownBlock2D"],
        "up_block_types": ["SkipUpBlock2D"],
        "layers_per_block": 1,
        "norm_num_groups": None,
        "attention_head_dim": None,
        "mid_block_scale_factor": 2**0.5,
        "time_embedding_type": "fourier",
    }
)
DDPM_CONFIG = {
    "_class_name": "DDPMScheduler",
    "num_train_timesteps": 1000,
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "variance_type": "fixed_large",
    "clip_sample": True,
    "clip_sample_range": 1.0,
    "prediction_type": "epsilon",
}
DDIM_CONFIG = {
    "_class_name": "DDIMScheduler",
    "num_train_timesteps": 1000,
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "timestep_spacing": "leading",
    "steps_offset": 0,
    "clip_sample": True,
    "clip_sample_range": 1.0,
    "prediction_type": "epsilon",
}
VE_CONFIG = {
    "_class_name": "ScoreSdeVeScheduler",
    "num_train_timesteps": 2000,
    "snr": 0.075,
    "sigma_min": 0.01,
    "sigma_max": 348,
    "sampling_eps": 1e-5,
    "correct_steps": 1,
}


def ddpm(**changed):
    return schedulers.task_of(DDPM_CONFIG | changed, DDPM_NETWORK, (4, 4, 3))


def ddim(**changed):
    return schedulers.task_of(DDIM_CONFIG | changed, DDPM_NETWORK, (4, 4, 3))


def ve(**changed):
    return schedulers.task_of(VE_CONFIG | changed, NCSNPP_NETWORK, (4, 4, 3))


def test_published_ddpm():
    task = ddpm()
    assert task.process == DDPM(beta_min=0.1, beta_max=20.0, num_levels=1000)
    chain = PredictorCorrector(ancestral, None, 1000, min_time=0.0)
    assert task.sampler == Clipped(chain, -1.0, 1.0)
    assert (task.predicts, task.condition) == (Noise(), time)
    assert task.pixels == Pixels(low=-1.0, high=1.0)
    assert schedulers.config_of(task) == DDPM_CONFIG


def test_relatives_of_ddpm():
    changed = {
        "beta_start": 0.0015,
        "beta_end": 0.0195,
        "variance_type": "fixed_small",
        "clip_sample": False,
        "prediction_type": "v_prediction",
    }
    task = ddpm(**changed)
    assert task.process == DDPM(1.5, 19.5, 1000)
    assert task.sampler == DDIM(1000, eta=1.0, min_time=0.0)
    assert task.predicts == Velocity()
    assert schedulers.config_of(task) == DDPM_CONFIG | changed


def test_ddim():
    """Steps 980, 960, ..., 0, whatever the config says nothing of."""
    task = ddim()
    assert task.process == DDPM(beta_min=0.1, beta_max=20.0, num_levels=1000)
    first = DDIM(50, min_time=0.0, max_time=980 / 999, max_data=1.0)
    assert task.sampler == first
    assert schedulers.config_of(task) == DDIM_CONFIG
    changed = {"steps_offset": 1, "clip_sample": False}
    task = ddim(**changed)
    assert task.sampler == DDIM(50, min_time=1 / 999, max_time=981 / 999)
    assert schedulers.config_of(task) == DDIM_CONFIG | changed
    task = ddim(timestep_spacing="trailing", clip_sample_range=2.0)
    assert task.sampler == DDIM(50, min_time=19 / 999, max_data=2.0)
    trailing = {"timestep_spacing": "trailing", "clip_sample_range": 2.0}
    assert schedulers.config_of(task) == DDIM_CONFIG | trailing
    fewer = schedulers.ddim_of(DDIM_CONFIG, 7, eta=0.5)
    assert fewer == DDIM(7, 0.5, min_time=0.0, max_time=852 / 999, max_data=1.0)
    with pytest.raises(UserError, match="sampler = DDIM.num_steps=7.*num_steps=50"):
        schedulers.config_of(replace(task, sampler=fewer))
    for num_steps, match in (
        (7, "7 steps with .*trailing"),
        (0, "0 steps"),
        (1001, ""),
    ):
        with pytest.raises(UserError, match=f"{match}.*expected 1 to 1000 steps"):
            schedulers.ddim_of(DDIM_CONFIG | trailing, num_steps)
    with pytest.raises(UserError, match="steps_offset = 20 .*an offset below 1000 /"):
        ddim(steps_offset=20)


def test_published_ncsnpp():
    task = ve()
    assert task.process == VE(0.01, 348.0)
    assert task.sampler == PredictorCorrector(
        reverse_diffusion, Langevin(0.075, 1), 2000, min_time=1e-5
    )
    assert task.condition is log_std and task.min_time == 1e-5
    assert task.pixels == Pixels(low=0.0, high=1.0)
    assert schedulers.config_of(task) == VE_CONFIG
    plain = ve(correct_steps=0, snr=0.15)
    assert plain.sampler.corrector is None
    assert schedulers.config_of(plain) == VE_CONFIG | {"correct_steps": 0, "snr": 0.15}


def test_absent_keys_have_the_defaults_of_their_library():
    config = {"_class_name": "ScoreSdeVeScheduler"}
    task = schedulers.task_of(config, NCSNPP_NETWORK, (4, 4, 3))
    assert task.process == VE(0.01, 1348.0) and task.sampler.corrector.snr == 0.15
    config = {"_class_name": "DDPMScheduler"}
    task = schedulers.task_of(config, DDPM_NETWORK, (4, 4, 3))
    assert task.sampler == Clipped(DDIM(1000, eta=1.0, min_time=0.0))


@pytest.mark.parametrize(
    ("config", "key", "value", "supported"),
    [
        (
            DDPM_CONFIG,
            "_class_name",
            "PNDMScheduler",
            "DDPMScheduler or DDIMScheduler or ScoreSdeVe",
        ),
        (
            DDPM_CONFIG,
            "_class_name",
            None,
            "DDPMScheduler or DDIMScheduler or ScoreSdeVe",
        ),
        (DDPM_CONFIG, "num_train_timesteps", 500, "1000"),
        (DDPM_CONFIG, "beta_schedule", "scaled_linear", '"linear"'),
        (DDPM_CONFIG, "variance_type", "learned", '"fixed_small" or "fixed_large"'),
        (DDPM_CONFIG, "thresholding", True, "false"),
        (DDPM_CONFIG, "steps_offset", 1, "0"),
        (DDPM_CONFIG, "eta", 1, "only _class_name, "),
        (DDIM_CONFIG, "timestep_spacing", "linspace", '"leading" or "trailing"'),
        (DDIM_CONFIG, "steps_offset", -1, "0 or more"),
        (DDIM_CONFIG, "set_alpha_to_one", False, "true"),
        (VE_CONFIG, "sigma_min", 0, "a positive number"),
        (VE_CONFIG, "correct_steps", -1, "a number of steps, or 0"),
    ],
)
def test_configs_that_are_refused(config, key, value, supported):
    network = NCSNPP_NETWORK if config is VE_CONFIG else DDPM_NETWORK
    with pytest.raises(UserError, match=f"{key} = .* in scheduler_config.*{supported}"):
        schedulers.task_of(config | {key: value}, network, (4, 4, 3))


def test_a_network_that_is_told_something_else():
    with pytest.raises(UserError, match="is FourierEmbedding: expected Sinusoidal"):
        schedulers.task_of(DDPM_CONFIG, NCSNPP_NETWORK, (4, 4, 3))
    with pytest.raises(UserError, match="is SinusoidalEmbedding: expected Fourier"):
        schedulers.task_of(VE_CONFIG, DDPM_NETWORK, (4, 4, 3))


@pytest.mark.parametrize(
    ("task", "changed", "expected"),
    [
        (ddpm, {"sampler": DDIM()}, "sampler = DDIM.*DDIMScheduler: expected DDIM"),
        (ddpm, {"sampler": PredictorCorrector()}, "sampler = .*ancestral"),
        (ddpm, {"sampler": Clipped(DDIM(), -2.0)}, "sampler = .*low=-1.0"),
        (ddpm, {"condition": log_std}, "condition = .*time"),
        (ddpm, {"pixels": Pixels(low=0.0)}, "pixels = .*low=-1.0"),
        (ddpm, {"process": VP()}, "process = .*DDPM or VE"),
        (ddpm, {"network": RefineNet()}, "network = RefineNet.*ScoreUNet"),
        (ve, {"predicts": Noise()}, "predicts = Noise.*ScaledScore"),
        (ve, {"sampler": DDIM()}, "sampler = DDIM.*expected PredictorCorrector"),
        (
            ve,
            {"sampler": PredictorCorrector(corrector=AnnealedCorrector())},
            "sampler = .*with Langevin if any",
        ),
        (ve, {"sampler": PredictorCorrector(euler_maruyama)}, "sampler = .*reverse_di"),
    ],
)
def test_tasks_that_they_do_not_have_are_refused(task, changed, expected):
    with pytest.raises(UserError, match=expected):
        schedulers.config_of(replace(task(), **changed))


def test_other_predictions_are_refused():
    with pytest.raises(UserError, match="predicts = ScaledScore.*expected Noise"):
        schedulers.config_of(replace(ddpm(), predicts=ve().predicts))


@pytest.mark.parametrize("make", [ddpm, ddim, ve])
def test_folders_there_and_back(make, tmp_path):
    task = make()
    rng = np.random.default_rng(0)
    variables = unflatten_dict(
        {
            path: rng.standard_normal(leaf.shape, np.float32)
            for path, leaf in unet2d.expected_leaves(task.network, (4, 4, 3)).items()
        },
        sep="/",
    )
    schedulers.save(str(tmp_path / "new" / "folder"), task, variables)
    folder = tmp_path / "new" / "folder"
    again, read = schedulers.load(str(folder))
    for name in ("process", "sampler", "predicts", "condition", "pixels", "min_time"):
        assert getattr(again, name) == getattr(task, name)
    assert again.image_shape == (4, 4, 3)
    assert jax.tree.all(jax.tree.map(np.array_equal, read, variables))
    # As older folders are.
    for part in ("unet", "scheduler"):
        for file in (folder / part).iterdir():
            file.rename(folder / file.name)
        (folder / part).rmdir()
    beside, read = schedulers.load(str(folder))
    assert beside.sampler == task.sampler
    assert jax.tree.all(jax.tree.map(np.array_equal, read, variables))


def test_a_task_that_was_read_samples(tmp_path):
    task = ve(num_train_timesteps=3)
    leaves = unet2d.expected_leaves(task.network, (4, 4, 3))
    zeros = {path: np.zeros(leaf.shape, np.float32) for path, leaf in leaves.items()}
    schedulers.save(str(tmp_path), task, unflatten_dict(zeros, sep="/"))
    again, variables = schedulers.load(str(tmp_path))
    drawn = jax.jit(again.sample, static_argnums=2)(variables, jax.random.key(0), 2)
    assert drawn["image"].shape == (2, 4, 4, 3) and drawn["image"].dtype == np.uint8
    assert drawn["nfe"] == 6


def test_first_versions():
    assert ddpm(tensor_format="pt").sampler == ddpm().sampler
    with pytest.raises(UserError, match='tensor_format = "jax".*"pt" or "np"'):
        ve(tensor_format="jax")


def test_other_folders_are_refused(tmp_path):
    with pytest.raises(
        UserError, match="no scheduler_config.json in .*ScoreSdeVePipeline"
    ):
        schedulers.load(str(tmp_path))
    index = {"_class_name": "LDMPipeline", "unet": [], "scheduler": [], "vqvae": []}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="names scheduler, unet, vqvae: expected unet"):
        schedulers.load(str(tmp_path))
