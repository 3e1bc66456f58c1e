"""BERT as transformers keeps it, both ways.

A folder holds `config.json` and `model.safetensors`, or the parts of that file and
their index. Devlin et al. 2019, arXiv:1810.04805; public as google-bert/bert-*, and
many fine-tuned ones. By the first of `architectures` in the config a folder is

    BertModel                       `Encoder`; with a pooler, `SequenceClassifier`
                                    without classes, whose output is the pooler's
    BertForMaskedLM                 `MaskedLanguageModel`
    BertForPreTraining              the same
    BertForSequenceClassification   `SequenceClassifier`

Next-sentence prediction, whose head and pooler some files of the second kind hold, is
left aside, as `BertForMaskedLM` does. Theirs takes every token for valid unless it is
given a mask; ours takes padding for padding.
"""

from functools import partial
from pathlib import Path

import flax.linen as nn
import jax.numpy as jnp

from research.errors import UserError
from research.layers.attention import Attention
from research.layers.cores import Softmax
from research.layers.embeddings import TokenEmbedding
from research.layers.mlp import FeedForward
from research.layers.norms import LayerNorm
from research.layers.positions import Learned
from research.layers.residual import PostNorm
from research.layers.stack import Stack, TransformerBlock
from research.models.transformer import (
    Encoder,
    MaskedLanguageModel,
    SequenceClassifier,
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
    token,
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

Bert = Encoder | MaskedLanguageModel | SequenceClassifier

WEIGHTS = "model.safetensors"
SOURCE = "give a folder that save_pretrained of a BERT of transformers wrote"
LAYOUT = "transformers' BERT"

MODEL, MASKED, CLASSIFIER = (
    "BertModel",
    "BertForMaskedLM",
    "BertForSequenceClassification",
)
ARCHITECTURES = (MODEL, MASKED, "BertForPreTraining", CLASSIFIER)

_width = Key(768, count, "a width")
_rate = Key(0.1, rate, "a rate from 0 to below 1")

# The defaults are those of transformers 5.24.
KEYS = TRANSFORMERS_KEYS | {
    "architectures": Key(
        None,
        lambda names: (
            not names or isinstance(names, list) and names[0] in ARCHITECTURES
        ),
        f"a list with one of {', '.join(ARCHITECTURES)}",
    ),
    "model_type": only("bert"),
    "vocab_size": Key(30522, count, "a number of tokens"),
    "hidden_size": _width,
    "num_hidden_layers": Key(12, count, "a number of layers"),
    "num_attention_heads": Key(12, count, "a number of heads"),
    "intermediate_size": _width._replace(default=3072),
    "hidden_act": only(*ACTIVATIONS, default="gelu"),
    "hidden_dropout_prob": _rate,
    "attention_probs_dropout_prob": _rate,
    "max_position_embeddings": Key(512, count, "a number of positions"),
    "type_vocab_size": Key(2, count, "a number of types"),
    "initializer_range": Key(0.02, positive, "a positive number"),
    "layer_norm_eps": Key(1e-12, positive, "a positive number"),
    "position_embedding_type": only("absolute"),
    "pad_token_id": Key(0, token, "a token"),
    "tie_word_embeddings": only(True),
    "is_encoder_decoder": only(False),
    "classifier_dropout": Key(
        None, lambda value: value is None or rate(value), "null or a rate"
    ),
    "id2label": Key(
        None, lambda labels: labels is None or isinstance(labels, dict), "labels"
    ),
    "num_labels": Key(
        None, lambda number: number is None or count(number), "null or a number"
    ),
}
FREE = TRANSFORMERS | {
    # Of the first files.
    "directionality",
    "pooler_fc_size",
    "pooler_num_attention_heads",
    "pooler_num_fc_layers",
    "pooler_size_per_head",
    "pooler_type",
}

SETTINGS = {
    "vocab_size": "embedding.vocab_size",
    "hidden_size": "embedding.embed_dim",
    "num_hidden_layers": "body.num_layers",
    "num_attention_heads": "body.blocks.0.mixer.num_heads",
    "intermediate_size": "body.blocks.0.mlp.mlp_dim",
    "hidden_dropout_prob": "embedding.dropout_rate",
    "attention_probs_dropout_prob": "body.blocks.0.mixer.core.dropout_rate",
    "max_position_embeddings": "embedding.positions.max_length",
    "type_vocab_size": "embedding.num_types",
    "layer_norm_eps": "embedding.norm.epsilon",
    "pad_token_id": "pad",
}
"""Where in our encoder the value of a key is."""

EMBEDDINGS = {
    "embedding": "embeddings.word_embeddings",
    "embedding/positions": "embeddings.position_embeddings",
    "embedding/embedding_norm": "embeddings.LayerNorm",
}
BLOCK = {
    "mixer/query": "attention.self.query",
    "mixer/key": "attention.self.key",
    "mixer/value": "attention.self.value",
    "mixer/out": "attention.output.dense",
    "mixer_residual/norm": "attention.output.LayerNorm",
    "mlp/up": "intermediate.dense",
    "mlp/down": "output.dense",
    "mlp_residual/norm": "output.LayerNorm",
}
TYPES = "embeddings.token_type_embeddings.weight"
HEAD = {
    "dense": "cls.predictions.transform.dense",
    "norm": "cls.predictions.transform.LayerNorm",
}
HEAD_BIAS = "cls.predictions.bias"
COPIES = {
    "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
    "cls.predictions.decoder.bias": HEAD_BIAS,
}
POOLER = "pooler.dense"
IGNORED = ("*embeddings.position_ids",)
NEXT_SENTENCE = (f"bert.{POOLER}.*", "cls.seq_relationship.*")
HEADS = ("cls.*", "classifier.*")


def load(folder: str, architecture: str = "") -> tuple[Bert, Variables]:
    """The model of a folder, and its variables: float32 host arrays.

    Args:
      folder: see above.
      architecture: to read it as, whatever the config says: `BertModel` leaves the
        heads of pretraining aside, and keeps the pooler, if the file has one.

    Raises:
      UserError: a file that is missing or cannot be read; a key or a value of the
        config that is not supported; or a leaf that is missing, that nothing claims,
        that has another shape, or is tied to another and differs.
    """
    config = read_config(Path(folder).expanduser() / CONFIG, SOURCE)
    if architecture:
        if architecture not in ARCHITECTURES:
            raise UserError(
                f"architecture={architecture!r}: expected one of "
                f"{', '.join(ARCHITECTURES)}"
            )
        config["architectures"] = [architecture]
    path = str(Path(folder) / WEIGHTS)
    stored = {_today(name) for name in stored_names(path, SOURCE)}
    model = model_of(config, has_pooler=f"{POOLER}.weight" in stored)
    expected = expected_leaves(model)
    names = leaf_names(expected)
    is_masked = isinstance(model, MaskedLanguageModel)
    aside = NEXT_SENTENCE if is_masked else ()
    if architecture == MODEL:
        aside = HEADS
    return model, read(
        path,
        names,
        expected,
        SOURCE,
        IGNORED + aside,
        _today if _is_bare(expected) else _older,
        COPIES if is_masked else None,
    )


def save(folder: str, model: Bert, variables: Variables) -> None:
    """Writes a folder that `from_pretrained` of a BERT of theirs loads.

    Args:
      folder: made where there is none; files of the same names are replaced.
      model: as `model_of` builds it.
      variables: its leaves.

    Raises:
      UserError: a setting of the model that theirs does not have, or a leaf that is
        missing, that nothing claims, or of another shape.
    """
    config = config_of(model)
    expected = expected_leaves(model)
    require_leaves(expected, variables)
    path = Path(folder).expanduser()
    path.mkdir(parents=True, exist_ok=True)
    write(str(path / WEIGHTS), leaf_names(expected), expected, variables)
    write_config(path / CONFIG, config)


def model_of(config: Config, has_pooler: bool = True) -> Bert:
    """The model that a config describes.

    Args:
      config: of theirs; without `architectures`, of a `BertModel`.
      has_pooler: whether the file of a `BertModel` holds one.

    Raises:
      UserError: a key or a value that is not supported, by its name.
    """
    config = _checked(config)
    dim, dropout_rate = config["hidden_size"], config["hidden_dropout_prob"]
    activation = ACTIVATIONS[config["hidden_act"]]
    normal = nn.initializers.normal(config["initializer_range"])
    norm = partial(LayerNorm, epsilon=config["layer_norm_eps"])
    block = partial(
        TransformerBlock,
        mixer=partial(
            Attention,
            num_heads=config["num_attention_heads"],
            core=Softmax(dropout_rate=config["attention_probs_dropout_prob"]),
            kernel_init=normal,
        ),
        mlp=partial(
            FeedForward,
            mlp_dim=config["intermediate_size"],
            activation=activation,
            kernel_init=normal,
        ),
        residual=partial(PostNorm, norm=norm, dropout_rate=dropout_rate),
    )
    encoder = Encoder(
        embedding=TokenEmbedding(
            vocab_size=config["vocab_size"],
            embed_dim=dim,
            positions=Learned(config["max_position_embeddings"], embedding_init=normal),
            num_types=config["type_vocab_size"],
            norm=norm,
            dropout_rate=dropout_rate,
            embedding_init=normal,
        ),
        body=Stack(num_layers=config["num_hidden_layers"], blocks=(block,)),
        pad=config["pad_token_id"],
    )
    architecture = (config["architectures"] or [MODEL])[0]
    if architecture == MODEL and not has_pooler:
        return encoder
    if architecture in (MODEL, CLASSIFIER):
        is_model, rate = architecture == MODEL, config["classifier_dropout"]
        return SequenceClassifier(
            encoder=encoder,
            num_classes=None if is_model else config["num_labels"],
            hidden_dim=dim,
            activation=jnp.tanh,
            dropout_rate=0.0 if is_model else rate,
            kernel_init=normal,
        )
    return MaskedLanguageModel(
        encoder=encoder, norm=norm, activation=activation, kernel_init=normal
    )


def config_of(model: Bert) -> Config:
    """The config of a model.

    Raises:
      UserError: a setting of the model that theirs does not have, by its path.
    """
    encoder = model if isinstance(model, Encoder) else model.encoder
    activation = activation_name(setting(encoder, "body.blocks.0.mlp.activation"))
    num_classes = getattr(model, "num_classes", None)
    architecture = MODEL if num_classes is None else CLASSIFIER
    config = {
        "architectures": [MASKED]
        if isinstance(model, MaskedLanguageModel)
        else [architecture],
        "model_type": "bert",
        **{key: setting(encoder, path) for key, path in SETTINGS.items()},
        "hidden_act": activation or "gelu",
    }
    if num_classes is not None:
        labels = [f"LABEL_{number}" for number in range(num_classes)]
        config["id2label"] = {str(id): label for id, label in enumerate(labels)}
        config["label2id"] = {label: id for id, label in enumerate(labels)}
        config["classifier_dropout"] = setting(model, "dropout_rate")
    again = model_of(config, has_pooler=not isinstance(model, Encoder))
    require_same(model, again, LAYOUT)
    return config


def leaf_names(leaves: Leaves) -> Names:
    """The weight table of a model with these `expected_leaves`.

    Raises:
      UserError: a leaf that theirs does not have.
    """
    is_encoder = not any(path.startswith("params/encoder/") for path in leaves)
    ours = "" if is_encoder else "encoder/"
    theirs = "" if _is_bare(leaves) else "bert."
    modules = {f"{ours}{name}": f"{theirs}{leaf}" for name, leaf in EMBEDDINGS.items()}
    for name, leaf in BLOCK.items():
        modules[f"{ours}body/layers/block_0/{name}"] = (
            f"{theirs}encoder.layer.{{}}.{leaf}"
        )
    is_masked = "params/logit_bias" in leaves
    modules |= HEAD if is_masked else {"dense": f"{theirs}{POOLER}"}
    modules["logits"] = "classifier"
    others = {
        f"params/{ours}embedding/type_embedding": (f"{theirs}{TYPES}", (0, 1)),
        "params/logit_bias": (HEAD_BIAS, (0,)),
    }
    others = {path: row for path, row in others.items() if path in leaves}
    leaves = {path: leaf for path, leaf in leaves.items() if path not in others}
    return {**module_names(leaves, modules, LAYOUT), **others}


def expected_leaves(model: Bert) -> Leaves:
    """The shape of every leaf of the model's variables, by path."""
    return leaf_shapes(model, jnp.zeros((1, 1), jnp.int32))


def _is_bare(leaves: Leaves) -> bool:
    """Whether it is their `BertModel`, whose names have no prefix."""
    heads = {"params/logit_bias", "params/logits/kernel"}
    return not heads & leaves.keys()


def _older(name: str) -> str:
    """What the first files called the leaves of a norm."""
    for old, new in ((".gamma", ".weight"), (".beta", ".bias")):
        if name.endswith(f"LayerNorm{old}"):
            return name.removesuffix(old) + new
    return name


def _today(name: str) -> str:
    """The name in a `BertModel`; files of other models have a prefix."""
    return _older(name).removeprefix("bert.")


def _checked(config: Config) -> Config:
    """With the value of every key, each supported alone and with the others."""
    config = checked(config, KEYS, CONFIG, FREE)
    width, heads = config["hidden_size"], config["num_attention_heads"]
    require_value(
        config,
        CONFIG,
        width % heads == 0,
        "num_attention_heads",
        f"a divisor of hidden_size, {width}",
    )
    config["num_labels"] = len(config["id2label"] or ()) or config["num_labels"] or 2
    if config["classifier_dropout"] is None:
        config["classifier_dropout"] = config["hidden_dropout_prob"]
    return config
