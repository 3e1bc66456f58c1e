import json
import math
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from research.errors import UserError
from research.layers.positions import Sinusoidal
from research.layers.residual import PreNorm
from research.pretrained import marian
from research.pretrained.configs import settings
from tests.pretrained.shapes import (
    assert_same,
    configure,
    count,
    edit,
    random_variables,
    their_shapes,
)

# Helsinki-NLP/opus-mt-en-de, as published.
PUBLISHED = {
    "activation_dropout": 0.0,
    "activation_function": "swish",
    "add_final_layer_norm": False,
    "architectures": ["MarianMTModel"],
    "attention_dropout": 0.0,
    "bos_token_id": 0,
    "d_model": 512,
    "decoder_attention_heads": 8,
    "decoder_ffn_dim": 2048,
    "decoder_layers": 6,
    "decoder_start_token_id": 58100,
    "dropout": 0.1,
    "encoder_attention_heads": 8,
    "encoder_ffn_dim": 2048,
    "encoder_layers": 6,
    "eos_token_id": 0,
    "is_encoder_decoder": True,
    "max_position_embeddings": 512,
    "model_type": "marian",
    "normalize_before": False,
    "normalize_embedding": False,
    "pad_token_id": 58100,
    "scale_embedding": True,
    "static_position_embeddings": True,
    "vocab_size": 58101,
}
SMALL = {
    "d_model": 4,
    "decoder_attention_heads": 2,
    "decoder_ffn_dim": 5,
    "decoder_layers": 2,
    "encoder_attention_heads": 1,
    "encoder_ffn_dim": 6,
    "encoder_layers": 1,
    "pad_token_id": 8,
    "vocab_size": 9,
}
APART = {"share_encoder_decoder_embeddings": False, "decoder_vocab_size": 11}
MODEL = marian.model_of(PUBLISHED | SMALL)


def layout(config):
    """Names and shapes of their tensors, but for the sinusoids."""
    dim, vocab_size = config["d_model"], config["vocab_size"]
    shapes = {
        "model.shared.weight": (vocab_size, dim),
        "final_logits_bias": (1, vocab_size),
    }
    for side in ("encoder", "decoder"):
        mlp_dim = config[f"{side}_ffn_dim"]
        attentions = ["self_attn", "encoder_attn"][: 1 + (side == "decoder")]
        for number in range(config[f"{side}_layers"]):
            layer = f"model.{side}.layers.{number}"
            squares = [f"{a}.{p}_proj" for a in attentions for p in "kvq"]
            squares += [f"{a}.out_proj" for a in attentions]
            for name in squares:
                shapes[f"{layer}.{name}.weight"] = (dim, dim)
                shapes[f"{layer}.{name}.bias"] = (dim,)
            shapes[f"{layer}.fc1.weight"] = (mlp_dim, dim)
            shapes[f"{layer}.fc1.bias"] = (mlp_dim,)
            shapes[f"{layer}.fc2.weight"] = (dim, mlp_dim)
            shapes[f"{layer}.fc2.bias"] = (dim,)
            for norm in (*(f"{a}_layer_norm" for a in attentions), "final_layer_norm"):
                shapes[f"{layer}.{norm}.weight"] = (dim,)
                shapes[f"{layer}.{norm}.bias"] = (dim,)
    return shapes


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder, and what it holds."""
    folder = tmp_path_factory.mktemp("marian")
    variables = random_variables(marian.expected_leaves(MODEL))
    marian.save(str(folder), MODEL, variables)
    return folder, variables


@pytest.fixture
def folder(saved, tmp_path):
    return Path(shutil.copytree(saved[0], tmp_path / "marian"))


def test_published_layout():
    """Their count has the sinusoids of both sides, and not the logits' bias."""
    model = marian.model_of(PUBLISHED)
    leaves = marian.expected_leaves(model)
    shapes = their_shapes(marian.leaf_names(leaves), leaves)
    assert shapes == layout(PUBLISHED)
    assert count(shapes) - 58_101 + 2 * 512 * 512 == 74_410_496
    written = marian.config_of(model)
    assert settings(marian.model_of(json.loads(json.dumps(written)))) == settings(model)
    free = marian.FREE | {"activation_function", "add_final_layer_norm"}
    free |= {key for key in PUBLISHED if key.startswith(("normalize", "static"))}
    read = PUBLISHED.keys() - free
    assert {key: written[key] for key in read} == {key: PUBLISHED[key] for key in read}
    assert model.pad == 58_100 and model.embedding.scale == math.sqrt(512)


def test_what_is_stored_twice(saved, folder):
    weights, params = folder / marian.WEIGHTS, saved[1]["params"]
    shared, sinusoids = params["embedding"]["embedding"], np.zeros((512, 4), np.float32)
    copies = [*(f"{side}.weight" for side in marian.SIDES.values()), "lm_head.weight"]
    positions = [f"model.{side}.embed_positions.weight" for side in marian.SIDES]
    edit(
        weights, **dict.fromkeys(copies, shared), **dict.fromkeys(positions, sinusoids)
    )
    assert_same(marian.load(str(folder))[1], saved[1])
    edit(weights, **{"model.shared.weight": None})
    assert_same(marian.load(str(folder))[1], saved[1])
    edit(weights, **{"model.shared.weight": shared, copies[0]: shared + 1})
    match = f"{copies[0]} in .* differs from model.shared.weight, which it is tied to"
    with pytest.raises(UserError, match=match):
        marian.load(str(folder))


@pytest.mark.parametrize("is_tied", [True, False])
@pytest.mark.parametrize("apart", [{}, APART])
def test_tables_apart_and_logits_of_their_own(tmp_path, apart, is_tied):
    config = PUBLISHED | SMALL | apart | {"tie_word_embeddings": is_tied}
    model = marian.model_of(config)
    variables = random_variables(marian.expected_leaves(model))
    marian.save(str(tmp_path), model, variables, end=3, max_length=64)
    loaded, again = marian.load(str(tmp_path))
    assert settings(loaded) == settings(model)
    assert_same(again, variables)
    names = load_file(tmp_path / marian.WEIGHTS).keys()
    assert ("lm_head.weight" in names) == (not is_tied)
    assert ("model.shared.weight" in names) == (not apart)
    # With untied logits their library ties nothing at all.
    assert ("model.encoder.embed_tokens.weight" in names) == bool(apart or not is_tied)
    written = json.loads((tmp_path / "config.json").read_text())
    assert (written["eos_token_id"], written["max_position_embeddings"]) == (3, 64)
    assert written["decoder_start_token_id"] == written["pad_token_id"] == 8


@pytest.mark.parametrize(
    ("changed", "match"),
    [
        (
            {"model.decoder.layers.1.fc1.bias": None},
            r"lacks model.decoder.layers.1.fc1.bias with shape \(5,\).*"
            r"params/decoder/layers/block_0/mlp/up/bias\[1\] with shape \(2, 5\)",
        ),
        (
            {"model.encoder.layernorm_embedding.weight": np.zeros(4, np.float32)},
            r"holds model.encoder.layernorm_embedding.weight with shape \(4,\)",
        ),
        (
            {"final_logits_bias": np.zeros((1, 8), np.float32)},
            r"final_logits_bias in .* has shape \(1, 8\), but \(1, 9\)",
        ),
    ],
)
def test_leaves_that_do_not_fit(folder, changed, match):
    edit(folder / marian.WEIGHTS, **changed)
    with pytest.raises(UserError, match=match):
        marian.load(str(folder))


@pytest.mark.parametrize(
    ("changed", "match"),
    [
        ({"activation_function": "mish"}, "activation_function = .mish.*relu"),
        ({"normalize_before": True}, "normalize_before = true .*expected false"),
        ({"normalize_embedding": True}, "normalize_embedding = true"),
        ({"decoder_vocab_size": 10}, "decoder_vocab_size = 10 .*null or vocab_size, 9"),
        (
            {"decoder_attention_heads": 3},
            "decoder_attention_heads = 3 .*a divisor of d_model, 4",
        ),
        ({"d_model": 5, "decoder_attention_heads": 1}, "d_model = 5 .*an even width"),
        ({"tie_encoder_decoder": True}, "tie_encoder_decoder = true"),
        ({"model_type": "bart"}, "model_type = .bart.*marian"),
        ({"pad_token_id": None}, "pad_token_id = null .*a token"),
    ],
)
def test_configs_that_are_not_read(folder, changed, match):
    configure(folder, **changed)
    with pytest.raises(UserError, match=match):
        marian.load(str(folder))


def with_residual(stack, residual):
    return replace(stack, blocks=(partial(stack.blocks[0], residual=residual),))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"logit_bias": False}, "logit_bias = False of the model .*expected True"),
        ({"logit_scale": 0.5}, "logit_scale = 0.5 of the model"),
        (
            {"encoder": with_residual(MODEL.encoder, PreNorm)},
            "encoder.blocks.0.residual = PreNorm .*expected PostNorm",
        ),
        (
            {"embedding": replace(MODEL.embedding, positions=Sinusoidal())},
            "embedding.positions.interleaved = True .*expected False",
        ),
        (
            {"source_embedding": replace(MODEL.embedding, scale=1.0)},
            "source_embedding.scale = 1.0 .*expected 2.0",
        ),
    ],
)
def test_models_without_a_counterpart(tmp_path, change, match):
    with pytest.raises(UserError, match=match):
        marian.save(str(tmp_path / "new"), replace(MODEL, **change), {})
    assert not (tmp_path / "new").exists()
