"""DETR as transformers keeps it, with and without masks, both ways.

A folder holds `config.json` and `model.safetensors`, or the parts of that file and
their index. Carion et al. 2020, arXiv:2005.12872; public as facebook/detr-resnet-*,
dilated (`-dc5`) and with masks (`-panoptic`). By the first of `architectures` in the
config it is a `DETR` without (DetrForObjectDetection) or with (DetrForSegmentation) a
mask head.

The backbone is timm's ResNet, as in the public folders, or, with `use_timm_backbone`
false, that of transformers, which cannot be dilated. Their norms are frozen, whatever
they are called.

Differs: with `auxiliary_loss` theirs norms the stream between the layers of the
decoder, too, which the original does not; here, as there, it only says which losses
training takes. The weights of losses and of the matching are settings of
`research.tasks.detection.Detection`.
"""

from functools import partial
from pathlib import Path

import jax.numpy as jnp

from research.layers.attention import Attention
from research.layers.cores import Softmax
from research.layers.initializers import xavier
from research.layers.mlp import FeedForward
from research.layers.norms import LayerNorm
from research.layers.residual import PostNorm
from research.layers.stack import Stack, TransformerBlock
from research.models.detr import DETR, LearnedPositions, MaskHead, SinePositions
from research.models.resnet import FrozenBatchNorm, ResNet
from research.pretrained import resnet
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
    module_names,
    read,
    require_leaves,
    stored_names,
    write,
)
from research.tasks.base import Variables

WEIGHTS = "model.safetensors"
SOURCE = "give a folder that save_pretrained of a DETR of transformers wrote"
LAYOUT = "transformers' DETR"
BOXES, MASKS = "DetrForObjectDetection", "DetrForSegmentation"
MASK_PREFIX = "detr."
"""Of all names but the mask head's, where there is one."""

_rate = Key(0.0, rate, "a rate from 0 to below 1")
_width = Key(2048, count, "a width")
_number = Key(6, count, "a number of layers")
_anything = Key(None, lambda value: True, "anything")
_keys = Key(None, lambda value: value is None or isinstance(value, dict), "keys")

# The defaults are those of transformers 5.24.
KEYS = TRANSFORMERS_KEYS | {
    "architectures": Key(
        None,
        lambda names: (
            not names or isinstance(names, list) and names[0] in (BOXES, MASKS)
        ),
        f"a list with {BOXES} or {MASKS}",
    ),
    "model_type": only("detr"),
    "num_channels": only(3),
    "num_queries": Key(100, count, "a number of queries"),
    "d_model": _width._replace(default=256),
    "hidden_size": Key(None, lambda value: True, "d_model"),
    "encoder_layers": _number,
    "num_hidden_layers": Key(None, lambda value: True, "encoder_layers"),
    "encoder_ffn_dim": _width,
    "encoder_attention_heads": Key(8, count, "a number of heads"),
    "num_attention_heads": Key(None, lambda value: True, "encoder_attention_heads"),
    "decoder_layers": _number,
    "decoder_ffn_dim": _width,
    "decoder_attention_heads": Key(8, count, "a number of heads"),
    "activation_function": only(*ACTIVATIONS),
    "dropout": _rate._replace(default=0.1),
    "attention_dropout": _rate,
    "activation_dropout": _rate,
    "position_embedding_type": only("sine", "learned"),
    "is_encoder_decoder": only(True),
    "scale_embedding": only(False),
    "id2label": _keys,
    "num_labels": Key(
        None, lambda value: value is None or count(value), "null or a number of classes"
    ),
    # Of the backbone.
    "use_timm_backbone": Key(None, lambda v: v in (None, True, False), "true or false"),
    "backbone": Key(None, lambda v: v is None or isinstance(v, str), "a name of timm"),
    "backbone_config": _keys,
    "backbone_kwargs": _keys,
    "dilation": Key(False, lambda v: v in (None, True, False), "true or false"),
}
FREE = TRANSFORMERS | frozenset(
    # How it is trained, and from what it starts.
    "auxiliary_loss class_cost bbox_cost giou_cost mask_loss_coefficient "
    "dice_loss_coefficient bbox_loss_coefficient giou_loss_coefficient eos_coefficient "
    "init_std init_xavier_std encoder_layerdrop decoder_layerdrop "
    "use_pretrained_backbone freeze_backbone classifier_dropout "
    # Of the class of theirs that it once was.
    "max_position_embeddings normalize_before tie_word_embeddings".split()
)
TIMM_KEYS = {
    "model_type": only("timm_backbone"),
    "backbone": Key(None, lambda name: isinstance(name, str), "a name of timm"),
    "num_channels": only(3),
    "features_only": only(True),
    "output_stride": only(None, 8, 16, 32, default=32),
    "out_indices": _anything,
    "out_features": _anything,
    "stage_names": _anything,
    "freeze_batch_norm_2d": only(False, True),
    "is_encoder_decoder": only(False),
}
"""Of `backbone_config` and `backbone_kwargs`."""

SETTINGS = {
    "num_queries": "num_queries",
    "d_model": "embed_dim",
    "encoder_layers": "encoder.num_layers",
    "encoder_ffn_dim": "encoder.blocks.0.mlp.mlp_dim",
    "encoder_attention_heads": "encoder.blocks.0.mixer.num_heads",
    "decoder_layers": "decoder.num_layers",
    "decoder_ffn_dim": "decoder.blocks.0.mlp.mlp_dim",
    "decoder_attention_heads": "decoder.blocks.0.mixer.num_heads",
    "dropout": "encoder.blocks.0.residual.dropout_rate",
    "attention_dropout": "encoder.blocks.0.mixer.core.dropout_rate",
    "activation_dropout": "encoder.blocks.0.mlp.dropout_rate",
}
"""Where in our model the value of a key is."""

ATTENTION = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "out": "out_proj"}
BLOCK = {
    **{f"mixer/{ours}": f"self_attn.{name}" for ours, name in ATTENTION.items()},
    "mixer_residual/norm": "self_attn_layer_norm",
    **{f"cross/{ours}": f"encoder_attn.{name}" for ours, name in ATTENTION.items()},
    "cross_residual/norm": "encoder_attn_layer_norm",
    "mlp/up": "fc1",
    "mlp/down": "fc2",
    "mlp_residual/norm": "final_layer_norm",
}
MODULES = {
    **{
        f"{side}/layers/block_0/{ours}": f"model.{side}.layers.{{}}.{name}"
        for side in ("encoder", "decoder")
        for ours, name in BLOCK.items()
    },
    "decoder/final_norm": "model.decoder.layernorm",
    "classes": "class_labels_classifier",
    **{f"box_{number}": f"bbox_predictor.layers.{number}" for number in range(3)},
}
MASK_MODULES = {
    "mask_head/query": "bbox_attention.q_linear",
    "mask_head/key": "bbox_attention.k_linear",
    **{f"mask_head/norm_{i}": f"mask_head.gn{i + 1}" for i in range(5)},
}
# Convolutions, also those that are dense layers of ours.
CONVOLUTIONS = {
    "project": "model.input_projection",
    **{f"mask_head/conv_{i}": f"mask_head.lay{i + 1}" for i in range(5)},
    **{f"mask_head/adapter_{i}": f"mask_head.adapter{i + 1}" for i in range(3)},
    "mask_head/logits": "mask_head.out_lay",
}
TABLES = {
    "queries": "model.query_position_embeddings.weight",
    "positions/row": "model.position_embedding.row_embeddings.weight",
    "positions/column": "model.position_embedding.column_embeddings.weight",
}
BACKBONE = "model.backbone.conv_encoder.model."

NORM = partial(LayerNorm, epsilon=1e-5)


def load(folder: str) -> tuple[DETR, Variables]:
    """The model of a folder, and its variables: float32 host arrays.

    Raises:
      UserError: a file that is missing or cannot be read; a key or a value of the
        config that is not supported; or a leaf that is missing, that nothing claims or
        that has another shape.
    """
    config = read_config(Path(folder).expanduser() / CONFIG, SOURCE)
    path = str(Path(folder) / WEIGHTS)
    model = model_of(config)
    expected = expected_leaves(model)
    stored = stored_names(path, SOURCE)
    is_timm = not any(".embedder.embedder." in name for name in stored)
    names = leaf_names(expected, is_timm)
    return model, read(path, names, expected, SOURCE, resnet.IGNORED, _today)


def save(
    folder: str, model: DETR, variables: Variables, timm: bool | None = None
) -> None:
    """Writes a folder that `from_pretrained` of a DETR of theirs loads.

    Args:
      folder: made where there is none; files of the same names are replaced.
      model: as `model_of` builds it.
      variables: its leaves.
      timm: whether the backbone is written as timm's; None is for one of which timm
        has a name.

    Raises:
      UserError: a setting of the model that theirs does not have, or a leaf that is
        missing, that nothing claims, or of another shape.
    """
    config = config_of(model, timm)
    expected = expected_leaves(model)
    require_leaves(expected, variables)
    path = Path(folder).expanduser()
    path.mkdir(parents=True, exist_ok=True)
    names = leaf_names(expected, config["use_timm_backbone"])
    write(str(path / WEIGHTS), names, expected, variables)
    write_config(path / CONFIG, config)


def model_of(config: Config) -> DETR:
    """The model that a config describes.

    Args:
      config: of theirs; without `architectures`, without masks.

    Raises:
      UserError: a key or a value that is not supported, by its name.
    """
    config = _checked(config)
    activation = ACTIVATIONS[config["activation_function"]]

    def stack(side: str) -> Stack:
        attention = partial(
            Attention,
            num_heads=config[f"{side}_attention_heads"],
            core=Softmax(dropout_rate=config["attention_dropout"]),
            kernel_init=xavier(),
        )
        block = partial(
            TransformerBlock,
            mixer=attention,
            mlp=partial(
                FeedForward,
                mlp_dim=config[f"{side}_ffn_dim"],
                activation=activation,
                dropout_rate=config["activation_dropout"],
                kernel_init=xavier(),
            ),
            residual=partial(PostNorm, norm=NORM, dropout_rate=config["dropout"]),
        )
        number = config[f"{side}_layers"]
        if side == "encoder":
            return Stack(number, (block,))
        return Stack(number, (partial(block, cross=attention),), final_norm=NORM)

    depths, channels, output_stride = config["backbone"]
    heads, architecture = config["encoder_attention_heads"], config["architectures"]
    learned = config["position_embedding_type"] == "learned"
    return DETR(
        backbone=ResNet(depths, channels, output_stride, FrozenBatchNorm),
        encoder=stack("encoder"),
        decoder=stack("decoder"),
        embed_dim=config["d_model"],
        num_queries=config["num_queries"],
        num_classes=config["num_labels"],
        positions=LearnedPositions() if learned else SinePositions(),
        mask_head=partial(MaskHead, num_heads=heads)
        if (architecture or [BOXES])[0] == MASKS
        else None,
    )


def config_of(model: DETR, timm: bool | None = None) -> Config:
    """The config of a model.

    Args:
      model: as `model_of` builds it.
      timm: as of `save`.

    Raises:
      UserError: a setting of the model that theirs does not have, by its path.
    """
    mlp = "encoder.blocks.0.mlp"
    activation = activation_name(setting(model, f"{mlp}.activation"))
    positions = setting(model, "positions")
    learned = isinstance(positions, LearnedPositions)
    labels = [f"LABEL_{number}" for number in range(model.num_classes)]
    config: Config = {
        "architectures": [BOXES if model.mask_head is None else MASKS],
        "model_type": "detr",
        "is_encoder_decoder": True,
        **{key: setting(model, path) for key, path in SETTINGS.items()},
        "activation_function": activation or "relu",
        "position_embedding_type": "learned" if learned else "sine",
        "id2label": {str(id): label for id, label in enumerate(labels)},
        "label2id": {label: id for id, label in enumerate(labels)},
        "num_channels": 3,
    }
    name = resnet.timm_name(setting(model, "backbone.depths"))
    stride = setting(model, "backbone.output_stride")
    if timm is None:
        timm = name is not None and setting(model, "backbone.channels") == 64
    config["use_timm_backbone"] = timm
    if timm:
        config |= {
            "backbone": name or "resnet50",
            "dilation": stride == 16,
            "use_pretrained_backbone": False,
        }
    else:
        stages = [f"stage{i + 1}" for i in range(len(model.backbone.depths))]
        network = resnet.resnet_config(model.backbone)
        # Only masks are made of the finer maps, but a list does no harm.
        config["backbone_config"] = {**network, "out_features": stages}
        config |= {"backbone": None, "dilation": False}
    require_same(model, model_of(config), LAYOUT)
    return config


def leaf_names(leaves: Leaves, is_timm: bool = True) -> Names:
    """The weight table of a model with these `expected_leaves`.

    Args:
      leaves: of ours.
      is_timm: whether the backbone is timm's, or that of transformers.

    Raises:
      UserError: a leaf that theirs does not have.
    """
    prefix = ""
    if any(path.startswith("params/mask_head/") for path in leaves):
        prefix = MASK_PREFIX
    module = resnet.timm_module if is_timm else resnet.transformers_module
    names = dict(resnet.backbone_names(leaves, "backbone/", prefix + BACKBONE, module))
    for ours, table in TABLES.items():
        names[f"params/{ours}"] = (prefix + table, (0, 1))
    for ours, convolution in CONVOLUTIONS.items():
        start = "" if ours.startswith("mask_head") else prefix
        for kind, (leaf, axes) in resnet.KINDS.items():
            names[f"params/{ours}/{kind}"] = (f"{start}{convolution}.{leaf}", axes)
    names = {path: name for path, name in names.items() if path in leaves}
    others = {path: leaf for path, leaf in leaves.items() if path not in names}
    modules = {ours: prefix + name for ours, name in MODULES.items()} | MASK_MODULES
    return {**names, **module_names(others, modules, LAYOUT)}


def expected_leaves(model: DETR) -> Leaves:
    """The shape of every leaf of the model's variables, by path."""
    image = jnp.zeros((1, 64, 64, 3))
    return leaf_shapes(model, image, jnp.ones((1, 64, 64), bool))


def _today(name: str) -> str:
    """What version 4 of theirs called the tables of learned positions."""
    return name.replace("backbone.position_embedding.", "position_embedding.")


def _checked(config: Config) -> Config:
    """With the value of every key, each supported alone and with the others.

    `backbone` becomes depths, channels and output stride.
    """
    config = checked(config, KEYS, CONFIG, FREE)
    require = partial(require_value, config, CONFIG)
    for alias, key in (
        ("hidden_size", "d_model"),
        ("num_hidden_layers", "encoder_layers"),
        ("num_attention_heads", "encoder_attention_heads"),
    ):
        # Theirs goes by whichever of the two it reads last.
        require(config[alias] in (None, config[key]), alias, f"{config[key]}, as {key}")
    width = config["d_model"]
    require(width % 4 == 0, "d_model", "a multiple of four")
    for side in ("encoder", "decoder"):
        key = f"{side}_attention_heads"
        require(width % config[key] == 0, key, f"a divisor of d_model, {width}")
    config["num_labels"] = len(config["id2label"] or ()) or config["num_labels"] or 2
    config["backbone"] = _backbone(config)
    return config


def _backbone(config: Config) -> tuple[tuple[int, ...], int, int]:
    """Depths, channels and output stride of the ResNet that a config tells of."""
    own = config["backbone_config"] or {}
    if own.get("model_type", "timm_backbone") != "timm_backbone":
        file = f"backbone_config in {CONFIG}"
        own = checked(own, resnet.KEYS, file, TRANSFORMERS)
        network = resnet.model_of({**own, "architectures": [resnet.BACKBONE]})
        assert isinstance(network, ResNet)
        require_value(
            config, CONFIG, not config["dilation"], "dilation", "false, as timm's only"
        )
        return network.depths, network.channels, network.output_stride
    require_value(
        config,
        CONFIG,
        config["use_timm_backbone"] is not False,
        "use_timm_backbone",
        "true where there is no backbone_config",
    )
    given = {"backbone": config["backbone"] or "resnet50"}
    given |= {key: value for key, value in own.items() if key not in FREE}
    given |= config["backbone_kwargs"] or {}
    given = checked(given, TIMM_KEYS, f"backbone_config in {CONFIG}", FREE)
    name = given["backbone"].partition(".")[0]
    require_value(
        given,
        CONFIG,
        name in resnet.ARCHITECTURES,
        "backbone",
        " or ".join(resnet.ARCHITECTURES),
    )
    stride = given["output_stride"] or 32
    return resnet.ARCHITECTURES[name], 64, 16 if config["dilation"] else stride
