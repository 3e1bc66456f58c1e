"""The U-Net of diffusers, as near to our DDPM++ as its settings come.

Not alike: going up it attends after every block, where DDPM++ attends once a level;
each block's shortcut is not scaled; one number of groups serves all levels.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from diffusers.models.unets.unet_2d import UNet2DModel

from launch.peers import pytorch
from launch.timing import Contender
from research.errors import UserError
from research.experiment import Experiment
from research.models.score_unet import ScoreUNet
from research.tasks.score_matching import ScoreMatching


def contenders(
    experiment: Experiment, batch: Mapping[str, np.ndarray]
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
        experiment, lambda: _Denoising(task), [images], task.network.dtype
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
