"""DDPM++ against diffusers' U-Net, live, with random weights in float32.

Diffusers has no DDPM++, but all of its parts: residual blocks that resample, one-head
attention over pixels, rescaled sums. `reference_unet` sets them up as Song et al. do.
"""

import math
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import UNet2DModel
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D

from research.layers.attention import PixelAttention
from research.layers.blocks import BigGANBlock
from research.layers.conv import mean_pool, nearest_upsample
from research.models.score_unet import ScoreUNet
from tests.layers import slow

TOLERANCE = 1e-4  # of the largest element of what is compared

NAMES = (
    (r"^time_embedding\.linear_1", "time_hidden"),
    (r"^time_embedding\.linear_2", "time_out"),
    (r"^down_blocks\.(\d+)\.resnets\.(\d+)", r"down_\1_block_\2"),
    (r"^down_blocks\.(\d+)\.attentions\.(\d+)", r"down_\1_attention_\2"),
    (r"^down_blocks\.(\d+)\.downsamplers\.0", r"down_\1_resample"),
    (r"^mid_block\.resnets\.(\d+)", r"mid_block_\1"),
    (r"^mid_block\.attentions\.0", "mid_attention"),
    (r"^up_blocks\.(\d+)\.resnets\.(\d+)", r"up_\1_block_\2"),
    (r"^up_blocks\.(\d+)\.attentions\.\d+", r"up_\1_attention"),
    (r"^up_blocks\.(\d+)\.upsamplers\.0", r"up_\1_resample"),
    (r"^conv_norm_out", "norm_out"),
    (r"\btime_emb_proj\b", "time"),
    (r"\bconv_shortcut\b", "skip"),
    (r"\bgroup_norm\b", "norm"),
    (r"\bto_q\b", "query"),
    (r"\bto_k\b", "key"),
    (r"\bto_v\b", "value"),
    (r"\bto_out\.0\b", "out"),
    (r"(norm\d?|norm_out)\.weight$", r"\1.scale"),
    (r"\.weight$", ".kernel"),
)


def our_path(name: str, num_levels: int) -> tuple[str, ...]:
    """Where a parameter of theirs lies in our tree."""
    for pattern, replacement in NAMES:
        name = re.sub(pattern, replacement, name)
    # They count the levels going up from the coarsest.
    name = re.sub(r"^up_(\d+)", lambda m: f"up_{num_levels - 1 - int(m[1])}", name)
    return tuple(name.split("."))


def our_layout(array: np.ndarray) -> np.ndarray:
    """OIHW to HWIO, (out, in) to (in, out)."""
    return {4: lambda a: a.transpose(2, 3, 1, 0), 2: np.transpose}.get(
        array.ndim, lambda a: a
    )(array)


def our_tree(named, num_levels: int = 0) -> dict:
    """Their named tensors as a tree of ours."""
    tree: dict = {}
    for name, tensor in named:
        *parents, leaf = our_path(name, num_levels)
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        assert leaf not in node
        node[leaf] = our_layout(tensor.detach().numpy())
    return tree


def randomize(module: torch.nn.Module) -> torch.nn.Module:
    """Weights by which every leaf matters and activations stay of order one."""
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        if parameter.ndim > 1:
            std = parameter[0].numel() ** -0.5
            torch.nn.init.normal_(parameter, 0, std, generator=generator)
        else:
            torch.nn.init.uniform_(parameter, 0.2, 1.2, generator=generator)
    return module


def use_published_rules(module: torch.nn.Module) -> torch.nn.Module:
    """min(C / 4, 32) groups, and sums over sqrt(2), wherever either occurs."""
    for part in module.modules():
        if isinstance(part, torch.nn.GroupNorm):
            part.num_groups = min(part.num_channels // 4, 32)
            part.eps = 1e-6
        elif isinstance(part, ResnetBlock2D):
            part.output_scale_factor = math.sqrt(2)
        elif isinstance(part, Attention):
            part.rescale_output_factor = math.sqrt(2)
    return module


def reference_unet(
    channels: int,
    channel_mults: tuple[int, ...],
    num_res_blocks: int,
    attention_resolutions: tuple[int, ...],
    height: int,
) -> UNet2DModel:
    num_levels = len(channel_mults)
    unet = UNet2DModel(
        in_channels=3,
        out_channels=3,
        block_out_channels=[channels * mult for mult in channel_mults],
        layers_per_block=num_res_blocks,
        down_block_types=["AttnDownBlock2D"] * num_levels,
        up_block_types=["AttnUpBlock2D"] * num_levels,
        downsample_type="resnet",
        upsample_type="resnet",
        attention_head_dim=None,
        flip_sin_to_cos=False,
        freq_shift=1,
        norm_num_groups=1,
    )
    for level in range(num_levels):
        down, up = unet.down_blocks[level], unet.up_blocks[num_levels - 1 - level]
        wanted = height // 2**level in attention_resolutions
        for i in range(num_res_blocks):
            if not wanted:
                down.attentions[i] = torch.nn.Identity()
            up.attentions[i] = torch.nn.Identity()
        if not wanted:
            up.attentions[num_res_blocks] = torch.nn.Identity()
        # A 1x1 convolution on the skip path, whether or not the channels change.
        for block in [*(down.downsamplers or []), *(up.upsamplers or [])]:
            width = block.in_channels
            block.conv_shortcut = torch.nn.Conv2d(width, width, 1)
    return randomize(use_published_rules(unet))


def nchw(x: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(x).permute(0, 3, 1, 2).requires_grad_()


def nhwc(x: torch.Tensor) -> np.ndarray:
    return x.detach().permute(0, 2, 3, 1).numpy()


def assert_close(ours, theirs, floor: float = 0.0) -> None:
    """`floor` is for what is zero but for rounding."""
    theirs = np.asarray(theirs)
    scale = np.abs(theirs).max()
    np.testing.assert_allclose(
        np.asarray(ours), theirs, rtol=0, atol=max(TOLERANCE * scale, floor)
    )


def assert_same_function(
    module, args, reference: torch.nn.Module, forward, x: np.ndarray, num_levels=0
) -> None:
    """Outputs, and gradients with respect to the input and every parameter.

    `module.apply(variables, x, *args)` is compared with `forward(reference, x)`.
    """
    params = our_tree(reference.named_parameters(), num_levels)
    expected_params = jax.eval_shape(
        lambda: module.init(jax.random.key(0), jnp.asarray(x), *args)
    )["params"]
    assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, expected_params)

    x_torch = nchw(x)
    theirs = forward(reference, x_torch)
    direction = np.random.default_rng(1).normal(size=nhwc(theirs).shape)
    direction = direction.astype(np.float32)
    theirs.backward(nchw(direction).detach())

    @slow.jit
    def ours(params, x, direction):
        output, pullback = jax.vjp(
            lambda params, x: module.apply({"params": params}, x, *args), params, x
        )
        return output, *pullback(direction)

    output, params_gradient, x_gradient = ours(params, x, direction)

    assert_close(output, nhwc(theirs))
    assert x_torch.grad is not None
    assert_close(x_gradient, nhwc(x_torch.grad))
    expected = our_tree(
        ((name, p.grad) for name, p in reference.named_parameters()), num_levels
    )
    # The bias of the keys shifts all logits of a query alike: its gradient is zero.
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected))
    jax.tree.map(
        partial(assert_close, floor=1e-6 * float(largest)), params_gradient, expected
    )


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize(
    ("setting", "size"),
    [
        pytest.param((8, (1, 2, 2, 2), 1, (8,)), (16, 8), id="published"),
        pytest.param((16, (1, 3), 2, (4, 8)), (8, 8), id="attention-everywhere"),
        pytest.param((16, (1,), 1, ()), (5, 7), id="one-level"),
    ],
)
def test_unet(setting, size):
    t = np.array([1e-5, 0.37, 1.0], np.float32)
    assert_same_function(
        ScoreUNet(*setting),
        (jnp.asarray(t), False),
        reference_unet(*setting, height=size[0]),
        lambda unet, x: unet(x, torch.from_numpy(999 * t)).sample,
        normal(3, *size, 3),
        num_levels=len(setting[1]),
    )


@pytest.mark.parametrize(
    ("in_channels", "channels", "resample"),
    [
        pytest.param(16, 16, None, id="plain"),
        pytest.param(24, 16, None, id="wider"),
        pytest.param(16, 16, "down", id="down"),
        pytest.param(16, 16, "up", id="up"),
        pytest.param(256, 128, None, id="32-groups"),
    ],
)
def test_block(in_channels, channels, resample):
    time = normal(3, 20)
    reference = ResnetBlock2D(
        in_channels=in_channels,
        out_channels=channels,
        temb_channels=20,
        groups=1,
        use_in_shortcut=resample is not None or in_channels != channels,
        up=resample == "up",
        down=resample == "down",
    )
    functions = {None: None, "down": mean_pool, "up": nearest_upsample}
    assert_same_function(
        BigGANBlock(channels, resample=functions[resample]),
        (jnp.asarray(time), False),
        randomize(use_published_rules(reference)),
        lambda block, x: block(x, torch.from_numpy(time)),
        normal(3, 4, 6, in_channels),
    )


@pytest.mark.parametrize("num_heads", [1, 4])
def test_attention(num_heads):
    reference = Attention(
        32,
        heads=num_heads,
        dim_head=32 // num_heads,
        norm_num_groups=1,
        residual_connection=True,
        bias=True,
        upcast_softmax=True,
        _from_deprecated_attn_block=True,
    )
    assert_same_function(
        PixelAttention(num_heads),
        (),
        randomize(use_published_rules(reference)),
        lambda attention, x: attention(x),
        normal(3, 4, 6, 32),
    )
