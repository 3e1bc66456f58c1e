"""Swin and Swin v2 as timm keeps them, both ways.

A folder holds `config.json`, with the name of an architecture and what differs from it
in `model_args`, and `model.safetensors`; public as timm/swin_* and timm/swinv2_*. It is
an `ImageClassifier`, without classes where there are none.

Windows are made for one size of images, `img_size`. Where windows do not divide a
shifted map of such an image, theirs pads it after rolling it, not before, and so has
other windows: that is refused. Other sizes of images are padded as in
`research.layers.windows`; theirs refuses them.
"""

from functools import partial
from pathlib import Path
from typing import Any

from research.errors import UserError
from research.layers.cores import Softmax, unscaled
from research.layers.initializers import Normal
from research.layers.mlp import FeedForward
from research.layers.residual import PreNorm
from research.layers.windows import WindowAttention
from research.models.image_classifier import ImageClassifier
from research.models.swin import (
    AttentionV2,
    Norm,
    ResidualV2,
    Swin,
    gelu,
    swin_v2,
    trained_with,
)
from research.pretrained.configs import (
    CONFIG,
    Config,
    Key,
    checked,
    count,
    only,
    positive,
    rate,
    read_config,
    require_same,
    require_value,
    setting,
    write_config,
)
from research.pretrained.swin import (
    counts,
    expected_leaves,
    image_channels,
    names_by,
    side,
    square,
)
from research.pretrained.tables import Leaves, Names, read, require_leaves, write
from research.tasks.base import Variables

WEIGHTS = "model.safetensors"
SOURCE = "give a folder that push_to_hf_hub or save_for_hf of timm's Swin wrote"
LAYOUT = "timm's Swin"
ARGS = f"model_args in {CONFIG}"

_SIZES: dict[str, dict[str, Any]] = {
    "tiny": dict(embed_dim=96, depths=(2, 2, 6, 2), num_heads=(3, 6, 12, 24)),
    "small": dict(embed_dim=96, depths=(2, 2, 18, 2), num_heads=(3, 6, 12, 24)),
    "base": dict(embed_dim=128, depths=(2, 2, 18, 2), num_heads=(4, 8, 16, 32)),
    "large": dict(embed_dim=192, depths=(2, 2, 18, 2), num_heads=(6, 12, 24, 48)),
}


def _named(
    pattern: str, names: str, window_size: int, img_size: int, trained: int | None = 0
) -> dict[str, dict[str, Any]]:
    """Architectures of several sizes by their names."""
    args: dict[str, Any] = dict(window_size=window_size, img_size=img_size)
    if pattern.startswith("swinv2"):
        # The last stage's map was smaller than the windows.
        sizes = (trained, trained, trained, trained // 2) if trained else (0,) * 4
        args["pretrained_window_sizes"] = sizes
    return {pattern.format(name): _SIZES[name] | args for name in names.split()}


ARCHITECTURES: dict[str, dict[str, Any]] = {
    **_named("swin_{}_patch4_window7_224", "tiny small base large", 7, 224),
    **_named("swin_{}_patch4_window12_384", "base large", 12, 384),
    **_named("swinv2_{}_window8_256", "tiny small base", 8, 256),
    **_named("swinv2_{}_window16_256", "tiny small base", 16, 256),
    **_named("swinv2_{}_window12_192", "base large", 12, 192),
    **_named("swinv2_{}_window12to16_192to256", "base large", 16, 256, 12),
    **_named("swinv2_{}_window12to24_192to384", "base large", 24, 384, 12),
    # Of Chen et al. 2021, arXiv:2111.14725.
    "swin_s3_tiny_224": _SIZES["tiny"] | dict(window_size=(7, 7, 14, 7), img_size=224),
    "swin_s3_small_224": _SIZES["small"]
    | dict(window_size=(14, 14, 14, 7), img_size=224),
    "swin_s3_base_224": _SIZES["tiny"]
    | dict(depths=(2, 2, 30, 2), window_size=(7, 7, 14, 7), img_size=224),
}
"""Arguments by name, of timm 1.0.31."""

_rate = Key(0.0, rate, "a rate from 0 to below 1")
_numbers = Key(None, counts, "a list of numbers, one for each stage")

# The defaults are those of its classes; others are the architecture's.
ARG_KEYS = {
    "img_size": Key(None, square, "the side of a square"),
    "patch_size": Key(4, square, "the side of a square"),
    "in_chans": Key(3, count, "a number of channels"),
    "num_classes": Key(1000, lambda n: n == 0 or count(n), "a number of classes"),
    "global_pool": only("avg"),
    "embed_dim": Key(None, count, "a width"),
    "depths": _numbers,
    "num_heads": _numbers,
    "window_size": Key(
        None,
        # Two numbers are the height and the width of all stages' windows there.
        lambda size: count(size) or counts(size) and len(size) != 2,
        "a side, or one for each of more than two stages",
    ),
    "pretrained_window_sizes": Key(
        (0, 0, 0, 0),
        lambda sizes: (
            isinstance(sizes, list | tuple)
            and all(type(size) is int and size >= 0 for size in sizes)
        ),
        "a list of sides, zero for those of window_size",
    ),
    "mlp_ratio": Key(4.0, positive, "a positive number"),
    "qkv_bias": only(True, False),
    "drop_rate": _rate,
    "proj_drop_rate": _rate,
    "attn_drop_rate": _rate,
    "drop_path_rate": _rate._replace(default=0.1),
    "always_partition": only(False),
    "strict_img_size": only(True, False),
    "dynamic_img_size": only(False, True),
}
KEYS = {
    "architecture": Key(None, ARCHITECTURES.__contains__, ", ".join(ARCHITECTURES)),
    "num_classes": Key(None, lambda n: n is None or n == 0 or count(n), "a number"),
    "global_pool": only("avg"),
    "model_args": Key({}, lambda args: isinstance(args, dict), "arguments"),
    "pretrained_cfg": Key({}, lambda args: isinstance(args, dict), "keys"),
}
FREE = frozenset(
    # What follows from others, and what classes are called.
    "num_features label_names label_descriptions".split()
)

BLOCK = "layers.{0}.blocks.{1}"
MODULES = {
    "patch_embedding": "patch_embed.proj",
    "patch_norm": "patch_embed.norm",
    "block/mixer/attention/query": f"{BLOCK}.attn.qkv",
    "block/mixer/attention/key": f"{BLOCK}.attn.qkv",
    "block/mixer/attention/value": f"{BLOCK}.attn.qkv",
    "block/mixer/attention/out": f"{BLOCK}.attn.proj",
    "block/mixer/position/up": f"{BLOCK}.attn.cpb_mlp.0",
    "block/mixer/position/down": f"{BLOCK}.attn.cpb_mlp.2",
    "block/mixer_residual/norm": f"{BLOCK}.norm1",
    "block/mlp/up": f"{BLOCK}.mlp.fc1",
    "block/mlp/down": f"{BLOCK}.mlp.fc2",
    "block/mlp_residual/norm": f"{BLOCK}.norm2",
    "merge/norm": "layers.{1}.downsample.norm",
    "merge/reduction": "layers.{1}.downsample.reduction",
    "norm": "norm",
    "logits": "head.fc",
}
"""By our paths, as in `research.pretrained.swin`."""

LEAVES = {
    "block/mixer/position/table": (
        f"{BLOCK}.attn.relative_position_bias_table",
        (0, 1),
    ),
    "block/mixer/attention/match/logit_scale": (
        f"{BLOCK}.attn.logit_scale",
        (1, 2, 0),
    ),
}
LEAVES_V2 = LEAVES | {
    "block/mixer/attention/query/bias": (f"{BLOCK}.attn.q_bias", (0,)),
    "block/mixer/attention/value/bias": (f"{BLOCK}.attn.v_bias", (0,)),
}
IGNORED = ("*.relative_position_index", "*.relative_coords_table", "*.attn_mask")


def load(folder: str) -> tuple[ImageClassifier, Variables]:
    """The model of a folder, and its variables: float32 host arrays.

    Raises:
      UserError: a file that is missing or cannot be read; a key or a value of the
        config that is not supported; or a leaf that is missing, that nothing claims, or
        that has another shape.
    """
    config = read_config(Path(folder).expanduser() / CONFIG, SOURCE)
    model = model_of(config)
    expected = expected_leaves(model, _checked(config)["in_chans"])
    path = str(Path(folder) / WEIGHTS)
    return model, read(path, leaf_names(expected), expected, SOURCE, IGNORED)


def save(folder: str, model: ImageClassifier, variables: Variables) -> None:
    """Writes a folder that `timm.create_model("local-dir:...", pretrained=True)` reads.

    Args:
      folder: made where there is none; files of the same names are replaced.
      model: as `model_of` builds it.
      variables: its leaves.

    Raises:
      UserError: a setting of the model that theirs does not have, or a leaf that is
        missing, that nothing claims, or of another shape.
    """
    channels = image_channels(model, variables)
    config = config_of(model, channels)
    expected = expected_leaves(model, channels)
    require_leaves(expected, variables)
    path = Path(folder).expanduser()
    path.mkdir(parents=True, exist_ok=True)
    write(str(path / WEIGHTS), leaf_names(expected), expected, variables)
    write_config(path / CONFIG, config)


def model_of(config: Config) -> ImageClassifier:
    """The model that a config describes.

    Raises:
      UserError: a key or a value that is not supported, by its name.
    """
    args = _checked(config)
    rates = dict(dropout_rate=args["proj_drop_rate"])
    settings: dict[str, Any] = dict(
        embed_dim=args["embed_dim"],
        depths=args["depths"],
        num_heads=args["num_heads"],
        window_size=args["window_size"],
        image_size=args["img_size"],
        patch_size=args["patch_size"],
        mlp=partial(FeedForward, activation=gelu, kernel_init=Normal(0.02), **rates),
        mlp_ratio=float(args["mlp_ratio"]),
        drop_path_rate=args["drop_path_rate"],
    )
    if config["architecture"].startswith("swinv2"):
        attention = partial(
            AttentionV2,
            use_bias=args["qkv_bias"],
            core=Softmax(scale=unscaled, dropout_rate=args["attn_drop_rate"]),
        )
        trained = tuple(size or None for size in args["pretrained_window_sizes"])
        swin = swin_v2(
            **settings,
            attention=trained_with(attention, trained) if any(trained) else attention,
            residual=partial(ResidualV2, **rates),
        )
    else:
        attention = partial(
            WindowAttention,
            use_bias=args["qkv_bias"],
            core=Softmax(dropout_rate=args["attn_drop_rate"]),
        )
        residual = partial(PreNorm, norm=Norm, **rates)
        swin = Swin(**settings, attention=attention, residual=residual)
    return ImageClassifier(
        backbone=swin,
        num_classes=args["num_classes"] or None,
        dropout_rate=args["drop_rate"] if args["num_classes"] else 0.0,
    )


def config_of(model: ImageClassifier, channels: int = 3) -> Config:
    """The config of a model, of images with so many channels.

    Raises:
      UserError: a setting of the model that theirs does not have, by its path.
    """
    swin = model.backbone
    if not isinstance(swin, Swin):
        raise UserError(
            f"a classifier on a {type(swin).__name__} has no counterpart in "
            f"{LAYOUT}: expected one on a Swin"
        )
    stages, width = len(swin.depths), swin.embed_dim
    slots = [f"attention.{stage}" for stage in range(stages)]
    if not isinstance(swin.attention, tuple):
        slots = ["attention"] * stages
    is_v2 = setting(swin, f"{slots[0]}.match") is not None
    args = {
        "embed_dim": width,
        "depths": swin.depths,
        "num_heads": swin.num_heads,
        "window_size": swin.window_size,
        "img_size": swin.image_size,
        "patch_size": swin.patch_size,
        "in_chans": channels,
        "mlp_ratio": swin.mlp_ratio,
        "qkv_bias": setting(swin, f"{slots[0]}.use_bias"),
        "drop_rate": model.dropout_rate,
        "proj_drop_rate": setting(swin, "mlp.dropout_rate"),
        "attn_drop_rate": setting(swin, f"{slots[0]}.core.dropout_rate"),
        "drop_path_rate": swin.drop_path_rate,
    }
    if is_v2:
        trained = "position.trained_window_size"
        args["pretrained_window_sizes"] = tuple(
            setting(swin, f"{slot}.{trained}") or 0 for slot in slots
        )
    version = "swinv2_" if is_v2 else "swin_"
    differing = {
        name: {
            key: value
            for key, value in args.items()
            if value != known.get(key, ARG_KEYS[key].default)
        }
        for name, known in ARCHITECTURES.items()
        if name.startswith(version)
    }
    name = min(differing, key=lambda name: len(differing[name]))
    side, num_classes = swin.image_size, model.num_classes or 0
    config: Config = {
        "architecture": name,
        "num_classes": num_classes,
        "num_features": width * 2 ** (stages - 1),
        "global_pool": "avg",
        "model_args": differing[name],
        "pretrained_cfg": {
            "num_classes": num_classes,
            "input_size": [channels, side, side],
            "fixed_input_size": True,
            "classifier": "head.fc",
            "first_conv": "patch_embed.proj",
        },
    }
    require_same(model, model_of(config), LAYOUT)
    return config


def leaf_names(leaves: Leaves) -> Names:
    """The weight table of a model with these `expected_leaves`.

    Raises:
      UserError: a leaf that theirs does not have.
    """
    is_v2 = any(path.endswith("match/logit_scale") for path in leaves)
    return names_by(leaves, MODULES, LEAVES_V2 if is_v2 else LEAVES, LAYOUT)


def _checked(config: Config) -> Config:
    """The arguments of a config's model, each supported alone and with the others."""
    config = checked(config, KEYS, CONFIG, FREE)
    given = dict(ARCHITECTURES[config["architecture"]])
    if config["num_classes"] is not None:
        given["num_classes"] = config["num_classes"]
    if input_size := config["pretrained_cfg"].get("input_size"):
        given["img_size"] = input_size[1:]
    given |= config["model_args"]
    args = checked(given, ARG_KEYS, ARGS)
    for key in ("img_size", "patch_size"):
        args[key] = side(args[key])
    for key in ("depths", "num_heads", "window_size", "pretrained_window_sizes"):
        args[key] = tuple(args[key]) if isinstance(args[key], list) else args[key]
    stages = len(args["depths"])
    windows = args["window_size"]
    if isinstance(windows, int):
        windows = (windows,) * stages
    numbers = (args["num_heads"], windows)
    for key, value in zip(("num_heads", "window_size"), numbers, strict=True):
        is_one_each = len(value) == stages
        require_value(args, ARGS, is_one_each, key, f"one for each of {stages} stages")
    trained = args["pretrained_window_sizes"]
    require_value(
        args,
        ARGS,
        not any(trained) or len(trained) == stages,
        "pretrained_window_sizes",
        f"one for each of {stages} stages",
    )
    grid, rest = divmod(args["img_size"], args["patch_size"])
    maps = [grid // 2**stage for stage in range(stages)]
    divide = rest == 0 and grid % 2 ** (stages - 1) == 0
    divide = divide and all(
        size <= window or size % window == 0
        for size, window in zip(maps, windows, strict=True)
    )
    require_value(
        args, ARGS, divide, "img_size", "a size whose maps their windows divide"
    )
    return args
