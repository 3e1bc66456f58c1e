"""Swin and Swin v2 as transformers keeps them, both ways.

A folder holds `config.json` and `model.safetensors`, or the parts of that file and
their index. Liu et al. 2021, arXiv:2103.14030, and 2022, arXiv:2111.09883; public as
microsoft/swin-* and microsoft/swinv2-*. By the first of `architectures` in the config a
folder is

    Swin(v2)ForImageClassification   `ImageClassifier`
    Swin(v2)Model                    the same without classes: the mean of the last map
    Swin(v2)Backbone                 `Swin`, which returns the maps of `out_features`

Windows are those of theirs: of Swin they shrink to maps that are smaller, which theirs
cannot run; of Swin v2 they are made for `image_size`.
"""

import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from research.errors import UserError
from research.layers.cores import Softmax, unscaled
from research.layers.initializers import Normal
from research.layers.mlp import FeedForward
from research.layers.norms import LayerNorm
from research.layers.residual import PreNorm
from research.layers.windows import WindowAttention
from research.models.image_classifier import ImageClassifier
from research.models.swin import (
    AttentionV2,
    MapPosition,
    ResidualV2,
    Swin,
    swin_v2,
    trained_with,
)
from research.pretrained.configs import (
    ACTIVATIONS,
    CONFIG,
    TRANSFORMERS,
    TRANSFORMERS_KEYS,
    Config,
    Key,
    activation_name,
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
from research.pretrained.tables import (
    Leaves,
    Names,
    leaf_shapes,
    read,
    require_leaves,
    stored_names,
    write,
)
from research.tasks.base import Variables

SwinModel = Swin | ImageClassifier

WEIGHTS = "model.safetensors"
SOURCE = "give a folder that save_pretrained of a Swin of transformers wrote"
LAYOUT = "transformers' Swin"
CLASSES = {"swin": "Swin", "swinv2": "Swinv2"}
"""Their classes' names begin so, by `model_type`."""

CLASSIFIER, MODEL, BACKBONE = "ForImageClassification", "Model", "Backbone"
ENDS = (CLASSIFIER, MODEL, BACKBONE)


def counts(value: Any) -> bool:
    return isinstance(value, list | tuple) and bool(value) and all(map(count, value))


def square(value: Any) -> bool:
    """One or two equal numbers: of a square, or its sides."""
    return count(value) or counts(value) and len(value) == 2 and value[0] == value[1]


def side(square: int | list[int] | tuple[int, ...]) -> int:
    """Of one that is told by its side or by both."""
    return square if isinstance(square, int) else square[0]


_rate = Key(0.0, rate, "a rate from 0 to below 1")
_numbers = Key((2, 2, 6, 2), counts, "a list of numbers, one for each stage")
_optional_list = Key(
    None, lambda value: value is None or isinstance(value, list), "null or a list"
)

# The defaults are those of transformers 5.24.
KEYS = TRANSFORMERS_KEYS | {
    "architectures": Key(
        None,
        lambda names: not names or isinstance(names, list),
        "a list of one class",
    ),
    "model_type": only("swin", "swinv2"),
    "image_size": Key(224, square, "the side of a square"),
    "patch_size": Key(4, square, "the side of a square"),
    "num_channels": Key(3, count, "a number of channels"),
    "embed_dim": Key(96, count, "a width"),
    "depths": _numbers,
    "num_heads": _numbers._replace(default=(3, 6, 12, 24)),
    "window_size": Key(7, count, "the side of a window"),
    "mlp_ratio": Key(4.0, positive, "a positive number"),
    "qkv_bias": only(True, False),
    "hidden_dropout_prob": _rate,
    "attention_probs_dropout_prob": _rate,
    "drop_path_rate": _rate._replace(default=0.1),
    "hidden_act": only(*ACTIVATIONS, default="gelu"),
    "use_absolute_embeddings": only(False, True),
    "layer_norm_eps": Key(1e-5, positive, "a positive number"),
    "pretrained_window_sizes": Key(
        None,
        lambda sizes: (
            sizes is None
            or isinstance(sizes, list | tuple)
            and all(type(size) is int and size >= 0 for size in sizes)
        ),
        "a list of sides, zero for those of window_size",
    ),
    "out_features": _optional_list,
    "out_indices": _optional_list,
    "is_encoder_decoder": only(False),
    "id2label": Key(
        None, lambda labels: labels is None or isinstance(labels, dict), "labels"
    ),
    "num_labels": Key(
        None, lambda number: number is None or count(number), "null or a number"
    ),
}
FREE = TRANSFORMERS | {
    # What follows from others, and what is for training and for other heads.
    "hidden_size",
    "num_layers",
    "stage_names",
    "_out_features",
    "_out_indices",
    "initializer_range",
    "encoder_stride",
    # Of the first files, misspelt, which nothing there reads.
    "path_norm",
}

SETTINGS = {
    "embed_dim": "embed_dim",
    "depths": "depths",
    "num_heads": "num_heads",
    "window_size": "window_size",
    "patch_size": "patch_size",
    "mlp_ratio": "mlp_ratio",
    "drop_path_rate": "drop_path_rate",
    "hidden_dropout_prob": "dropout_rate",
    "layer_norm_eps": "residual.norm.epsilon",
}
"""Where in a `Swin` the value of a key is."""

BLOCK = "encoder.layers.{0}.blocks.{1}"
MODULES = {
    "patch_embedding": "embeddings.patch_embeddings.projection",
    "patch_norm": "embeddings.norm",
    "block/mixer/attention/query": f"{BLOCK}.attention.self.query",
    "block/mixer/attention/key": f"{BLOCK}.attention.self.key",
    "block/mixer/attention/value": f"{BLOCK}.attention.self.value",
    "block/mixer/attention/out": f"{BLOCK}.attention.output.dense",
    "block/mixer/position/up": (
        f"{BLOCK}.attention.self.continuous_position_bias_mlp.0"
    ),
    "block/mixer/position/down": (
        f"{BLOCK}.attention.self.continuous_position_bias_mlp.2"
    ),
    "block/mixer_residual/norm": f"{BLOCK}.layernorm_before",
    "block/mlp/up": f"{BLOCK}.intermediate.dense",
    "block/mlp/down": f"{BLOCK}.output.dense",
    "block/mlp_residual/norm": f"{BLOCK}.layernorm_after",
    "merge/norm": "encoder.layers.{0}.downsample.norm",
    "merge/reduction": "encoder.layers.{0}.downsample.reduction",
    "norm": "layernorm",
}
"""By our paths in the backbone, where `block` is a block of a stage."""

LEAVES = {
    "absolute/embedding": ("embeddings.position_embeddings", (0, 1, 2)),
    "block/mixer/position/table": (
        f"{BLOCK}.attention.self.relative_position_bias_table",
        (0, 1),
    ),
    "block/mixer/attention/match/logit_scale": (
        f"{BLOCK}.attention.self.logit_scale",
        (1, 2, 0),
    ),
}
HEAD = {"logits": "classifier", "out_norm": "hidden_states_norms.stage{1}"}
"""Names that have no prefix."""

# Buffers, and the norm of a backbone, which it does not use.
IGNORED = ("*.relative_position_index", "*.relative_coords_table")
UNUSED = ("layernorm.*", "swin.layernorm.*")


KINDS = {
    ("kernel", 2): ("weight", (1, 0)),
    ("kernel", 4): ("weight", (2, 3, 1, 0)),
    ("bias", 1): ("bias", (0,)),
    ("scale", 1): ("weight", (0,)),
}
"""Leaves of a module of theirs, by our names and their number of axes."""

SIDE_BY_SIDE = ("query", "key", "value")
"""The order of what timm has in one tensor."""


def load(folder: str) -> tuple[SwinModel, Variables]:
    """The model of a folder, and its variables: float32 host arrays.

    Raises:
      UserError: a file that is missing or cannot be read; a key or a value of the
        config that is not supported; or a leaf that is missing, that nothing claims, or
        that has another shape.
    """
    config = read_config(Path(folder).expanduser() / CONFIG, SOURCE)
    model = model_of(config)
    path, prefix = str(Path(folder) / WEIGHTS), f"{config['model_type']}."
    stored = stored_names(path, SOURCE)
    if not any(name.startswith(f"{prefix}embeddings.") for name in stored):
        prefix = ""
    expected = expected_leaves(model, config.get("num_channels", 3))
    ignored = IGNORED + (UNUSED if isinstance(model, Swin) else ())
    names = leaf_names(expected, prefix)
    return model, read(path, names, expected, SOURCE, ignored)


def save(folder: str, model: SwinModel, variables: Variables) -> None:
    """Writes a folder that `from_pretrained` of a Swin of theirs loads.

    Args:
      folder: made where there is none; files of the same names are replaced.
      model: as `model_of` builds it.
      variables: its leaves.

    Raises:
      UserError: a setting of the model that theirs does not have, or a leaf that is
        missing, that nothing claims, or of another shape.
    """
    config = config_of(model)
    config["num_channels"] = image_channels(model, variables)
    expected = expected_leaves(model, config["num_channels"])
    require_leaves(expected, variables)
    has_classes = getattr(model, "num_classes", None) is not None
    prefix = f"{config['model_type']}." if has_classes else ""
    path = Path(folder).expanduser()
    path.mkdir(parents=True, exist_ok=True)
    write(str(path / WEIGHTS), leaf_names(expected, prefix), expected, variables)
    write_config(path / CONFIG, config)


def model_of(config: Config) -> SwinModel:
    """The model that a config describes.

    Args:
      config: of theirs; without `architectures`, of a `SwinModel`.

    Raises:
      UserError: a key or a value that is not supported, by its name.
    """
    config = _checked(config)
    is_v2, end = config["model_type"] == "swinv2", config["architectures"]
    patch_size, image_size = config["patch_size"], config["image_size"]
    norm = partial(LayerNorm, epsilon=config["layer_norm_eps"])
    dropout_rate = config["hidden_dropout_prob"]
    core_rate = config["attention_probs_dropout_prob"]
    activation = ACTIVATIONS[config["hidden_act"]]
    settings: dict[str, Any] = dict(
        embed_dim=config["embed_dim"],
        depths=config["depths"],
        num_heads=config["num_heads"],
        window_size=config["window_size"],
        patch_size=patch_size,
        mlp=partial(FeedForward, activation=activation, kernel_init=Normal(0.02)),
        mlp_ratio=float(config["mlp_ratio"]),
        dropout_rate=dropout_rate,
        drop_path_rate=config["drop_path_rate"],
    )
    if config["use_absolute_embeddings"]:
        grid = image_size // patch_size
        settings["absolute"] = partial(MapPosition, size=(grid, grid))
    if end == BACKBONE:
        settings["out_stages"] = config["out_features"]
        if not is_v2:
            settings["out_norm"] = partial(LayerNorm, epsilon=1e-5)
    if is_v2:
        attention = partial(
            AttentionV2,
            use_bias=config["qkv_bias"],
            core=Softmax(scale=unscaled, dropout_rate=core_rate),
        )
        trained = tuple(size or None for size in config["pretrained_window_sizes"])
        swin = swin_v2(
            **settings,
            image_size=image_size,
            attention=trained_with(attention, trained) if any(trained) else attention,
            residual=partial(ResidualV2, norm=norm, dropout_rate=dropout_rate),
        )
    else:
        swin = Swin(
            **settings,
            attention=partial(
                WindowAttention,
                use_bias=config["qkv_bias"],
                core=Softmax(dropout_rate=core_rate),
            ),
            residual=partial(PreNorm, norm=norm, dropout_rate=dropout_rate),
        )
    if end == BACKBONE:
        return swin
    num_classes = config["num_labels"] if end == CLASSIFIER else None
    return ImageClassifier(backbone=swin, num_classes=num_classes, norm=norm)


def config_of(model: SwinModel) -> Config:
    """The config of a model, of images with three channels.

    Raises:
      UserError: a setting of the model that theirs does not have, by its path.
    """
    swin = model if isinstance(model, Swin) else model.backbone
    if not isinstance(swin, Swin):
        raise UserError(
            f"a classifier on a {type(swin).__name__} has no counterpart in "
            f"{LAYOUT}: expected one on a Swin"
        )
    stages = len(swin.depths)
    slots = [f"attention.{stage}" for stage in range(stages)]
    if not isinstance(swin.attention, tuple):
        slots = ["attention"] * stages
    is_v2 = setting(swin, f"{slots[0]}.match") is not None
    config = {
        "model_type": "swinv2" if is_v2 else "swin",
        **{key: setting(swin, path) for key, path in SETTINGS.items()},
        "qkv_bias": setting(swin, f"{slots[0]}.use_bias"),
        "attention_probs_dropout_prob": setting(swin, f"{slots[0]}.core.dropout_rate"),
        "hidden_act": activation_name(setting(swin, "mlp.activation")) or "gelu",
        "hidden_size": swin.embed_dim * 2 ** (stages - 1),
        "num_layers": stages,
        # That windows divide.
        "image_size": swin.patch_size * 2 ** (stages - 1) * _largest(swin.window_size),
    }
    if is_v2:
        config["image_size"] = swin.image_size or config["image_size"]
        trained = "position.trained_window_size"
        config["pretrained_window_sizes"] = [
            setting(swin, f"{slot}.{trained}") or 0 for slot in slots
        ]
    config["use_absolute_embeddings"] = swin.absolute is not None
    if swin.absolute is not None:
        config["image_size"] = setting(swin, "absolute.size")[0] * swin.patch_size
    end = BACKBONE
    if isinstance(model, ImageClassifier):
        end = MODEL if model.num_classes is None else CLASSIFIER
        labels = [f"LABEL_{number}" for number in range(model.num_classes or 0)]
        if labels:
            config["id2label"] = {str(id): label for id, label in enumerate(labels)}
            config["label2id"] = {label: id for id, label in enumerate(labels)}
    else:
        names = ["stem", *(f"stage{stage + 1}" for stage in range(stages))]
        chosen = range(stages) if swin.out_stages is None else swin.out_stages
        config["stage_names"] = names
        config["out_features"] = [names[stage + 1] for stage in chosen]
        config["out_indices"] = [stage + 1 for stage in chosen]
    config["architectures"] = [f"{CLASSES[config['model_type']]}{end}"]
    require_same(model, model_of(config), LAYOUT)
    return config


def leaf_names(leaves: Leaves, prefix: str = "") -> Names:
    """The weight table of a model with these `expected_leaves`.

    Args:
      leaves: of ours.
      prefix: of the names of all but the head.

    Raises:
      UserError: a leaf that theirs does not have.
    """
    modules = {ours: f"{prefix}{theirs}" for ours, theirs in MODULES.items()}
    alone = {
        ours: (f"{prefix}{theirs}", axes) for ours, (theirs, axes) in LEAVES.items()
    }
    return names_by(leaves, modules | HEAD, alone, LAYOUT)


def names_by(
    leaves: Leaves,
    modules: Mapping[str, str],
    alone: Mapping[str, tuple[str, tuple[int, ...]]],
    layout: str,
) -> Names:
    """A weight table by the parts of a `Swin`.

    Args:
      leaves: of ours.
      modules: theirs by our path in the backbone or beside it, where `block` is a block
        of a stage, `{0}` and `{1}` its numbers, and those of a `merge` or an `out_norm`
        its stage's and the next one's.
      alone: leaves of theirs, by our path, that are no module's.
      layout: its name.

    Raises:
      UserError: a leaf that is in neither.
    """
    names = {}

    def place(path: str) -> int:
        parts = path.split("/")
        return next((i for i, part in enumerate(SIDE_BY_SIDE) if part in parts), -1)

    for path in sorted(leaves, key=place):
        part = path.removeprefix("params/").removeprefix("backbone/")
        numbers: tuple[int, ...] = ()
        if match := re.match(r"stage_(\d+)_block_(\d+)/", part):
            part = f"block/{part[match.end() :]}"
            numbers = (int(match[1]), int(match[2]))
        elif match := re.match(r"(merge|out_norm)_(\d+)/", part):
            part = f"{match[1]}/{part[match.end() :]}"
            numbers = (int(match[2]), int(match[2]) + 1)
        module, _, kind = part.rpartition("/")
        suffix = KINDS.get((kind, len(leaves[path].shape)))
        if part in alone:
            name, axes = alone[part]
        elif module in modules and suffix is not None:
            name, axes = f"{modules[module]}.{suffix[0]}", suffix[1]
        else:
            raise UserError(
                f"{path} with shape {leaves[path].shape} has no counterpart in {layout}"
            )
        names[path] = (name.format(*numbers), axes)
    return names


def expected_leaves(model: SwinModel, channels: int = 3) -> Leaves:
    """The shape of every leaf of the model's variables, by path.

    Args:
      model: of images.
      channels: of an image.
    """
    swin = model if isinstance(model, Swin) else model.backbone
    assert isinstance(swin, Swin)
    size = (1, 1)
    if swin.absolute is not None:
        size = setting(swin, "absolute.size")
    height, width = (side * swin.patch_size for side in size)
    return leaf_shapes(model, jnp.zeros((1, height, width, channels)))


def image_channels(model: SwinModel, variables: Variables) -> int:
    """Of the images that variables are for; 3 if that cannot be told."""
    params: Any = variables.get("params", {})
    if isinstance(model, ImageClassifier):
        params = params.get("backbone", {})
    kernel = params.get("patch_embedding", {}).get("kernel")
    return kernel.shape[2] if kernel is not None and kernel.ndim == 4 else 3


def _largest(sizes: int | tuple[int, ...]) -> int:
    return max(sizes) if isinstance(sizes, tuple) else sizes


def _checked(config: Config) -> Config:
    """With the value of every key, each supported alone and with the others.

    Squares become their sides, lists tuples, `architectures` the end of its class's
    name, and `out_features` numbers of stages from zero.
    """
    config = checked(config, KEYS, CONFIG, FREE)
    is_v2 = config["model_type"] == "swinv2"
    begin = CLASSES[config["model_type"]]
    classes = config["architectures"] or [f"{begin}{MODEL}"]
    ends = [end for end in ENDS if classes[0] == f"{begin}{end}"]
    supported = f"a list with one of {', '.join(f'{begin}{end}' for end in ENDS)}"
    require_value(config, CONFIG, bool(ends), "architectures", supported)
    config["architectures"] = ends[0]
    for key in ("image_size", "patch_size"):
        config[key] = side(config[key])
    config["depths"], config["num_heads"] = (
        tuple(config[key]) for key in ("depths", "num_heads")
    )
    stages, width = len(config["depths"]), config["embed_dim"]
    heads = config["num_heads"]
    divide = len(heads) == stages and all(
        width * 2**stage % heads[stage] == 0 for stage in range(stages)
    )
    require_value(
        config,
        CONFIG,
        divide,
        "num_heads",
        f"for each of {stages} stages a divisor of its width, {width} at first",
    )
    # Their default is of four zeros, whatever the number of stages.
    trained = config["pretrained_window_sizes"] or ()
    require_value(
        config,
        CONFIG,
        not any(trained) or is_v2 and len(trained) == stages,
        "pretrained_window_sizes",
        f"one for each of {stages} stages of a swinv2",
    )
    config["pretrained_window_sizes"] = (
        tuple(trained) if any(trained) else (0,) * stages
    )
    if config["num_labels"] is None:
        config["num_labels"] = len(config["id2label"] or ()) or 2
    if config["architectures"] == BACKBONE:
        config["out_features"] = _stages(config, stages)
    return config


def _stages(config: Config, stages: int) -> tuple[int, ...]:
    """The numbers, from zero, of the stages whose maps a backbone returns."""
    names = [f"stage{stage + 1}" for stage in range(stages)]
    chosen, indices = config["out_features"], config["out_indices"]
    if chosen is None and indices is None:
        return (stages - 1,)
    if chosen is None:
        among = all(type(i) is int and 0 < i <= stages for i in indices)
        require_value(
            config, CONFIG, among, "out_indices", f"numbers from 1 to {stages}"
        )
        return tuple(index - 1 for index in indices)
    require_value(
        config,
        CONFIG,
        all(name in names for name in chosen),
        "out_features",
        f"some of {', '.join(names)}",
    )
    return tuple(map(names.index, chosen))
