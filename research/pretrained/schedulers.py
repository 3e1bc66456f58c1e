"""Pipelines of diffusers that sample with a U-Net, as score-matching tasks, both ways.

A folder of theirs holds a network (see `unet2d`) in `unet/`, how it is sampled from in
`scheduler/scheduler_config.json`, and `model_index.json`, which names both; older ones,
such as google/ddpm-* and google/ncsnpp-*, hold all files side by side. What it says is
what a task of ours says:

    DDPMScheduler        the chain of Ho et al. 2020, arXiv:2006.11239, ancestrally
    DDIMScheduler        the same in fewer steps, Song et al. 2021, arXiv:2010.02502
    ScoreSdeVeScheduler  VE of Song et al. 2021, arXiv:2011.13456, predictor, corrector

Given the same noise, the samples are theirs to rounding.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from research.diffusion.parameterizations import (
    Clean,
    Noise,
    Parameterization,
    ScaledScore,
    Velocity,
    log_std,
    time,
)
from research.diffusion.pixels import Pixels
from research.diffusion.processes import DDPM, VE
from research.diffusion.samplers import (
    DDIM,
    Clipped,
    Langevin,
    PredictorCorrector,
    Sampler,
    ancestral,
    reverse_diffusion,
)
from research.errors import UserError
from research.layers.embeddings import FourierEmbedding, SinusoidalEmbedding
from research.models.score_unet import ScoreUNet
from research.pretrained.configs import CONFIG as UNET_CONFIG
from research.pretrained.configs import (
    Config,
    Key,
    checked,
    count,
    only,
    read_config,
    write_config,
)
from research.pretrained.tables import ImageShape
from research.pretrained.unet2d import image_shape_of
from research.pretrained.unet2d import load as load_unet
from research.pretrained.unet2d import save as save_unet
from research.tasks.base import Variables
from research.tasks.score_matching import ScoreMatching, UniformLevels

CONFIG, INDEX = "scheduler_config.json", "model_index.json"
SOURCE = "give one that diffusers' DDPM-, DDIM- or ScoreSdeVePipeline wrote"

PREDICTIONS: dict[str, Parameterization] = {
    "epsilon": Noise(),
    "sample": Clean(),
    "v_prediction": Velocity(),
}
"""What a network of DDPM predicts, by their names."""

_positive = Key(
    None, lambda value: type(value) in (int, float) and value > 0, "a positive number"
)
_free = Key(None, lambda value: True, "anything")
# Of their first versions: what library the steps were computed in.
_either = Key(None, lambda value: value in (None, "pt", "np"), '"pt" or "np"')

# The defaults are those of diffusers 0.42.
DDPM_KEYS = {
    "_class_name": only("DDPMScheduler"),
    "_diffusers_version": _free,
    "tensor_format": _either,
    "num_train_timesteps": only(1000),
    "beta_start": _positive._replace(default=1e-4),
    "beta_end": _positive._replace(default=0.02),
    "beta_schedule": only("linear"),
    "trained_betas": only(None),
    "variance_type": only("fixed_small", "fixed_large"),
    "clip_sample": only(True, False),
    "prediction_type": only(*PREDICTIONS),
    "thresholding": only(False),
    "dynamic_thresholding_ratio": _free,
    "clip_sample_range": _positive._replace(default=1.0),
    "sample_max_value": _free,
    # All the same for the whole chain.
    "timestep_spacing": only("leading", "trailing", "linspace"),
    "steps_offset": only(0),
    "rescale_betas_zero_snr": only(False),
}
DDIM_KEYS = {key: there for key, there in DDPM_KEYS.items() if key != "variance_type"}
DDIM_KEYS |= {
    "_class_name": only("DDIMScheduler"),
    "timestep_spacing": only("leading", "trailing"),
    "steps_offset": Key(0, lambda offset: count(offset) or offset == 0, "0 or more"),
    "set_alpha_to_one": only(True),
}
VE_KEYS = {
    "_class_name": only("ScoreSdeVeScheduler"),
    "_diffusers_version": _free,
    "tensor_format": _either,
    "num_train_timesteps": Key(2000, count, "a number of steps"),
    "snr": _positive._replace(default=0.15),
    "sigma_min": _positive._replace(default=0.01),
    "sigma_max": _positive._replace(default=1348.0),
    "sampling_eps": _positive._replace(default=1e-5),
    "correct_steps": Key(
        1, lambda steps: count(steps) or steps == 0, "a number of steps, or 0"
    ),
}


def load(folder: str) -> tuple[ScoreMatching, Variables]:
    """The task that a pipeline's folder describes, and its network's variables.

    Raises:
      UserError: a file that is missing or cannot be read; a part, a key or a value that
        is not supported; or a leaf of the network that does not fit.
    """
    path = Path(folder).expanduser()
    if (path / INDEX).is_file():
        index = read_config(path / INDEX, SOURCE)
        parts = {name for name in index if not name.startswith("_")}
        if parts != {"unet", "scheduler"}:
            raise UserError(
                f"{path / INDEX} names {', '.join(sorted(parts))}: expected unet and "
                f"scheduler; {SOURCE}"
            )
    unet, scheduler = (
        path / part if (path / part).is_dir() else path
        for part in ("unet", "scheduler")
    )
    config = read_config(scheduler / CONFIG, SOURCE)
    shape = read_config(unet / UNET_CONFIG, SOURCE)
    network, variables = load_unet(str(unet))
    return task_of(config, network, image_shape_of(shape)), variables


def save(folder: str, task: ScoreMatching, variables: Variables) -> None:
    """Writes a folder that `diffusers.DiffusionPipeline.from_pretrained` loads.

    Args:
      folder: made where there is none; files of the same names are replaced.
      task: as `task_of` builds it; what it is trained with is not written.
      variables: of its network, a `ScoreUNet`.

    Raises:
      UserError: a setting of the task or its network that theirs do not have, or a
        leaf that does not fit.
    """
    config, path = config_of(task), Path(folder).expanduser()
    network = _score_unet(task)
    save_unet(str(path / "unet"), network, variables, task.image_shape[:2])
    (path / "scheduler").mkdir(exist_ok=True)
    write_config(path / "scheduler" / CONFIG, config)
    name = config["_class_name"]
    index = {
        "_class_name": name.replace("Scheduler", "Pipeline"),
        "scheduler": ["diffusers", name],
        "unet": ["diffusers", "UNet2DModel"],
    }
    write_config(path / INDEX, index)


def task_of(
    config: Config, network: ScoreUNet, image_shape: ImageShape
) -> ScoreMatching:
    """The task of a scheduler's config, with the network that `unet2d.load` returns.

    Raises:
      UserError: a key or a value that is not supported, or a network that is not told
        the time in the way of the scheduler.
    """
    name = config.get("_class_name")
    if name not in TASKS:
        raise UserError(
            f"_class_name = {name} in {CONFIG} is not supported: expected "
            f"{' or '.join(TASKS)}"
        )
    return TASKS[name](config, network, image_shape)


def config_of(task: ScoreMatching) -> Config:
    """The scheduler's config of a task.

    Raises:
      UserError: a setting of the task that theirs do not have, by its name.
    """
    config = _chain_config(task) if isinstance(task.process, DDPM) else _ve_config(task)
    again = task_of(config, _score_unet(task), task.image_shape)
    for name in ("process", "sampler", "predicts", "condition", "pixels"):
        wanted = getattr(again, name)
        if getattr(task, name) != wanted:
            raise UserError(
                f"{name} = {getattr(task, name)} of the task has no counterpart in "
                f"diffusers' {config['_class_name']}: expected {wanted}"
            )
    return config


def ddim_of(config: Config, num_steps: int = 50, eta: float = 0.0) -> DDIM:
    """The sampler of a DDIMScheduler, by default as its pipeline calls it.

    Args:
      config: of the scheduler.
      num_steps, eta: which the config leaves open.

    Raises:
      UserError: a key or a value that is not supported, or a number of steps whose
        times are not even.
    """
    config = checked(config, DDIM_KEYS, CONFIG)
    num_levels, offset = config["num_train_timesteps"], config["steps_offset"]
    spacing = config["timestep_spacing"]
    trailing, stride = spacing == "trailing", num_levels // max(num_steps, 1)
    uneven = trailing and (num_levels % max(num_steps, 1) or offset)
    # From `stride` on, the last step would not be to the data.
    if num_steps < 1 or offset >= stride or uneven:
        raise UserError(
            f"{num_steps} steps with timestep_spacing = {spacing} and steps_offset = "
            f"{offset} in {CONFIG} are not supported: expected 1 to {num_levels} "
            f"steps, an offset below {num_levels} / steps and, with trailing, a "
            f"divisor of {num_levels} and no offset"
        )
    last = stride - 1 if trailing else offset
    first = last + (num_steps - 1) * stride
    max_data = config["clip_sample_range"] if config["clip_sample"] else math.inf
    return DDIM(
        num_steps,
        eta,
        min_time=last / (num_levels - 1),
        max_time=first / (num_levels - 1),
        max_data=float(max_data),
    )


def _ddpm(config: Config, network: ScoreUNet, image_shape: ImageShape) -> ScoreMatching:
    config = checked(config, DDPM_KEYS, CONFIG)
    _require_embedding(network, SinusoidalEmbedding, "positional", "DDPMScheduler")
    num_levels = config["num_train_timesteps"]
    # With fixed_small a step has the variance that it would have if x0 were known,
    # which is DDIM with all its noise drawn anew.
    sampler = (
        DDIM(num_levels, eta=1.0, min_time=0.0)
        if config["variance_type"] == "fixed_small"
        else PredictorCorrector(ancestral, None, num_levels, min_time=0.0)
    )
    bound = float(config["clip_sample_range"])
    sampler = Clipped(sampler, -bound, bound) if config["clip_sample"] else sampler
    return _of_chain(config, sampler, network, image_shape)


def _ddim(config: Config, network: ScoreUNet, image_shape: ImageShape) -> ScoreMatching:
    sampler = ddim_of(config)
    config = checked(config, DDIM_KEYS, CONFIG)
    _require_embedding(network, SinusoidalEmbedding, "positional", "DDIMScheduler")
    return _of_chain(config, sampler, network, image_shape)


def _of_chain(
    config: Config, sampler: Sampler, network: ScoreUNet, image_shape: ImageShape
) -> ScoreMatching:
    num_levels = config["num_train_timesteps"]
    beta_min, beta_max = (
        _rounded(config[key] * num_levels) for key in ("beta_start", "beta_end")
    )
    return ScoreMatching(
        network=network,
        process=DDPM(beta_min, beta_max, num_levels),
        pixels=Pixels(low=-1.0, high=1.0),
        sampler=sampler,
        image_shape=image_shape,
        times=UniformLevels(num_levels),
        condition=time,
        predicts=PREDICTIONS[config["prediction_type"]],
    )


def _chain_config(task: ScoreMatching) -> Config:
    process, sampler = task.process, task.sampler
    assert isinstance(process, DDPM)
    num_levels = process.num_levels
    shared = {
        "num_train_timesteps": num_levels,
        "beta_start": _rounded(process.beta_min / num_levels),
        "beta_end": _rounded(process.beta_max / num_levels),
        "beta_schedule": "linear",
        "prediction_type": next(
            (name for name, there in PREDICTIONS.items() if there == task.predicts),
            "epsilon",
        ),
    }
    if isinstance(sampler, DDIM) and sampler.num_steps < num_levels:
        trailing = sampler.max_time == 1 and sampler.min_time > 0
        clipped = sampler.max_data < math.inf
        return shared | {
            "_class_name": "DDIMScheduler",
            "timestep_spacing": "trailing" if trailing else "leading",
            "steps_offset": 0
            if trailing
            else round(sampler.min_time * (num_levels - 1)),
            "clip_sample": clipped,
            "clip_sample_range": sampler.max_data if clipped else 1.0,
        }
    clip = sampler if isinstance(sampler, Clipped) else None
    inner = sampler if clip is None else clip.sampler
    return shared | {
        "_class_name": "DDPMScheduler",
        "variance_type": "fixed_small" if isinstance(inner, DDIM) else "fixed_large",
        "clip_sample": clip is not None,
        "clip_sample_range": 1.0 if clip is None else clip.high,
    }


def _ve(config: Config, network: ScoreUNet, image_shape: ImageShape) -> ScoreMatching:
    config = checked(config, VE_KEYS, CONFIG)
    _require_embedding(network, FourierEmbedding, "fourier", "ScoreSdeVeScheduler")
    corrections, min_time = config["correct_steps"], float(config["sampling_eps"])
    return ScoreMatching(
        network=network,
        process=VE(float(config["sigma_min"]), float(config["sigma_max"])),
        pixels=Pixels(low=0.0, high=1.0),
        sampler=PredictorCorrector(
            reverse_diffusion,
            Langevin(float(config["snr"]), corrections) if corrections else None,
            config["num_train_timesteps"],
            min_time,
        ),
        image_shape=image_shape,
        min_time=min_time,
        condition=log_std,
        predicts=ScaledScore(),
    )


def _ve_config(task: ScoreMatching) -> Config:
    process, sampler = task.process, task.sampler
    if not isinstance(process, VE):
        raise UserError(
            f"process = {process} of the task has no counterpart in a pipeline of "
            "diffusers: expected DDPM or VE"
        )
    corrector = getattr(sampler, "corrector", None)
    if not isinstance(sampler, PredictorCorrector) or not (
        corrector is None or isinstance(corrector, Langevin)
    ):
        raise UserError(
            f"sampler = {sampler} of the task has no counterpart in diffusers' "
            "ScoreSdeVeScheduler: expected PredictorCorrector, with Langevin if any"
        )
    return {
        "_class_name": "ScoreSdeVeScheduler",
        "num_train_timesteps": sampler.num_steps,
        "snr": VE_KEYS["snr"].default if corrector is None else corrector.snr,
        "sigma_min": process.sigma_min,
        "sigma_max": process.sigma_max,
        "sampling_eps": sampler.min_time,
        "correct_steps": 0 if corrector is None else corrector.num_steps,
    }


TASKS: dict[Any, Callable[[Config, ScoreUNet, ImageShape], ScoreMatching]] = {
    "DDPMScheduler": _ddpm,
    "DDIMScheduler": _ddim,
    "ScoreSdeVeScheduler": _ve,
}
"""What makes the task of each of their schedulers."""


def _rounded(value: float) -> float:
    """To 12 digits: a thousand times a beta that was written with fewer, and back."""
    return float(f"{value:.12g}")


def _score_unet(task: ScoreMatching) -> ScoreUNet:
    if not isinstance(task.network, ScoreUNet):
        raise UserError(
            f"network = {type(task.network).__name__} of the task has no counterpart "
            "in diffusers' UNet2DModel: expected ScoreUNet"
        )
    return task.network


def _require_embedding(
    network: ScoreUNet, embedding: type, name: str, scheduler: str
) -> None:
    there = network.time_embedding(network.channels)
    if not isinstance(there, embedding):
        raise UserError(
            f"the network's time_embedding is {type(there).__name__}: expected "
            f"{embedding.__name__}, {name} in theirs, with {scheduler}"
        )
