"""Marian translators as transformers keeps them, `MarianMTModel`, both ways.

A folder holds `config.json` and `model.safetensors`, or the parts of that file and
their index. Junczys-Dowmunt et al. 2018, arXiv:1804.00344; public as
Helsinki-NLP/opus-mt-*: the Transformer of Vaswani et al. 2017 with swish, one table of
tokens for all and a bias of each token's logit. There decoding begins with the padding
token, which is the last of the vocabulary.

The sinusoids of their positions are fixed, so those that a file holds are not read.
"""

import math
from functools import partial
from pathlib import Path

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from research.layers.attention import Attention
from research.layers.cores import Softmax
from research.layers.embeddings import TokenEmbedding
from research.layers.mlp import FeedForward
from research.layers.norms import LayerNorm
from research.layers.positions import Sinusoidal
from research.layers.residual import PostNorm
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
    write,
)
from research.tasks.base import Variables

WEIGHTS = "model.safetensors"
SOURCE = "give a folder that MarianMTModel.save_pretrained wrote"
LAYOUT = "transformers' MarianMTModel"

_size = Key(1024, count, "a width")
_rate = Key(0.0, rate, "a rate from 0 to below 1")

# The defaults are those of transformers 5.24.
KEYS = TRANSFORMERS_KEYS | {
    "model_type": only("marian"),
    "vocab_size": Key(58101, count, "a number of tokens"),
    "decoder_vocab_size": Key(
        None, lambda size: size is None or count(size), "null or a number of tokens"
    ),
    "d_model": _size,
    "encoder_layers": Key(12, count, "a number of layers"),
    "decoder_layers": Key(12, count, "a number of layers"),
    "encoder_attention_heads": Key(16, count, "a number of heads"),
    "decoder_attention_heads": Key(16, count, "a number of heads"),
    "encoder_ffn_dim": _size._replace(default=4096),
    "decoder_ffn_dim": _size._replace(default=4096),
    "activation_function": only(*ACTIVATIONS, default="gelu"),
    "dropout": _rate._replace(default=0.1),
    "attention_dropout": _rate,
    "activation_dropout": _rate,
    "init_std": Key(0.02, positive, "a positive number"),
    "scale_embedding": only(False, True),
    "share_encoder_decoder_embeddings": only(True, False),
    "tie_word_embeddings": only(True, False),
    "pad_token_id": Key(58100, token, "a token"),
    "is_encoder_decoder": only(True),
    # What their files say of the networks that they do not build.
    "static_position_embeddings": only(True),
    "normalize_before": only(False),
    "normalize_embedding": only(False),
    "add_final_layer_norm": only(False),
    "add_bias_logits": only(False),
    "extra_pos_embeddings": only(0, default=0),
}
FREE = TRANSFORMERS | {
    "num_hidden_layers",
    "max_position_embeddings",
    "classif_dropout",
    "classifier_dropout",
    # Chances of leaving layers out in training, which is not done here.
    "encoder_layerdrop",
    "decoder_layerdrop",
}

SETTINGS = {
    "decoder_vocab_size": "embedding.vocab_size",
    "d_model": "embedding.embed_dim",
    "encoder_layers": "encoder.num_layers",
    "decoder_layers": "decoder.num_layers",
    "encoder_attention_heads": "encoder.blocks.0.mixer.num_heads",
    "decoder_attention_heads": "decoder.blocks.0.mixer.num_heads",
    "encoder_ffn_dim": "encoder.blocks.0.mlp.mlp_dim",
    "decoder_ffn_dim": "decoder.blocks.0.mlp.mlp_dim",
    "dropout": "embedding.dropout_rate",
    "attention_dropout": "encoder.blocks.0.mixer.core.dropout_rate",
    "activation_dropout": "encoder.blocks.0.mlp.dropout_rate",
    "tie_word_embeddings": "tie_embeddings",
    "pad_token_id": "pad",
}
"""Where in our model the value of a key is."""

ATTENTION = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "out": "out_proj"}
PARTS = {
    "mixer": ("self_attn", "self_attn_layer_norm"),
    "cross": ("encoder_attn", "encoder_attn_layer_norm"),
}
"""The attentions of a block, each with its norm."""

SHARED, HEAD = "model.shared", "lm_head"
SIDES = {side: f"model.{side}.embed_tokens" for side in ("encoder", "decoder")}
IGNORED = "model.*coder.embed_positions.weight"


def load(folder: str) -> tuple[EncoderDecoder, Variables]:
    """The model of a folder, and its variables: float32 host arrays.

    Raises:
      UserError: a file that is missing or cannot be read; a key or a value of the
        config that is not supported; or a leaf that is missing, that nothing claims,
        that has another shape, or is tied to another and differs.
    """
    model = model_of(read_config(Path(folder).expanduser() / CONFIG, SOURCE))
    expected, path = expected_leaves(model), str(Path(folder) / WEIGHTS)
    names, repeats = leaf_names(expected), _copies(model)
    return model, read(path, names, expected, SOURCE, IGNORED, repeats=repeats)


def save(
    folder: str,
    model: EncoderDecoder,
    variables: Variables,
    end: int = 0,
    max_length: int = 512,
) -> None:
    """Writes a folder that `MarianMTModel.from_pretrained` loads.

    Args:
      folder: made where there is none; files of the same names are replaced.
      model: as `model_of` builds it.
      variables: its leaves.
      end: the token that ends a sequence.
      max_length: of sequences; theirs keeps a table of sinusoids.

    Raises:
      UserError: a setting of the model that theirs does not have, or a leaf that is
        missing, that nothing claims, or of another shape.
    """
    config = config_of(model) | {
        "max_position_embeddings": max_length,
        "eos_token_id": end,
        "forced_eos_token_id": end,
    }
    expected = expected_leaves(model)
    require_leaves(expected, variables)
    path = Path(folder).expanduser()
    path.mkdir(parents=True, exist_ok=True)
    others = {}
    if not model.tie_embeddings:
        # With untied logits transformers 5 ties nothing, and expects every copy.
        table = np.asarray(variables["params"]["embedding"]["embedding"], np.float32)
        others = dict.fromkeys(_copies(model), table)
    write(str(path / WEIGHTS), leaf_names(expected), expected, variables, others)
    write_config(path / CONFIG, config)


def model_of(config: Config) -> EncoderDecoder:
    """The model that a config describes.

    Raises:
      UserError: a key or a value that is not supported, by its name.
    """
    config = _checked(config)
    dim, dropout_rate = config["d_model"], config["dropout"]
    normal = nn.initializers.normal(config["init_std"])

    def stack(side: str) -> Stack:
        attention = partial(
            Attention,
            num_heads=config[f"{side}_attention_heads"],
            core=Softmax(dropout_rate=config["attention_dropout"]),
            kernel_init=normal,
        )
        block = partial(
            TransformerBlock,
            mixer=attention,
            cross=attention if side == "decoder" else None,
            mlp=partial(
                FeedForward,
                mlp_dim=config[f"{side}_ffn_dim"],
                activation=ACTIVATIONS[config["activation_function"]],
                dropout_rate=config["activation_dropout"],
                kernel_init=normal,
            ),
            residual=partial(
                PostNorm,
                norm=partial(LayerNorm, epsilon=1e-5),
                dropout_rate=dropout_rate,
            ),
        )
        return Stack(num_layers=config[f"{side}_layers"], blocks=(block,))

    def embedding(vocab_size: int) -> TokenEmbedding:
        return TokenEmbedding(
            vocab_size=vocab_size,
            embed_dim=dim,
            scale=math.sqrt(dim) if config["scale_embedding"] else 1.0,
            positions=Sinusoidal(interleaved=False),
            dropout_rate=dropout_rate,
            embedding_init=normal,
        )

    is_shared = config["share_encoder_decoder_embeddings"]
    return EncoderDecoder(
        embedding=embedding(config["decoder_vocab_size"]),
        source_embedding=None if is_shared else embedding(config["vocab_size"]),
        encoder=stack("encoder"),
        decoder=stack("decoder"),
        tie_embeddings=config["tie_word_embeddings"],
        logit_bias=True,
        pad=config["pad_token_id"],
        logits_init=normal,
    )


def config_of(model: EncoderDecoder) -> Config:
    """The config of a model.

    Raises:
      UserError: a setting of the model that theirs does not have, by its path.
    """
    config = {key: setting(model, path) for key, path in SETTINGS.items()}
    activation = setting(model, "encoder.blocks.0.mlp.activation")
    source = model.source_embedding
    config = {
        "architectures": ["MarianMTModel"],
        "model_type": "marian",
        "is_encoder_decoder": True,
        "vocab_size": (source or model.embedding).vocab_size,
        **config,
        "activation_function": activation_name(activation) or "relu",
        "scale_embedding": setting(model, "embedding.scale") != 1,
        "share_encoder_decoder_embeddings": source is None,
        "decoder_start_token_id": config["pad_token_id"],
    }
    require_same(model, model_of(config), LAYOUT)
    return config


def leaf_names(leaves: Leaves) -> Names:
    """The weight table of a model with these `expected_leaves`.

    Raises:
      UserError: a leaf that theirs does not have.
    """
    is_shared = "params/source_embedding/embedding" not in leaves
    modules = {
        "embedding": SHARED if is_shared else SIDES["decoder"],
        "source_embedding": SIDES["encoder"],
        "logits": HEAD,
    }
    for side in SIDES:
        theirs = f"model.{side}.layers.{{}}"
        ours = f"{side}/layers/block_0"
        for part, (name, norm) in PARTS.items():
            modules[f"{ours}/{part}_residual/norm"] = f"{theirs}.{norm}"
            for projection, leaf in ATTENTION.items():
                modules[f"{ours}/{part}/{projection}"] = f"{theirs}.{name}.{leaf}"
        modules[f"{ours}/mlp_residual/norm"] = f"{theirs}.final_layer_norm"
        modules[f"{ours}/mlp/up"] = f"{theirs}.fc1"
        modules[f"{ours}/mlp/down"] = f"{theirs}.fc2"
    others = {"params/logit_bias": ("final_logits_bias", (0, 1))}
    leaves = {path: leaf for path, leaf in leaves.items() if path not in others}
    return {**module_names(leaves, modules, LAYOUT), **others}


def expected_leaves(model: EncoderDecoder) -> Leaves:
    """The shape of every leaf of the model's variables, by path."""
    tokens = jnp.zeros((1, 1), jnp.int32)
    return leaf_shapes(model, tokens, tokens)


def _copies(model: EncoderDecoder) -> dict[str, str]:
    """Tensors that may be there twice: what the others repeat."""
    is_shared = model.source_embedding is None
    table = SHARED if is_shared else SIDES["decoder"]
    copies = list(SIDES.values()) if is_shared else []
    copies += [HEAD] if model.tie_embeddings else []
    return {f"{copy}.weight": f"{table}.weight" for copy in copies}


def _checked(config: Config) -> Config:
    """With the value of every key, each supported alone and with the others."""
    config = checked(config, KEYS, CONFIG, FREE)
    require = partial(require_value, config, CONFIG)
    size = config["decoder_vocab_size"] or config["vocab_size"]
    config["decoder_vocab_size"] = size
    require(
        size == config["vocab_size"] or not config["share_encoder_decoder_embeddings"],
        "decoder_vocab_size",
        f"null or vocab_size, {config['vocab_size']}, where embeddings are shared",
    )
    for side in SIDES:
        heads = f"{side}_attention_heads"
        require(
            config["d_model"] % config[heads] == 0,
            heads,
            f"a divisor of d_model, {config['d_model']}",
        )
    require(config["d_model"] % 2 == 0, "d_model", "an even width")
    return config
