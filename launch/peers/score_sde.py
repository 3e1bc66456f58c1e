"""The U-Net and the samplers of diffusers beside ours.

The U-Net is the very same one, with our weights, where diffusers has it. Otherwise it
is as near to ours as its settings come. What is not alike then, beside DDPM++: going up
it attends after every block, where DDPM++ attends once a level; each block's shortcut
is not scaled; one number of groups serves all levels.
"""

import math
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.schedulers.deprecated.scheduling_sde_vp import ScoreSdeVpScheduler
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.schedulers.scheduling_heun_discrete import HeunDiscreteScheduler
from diffusers.schedulers.scheduling_sde_ve import ScoreSdeVeScheduler
from scipy.integrate import solve_ivp
from torch.utils.flop_counter import FlopCounterMode

from launch.peers import pytorch
from launch.timing import Contender
from research.diffusion.processes import VE
from research.errors import UserError
from research.experiment import Experiment
from research.models.score_unet import ScoreUNet
from research.pretrained import unet2d
from research.tasks.base import Variables
from research.tasks.score_matching import ScoreMatching


def contenders(
    experiment: Experiment, batch: Mapping[str, np.ndarray], train: bool = True
) -> list[Contender]:
    """diffusers' U-Net under the same loss, optimizer and batch, eager and compiled.

    Raises:
      UserError: the experiment is no score matching with a `ScoreUNet`.
    """
    task = experiment.task
    if not isinstance(task, ScoreMatching) or not isinstance(task.network, ScoreUNet):
        raise UserError(
            "the peer of score_sde is a U-Net under denoising score matching: this "
            f"experiment trains {type(task).__name__}"
        )
    images = np.ascontiguousarray(np.moveaxis(batch["image"], -1, 1))
    return pytorch.contenders(
        experiment, lambda: _Denoising(task), [images], task.network.dtype, train=train
    )


class _Denoising(torch.nn.Module):
    """The mean squared error of the predicted noise, as `ScoreMatching.loss`."""

    def __init__(self, task: Any):
        super().__init__()
        self.network = nearest_unet(task.network, task.image_shape)
        self.pixels, self.process = task.pixels, task.process
        self.min_time = task.min_time

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        scale = (self.pixels.high - self.pixels.low) / (self.pixels.levels - 1)
        x = images.float() * scale + self.pixels.low
        t = torch.rand(len(x), device=x.device) * (1 - self.min_time) + self.min_time
        low, high = self.process.beta_min, self.process.beta_max
        log_mean = -0.25 * t**2 * (high - low) - 0.5 * t * low  # Eq. 33
        mean, std = torch.exp(log_mean), torch.sqrt(-torch.expm1(2 * log_mean))
        noise = torch.randn_like(x)
        noisy = mean[:, None, None, None] * x + std[:, None, None, None] * noise
        prediction = self.network(noisy, 999 * t).sample
        return torch.mean((prediction.float() - noise) ** 2)


def nearest_unet(network: ScoreUNet, image_shape: tuple[int, int, int]) -> UNet2DModel:
    """diffusers' model with the channels, blocks and attention of `network`."""
    height, width, image_channels = image_shape
    levels = range(len(network.channel_mults))
    attends = [height >> i in network.attention_resolutions for i in levels]
    block: Any = network.block
    return UNet2DModel(
        sample_size=(height, width),
        in_channels=image_channels,
        out_channels=image_channels,
        block_out_channels=tuple(network.channels * m for m in network.channel_mults),
        layers_per_block=network.num_res_blocks,
        down_block_types=tuple(
            "AttnDownBlock2D" if a else "ResnetDownsampleBlock2D" for a in attends
        ),
        up_block_types=tuple(
            "AttnUpBlock2D" if a else "ResnetUpsampleBlock2D" for a in attends[::-1]
        ),
        downsample_type="resnet",
        upsample_type="resnet",
        dropout=getattr(block, "keywords", {}).get("dropout_rate", 0.1),
        attention_head_dim=None,  # one head, as wide as its level
        norm_num_groups=math.gcd(*_groups(network)),
        norm_eps=1e-6,
    )


def _groups(network: ScoreUNet) -> list[int]:
    return [min(network.channels * m // 4, 32) for m in network.channel_mults]


Predict = Callable[[torch.Tensor, float], torch.Tensor]
"""The network's output for images at one time in [0, 1]."""

Draw = Callable[[Predict, tuple[int, ...]], int]
"""A whole draw of images of a shape; the network evaluations that it took."""


def samplers(
    task: ScoreMatching, variables: Variables, batch_size: int, evaluations: int
) -> dict[str, list[tuple[Contender, int]]]:
    """diffusers' schedulers in their usual loop, eager and compiled, by our names.

    The adaptive ODE solver and the likelihood are those of the official PyTorch code of
    Song et al. 2021, arXiv:2011.13456: SciPy's RK45 around the network.

    Raises:
      UserError: a network that is no `ScoreUNet`, or a process that they lack.
    """
    if not isinstance(task.network, ScoreUNet):
        raise UserError(
            f"the peer is a U-Net, and this network a {type(task.network).__name__}"
        )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network, same = same_or_nearest_unet(task, variables)
    network: Any = network.eval().to(device, memory_format=torch.channels_last)
    height, width, channels = task.image_shape
    shape = (batch_size, channels, height, width)
    x, t = torch.zeros(shape, device=device), torch.zeros(batch_size, device=device)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(x, t)
    num_params = sum(param.numel() for param in network.parameters())

    def predict_by(module: Any) -> Predict:
        def predict(x: torch.Tensor, t: float) -> torch.Tensor:
            return module(x, torch.full((len(x),), 999 * t, device=device)).sample

        return predict

    def contender(draw: Draw, module: Any, kind: str, taken: int) -> Contender:
        def step() -> None:
            draw(predict_by(module), shape)
            if device.type == "cuda":
                torch.cuda.synchronize()

        return Contender(
            f"PyTorch {torch.__version__} {kind}{'' if same else ', another U-Net'}",
            step,
            num_params,
            taken * counter.get_total_flops(),
        )

    draws: dict[str, Draw] = {
        "ODE": lambda predict, shape: _ode(task, predict, shape, device),
        "likelihood": lambda predict, shape: _likelihood(task, predict, shape, device),
    }
    if isinstance(task.process, VE):
        draws["predictor-corrector"] = lambda predict, shape: _predictor_corrector(
            task, predict, shape, device, evaluations // 2
        )
    else:
        draws |= {
            name: _scheduled(scheduler, steps, device)
            for name, scheduler, steps in (
                ("ancestral", DDPMScheduler(clip_sample=False), evaluations),
                ("DDIM", DDIMScheduler(clip_sample=False), evaluations),
                ("Heun", HeunDiscreteScheduler(), (evaluations + 1) // 2),
            )
        }
        draws["Euler-Maruyama"] = lambda predict, shape: _euler_maruyama(
            predict, shape, device, evaluations
        )
    modules = {"eager": network, "compiled": torch.compile(network)}
    found = {}
    for name, draw in draws.items():
        taken = draw(predict_by(network), shape)
        found[name] = [
            (contender(draw, module, kind, taken), taken)
            for kind, module in modules.items()
        ]
    return found


def same_or_nearest_unet(
    task: ScoreMatching, variables: Variables
) -> tuple[UNet2DModel, bool]:
    """diffusers' model with our weights, or as near as its settings come, and which."""
    network: Any = task.network
    with tempfile.TemporaryDirectory() as folder:
        try:
            unet2d.save(folder, network, variables, task.image_shape[:2])
        except UserError:
            nearest = nearest_unet(network, task.image_shape)
            # Ours starts near 0, and so few evaluations solve its ODE.
            for leaf in nearest.conv_out.parameters():
                torch.nn.init.zeros_(leaf)
            return nearest, False
        return UNet2DModel.from_pretrained(folder), True


def _scheduled(scheduler: Any, num_steps: int, device: torch.device) -> Draw:
    @torch.no_grad()
    def draw(predict: Predict, shape: tuple[int, ...]) -> int:
        scheduler.set_timesteps(num_steps)
        x = torch.randn(shape, device=device) * scheduler.init_noise_sigma
        for step in scheduler.timesteps:
            output = predict(scheduler.scale_model_input(x, step), float(step) / 999)
            x = scheduler.step(output, step, x).prev_sample
        return len(scheduler.timesteps)

    return draw


@torch.no_grad()
def _euler_maruyama(
    predict: Predict, shape: tuple[int, ...], device: torch.device, num_steps: int
) -> int:
    scheduler: Any = ScoreSdeVpScheduler()
    scheduler.set_timesteps(num_steps)
    x = torch.randn(shape, device=device)
    for t in scheduler.timesteps:
        x, _ = scheduler.step_pred(predict(x, float(t)), x, t.to(device))
    return num_steps


@torch.no_grad()
def _predictor_corrector(
    task: Any, predict: Predict, shape: tuple[int, ...], device: Any, num_steps: int
) -> int:
    low, high = task.process.sigma_min, task.process.sigma_max
    scheduler: Any = ScoreSdeVeScheduler(sigma_min=low, sigma_max=high, snr=0.16)
    scheduler.set_timesteps(num_steps)
    scheduler.set_sigmas(num_steps)
    x = torch.randn(shape, device=device) * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        std = low * (high / low) ** float(t)
        x = scheduler.step_correct(predict(x, float(t)) / std, x).prev_sample
        x = scheduler.step_pred(predict(x, float(t)) / std, t, x).prev_sample
    return 2 * num_steps


def _drift(task: Any, predict: Predict, x: torch.Tensor, t: float) -> torch.Tensor:
    """Of the probability flow; the network predicts the noise, or for VE minus it."""
    process = task.process
    if isinstance(process, VE):
        ratio = process.sigma_max / process.sigma_min
        std = process.sigma_min * ratio**t
        return -0.5 * (std**2 * 2 * math.log(ratio)) * predict(x, t) / std
    beta = process.beta_min + t * (process.beta_max - process.beta_min)
    log_mean = -0.25 * t**2 * (process.beta_max - process.beta_min)
    log_mean -= 0.5 * t * process.beta_min
    std = math.sqrt(-math.expm1(2 * log_mean))
    return -0.5 * beta * x + 0.5 * beta * predict(x, t) / std


def _ode(task: Any, predict: Predict, shape: tuple[int, ...], device: Any) -> int:
    @torch.no_grad()
    def slope(t: float, flat: np.ndarray) -> np.ndarray:
        x = torch.from_numpy(flat.reshape(shape)).to(device, torch.float32)
        return _drift(task, predict, x, t).cpu().numpy().reshape(-1).astype(np.float64)

    std = task.process.sigma_max if isinstance(task.process, VE) else 1.0
    start = std * torch.randn(shape).numpy().reshape(-1)
    solved = solve_ivp(slope, (1.0, 1e-3), start, rtol=1e-5, atol=1e-5, method="RK45")
    return solved.nfev


def _likelihood(
    task: Any, predict: Predict, shape: tuple[int, ...], device: Any
) -> int:
    probe = torch.randint(0, 2, shape, device=device) * 2.0 - 1.0

    def slope(t: float, flat: np.ndarray) -> np.ndarray:
        values = flat[: math.prod(shape)].reshape(shape)
        x = torch.from_numpy(values).to(device, torch.float32).requires_grad_()
        with torch.enable_grad():
            drift = _drift(task, predict, x, t)
            product = torch.autograd.grad((drift * probe).sum(), x)[0]
        divergence = (product * probe).sum((1, 2, 3))
        parts = (drift.detach(), divergence)
        return np.concatenate([p.cpu().numpy().reshape(-1) for p in parts], dtype=float)

    image = np.random.default_rng(0).random(shape).reshape(-1)
    start = np.concatenate([image, np.zeros(shape[0])])
    solved = solve_ivp(slope, (1e-5, 1.0), start, rtol=1e-5, atol=1e-5, method="RK45")
    return solved.nfev
