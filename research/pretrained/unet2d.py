"""The U-Nets of DDPM and NCSN++ as diffusers keeps them, `UNet2DModel`, both ways.

A folder holds `config.json` and `diffusion_pytorch_model.safetensors`, or the parts of
that file and their index. Those of Ho et al. 2020, arXiv:2006.11239, are public as
google/ddpm-*, NCSN++ for 256 pixels and more of Song et al. 2021, arXiv:2011.13456, as
google/ncsnpp-*; a folder with a pickle in place of the safetensors file, which is never
opened here, is turned by its own library:

    UNet2DModel.from_pretrained(folder).save_pretrained(folder)

Their DDPM takes the steps of a chain of 1000, ours times in [0, 1]: step n is n / 999.
Their NCSN++ takes the noise level, ours its logarithm; theirs divides its output by the
level, ours leaves that to the task (`ScaledScore`). They place attention by level and
we by height, so a folder is read and written for images of one size.
"""

import json
import math
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from research.errors import UserError
from research.layers.attention import PixelAttention
from research.layers.blocks import (
    BigGANBlock,
    InputSkip,
    NearestConv,
    StridedConv,
    ddpm_block,
)
from research.layers.conv import fir_downsample, fir_upsample
from research.layers.embeddings import FourierEmbedding, SinusoidalEmbedding
from research.layers.norms import GroupNorm
from research.models.score_unet import ScoreUNet
from research.pretrained.configs import (
    CONFIG,
    Config,
    Key,
    checked,
    count,
    only,
    read_config,
    require_value,
    write_config,
)
from research.pretrained.tables import (
    ImageShape,
    Leaves,
    Names,
    leaf_shapes,
    read,
    require_leaves,
    write,
)
from research.tasks.base import Variables

WEIGHTS = "diffusion_pytorch_model.safetensors"
SOURCE = "give a folder that diffusers.UNet2DModel.save_pretrained wrote"


def _list_of(accepts: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: (
        isinstance(value, list | tuple) and len(value) > 0 and all(map(accepts, value))
    )


ATTENDED = "Attn{}".format
"""The name of a block with attention."""
# Down and up: DDPM's blocks, and those of NCSN++ with the image beside the features.
PLAIN, SKIP = ("DownBlock2D", "UpBlock2D"), ("SkipDownBlock2D", "SkipUpBlock2D")
DOWN, UP = (
    [name for kind in (PLAIN, SKIP) for name in (kind[way], ATTENDED(kind[way]))]
    for way in (0, 1)
)

PADDINGS = {0: (0, 1), 1: (1, 1)}
"""Their padding between levels to ours; 0 is one zero below and to the right."""

# The defaults are those of diffusers 0.42.
KEYS = {
    "_class_name": only("UNet2DModel"),
    "_diffusers_version": Key(None, lambda value: True, "anything"),
    "_name_or_path": Key(None, lambda value: True, "anything"),
    "sample_size": Key(
        None,
        lambda size: count(size) or (_list_of(count)(size) and len(size) == 2),
        "the height and width of the images, [height, width] or one number",
    ),
    "in_channels": Key(3, count, "a number of channels"),
    "out_channels": Key(3, count, "a number of channels"),
    "center_input_sample": only(False, True),
    "time_embedding_type": only("positional", "fourier"),
    "time_embedding_dim": Key(
        None, lambda dim: dim is None or count(dim), "null or a width"
    ),
    "freq_shift": only(0, 1),
    "flip_sin_to_cos": only(True, False),
    "down_block_types": Key(
        [DOWN[0], DOWN[1], DOWN[1], DOWN[1]],
        _list_of(lambda block: block in DOWN),
        f"a list of {', '.join(DOWN)}",
    ),
    "mid_block_type": only("UNetMidBlock2D"),
    "up_block_types": Key(
        [UP[1], UP[1], UP[1], UP[0]],
        _list_of(lambda block: block in UP),
        f"a list of {', '.join(UP)}",
    ),
    "block_out_channels": Key(
        [224, 448, 672, 896], _list_of(count), "a list of numbers of channels"
    ),
    "layers_per_block": Key(2, count, "a number of blocks"),
    "mid_block_scale_factor": Key(
        1, lambda scale: type(scale) in (int, float), "a number"
    ),
    "downsample_padding": only(1, 0),
    "downsample_type": only("conv"),
    "upsample_type": only("conv"),
    "dropout": Key(
        0.0,
        lambda rate: type(rate) in (int, float) and 0 <= rate < 1,
        "a rate from 0 to below 1",
    ),
    "act_fn": only("silu", "swish"),
    "attention_head_dim": Key(
        8, lambda dim: dim is None or count(dim), "null, for one head, or a width"
    ),
    "norm_num_groups": Key(
        32,
        lambda groups: groups is None or count(groups),
        "null or a number of groups",
    ),
    "attn_norm_num_groups": Key(
        None, lambda groups: groups is None or count(groups), "null or norm_num_groups"
    ),
    "norm_eps": Key(
        1e-5, lambda eps: type(eps) in (int, float) and eps > 0, "a positive number"
    ),
    "resnet_time_scale_shift": only("default"),
    "add_attention": only(True),
    "class_embed_type": only(None),
    "num_class_embeds": only(None),
    "num_train_timesteps": only(None),
}

NORM = {"scale": ("weight", (0,)), "bias": ("bias", (0,))}
DENSE = {"kernel": ("weight", (1, 0)), "bias": ("bias", (0,))}
CONV = {"kernel": ("weight", (2, 3, 1, 0)), "bias": ("bias", (0,))}

BLOCK = {
    "norm1": ("norm1", NORM),
    "conv1": ("conv1", CONV),
    "time": ("time_emb_proj", DENSE),
    "norm2": ("norm2", NORM),
    "conv2": ("conv2", CONV),
    "skip": ("conv_shortcut", CONV),
}
ATTENTION = {
    "norm": ("group_norm", NORM),
    "query": ("to_q", DENSE),
    "key": ("to_k", DENSE),
    "value": ("to_v", DENSE),
    "out": ("to_out.0", DENSE),
}
# Files that are older than version 0.15 of their library, such as google/ddpm-*.
OLDER = {
    "query": "to_q",
    "key": "to_k",
    "value": "to_v",
    "proj_attn": "to_out.0",
}
# And these hold the frequencies twice (their convert_ncsnpp_original_checkpoint).
TWICE = "time_proj.W"


def load(folder: str) -> tuple[ScoreUNet, Variables]:
    """The network of a folder, and its variables: float32 host arrays.

    Raises:
      UserError: a file that is missing or cannot be read; a key or a value of the
        config that is not supported; or a leaf that is missing, that nothing claims, or
        that has another shape.
    """
    config = read_config(Path(folder).expanduser() / CONFIG, SOURCE)
    network = network_of(config)
    expected = expected_leaves(network, image_shape_of(config))
    path = str(Path(folder) / WEIGHTS)
    names = leaf_names(network, expected)
    return network, read(path, names, expected, SOURCE, TWICE, today)


def save(
    folder: str, network: ScoreUNet, variables: Variables, image_size: tuple[int, int]
) -> None:
    """Writes a folder that `diffusers.UNet2DModel.from_pretrained` loads.

    Args:
      folder: made where there is none; files of the same names are replaced.
      network: as `network_of` builds it.
      variables: its leaves.
      image_size: height and width of the images it is for.

    Raises:
      UserError: a setting of the network that theirs does not have, or a leaf that is
        missing, that nothing claims, or of another shape.
    """
    kernel = variables.get("params", {}).get("conv_in", {}).get("kernel")
    image_channels = kernel.shape[2] if getattr(kernel, "ndim", 0) == 4 else 3
    image_shape = (*image_size, image_channels)
    config = config_of(network, image_shape)
    expected = expected_leaves(network, image_shape)
    require_leaves(expected, variables)
    path = Path(folder).expanduser()
    path.mkdir(parents=True, exist_ok=True)
    names = leaf_names(network, expected)
    write(str(path / WEIGHTS), names, expected, variables)
    write_config(path / CONFIG, config)


def network_of(config: Config) -> ScoreUNet:
    """The network that a config describes.

    Raises:
      UserError: a key or a value that is not supported, by its name.
    """
    config = _checked(config)
    widths = config["block_out_channels"]
    height = image_shape_of(config)[0]
    dropout, head_dim = config["dropout"], config["attention_head_dim"]
    fourier = config["time_embedding_type"] == "fourier"
    sinusoidal = partial(
        SinusoidalEmbedding,
        endpoint=config["freq_shift"] == 1,
        cosines_first=config["flip_sin_to_cos"],
    )
    norm = partial(GroupNorm, epsilon=config["norm_eps"])
    if _is_ncsnpp(config):
        layout = ScoreUNet(
            block=partial(BigGANBlock, dropout_rate=dropout, norm=norm),
            attention=partial(PixelAttention, head_dim=head_dim, norm=norm),
            downsample=fir_downsample,
            upsample=fir_upsample,
            norm=norm,
            input_pyramid=InputSkip,
            output_skip=fir_upsample,
        )
    else:
        groups, padding = config["norm_num_groups"], config["downsample_padding"]
        norm = partial(norm, max_groups=groups, min_group_size=1)
        layout = ScoreUNet(
            attend_every_up_block=True,
            block=partial(ddpm_block, dropout_rate=dropout, norm=norm),
            attention=partial(
                PixelAttention, head_dim=head_dim, skip_scale=1.0, norm=norm
            ),
            downsample=partial(StridedConv, padding=PADDINGS[padding]),
            upsample=NearestConv,
            norm=norm,
        )
    return layout.clone(
        channels=widths[0],
        channel_mults=tuple(width // widths[0] for width in widths),
        num_res_blocks=config["layers_per_block"],
        attention_resolutions=tuple(
            height // 2**level
            for level, block in enumerate(config["down_block_types"])
            if block in map(ATTENDED, (PLAIN[0], SKIP[0]))
        ),
        time_embedding=FourierEmbedding if fourier else sinusoidal,
        data_range=(0.0, 1.0) if config["center_input_sample"] else (-1.0, 1.0),
    )


def config_of(network: ScoreUNet, image_shape: ImageShape) -> Config:
    """The config of a network for images of (height, width, channels).

    Raises:
      UserError: a setting of the network that theirs does not have, by its name.
    """
    height, width, image_channels = image_shape
    widths = [network.channels * mult for mult in network.channel_mults]
    attended = [
        height // 2**level in network.attention_resolutions
        for level in range(len(widths))
    ]

    def require(holds: bool, name: str, supported: str) -> None:
        if not holds:
            raise UserError(
                f"{name} = {getattr(network, name)} of the network has no counterpart "
                f"in diffusers' UNet2DModel: expected {supported}"
            )

    ncsnpp = network.input_pyramid is not None
    skip_scale, rescaled = (
        (math.sqrt(0.5), "sums rescaled by 1/sqrt(2)") if ncsnpp else (1, "plain sums")
    )
    block, attention = network.block(network.channels), network.attention()
    require(
        isinstance(block, BigGANBlock) and block.skip_scale == skip_scale,
        "block",
        f"{'BigGANBlock' if ncsnpp else 'ddpm_block'}, with {rescaled}",
    )
    assert isinstance(block, BigGANBlock)
    require(
        isinstance(attention, PixelAttention)
        and attention.skip_scale == skip_scale
        and attention.core == PixelAttention.core
        and (attention.num_heads == 1 or attention.head_dim is not None),
        "attention",
        f"PixelAttention with {rescaled}, and one head or heads by head_dim",
    )
    assert isinstance(attention, PixelAttention)
    norm = network.norm()
    require(
        isinstance(norm, GroupNorm) and norm == block.norm() == attention.norm(),
        "norm",
        "the GroupNorm of block and attention",
    )
    assert isinstance(norm, GroupNorm)
    require(
        network.data_range in ((-1, 1), (0, 1)),
        "data_range",
        "(-1.0, 1.0) or (0.0, 1.0)",
    )
    if ncsnpp:
        padding = 1
        require(
            (norm.max_groups, norm.min_group_size) == (32, 4),
            "norm",
            "32 groups of at least 4 channels",
        )
        assert network.input_pyramid is not None
        require(
            network.input_pyramid(network.channels) == InputSkip(network.channels),
            "input_pyramid",
            "None or InputSkip",
        )
        for name, slot in [
            ("downsample", fir_downsample),
            ("upsample", fir_upsample),
            ("output_skip", fir_upsample),
        ]:
            require(getattr(network, name) is slot, name, slot.__name__)
        require(
            not (any(attended) and network.attend_every_up_block),
            "attend_every_up_block",
            "False",
        )
    else:
        padding = _padding(network)
        require(
            all(width // norm.min_group_size >= norm.max_groups for width in widths),
            "norm",
            f"max_groups groups at each of {widths} channels",
        )
        require(
            padding is not None,
            "downsample",
            "StridedConv with padding (0, 1) or (1, 1)",
        )
        require(network.upsample is NearestConv, "upsample", "NearestConv")
        require(network.output_skip is None, "output_skip", "None")
        require(
            not any(attended) or network.attend_every_up_block,
            "attend_every_up_block",
            "True",
        )
    embedding = network.time_embedding(network.channels)
    fourier = isinstance(embedding, FourierEmbedding)
    require(
        fourier
        or isinstance(embedding, SinusoidalEmbedding)
        and (embedding.scale, embedding.max_period) == (999, 10_000),
        "time_embedding",
        "FourierEmbedding, or SinusoidalEmbedding with scale 999, max_period 10000",
    )
    kinds = SKIP if ncsnpp else PLAIN
    down, up = (
        [ATTENDED(kind) if there else kind for there in attended] for kind in kinds
    )
    config = {
        "_class_name": "UNet2DModel",
        "sample_size": height if height == width else [height, width],
        "in_channels": image_channels,
        "out_channels": image_channels,
        "center_input_sample": network.data_range == (0, 1),
        "time_embedding_type": "fourier" if fourier else "positional",
        "freq_shift": 0 if fourier else int(embedding.endpoint),
        "flip_sin_to_cos": True if fourier else embedding.cosines_first,
        "down_block_types": down,
        "up_block_types": up[::-1],
        "block_out_channels": widths,
        "layers_per_block": network.num_res_blocks,
        "mid_block_scale_factor": math.sqrt(2) if ncsnpp else 1,
        "downsample_padding": padding,
        "dropout": block.dropout_rate,
        "act_fn": "silu",
        "attention_head_dim": attention.head_dim,
        "norm_num_groups": None if ncsnpp else norm.max_groups,
        "norm_eps": norm.epsilon,
    }
    # What they have only where the parts agree, such as three channels in NCSN++.
    _checked(config)
    return config


def leaf_names(network: ScoreUNet, leaves: Leaves) -> Names:
    """The weight table of a network, given its `expected_leaves`.

    Raises:
      UserError: a leaf of the network that theirs does not have.
    """
    modules, names = _modules(network), {}
    for path, shape in leaves.items():
        _, module, *parts, name = path.split("/")
        theirs, table = modules.get(module, ("", {}))
        part, layout = table.get("/".join(parts), ("", {}))
        if name not in layout:
            raise UserError(
                f"{path} with shape {shape.shape} has no counterpart in diffusers' "
                "UNet2DModel: expected DDPM or NCSN++ for 256 pixels, as "
                "research/models/score_unet.py builds them"
            )
        leaf, axes = layout[name]
        names[path] = (".".join(filter(None, (theirs, part, leaf))), axes)
    return names


def expected_leaves(network: ScoreUNet, image_shape: ImageShape) -> Leaves:
    """The shape of every leaf of the network's variables, by path."""
    x, t = jnp.zeros((1, *image_shape)), jnp.zeros(1)
    return leaf_shapes(network, x, t, train=False)


def today(name: str) -> str:
    """The name that their library now writes for a leaf of an older file."""
    return re.sub(
        rf"(attentions\.\d+)\.({'|'.join(OLDER)})\.",
        lambda match: f"{match[1]}.{OLDER[match[2]]}.",
        name,
    )


def image_shape_of(config: Config) -> ImageShape:
    """Height, width and channels of the images that a config is for."""
    config = _checked(config)
    size = config["sample_size"]
    height, width = (size, size) if isinstance(size, int) else size
    return height, width, config["in_channels"]


def _modules(network: ScoreUNet) -> dict[str, tuple[str, dict[str, Any]]]:
    """Our modules' names to theirs, and to the table of their parts."""
    ncsnpp = network.input_pyramid is not None
    num_levels, num_blocks = len(network.channel_mults), network.num_res_blocks
    modules = {
        "time_embedding": ("time_proj", {"": ("", {"frequencies": ("weight", (0,))})}),
        "time_hidden": ("time_embedding.linear_1", {"": ("", DENSE)}),
        "time_out": ("time_embedding.linear_2", {"": ("", DENSE)}),
        "conv_in": ("conv_in", {"": ("", CONV)}),
        "mid_block_0": ("mid_block.resnets.0", BLOCK),
        "mid_attention": ("mid_block.attentions.0", ATTENTION),
        "mid_block_1": ("mid_block.resnets.1", BLOCK),
    }
    for way, extra in (("down", 0), ("up", 1)):
        for level in range(num_levels):
            # Going up they count from the coarsest level.
            theirs = level if way == "down" else num_levels - 1 - level
            ours, theirs = f"{way}_{level}", f"{way}_blocks.{theirs}"
            for i in range(num_blocks + extra):
                block, attention = f"{theirs}.resnets.{i}", f"{theirs}.attentions.{i}"
                modules[f"{ours}_block_{i}"] = (block, BLOCK)
                modules[f"{ours}_attention_{i}"] = (attention, ATTENTION)
            if ncsnpp:
                modules[f"{ours}_attention"] = (f"{theirs}.attentions.0", ATTENTION)
                modules[f"{ours}_resample"] = (f"{theirs}.resnet_{way}", BLOCK)
                combine = {"combine": ("skip_conv", CONV)}
                modules[f"{ours}_input"] = (theirs, combine)
                modules[f"{ours}_norm_out"] = (f"{theirs}.skip_norm", {"": ("", NORM)})
                modules[f"{ours}_conv_out"] = (f"{theirs}.skip_conv", {"": ("", CONV)})
            else:
                convolution = {"conv": ("conv", CONV)}
                resample = (f"{theirs}.{way}samplers.0", convolution)
                modules[f"{ours}_resample"] = resample
    # The finest level's image is the last one of both.
    last = "up_0_" if ncsnpp else ""
    modules[f"{last}norm_out"] = ("conv_norm_out", {"": ("", NORM)})
    modules[f"{last}conv_out"] = ("conv_out", {"": ("", CONV)})
    return modules


def _padding(network: ScoreUNet) -> int | None:
    """Theirs, of the convolutions between levels; None is for no such convolution."""
    downsample = network.downsample
    if getattr(downsample, "func", downsample) is not StridedConv:
        return None
    paddings = {ours: theirs for theirs, ours in PADDINGS.items()}
    return paddings.get(downsample(1).padding)


def _is_ncsnpp(config: Config) -> bool:
    return config["down_block_types"][0] in (SKIP[0], ATTENDED(SKIP[0]))


def _checked(config: Config) -> Config:
    """With the value of every key, each supported alone and with the others."""
    config = checked(config, KEYS, CONFIG)
    require = partial(require_value, config, CONFIG)

    widths, groups = config["block_out_channels"], config["norm_num_groups"]
    head_dim = config["attention_head_dim"] or 1
    down = config["down_block_types"]
    ncsnpp = _is_ncsnpp(config)
    kinds = SKIP if ncsnpp else PLAIN
    require(
        all(block in (kinds[0], ATTENDED(kinds[0])) for block in down),
        "down_block_types",
        "blocks of one kind",
    )
    attended = [block == ATTENDED(kinds[0]) for block in down]
    mirrored = [ATTENDED(kinds[1]) if there else kinds[1] for there in attended[::-1]]
    require(
        config["out_channels"] == config["in_channels"],
        "out_channels",
        f"as many as in_channels, {config['in_channels']}",
    )
    require(
        config["time_embedding_dim"] in (None, 4 * widths[0]),
        "time_embedding_dim",
        f"null or {4 * widths[0]}, four times the first of block_out_channels",
    )
    require(
        all(width % widths[0] == 0 for width in widths) and widths[0] % 2 == 0,
        "block_out_channels",
        "multiples of the first, which is even",
    )
    require(
        len(down) == len(widths),
        "down_block_types",
        f"{len(widths)} of them, as block_out_channels has",
    )
    require(
        list(config["up_block_types"]) == mirrored,
        "up_block_types",
        f"{json.dumps(mirrored)}, the mirror of down_block_types",
    )
    require(
        all(width % head_dim == 0 for width in widths),
        "attention_head_dim",
        f"null or a divisor of each of {widths}",
    )
    if ncsnpp:
        # Their blocks have min(channels / 4, 32) groups whatever the config says, but
        # their attention, 32.
        first, last = (min(widths[level] // 4, 32) for level in (0, -1))
        require(config["in_channels"] == 3, "in_channels", "3, as SkipDownBlock2D has")
        require(
            abs(config["mid_block_scale_factor"] - math.sqrt(2)) < 1e-6,
            "mid_block_scale_factor",
            "the square root of 2, as SkipDownBlock2D has",
        )
        require(
            all(width % 4 == 0 for width in widths),
            "block_out_channels",
            "multiples of 4",
        )
        require(
            all(
                width >= 128
                for width, there in zip(widths, attended, strict=True)
                if there
            ),
            "block_out_channels",
            f"at least 128 channels at the levels of {ATTENDED(SKIP[0])}",
        )
        require(
            groups is None or groups == first == last,
            "norm_num_groups",
            f"null, or {first} in the first level and {last} in the last alike",
        )
        require(
            config["attn_norm_num_groups"] in (None, last),
            "attn_norm_num_groups",
            f"null or {last}",
        )
    else:
        require(
            config["mid_block_scale_factor"] == 1,
            "mid_block_scale_factor",
            "1, as DownBlock2D has",
        )
        require(
            groups is not None and all(width % groups == 0 for width in widths),
            "norm_num_groups",
            f"a divisor of each of {widths}",
        )
        require(
            config["attn_norm_num_groups"] in (None, groups),
            "attn_norm_num_groups",
            f"null or norm_num_groups, {groups}",
        )
    return config
