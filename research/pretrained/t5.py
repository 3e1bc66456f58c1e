"""T5 as transformers keeps it, `T5ForConditionalGeneration`, both ways.

A folder holds `config.json` and `model.safetensors`, or the parts of that file and
their index. Raffel et al. 2020, arXiv:1910.10683; public as google-t5/t5-*, and version
1.1 as google/t5-v1_1-*, google/flan-t5-* and google/byt5-*:

    1.0   ReLU; logits are products with the tokens' vectors, of an output that is
          scaled by embed_dim^-0.5
    1.1   gated GELU; logits have a kernel of their own, and nothing is scaled

There decoding begins with the padding token. transformers 5 ties the logits of any new
model; what it reads as untied is a file with an `lm_head.weight`.
"""

import json
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from research.layers.attention import Attention
from research.layers.cores import Softmax
from research.layers.cores.softmax import unscaled
from research.layers.embeddings import TokenEmbedding
from research.layers.mlp import FeedForward
from research.layers.norms import RMSNorm
from research.layers.positions import RelativeBias
from research.layers.residual import PreNorm
from research.layers.stack import Stack, TransformerBlock
from research.models.transformer import EncoderDecoder
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

WEIGHTS = "model.safetensors"
SOURCE = "give a folder that T5ForConditionalGeneration.save_pretrained wrote"
LAYOUT = "transformers' T5ForConditionalGeneration"

# What is called gated-gelu there is tanh's approximation; plain gelu is not.
PROJECTIONS = {name: (False, name) for name in ACTIVATIONS}
PROJECTIONS |= {f"gated-{name}": (True, name) for name in ACTIVATIONS}
PROJECTIONS["gated-gelu"] = (True, "gelu_new")

_either = Key(None, lambda value: value in (None, False, True), "true or false")

# The defaults are those of transformers 5.24.
KEYS = TRANSFORMERS_KEYS | {
    "model_type": only("t5"),
    "vocab_size": Key(32128, count, "a number of tokens"),
    "d_model": Key(512, count, "a width"),
    "d_kv": Key(64, count, "a width"),
    "d_ff": Key(2048, count, "a width"),
    "num_layers": Key(6, count, "a number of layers"),
    "num_decoder_layers": Key(
        None, lambda value: value is None or count(value), "null or a number of layers"
    ),
    "num_heads": Key(8, count, "a number of heads"),
    "relative_attention_num_buckets": Key(32, count, "a number of buckets"),
    "relative_attention_max_distance": Key(128, count, "a distance"),
    "dropout_rate": Key(0.1, rate, "a rate from 0 to below 1"),
    "layer_norm_epsilon": Key(1e-6, positive, "a positive number"),
    "initializer_factor": Key(1.0, positive, "a positive number"),
    "feed_forward_proj": only(*PROJECTIONS),
    "dense_act_fn": Key(None, lambda value: True, "anything"),
    "is_gated_act": _either,
    "is_encoder_decoder": only(True),
    "pad_token_id": Key(0, token, "a token"),
    "tie_word_embeddings": _either,
    "scale_decoder_outputs": _either,
}
FREE = TRANSFORMERS | {"n_positions", "classifier_dropout"}

SETTINGS = {
    "vocab_size": "embedding.vocab_size",
    "d_model": "embedding.embed_dim",
    "d_kv": "encoder.blocks.0.mixer.head_dim",
    "d_ff": "encoder.blocks.0.mlp.mlp_dim",
    "num_layers": "encoder.num_layers",
    "num_decoder_layers": "decoder.num_layers",
    "num_heads": "encoder.blocks.0.mixer.num_heads",
    "relative_attention_num_buckets": "encoder.bias.num_buckets",
    "relative_attention_max_distance": "encoder.bias.max_distance",
    "dropout_rate": "embedding.dropout_rate",
    "layer_norm_epsilon": "encoder.final_norm.epsilon",
    "pad_token_id": "pad",
}
"""Where in our model the value of a key is."""

ATTENTION = {"query": "q", "key": "k", "value": "v", "out": "o"}
MLPS = {
    False: {"up": "wi", "down": "wo"},
    True: {"gate": "wi_0", "up": "wi_1", "down": "wo"},
}
"""Plain and gated."""

# In the order in which they are numbered in a block.
ENCODER = {"mixer": "SelfAttention", "mlp": "DenseReluDense"}
DECODER = {
    "mixer": "SelfAttention",
    "cross": "EncDecAttention",
    "mlp": "DenseReluDense",
}

SHARED, HEAD = "shared.weight", "lm_head.weight"
COPIES = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
# Of the first public files; no position is known across.
IGNORED = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"


def load(folder: str) -> tuple[EncoderDecoder, Variables]:
    """The model of a folder, and its variables: float32 host arrays.

    Raises:
      UserError: a file that is missing or cannot be read; a key or a value of the
        config that is not supported; or a leaf that is missing, that nothing claims,
        that has another shape, or is tied to another and differs.
    """
    config = read_config(Path(folder).expanduser() / CONFIG, SOURCE)
    path = str(Path(folder) / WEIGHTS)
    model = model_of(config, has_head=HEAD in stored_names(path, SOURCE))
    copies = COPIES + ((HEAD,) if model.tie_embeddings else ())
    repeats = {copy: SHARED for copy in copies}
    expected = expected_leaves(model)
    names = leaf_names(expected)
    return model, read(path, names, expected, SOURCE, IGNORED, repeats=repeats)


def save(
    folder: str, model: EncoderDecoder, variables: Variables, end: int = 1
) -> None:
    """Writes a folder that `T5ForConditionalGeneration.from_pretrained` loads.

    Args:
      folder: made where there is none; files of the same names are replaced.
      model: as `model_of` builds it.
      variables: its leaves.
      end: the token that ends a sequence.

    Raises:
      UserError: a setting of the model that theirs does not have, or a leaf that is
        missing, that nothing claims, or of another shape.
    """
    config = config_of(model) | {"eos_token_id": end}
    expected = expected_leaves(model)
    require_leaves(expected, variables)
    path = Path(folder).expanduser()
    path.mkdir(parents=True, exist_ok=True)
    write(str(path / WEIGHTS), leaf_names(expected), expected, variables)
    write_config(path / CONFIG, config)


def model_of(config: Config, has_head: bool = False) -> EncoderDecoder:
    """The model that a config describes.

    Args:
      config: of theirs.
      has_head: whether the file holds the kernel of the logits, which is read as
        untied unless the config is one of version 1.0.

    Raises:
      UserError: a key or a value that is not supported, by its name.
    """
    config = _checked(config)
    is_gated, activation = PROJECTIONS[config["feed_forward_proj"]]
    dim, head_dim = config["d_model"], config["d_kv"]
    num_heads, dropout_rate = config["num_heads"], config["dropout_rate"]

    def normal(scale: float) -> Any:
        return nn.initializers.normal(config["initializer_factor"] * scale)

    attention = partial(
        Attention,
        num_heads=num_heads,
        head_dim=head_dim,
        core=Softmax(scale=unscaled, dropout_rate=dropout_rate),
        use_bias=False,
        kernel_init=normal(dim**-0.5),
        query_init=normal((dim * head_dim) ** -0.5),
        out_init=normal((num_heads * head_dim) ** -0.5),
    )
    norm = partial(RMSNorm, epsilon=config["layer_norm_epsilon"])
    block = partial(
        TransformerBlock,
        mixer=attention,
        mlp=partial(
            FeedForward,
            mlp_dim=config["d_ff"],
            activation=ACTIVATIONS[activation],
            gated=is_gated,
            dropout_rate=dropout_rate,
            use_bias=False,
            kernel_init=normal(dim**-0.5),
            out_init=normal(config["d_ff"] ** -0.5),
        ),
        residual=partial(PreNorm, norm=norm, dropout_rate=dropout_rate),
    )

    def stack(num_layers: int, is_encoder: bool) -> Stack:
        bias = RelativeBias(
            num_heads=num_heads,
            num_buckets=config["relative_attention_num_buckets"],
            max_distance=config["relative_attention_max_distance"],
            bidirectional=is_encoder,
            embedding_init=normal(dim**-0.5),
        )
        return Stack(
            num_layers=num_layers,
            blocks=(block if is_encoder else partial(block, cross=attention),),
            final_norm=norm,
            bias=bias,
            dropout_rate=dropout_rate,
        )

    is_tied = config["tie_word_embeddings"]
    is_scaled = config["scale_decoder_outputs"]
    return EncoderDecoder(
        embedding=TokenEmbedding(
            vocab_size=config["vocab_size"],
            embed_dim=dim,
            dropout_rate=dropout_rate,
            embedding_init=normal(1.0),
        ),
        encoder=stack(config["num_layers"], True),
        decoder=stack(config["num_decoder_layers"], False),
        tie_embeddings=is_tied and (is_scaled or not has_head),
        logit_scale=dim**-0.5 if is_scaled else 1.0,
        pad=config["pad_token_id"],
        logits_init=normal(1.0),
    )


def config_of(model: EncoderDecoder) -> Config:
    """The config of a model.

    Raises:
      UserError: a setting of the model that theirs does not have, by its path.
    """
    config = {key: setting(model, path) for key, path in SETTINGS.items()}
    mlp = "encoder.blocks.0.mlp"
    name = activation_name(setting(model, f"{mlp}.activation"))
    wanted = (setting(model, f"{mlp}.gated"), name)
    names = (name for name, there in PROJECTIONS.items() if there == wanted)
    is_scaled = setting(model, "logit_scale") != 1
    config = {
        "architectures": ["T5ForConditionalGeneration"],
        "model_type": "t5",
        "is_encoder_decoder": True,
        **config,
        "feed_forward_proj": next(names, "relu"),
        # Version 4 goes by the first key, version 5 by the second.
        "tie_word_embeddings": setting(model, "tie_embeddings"),
        "scale_decoder_outputs": is_scaled,
        "decoder_start_token_id": config["pad_token_id"],
    }
    if not config["tie_word_embeddings"]:
        config["scale_decoder_outputs"] = False
    require_same(model, model_of(config), LAYOUT)
    return config


def leaf_names(leaves: Leaves) -> Names:
    """The weight table of a model with these `expected_leaves`.

    Raises:
      UserError: a leaf that theirs does not have.
    """
    modules = {"embedding": "shared", "logits": "lm_head"}
    is_gated = "params/encoder/layers/block_0/mlp/gate/kernel" in leaves
    for side, parts in (("encoder", ENCODER), ("decoder", DECODER)):
        first = f"{side}.block.0.layer.0.SelfAttention"
        modules[f"{side}/bias"] = f"{first}.relative_attention_bias"
        modules[f"{side}/final_norm"] = f"{side}.final_layer_norm"
        for number, (part, theirs) in enumerate(parts.items()):
            layer = f"{side}.block.{{}}.layer.{number}"
            ours = f"{side}/layers/block_0/{part}"
            modules[f"{ours}_residual/norm"] = f"{layer}.layer_norm"
            table = MLPS[is_gated] if part == "mlp" else ATTENTION
            for name, leaf in table.items():
                modules[f"{ours}/{name}"] = f"{layer}.{theirs}.{leaf}"
    return module_names(leaves, modules, LAYOUT)


def expected_leaves(model: EncoderDecoder) -> Leaves:
    """The shape of every leaf of the model's variables, by path."""
    tokens = jnp.zeros((1, 1), jnp.int32)
    return leaf_shapes(model, tokens, tokens)


def _checked(config: Config) -> Config:
    """With the value of every key, each supported alone and with the others."""
    config = checked(config, KEYS, CONFIG, FREE)
    require = partial(require_value, config, CONFIG)
    is_gated, activation = PROJECTIONS[config["feed_forward_proj"]]
    require(
        config["is_gated_act"] in (None, is_gated)
        and config["dense_act_fn"] in (None, activation),
        "feed_forward_proj",
        f"what is_gated_act = {json.dumps(config['is_gated_act'])} and dense_act_fn = "
        f"{json.dumps(config['dense_act_fn'])} say, too",
    )
    is_tied = config["tie_word_embeddings"] is not False
    is_scaled = config["scale_decoder_outputs"]
    require(
        is_tied or not is_scaled,
        "scale_decoder_outputs",
        "false, as tie_word_embeddings is",
    )
    config["tie_word_embeddings"] = is_tied
    config["scale_decoder_outputs"] = is_tied if is_scaled is None else is_scaled
    config["num_decoder_layers"] = config["num_decoder_layers"] or config["num_layers"]
    return config
