"""ResNets as transformers and timm keep them, both ways.

A folder holds `config.json` and `model.safetensors`, or the parts of that file and
their index. He et al. 2016, arXiv:1512.03385; public as microsoft/resnet-50 and so on,
of transformers, where by the first of `architectures` in the config it is

    ResNetForImageClassification   `ImageClassifier`
    ResNetModel                    the same without classes: the mean of the last map
    ResNetBackbone                 `ResNet`

and as timm/resnet50.* and so on, of timm: an `ImageClassifier`, without classes where
there are none. timm/resnet50.tv_in1k holds the weights of torchvision that DETR begins
with; `backbone` reads them for its frozen norms.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from research.layers.initializers import torch_linear
from research.layers.norms import BatchNorm
from research.models.image_classifier import ImageClassifier
from research.models.resnet import FrozenBatchNorm, Norm, ResNet
from research.pretrained.configs import (
    CONFIG,
    TRANSFORMERS,
    TRANSFORMERS_KEYS,
    Config,
    Key,
    checked,
    count,
    only,
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
    write,
)
from research.tasks.base import Variables

Model = ResNet | ImageClassifier

WEIGHTS = "model.safetensors"
SOURCE = "give a folder of a ResNet of transformers or timm"
TRANSFORMERS_LAYOUT, TIMM_LAYOUT = "transformers' ResNet", "timm's ResNet"
CLASSIFIER, MODEL, BACKBONE = (
    "ResNetForImageClassification",
    "ResNetModel",
    "ResNetBackbone",
)

ARCHITECTURES = {
    "resnet26": (2, 2, 2, 2),
    "resnet50": (3, 4, 6, 3),
    "resnet101": (3, 4, 23, 3),
    "resnet152": (3, 8, 36, 3),
}
"""Depths by timm's names."""

IGNORED = "*.num_batches_tracked"
"""PyTorch counts training batches beside each batch norm; nothing reads them."""

_sizes = Key(
    (256, 512, 1024, 2048),
    lambda value: isinstance(value, list | tuple) and all(map(count, value)),
    "a list of numbers, one for each stage",
)
_anything = Key(None, lambda value: True, "anything")
_labels = Key(None, lambda value: value is None or isinstance(value, dict), "labels")
_num_labels = Key(
    None, lambda value: value is None or count(value), "null or a number of classes"
)

# The defaults are those of transformers 5.24.
KEYS = TRANSFORMERS_KEYS | {
    "architectures": Key(
        None,
        lambda names: (
            not names
            or isinstance(names, list)
            and names[0] in (CLASSIFIER, MODEL, BACKBONE)
        ),
        f"a list with one of {CLASSIFIER}, {MODEL}, {BACKBONE}",
    ),
    "model_type": only("resnet"),
    "num_channels": only(3),
    "embedding_size": Key(64, count, "a number of channels"),
    "hidden_sizes": _sizes,
    "depths": _sizes._replace(default=(3, 4, 6, 3)),
    "layer_type": only("bottleneck"),
    "hidden_act": only("relu"),
    "downsample_in_first_stage": only(False),
    "downsample_in_bottleneck": only(False),
    "is_encoder_decoder": only(False),
    "id2label": _labels,
    "num_labels": _num_labels,
    # Of the maps, which ours returns all.
    "out_features": _anything,
    "out_indices": _anything,
    "stage_names": _anything,
}

TIMM_KEYS = {
    "architecture": only(*ARCHITECTURES),
    "num_classes": Key(1000, lambda n: n == 0 or count(n), "a number of classes"),
    "global_pool": only("avg"),
    "model_args": Key({}, lambda args: isinstance(args, dict), "arguments"),
}
TIMM_ARGS = {
    "num_classes": TIMM_KEYS["num_classes"],
    "in_chans": only(3),
    "global_pool": only("avg"),
    "output_stride": only(32, 16, 8),
}
TIMM_FREE = frozenset(
    "num_features pretrained_cfg label_names label_descriptions".split()
)

KINDS = {
    "kernel": ("weight", (2, 3, 1, 0)),
    "scale": ("weight", (0,)),
    "bias": ("bias", (0,)),
    "mean": ("running_mean", (0,)),
    "var": ("running_var", (0,)),
}
"""Leaves of convolutions and norms, whatever collection they are in."""

_BLOCK = re.compile(r"stage_(\d+)_block_(\d+)/(conv|norm|skip)_?(\w+)?")


def timm_module(module: str) -> str:
    """timm's name, and torchvision's, of one of `ResNet`'s convolutions and norms."""
    if not (found := _BLOCK.fullmatch(module)):
        return {"stem": "conv1", "stem_norm": "bn1"}[module]
    stage, block, kind, which = found.groups()
    if kind == "skip":
        part = f"downsample.{1 if which else 0}"
    else:
        part = f"{'conv' if kind == 'conv' else 'bn'}{int(which) + 1}"
    return f"layer{int(stage) + 1}.{block}.{part}"


def transformers_module(module: str) -> str:
    """transformers' name of one of `ResNet`'s convolutions and norms."""
    if not (found := _BLOCK.fullmatch(module)):
        end = {"stem": "convolution", "stem_norm": "normalization"}[module]
        return f"embedder.embedder.{end}"
    stage, block, kind, which = found.groups()
    is_conv = kind == "conv" or (kind == "skip" and not which)
    part = "shortcut" if kind == "skip" else f"layer.{which}"
    end = "convolution" if is_conv else "normalization"
    return f"encoder.stages.{stage}.layers.{block}.{part}.{end}"


def backbone_names(
    leaves: Leaves, ours: str, theirs: str, module: Callable[[str], str]
) -> Names:
    """The weight table of those leaves that are of a `ResNet`.

    Args:
      leaves: of ours.
      ours: where in our variables it is: `backbone/`, or nothing.
      theirs: what its names begin with.
      module: the layout, one of the above.
    """
    names = {}
    for path in leaves:
        _, _, rest = path.partition("/")
        name, _, kind = rest.removeprefix(ours).rpartition("/")
        if rest.startswith(ours) and (_BLOCK.fullmatch(name) or "stem" in name):
            end, axes = KINDS[kind]
            names[path] = (f"{theirs}{module(name)}.{end}", axes)
    return names


def load(folder: str) -> tuple[Model, Variables]:
    """The model of a folder, and its variables: float32 host arrays.

    Raises:
      UserError: a file that is missing or cannot be read; a key or a value of the
        config that is not supported; or a leaf that is missing, that nothing claims or
        that has another shape.
    """
    path = Path(folder).expanduser()
    model = model_of(read_config(path / CONFIG, SOURCE))
    expected = expected_leaves(model)
    is_timm = "architecture" in read_config(path / CONFIG, SOURCE)
    names = timm_names(expected) if is_timm else leaf_names(expected)
    return model, read(str(path / WEIGHTS), names, expected, SOURCE, IGNORED)


def backbone(folder: str, norm: Norm = FrozenBatchNorm) -> tuple[ResNet, Variables]:
    """The network below the classes of a folder, for another model to begin with.

    Args:
      folder: as of `load`, which tells what is raised, too.
      norm: takes the place of the one that learns.
    """
    path = Path(folder).expanduser()
    config = read_config(path / CONFIG, SOURCE)
    model = model_of(config, norm)
    model = model.backbone if isinstance(model, ImageClassifier) else model
    assert isinstance(model, ResNet)
    expected = expected_leaves(model)
    if "architecture" in config:
        names, head = backbone_names(expected, "", "", timm_module), "fc.*"
    else:
        prefix = "resnet." if _kind(config) == CLASSIFIER else ""
        names = backbone_names(expected, "", prefix, transformers_module)
        head = "classifier.*"
    ignored = (IGNORED, head)
    return model, read(str(path / WEIGHTS), names, expected, SOURCE, ignored)


def save(folder: str, model: Model, variables: Variables) -> None:
    """Writes a folder that `from_pretrained` of a ResNet of transformers loads.

    Args:
      folder: made where there is none; files of the same names are replaced.
      model: as `model_of` builds it.
      variables: its leaves.

    Raises:
      UserError: a setting of the model that theirs does not have, or a leaf that is
        missing, that nothing claims, or of another shape.
    """
    _save(folder, config_of(model), leaf_names, model, variables)


def save_timm(folder: str, model: ImageClassifier, variables: Variables) -> None:
    """As `save`, but a folder of timm."""
    _save(folder, timm_config_of(model), timm_names, model, variables)


def _save(
    folder: str,
    config: Config,
    table: Callable[[Leaves], Names],
    model: Model,
    variables: Variables,
) -> None:
    expected = expected_leaves(model)
    require_leaves(expected, variables)
    path = Path(folder).expanduser()
    path.mkdir(parents=True, exist_ok=True)
    names = table(expected)
    write(str(path / WEIGHTS), names, expected, variables, batches_tracked(names))
    write_config(path / CONFIG, config)


def batches_tracked(names: Names) -> dict[str, np.ndarray]:
    """The counters of theirs beside the norms that learn."""
    norms = [n for n, _ in names.values() if isinstance(n, str) and "running_mean" in n]
    end = IGNORED.removeprefix("*.")
    return {n.replace("running_mean", end): np.zeros((), np.int64) for n in norms}


def model_of(config: Config, norm: Norm = BatchNorm) -> Model:
    """The model that a config of either library describes.

    Args:
      config: of theirs; without `architectures`, of a `ResNetModel`.
      norm: of the model.

    Raises:
      UserError: a key or a value that is not supported, by its name.
    """
    if "architecture" in config:
        given = checked(config, TIMM_KEYS, CONFIG, TIMM_FREE)
        args = {"num_classes": given["num_classes"], **given["model_args"]}
        args = checked(args, TIMM_ARGS, f"model_args in {CONFIG}")
        depths = ARCHITECTURES[given["architecture"]]
        return _classifier(
            ResNet(depths, output_stride=args["output_stride"], norm=norm),
            args["num_classes"] or None,
        )
    config = checked(config, KEYS, CONFIG, TRANSFORMERS)
    depths, width = tuple(config["depths"]), config["embedding_size"]
    sizes = [4 * width * 2**stage for stage in range(len(depths))]
    require_value(
        config,
        CONFIG,
        list(config["hidden_sizes"]) == sizes,
        "hidden_sizes",
        f"{sizes}, as embedding_size and depths say",
    )
    network = ResNet(depths, channels=width, norm=norm)
    if _kind(config) == BACKBONE:
        return network
    num_classes = len(config["id2label"] or ()) or config["num_labels"] or 2
    return _classifier(network, num_classes if _kind(config) == CLASSIFIER else None)


def config_of(model: Model) -> Config:
    """The config of transformers of a model.

    Raises:
      UserError: a setting of the model that theirs does not have, by its path.
    """
    network: Any = model
    num_classes = None
    if isinstance(model, ImageClassifier):
        network, num_classes = model.backbone, model.num_classes
    kind = MODEL if num_classes is None else CLASSIFIER
    config = resnet_config(network)
    stages = len(config["depths"])
    config["architectures"] = [BACKBONE if network is model else kind]
    if network is model:
        config["out_features"] = [f"stage{stage + 1}" for stage in range(stages)]
    if num_classes is not None:
        labels = [f"LABEL_{number}" for number in range(num_classes)]
        config["id2label"] = {str(id): label for id, label in enumerate(labels)}
        config["label2id"] = {label: id for id, label in enumerate(labels)}
    require_same(model, model_of(config), TRANSFORMERS_LAYOUT)
    return config


def resnet_config(network: Any) -> Config:
    """The keys of transformers for a `ResNet`; what they do not tell is not checked."""
    depths, width = setting(network, "depths"), setting(network, "channels")
    return {
        "model_type": "resnet",
        "num_channels": 3,
        "embedding_size": width,
        "hidden_sizes": [4 * width * 2**stage for stage in range(len(depths))],
        "depths": list(depths),
        "layer_type": "bottleneck",
        "hidden_act": "relu",
        "downsample_in_first_stage": False,
    }


def timm_config_of(model: ImageClassifier) -> Config:
    """The config of timm of a model; raises as `config_of`."""
    name = timm_name(setting(model, "backbone.depths")) or "resnet50"
    stride = setting(model, "backbone.output_stride")
    config: Config = {
        "architecture": name,
        "num_classes": model.num_classes or 0,
        "num_features": 2048,
        "global_pool": "avg",
    }
    if stride != 32:
        config["model_args"] = {"output_stride": stride}
    require_same(model, model_of(config), TIMM_LAYOUT)
    return config


def timm_name(depths: tuple[int, ...]) -> str | None:
    """What timm calls a network with such stages."""
    names = (name for name, known in ARCHITECTURES.items() if known == depths)
    return next(names, None)


def leaf_names(leaves: Leaves) -> Names:
    """The weight table of transformers of a model with these `expected_leaves`."""
    if _is_backbone(leaves):
        return backbone_names(leaves, "", "", transformers_module)
    prefix = "resnet." if "params/logits/kernel" in leaves else ""
    names = backbone_names(leaves, "backbone/", prefix, transformers_module)
    return {**names, **_head(leaves, "classifier.1")}


def timm_names(leaves: Leaves) -> Names:
    """The weight table of timm of a model with these `expected_leaves`."""
    names = backbone_names(leaves, "backbone/", "", timm_module)
    return {**names, **_head(leaves, "fc")}


def expected_leaves(model: Model) -> Leaves:
    """The shape of every leaf of the model's variables, by path."""
    return leaf_shapes(model, jnp.zeros((1, 32, 32, 3)))


def _head(leaves: Leaves, module: str) -> Names:
    ours = {
        "params/logits/kernel": ("weight", (1, 0)),
        "params/logits/bias": ("bias", (0,)),
    }
    return {
        path: (f"{module}.{name}", axes)
        for path, (name, axes) in ours.items()
        if path in leaves
    }


def _is_backbone(leaves: Leaves) -> bool:
    return not any("/backbone/" in path for path in leaves)


def _kind(config: Config) -> str:
    return (config.get("architectures") or [MODEL])[0]


def _classifier(network: ResNet, num_classes: int | None) -> ImageClassifier:
    return ImageClassifier(
        network, num_classes=num_classes, norm=None, kernel_init=torch_linear()
    )
