"""The U-Net of DDPM as diffusers keeps it, `UNet2DModel`, both ways.

A folder holds `config.json` and `diffusion_pytorch_model.safetensors`. Those of Ho et
al. 2020, arXiv:2006.11239, are public as google/ddpm-*; a folder with a pickle in place
of the safetensors file, which is never opened here, is turned by its own library:

    UNet2DModel.from_pretrained(folder).save_pretrained(folder)

Their network takes the steps of a chain of 1000, ours times in [0, 1]: step n is
n / 999. They place attention by level and we by height, so a folder is read and written
for images of one size.
"""

import json
import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from research.errors import UserError
from research.layers.attention import PixelAttention
from research.layers.blocks import BigGANBlock, NearestConv, StridedConv, ddpm_block
from research.layers.embeddings import SinusoidalEmbedding
from research.layers.norms import GroupNorm
from research.models.score_unet import ScoreUNet
from research.tasks.base import Variables

CONFIG, WEIGHTS = "config.json", "diffusion_pytorch_model.safetensors"

Config = dict[str, Any]
"""What `config.json` holds."""

Leaves = Mapping[str, jax.ShapeDtypeStruct]
"""Shapes by path, such as `params/conv_in/kernel`."""


class Key(NamedTuple):
    """A key of their config: its value where it is absent, and what may be there."""

    default: Any
    accepts: Callable[[Any], bool]
    supported: str


class Leaf(NamedTuple):
    """A leaf of theirs: its name, the axes of ours, and the array to ours and back."""

    name: str
    ndim: int
    ours: Callable[[np.ndarray], np.ndarray]
    theirs: Callable[[np.ndarray], np.ndarray]


def _only(*values: Any, default: Any = None) -> Key:
    """Some values, the default one of them or, unsupported, given."""
    default = values[0] if default is None else default
    supported = " or ".join(map(json.dumps, values))
    return Key(default, lambda value: value in values, supported)


def _count(value: Any) -> bool:
    return type(value) is int and value > 0


def _list_of(accepts: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: (
        isinstance(value, list | tuple) and len(value) > 0 and all(map(accepts, value))
    )


DOWN, UP = ("DownBlock2D", "AttnDownBlock2D"), ("UpBlock2D", "AttnUpBlock2D")

# The defaults are those of diffusers 0.42.
KEYS = {
    "_class_name": _only("UNet2DModel"),
    "_diffusers_version": Key(None, lambda value: True, "anything"),
    "_name_or_path": Key(None, lambda value: True, "anything"),
    "sample_size": Key(
        None,
        lambda size: _count(size) or (_list_of(_count)(size) and len(size) == 2),
        "the height and width of the images, [height, width] or one number",
    ),
    "in_channels": Key(3, _count, "a number of channels"),
    "out_channels": Key(3, _count, "a number of channels"),
    "center_input_sample": _only(False, True),
    "time_embedding_type": _only("positional"),
    "time_embedding_dim": Key(
        None, lambda dim: dim is None or _count(dim), "null or a width"
    ),
    "freq_shift": _only(1, default=0),
    "flip_sin_to_cos": _only(False, default=True),
    "down_block_types": Key(
        [DOWN[0], DOWN[1], DOWN[1], DOWN[1]],
        _list_of(lambda block: block in DOWN),
        f"a list of {DOWN[0]} and {DOWN[1]}",
    ),
    "mid_block_type": _only("UNetMidBlock2D"),
    "up_block_types": Key(
        [UP[1], UP[1], UP[1], UP[0]],
        _list_of(lambda block: block in UP),
        f"a list of {UP[0]} and {UP[1]}",
    ),
    "block_out_channels": Key(
        [224, 448, 672, 896], _list_of(_count), "a list of numbers of channels"
    ),
    "layers_per_block": Key(2, _count, "a number of blocks"),
    "mid_block_scale_factor": _only(1),
    "downsample_padding": _only(0, default=1),
    "downsample_type": _only("conv"),
    "upsample_type": _only("conv"),
    "dropout": Key(
        0.0,
        lambda rate: type(rate) in (int, float) and 0 <= rate < 1,
        "a rate from 0 to below 1",
    ),
    "act_fn": _only("silu", "swish"),
    "attention_head_dim": Key(
        8, lambda dim: dim is None or _count(dim), "null, for one head, or a width"
    ),
    "norm_num_groups": Key(32, _count, "a number of groups"),
    "attn_norm_num_groups": Key(
        None, lambda groups: groups is None or _count(groups), "null or norm_num_groups"
    ),
    "norm_eps": Key(
        1e-5, lambda eps: type(eps) in (int, float) and eps > 0, "a positive number"
    ),
    "resnet_time_scale_shift": _only("default"),
    "add_attention": _only(True),
    "class_embed_type": _only(None),
    "num_class_embeds": _only(None),
    "num_train_timesteps": _only(None),
}

_same = np.asarray
BIAS = {"bias": Leaf("bias", 1, _same, _same)}
NORM = BIAS | {"scale": Leaf("weight", 1, _same, _same)}
DENSE = BIAS | {"kernel": Leaf("weight", 2, np.transpose, np.transpose)}
CONV = BIAS | {
    "kernel": Leaf(
        "weight",
        4,
        lambda theirs: theirs.transpose(2, 3, 1, 0),
        lambda ours: ours.transpose(3, 2, 0, 1),
    )
}
# Their 1x1 convolution is a dense layer here.
POINT = BIAS | {
    "kernel": Leaf(
        "weight",
        2,
        lambda theirs: theirs[:, :, 0, 0].T,
        lambda ours: ours.T[:, :, None, None],
    )
}

BLOCK = {
    "norm1": ("norm1", NORM),
    "conv1": ("conv1", CONV),
    "time": ("time_emb_proj", DENSE),
    "norm2": ("norm2", NORM),
    "conv2": ("conv2", CONV),
    "skip": ("conv_shortcut", POINT),
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


def load(folder: str) -> tuple[ScoreUNet, Variables]:
    """The network of a folder, and its variables: float32 host arrays.

    Raises:
      UserError: a file that is missing or cannot be read; a key or a value of the
        config that is not supported; or a leaf that is missing, that nothing claims, or
        that has another shape.
    """
    config_path, path = (Path(folder).expanduser() / name for name in (CONFIG, WEIGHTS))
    for file in (config_path, path):
        if not file.is_file():
            raise UserError(
                f"no {file.name} in {folder}: give a folder that "
                "diffusers.UNet2DModel.save_pretrained wrote"
            )
    try:
        config = json.loads(config_path.read_bytes())
    except ValueError as error:
        raise UserError(
            f"{config_path} is not JSON ({error}): copy the folder again"
        ) from None
    if not isinstance(config, dict):
        raise UserError(f"{config_path} holds no keys: expected a diffusers config")
    network = network_of(config)
    expected = expected_leaves(network, _image_shape(config))
    names = leaf_names(network, expected)
    variables = {}
    try:
        with safe_open(path, framework="numpy") as file:
            keys = set(file.keys())
            there = {today(name): name for name in keys}
            claimed = {there.get(leaf.name) for leaf in names.values()}
            for name in sorted(keys - claimed):
                shape = tuple(file.get_slice(name).get_shape())
                raise UserError(
                    f"{path} holds {name} with shape {shape}, which no leaf of the "
                    f"network that {CONFIG} describes claims"
                )
            for ours, leaf in names.items():
                shape, their_shape = expected[ours].shape, _shape(leaf, expected[ours])
                if leaf.name not in there:
                    raise UserError(
                        f"{path} lacks {leaf.name} with shape {their_shape}, which "
                        f"becomes {ours} with shape {shape} here"
                    )
                entry = file.get_slice(there[leaf.name])
                if tuple(entry.get_shape()) != their_shape:
                    raise UserError(
                        f"{there[leaf.name]} in {path} has shape "
                        f"{tuple(entry.get_shape())}, but {ours} with shape {shape} "
                        f"is made from {their_shape}"
                    )
                if entry.get_dtype() not in ("F16", "F32", "F64"):
                    raise UserError(
                        f"{there[leaf.name]} in {path} is {entry.get_dtype()}: "
                        "expected F16, F32 or F64"
                    )
                array = leaf.ours(file.get_tensor(there[leaf.name]))
                variables[ours] = np.ascontiguousarray(array, np.float32)
    except SafetensorError as error:
        raise UserError(
            f"{path} is not a whole safetensors file ({error}): copy it again"
        ) from None
    return network, flax.traverse_util.unflatten_dict(variables, sep="/")


def save(
    folder: str, network: ScoreUNet, variables: Variables, image_size: tuple[int, int]
) -> None:
    """Writes a folder that `diffusers.UNet2DModel.from_pretrained` loads.

    Args:
      folder: made where there is none; files of the same names are replaced.
      network: DDPM's, as `network_of` builds it.
      variables: its leaves.
      image_size: height and width of the images it is for.

    Raises:
      UserError: a setting of the network that theirs does not have, or a leaf that is
        missing, that nothing claims, or of another shape.
    """
    leaves = _flat(variables)
    first = leaves.get("params/conv_in/kernel")
    image_channels = first.shape[2] if first is not None and first.ndim == 4 else 3
    config = config_of(network, (*image_size, image_channels))
    there = expected_leaves(network, (*image_size, image_channels))
    expected = {name: leaf.shape for name, leaf in there.items()}
    given = {name: leaf.shape for name, leaf in leaves.items()}
    for name in sorted(expected.keys() | given.keys()):
        if expected.get(name) != given.get(name):
            raise UserError(
                f"{name} cannot be written: its shape is {given.get(name)}, expected "
                f"{expected.get(name)}"
            )
    theirs = {
        leaf.name: np.ascontiguousarray(leaf.theirs(np.asarray(leaves[ours])), "f4")
        for ours, leaf in leaf_names(network, there).items()
    }
    path = Path(folder).expanduser()
    path.mkdir(parents=True, exist_ok=True)
    # Their loader asks which library wrote the file.
    save_file(theirs, path / WEIGHTS, metadata={"format": "pt"})
    (path / CONFIG).write_text(json.dumps(config, indent=2) + "\n")


def network_of(config: Config) -> ScoreUNet:
    """The network that a config describes.

    Raises:
      UserError: a key or a value that is not supported, by its name.
    """
    config = _checked(config)
    channels = config["block_out_channels"][0]
    norm = partial(
        GroupNorm,
        max_groups=config["norm_num_groups"],
        min_group_size=1,
        epsilon=config["norm_eps"],
    )
    height = _image_shape(config)[0]
    return ScoreUNet(
        channels=channels,
        channel_mults=tuple(c // channels for c in config["block_out_channels"]),
        num_res_blocks=config["layers_per_block"],
        attention_resolutions=tuple(
            height // 2**level
            for level, block in enumerate(config["down_block_types"])
            if block == DOWN[1]
        ),
        attend_every_up_block=True,
        block=partial(ddpm_block, dropout_rate=config["dropout"], norm=norm),
        attention=partial(
            PixelAttention,
            head_dim=config["attention_head_dim"],
            skip_scale=1.0,
            norm=norm,
        ),
        downsample=StridedConv,
        upsample=NearestConv,
        norm=norm,
        data_range=(0.0, 1.0) if config["center_input_sample"] else (-1.0, 1.0),
    )


def config_of(network: ScoreUNet, image_shape: tuple[int, int, int]) -> Config:
    """The config of a network for images of (height, width, channels).

    Raises:
      UserError: a setting of the network that theirs does not have, by its name.
    """
    block, attention = network.block(network.channels), network.attention()
    embedding = network.time_embedding(network.channels)
    widths = [network.channels * mult for mult in network.channel_mults]
    height, width, image_channels = image_shape
    attended = [
        height // 2**level in network.attention_resolutions
        for level in range(len(widths))
    ]

    def absent(name: str, supported: str) -> UserError:
        return UserError(
            f"{name} = {getattr(network, name)} of the network has no counterpart in "
            f"diffusers' DDPM: expected {supported}"
        )

    if not (isinstance(block, BigGANBlock) and block.skip_scale == 1):
        raise absent("block", "ddpm_block, which does not rescale sums")
    if not (
        isinstance(attention, PixelAttention)
        and attention.skip_scale == 1
        and attention.core is PixelAttention.core
        and (attention.num_heads == 1 or attention.head_dim is not None)
    ):
        raise absent(
            "attention",
            "PixelAttention with skip_scale 1.0, and one head or heads by head_dim",
        )
    norms = [
        norm
        for norm in (network.norm(), block.norm(), attention.norm())
        if isinstance(norm, GroupNorm)
        and all(width // norm.min_group_size >= norm.max_groups for width in widths)
    ]
    if len(norms) < 3 or len({(n.max_groups, n.epsilon) for n in norms}) > 1:
        raise absent(
            "norm",
            "one GroupNorm in network, block and attention, with max_groups groups at "
            f"each of {widths} channels",
        )
    if network.downsample is not StridedConv:
        raise absent("downsample", "StridedConv")
    if network.upsample is not NearestConv:
        raise absent("upsample", "NearestConv")
    if not (
        isinstance(embedding, SinusoidalEmbedding)
        and (embedding.scale, embedding.max_period) == (999, 10_000)
    ):
        raise absent(
            "time_embedding", "SinusoidalEmbedding with scale 999, max_period 10000"
        )
    if network.input_pyramid is not None:
        raise absent("input_pyramid", "None")
    if network.output_skip is not None:
        raise absent("output_skip", "None")
    if any(attended) and not network.attend_every_up_block:
        raise absent("attend_every_up_block", "True")
    if network.data_range not in ((-1, 1), (0, 1)):
        raise absent("data_range", "(-1.0, 1.0) or (0.0, 1.0)")
    return {
        "_class_name": "UNet2DModel",
        "sample_size": height if height == width else [height, width],
        "in_channels": image_channels,
        "out_channels": image_channels,
        "center_input_sample": network.data_range == (0, 1),
        "time_embedding_type": "positional",
        "freq_shift": 1,
        "flip_sin_to_cos": False,
        "down_block_types": [DOWN[there] for there in attended],
        "up_block_types": [UP[there] for there in reversed(attended)],
        "block_out_channels": widths,
        "layers_per_block": network.num_res_blocks,
        "mid_block_scale_factor": 1,
        "downsample_padding": 0,
        "dropout": block.dropout_rate,
        "act_fn": "silu",
        "attention_head_dim": attention.head_dim,
        "norm_num_groups": norms[0].max_groups,
        "norm_eps": norms[0].epsilon,
    }


def leaf_names(network: ScoreUNet, leaves: Leaves) -> dict[str, Leaf]:
    """The weight table of a network, given its `expected_leaves`.

    Raises:
      UserError: a leaf of the network that theirs does not have.
    """
    modules, names = _modules(network), {}
    for path, shape in leaves.items():
        _, module, *parts, name = path.split("/")
        theirs, table = modules.get(module, ("", {}))
        part, layout = table.get("/".join(parts), ("", {}))
        if name not in layout or layout[name].ndim != len(shape.shape):
            raise UserError(
                f"{path} with shape {shape.shape} has no counterpart in diffusers' "
                "UNet2DModel: expected DDPM as research/models/score_unet.py builds it"
            )
        leaf = layout[name]
        full = ".".join(filter(None, (theirs, part, leaf.name)))
        names[path] = leaf._replace(name=full)
    return names


def expected_leaves(network: ScoreUNet, image_shape: tuple[int, int, int]) -> Leaves:
    """The shape of every leaf of the network's variables, by path."""
    x, t = jnp.zeros((1, *image_shape)), jnp.zeros(1)
    return _flat(
        jax.eval_shape(lambda: network.init(jax.random.key(0), x, t, train=False))
    )


def today(name: str) -> str:
    """The name that their library now writes for a leaf of an older file."""
    return re.sub(
        rf"(attentions\.\d+)\.({'|'.join(OLDER)})\.",
        lambda match: f"{match[1]}.{OLDER[match[2]]}.",
        name,
    )


def _modules(network: ScoreUNet) -> dict[str, tuple[str, dict[str, Any]]]:
    """Our modules' names to theirs, and to the table of their parts."""
    num_levels, num_blocks = len(network.channel_mults), network.num_res_blocks
    modules = {
        "time_hidden": ("time_embedding.linear_1", {"": ("", DENSE)}),
        "time_out": ("time_embedding.linear_2", {"": ("", DENSE)}),
        "conv_in": ("conv_in", {"": ("", CONV)}),
        "mid_block_0": ("mid_block.resnets.0", BLOCK),
        "mid_attention": ("mid_block.attentions.0", ATTENTION),
        "mid_block_1": ("mid_block.resnets.1", BLOCK),
        "norm_out": ("conv_norm_out", {"": ("", NORM)}),
        "conv_out": ("conv_out", {"": ("", CONV)}),
    }
    for way, extra in (("down", 0), ("up", 1)):
        for level in range(num_levels):
            # Going up they count from the coarsest level.
            theirs = level if way == "down" else num_levels - 1 - level
            theirs = f"{way}_blocks.{theirs}"
            for i in range(num_blocks + extra):
                block, attention = f"{theirs}.resnets.{i}", f"{theirs}.attentions.{i}"
                modules[f"{way}_{level}_block_{i}"] = (block, BLOCK)
                modules[f"{way}_{level}_attention_{i}"] = (attention, ATTENTION)
            modules[f"{way}_{level}_resample"] = (
                f"{theirs}.{way}samplers.0",
                {"conv": ("conv", CONV)},
            )
    return modules


def _checked(config: Config) -> Config:
    """With the value of every key, each supported alone and with the others."""
    for key in sorted(config.keys() - KEYS.keys()):
        raise UserError(
            f"{key} = {json.dumps(config[key])} in {CONFIG} is not supported: expected "
            f"only {', '.join(KEYS)}"
        )
    config = {key: config.get(key, there.default) for key, there in KEYS.items()}

    def require(holds: bool, key: str, supported: str) -> None:
        if not holds:
            raise UserError(
                f"{key} = {json.dumps(config[key])} in {CONFIG} is not supported: "
                f"expected {supported}"
            )

    for key, there in KEYS.items():
        require(there.accepts(config[key]), key, there.supported)

    widths, groups = config["block_out_channels"], config["norm_num_groups"]
    head_dim = config["attention_head_dim"] or 1
    down = config["down_block_types"]
    mirrored = [UP[DOWN.index(block)] for block in reversed(down)]
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
        all(width % groups == 0 for width in widths),
        "norm_num_groups",
        f"a divisor of each of {widths}",
    )
    require(
        config["attn_norm_num_groups"] in (None, groups),
        "attn_norm_num_groups",
        f"null or norm_num_groups, {groups}",
    )
    require(
        all(width % head_dim == 0 for width in widths),
        "attention_head_dim",
        f"null or a divisor of each of {widths}",
    )
    return config


def _image_shape(config: Config) -> tuple[int, int, int]:
    size = config["sample_size"]
    height, width = (size, size) if isinstance(size, int) else size
    return height, width, config.get("in_channels", KEYS["in_channels"].default)


def _shape(leaf: Leaf, ours: jax.ShapeDtypeStruct) -> tuple[int, ...]:
    """That a leaf of ours has among theirs."""
    return leaf.theirs(_zeros(ours)).shape


def _zeros(ours: jax.ShapeDtypeStruct) -> np.ndarray:
    """Of a shape, in no memory."""
    return np.broadcast_to(np.float32(0), ours.shape)


def _flat(variables: Variables) -> dict[str, Any]:
    """Leaves by path."""
    return dict(flax.traverse_util.flatten_dict(dict(variables), sep="/"))
