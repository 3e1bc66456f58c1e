"""DDPM and NCSN++ against plain torch, live, with random weights in float32.

`Reference` is a transcription of the two networks of yang-song/score_sde_pytorch with
the names that their state dicts have. Changes of resolution are diffusers', where that
of the residual output runs in torch too (huggingface/diffusers, pull request 535).
"""

import json
import math
from functools import partial
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from diffusers.models.downsampling import FirDownsample2D
from diffusers.models.upsampling import FirUpsample2D
from torch import nn

from research.layers.attention import PixelAttention
from research.layers.blocks import (
    InputSkip,
    NearestConv,
    ResidualOutput,
    ResidualPyramid,
    StridedConv,
    concatenate,
    ddpm_block,
)
from research.layers.conv import fir_downsample, fir_upsample
from research.layers.embeddings import FourierEmbedding, SinusoidalEmbedding
from research.models.score_unet import ScoreUNet
from research.pretrained import score_sde
from tests.layers import slow
from tests.parity.test_score_unet import assert_close, nchw, nhwc, normal, randomize

LAYOUTS = Path(__file__).parents[1] / "pretrained" / "layouts"


class Nin(nn.Module):
    def __init__(self, channels, out_channels):
        super().__init__()
        self.W = nn.Parameter(torch.zeros(channels, out_channels))
        self.b = nn.Parameter(torch.zeros(out_channels))

    def forward(self, x):
        return torch.einsum("bchw,cd->bdhw", x, self.W) + self.b[:, None, None]


class Fourier(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.W = nn.Parameter(torch.zeros(size), requires_grad=False)

    def forward(self, log_sigma):
        angles = log_sigma[:, None] * self.W[None] * 2 * math.pi
        return torch.cat([torch.sin(angles), torch.cos(angles)], dim=1)


def positional(labels, size):
    frequencies = torch.exp(
        torch.arange(size // 2) * (-math.log(10000) / (size // 2 - 1))
    )
    angles = labels[:, None] * frequencies[None]
    return torch.cat([torch.sin(angles), torch.cos(angles)], dim=1)


def group_norm(channels):
    # DDPM has 32 groups at any width: from 128 channels, where it is published, it is
    # the same.
    return nn.GroupNorm(min(channels // 4, 32), channels, eps=1e-6)


class Attention(nn.Module):
    def __init__(self, channels, divisor):
        super().__init__()
        self.GroupNorm_0 = group_norm(channels)
        for i in range(4):
            self.add_module(f"NIN_{i}", Nin(channels, channels))
        self.divisor = divisor

    def forward(self, x):
        h = self.GroupNorm_0(x)
        q, k, v = (getattr(self, f"NIN_{i}")(h).flatten(2) for i in range(3))
        weights = torch.softmax(q.transpose(1, 2) @ k * q.shape[1] ** -0.5, dim=-1)
        h = (v @ weights.transpose(1, 2)).reshape(x.shape)
        return (x + self.get_submodule("NIN_3")(h)) / self.divisor


class Block(nn.Module):
    """BigGAN's, or DDPM's where `ddpm`."""

    resample: nn.Module

    def __init__(self, channels, out_channels, time_dim, resample=None, ddpm=False):
        super().__init__()
        self.GroupNorm_0 = group_norm(channels)
        self.Conv_0 = nn.Conv2d(channels, out_channels, 3, padding=1)
        self.Dense_0 = nn.Linear(time_dim, out_channels)
        self.GroupNorm_1 = group_norm(out_channels)
        self.Conv_1 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.resample = resample or nn.Identity()
        if channels == out_channels and resample is None:
            self.shortcut = ""
        elif ddpm:
            self.shortcut = "NIN_0"
            self.NIN_0 = Nin(channels, out_channels)
        else:
            self.shortcut = "Conv_2"
            self.Conv_2 = nn.Conv2d(channels, out_channels, 1)
        self.divisor = 1 if ddpm else math.sqrt(2)

    def forward(self, x, time):
        h = self.resample(F.silu(self.GroupNorm_0(x)))
        x = self.resample(x)
        h = self.Conv_0(h) + self.Dense_0(F.silu(time))[..., None, None]
        h = self.Conv_1(F.silu(self.GroupNorm_1(h)))
        if self.shortcut:
            x = getattr(self, self.shortcut)(x)
        return (x + h) / self.divisor


class LoneConv(nn.Module):
    """DDPM's change of level."""

    def __init__(self, channels, stride):
        super().__init__()
        self.Conv_0 = nn.Conv2d(channels, channels, 3, stride=stride)

    def forward(self, x, time):
        if self.Conv_0.stride == (2, 2):
            return self.Conv_0(F.pad(x, (0, 1, 0, 1)))
        return self.Conv_0(F.pad(F.interpolate(x, scale_factor=2), (1, 1, 1, 1)))


class Combine(nn.Module):
    def __init__(self, channels, out_channels, method):
        super().__init__()
        self.Conv = nn.Conv2d(channels, out_channels, 1)
        self.method = method

    def forward(self, x, h):
        x = self.Conv(x)
        return torch.cat([x, h], dim=1) if self.method == "cat" else x + h


class Reference(nn.Module):
    """One of the networks.

    `all_modules` are numbered in the order of their use. So they are made by the first
    forward pass, and each later one takes them one by one.
    """

    def __init__(self, channels, mults, num_blocks, attention, size, **variant):
        super().__init__()
        self.setting = channels, mults, num_blocks, attention
        self.variant = variant
        self.all_modules = nn.ModuleList()
        self.register_buffer("sigmas", torch.linspace(50, 0.01, variant["num_sigmas"]))
        self.made = False
        self(torch.zeros(1, 3, size, size), torch.zeros(1))
        self.made = True

    def take(self, make, *args, **kwargs):
        if not self.made:
            self.all_modules.append(make(*args, **kwargs))
        self.calls += 1
        return list(self.all_modules)[self.calls - 1]

    def forward(self, x, t):
        self.calls = 0
        channels, mults, num_blocks, attention = self.setting
        time_dim, last = 4 * channels, len(mults) - 1
        ddpm = self.variant.get("ddpm", False)
        fir = self.variant.get("fir", False)
        pyramid_in, pyramid_out = (self.variant.get(k) for k in ("input", "output"))

        def block(h, out_channels, resample=None):
            made = self.take(Block, h.shape[1], out_channels, time_dim, resample, ddpm)
            return made(h, time)

        def attend(h):
            divisor = 1 if ddpm else math.sqrt(2)
            return self.take(Attention, h.shape[1], divisor)(h)

        def head(h, out_channels):
            h = F.silu(self.take(group_norm, h.shape[1])(h))
            return self.take(nn.Conv2d, h.shape[1], out_channels, 3, padding=1)(h)

        if self.variant.get("fourier", False):
            time = self.take(Fourier, channels)(t)
        else:
            time = positional(t, channels)
        time = self.take(nn.Linear, time.shape[1], time_dim)(time)
        time = self.take(nn.Linear, time_dim, time_dim)(F.silu(time))

        if not self.variant.get("centered", True):
            x = 2 * x - 1
        pyramid = x
        h = self.take(nn.Conv2d, 3, channels, 3, padding=1)(x)
        kept = [h]
        for level, mult in enumerate(mults):
            for _ in range(num_blocks):
                h = block(h, channels * mult)
                h = attend(h) if h.shape[-1] in attention else h
                kept.append(h)
            if level < last:
                if ddpm:
                    h = self.take(LoneConv, h.shape[1], 2)(h, time)
                else:
                    pool = FirDownsample2D() if fir else nn.AvgPool2d(2)
                    h = block(h, h.shape[1], pool)
                if pyramid_in == "residual":
                    down = self.take(
                        FirDownsample2D, pyramid.shape[1], h.shape[1], use_conv=True
                    )
                    h = pyramid = (down(pyramid) + h) / math.sqrt(2)
                elif pyramid_in == "input_skip":
                    pyramid = self.take(FirDownsample2D)(pyramid)
                    method = self.variant.get("combine", "sum")
                    h = self.take(Combine, 3, h.shape[1], method)(pyramid, h)
                kept.append(h)

        h = block(attend(block(h, h.shape[1])), h.shape[1])

        pyramid = None
        for level in reversed(range(len(mults))):
            for _ in range(num_blocks + 1):
                h = torch.cat([h, kept.pop()], dim=1)
                h = block(h, channels * mults[level])
            h = attend(h) if h.shape[-1] in attention else h
            if pyramid_out == "output_skip":
                if pyramid is not None:
                    pyramid = self.take(FirUpsample2D)(pyramid)
                image = head(h, 3)
                pyramid = image if pyramid is None else pyramid + image
            elif pyramid_out == "residual":
                if pyramid is None:
                    pyramid = head(h, h.shape[1])
                else:
                    up = self.take(
                        FirUpsample2D, pyramid.shape[1], h.shape[1], use_conv=True
                    )
                    h = pyramid = (up(pyramid) + h) / math.sqrt(2)
            if level > 0:
                if ddpm:
                    h = self.take(LoneConv, h.shape[1], 1)(h, time)
                else:
                    up = FirUpsample2D() if fir else nn.Upsample(scale_factor=2)
                    h = block(h, h.shape[1], up)
        assert not kept
        return pyramid if pyramid_out == "output_skip" else head(h, 3)


DDPM = ScoreUNet(
    block=ddpm_block,
    attention=partial(PixelAttention, skip_scale=1.0),
    downsample=StridedConv,
    upsample=NearestConv,
)
NCSNPP = ScoreUNet(
    downsample=fir_downsample,
    upsample=fir_upsample,
    time_embedding=FourierEmbedding,
    input_pyramid=ResidualPyramid,
    data_range=(0.0, 1.0),
)
SKIPPING = NCSNPP.clone(input_pyramid=InputSkip, output_skip=fir_upsample)

DDPM_VARIANT = {"ddpm": True}
NCSNPP_VARIANT = {
    "fir": True,
    "input": "residual",
    "fourier": True,
    "centered": False,
}
SKIPPING_VARIANT = NCSNPP_VARIANT | {"input": "input_skip", "output": "output_skip"}


@pytest.mark.parametrize(
    ("released", "num_blocks", "variant"),
    [
        ("cifar10_ddpm", 2, DDPM_VARIANT),
        ("cifar10_ddpmpp_continuous-vp", 4, {}),
        ("cifar10_ddpmpp_deep_continuous-vp", 8, {}),
        ("cifar10_ncsnpp_continuous-ve", 4, NCSNPP_VARIANT),
        ("cifar10_ncsnpp_deep_continuous-ve", 8, NCSNPP_VARIANT),
    ],
)
def test_the_transcription_has_the_released_layout(released, num_blocks, variant):
    path = LAYOUTS / f"scoresde-{released}.json"
    with torch.device("meta"):
        reference = Reference(
            128, (1, 2, 2, 2), num_blocks, (16,), 32, num_sigmas=1000, **variant
        )
    shapes = {name: list(w.shape) for name, w in reference.state_dict().items()}
    assert shapes == json.loads(path.read_text())["tensors"]


@pytest.mark.parametrize(
    ("network", "variant", "setting", "t"),
    [
        pytest.param(
            DDPM.clone(time_embedding=partial(SinusoidalEmbedding, scale=1.0)),
            DDPM_VARIANT,
            (16, (1, 2, 2), 1, (8,)),
            [0.0, 999.0],
            id="ddpm",
        ),
        pytest.param(
            NCSNPP, NCSNPP_VARIANT, (16, (1, 2, 3), 1, (8,)), [-4.6, 3.9], id="ncsnpp"
        ),
        pytest.param(
            NCSNPP.clone(time_embedding=partial(SinusoidalEmbedding, scale=1.0)),
            NCSNPP_VARIANT | {"fourier": False},
            (16, (1, 2), 2, (16, 8)),
            [0.0, 231.0],
            id="ncsnpp-positional",
        ),
        pytest.param(
            SKIPPING,
            SKIPPING_VARIANT,
            (16, (1, 1, 2, 3), 1, (8,)),
            [-4.6, 5.9],
            id="ncsnpp-skipping",
        ),
        pytest.param(
            NCSNPP.clone(
                input_pyramid=partial(InputSkip, combine=concatenate),
                output_skip=ResidualOutput,
            ),
            NCSNPP_VARIANT
            | {"input": "input_skip", "combine": "cat", "output": "residual"},
            (16, (1, 1, 2), 1, (8,)),
            [-4.6, 3.9],
            id="ncsnpp-concatenating-residual-output",
        ),
    ],
)
def test_network(network, variant, setting, t, tmp_path):
    size, image = 16, (16, 16, 3)
    reference = randomize(Reference(*setting, size=size, num_sigmas=3, **variant))
    if variant.get("fourier", False):
        frequencies = reference.get_parameter("all_modules.0.W")
        frequencies.copy_(16 * torch.from_numpy(normal(16)))
    network = network.clone(
        channels=setting[0],
        channel_mults=setting[1],
        num_res_blocks=setting[2],
        attention_resolutions=setting[3],
    )
    path = str(tmp_path / "theirs.safetensors")
    weights = dict(reference.state_dict())
    safetensors.torch.save_file(weights, path)
    variables = score_sde.load(path, network, image)

    x, times = normal(2, *image), np.array(t, np.float32)
    theirs = nhwc(reference(nchw(x), torch.from_numpy(times)))
    apply = slow.jit(partial(network.apply, train=False))
    assert_close(apply(variables, jnp.asarray(x), jnp.asarray(times)), theirs)

    # What we write is what they read: with other weights, and then with these again.
    path = str(tmp_path / "ours.safetensors")
    score_sde.save(path, network, image, variables, weights["sigmas"].numpy())
    torch.nn.init.zeros_(next(reference.parameters()))
    reference.load_state_dict(safetensors.torch.load_file(path))
    np.testing.assert_array_equal(
        nhwc(reference(nchw(x), torch.from_numpy(times))), theirs
    )
