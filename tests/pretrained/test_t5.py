import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from research.errors import UserError
from research.layers.attention import Attention
from research.layers.cores import Softmax
from research.layers.norms import LayerNorm
from research.layers.positions import RelativeBias
from research.layers.residual import PostNorm
from research.pretrained import t5
from research.pretrained.configs import settings
from tests.layers import slow
from tests.pretrained.shapes import (
    assert_same,
    configure,
    count,
    edit,
    random_variables,
    their_shapes,
)

# google-t5/t5-small and google/t5-v1_1-small, as published.
PLAIN = {
    "architectures": ["T5ForConditionalGeneration"],
    "d_ff": 2048,
    "d_kv": 64,
    "d_model": 512,
    "decoder_start_token_id": 0,
    "dropout_rate": 0.1,
    "eos_token_id": 1,
    "initializer_factor": 1.0,
    "is_encoder_decoder": True,
    "layer_norm_epsilon": 1e-06,
    "model_type": "t5",
    "n_positions": 512,
    "num_heads": 8,
    "num_layers": 6,
    "output_past": True,
    "pad_token_id": 0,
    "relative_attention_num_buckets": 32,
    "vocab_size": 32128,
}
GATED = PLAIN | {
    "d_ff": 1024,
    "feed_forward_proj": "gated-gelu",
    "num_decoder_layers": 8,
    "num_heads": 6,
    "num_layers": 8,
    "tie_word_embeddings": False,
}
SMALL = {
    "d_ff": 6,
    "d_kv": 3,
    "d_model": 4,
    "num_decoder_layers": 1,
    "num_heads": 2,
    "num_layers": 2,
    "vocab_size": 9,
}


def layout(config, head=False):
    """Names and shapes of their tensors."""
    dim, inner = config["d_model"], config["num_heads"] * config["d_kv"]
    gated = config.get("feed_forward_proj", "relu").startswith("gated")
    shapes = {"shared.weight": (config["vocab_size"], dim)}
    if head:
        shapes["lm_head.weight"] = shapes["shared.weight"]
    for side in ("encoder", "decoder"):
        attentions = ["SelfAttention", "EncDecAttention"][: 1 + (side == "decoder")]
        buckets = f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        shapes[buckets] = (32, config["num_heads"])
        shapes[f"{side}.final_layer_norm.weight"] = (dim,)
        for number in range(config["num_layers"]):
            layer = f"{side}.block.{number}.layer"
            for i, attention in enumerate(attentions):
                for name in "qkv":
                    shapes[f"{layer}.{i}.{attention}.{name}.weight"] = (inner, dim)
                shapes[f"{layer}.{i}.{attention}.o.weight"] = (dim, inner)
            mlp = f"{layer}.{len(attentions)}.DenseReluDense"
            for name in ("wi_0", "wi_1") if gated else ("wi",):
                shapes[f"{mlp}.{name}.weight"] = (config["d_ff"], dim)
            shapes[f"{mlp}.wo.weight"] = (dim, config["d_ff"])
            for i in range(len(attentions) + 1):
                shapes[f"{layer}.{i}.layer_norm.weight"] = (dim,)
    return shapes


MODEL = t5.model_of(PLAIN | SMALL)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder, and what it holds."""
    folder = tmp_path_factory.mktemp("t5")
    variables = random_variables(t5.expected_leaves(MODEL))
    t5.save(str(folder), MODEL, variables)
    return folder, variables


@pytest.fixture
def folder(saved, tmp_path):
    return Path(shutil.copytree(saved[0], tmp_path / "t5"))


@pytest.mark.parametrize(
    ("config", "tensors", "parameters"),
    [(PLAIN, 131, 60_506_624), (GATED, 190, 76_961_152)],
)
def test_published_layouts(config, tensors, parameters):
    model = t5.model_of(config)
    leaves = t5.expected_leaves(model)
    shapes = their_shapes(t5.leaf_names(leaves), leaves)
    assert shapes == layout(config, head=config is GATED)
    assert len(shapes) == tensors and count(shapes) == parameters
    written = t5.config_of(model)
    again = t5.model_of(json.loads(json.dumps(written)))
    assert settings(again) == settings(model)
    published = config.keys() - t5.FREE - {"initializer_factor"}
    assert {key: written[key] for key in published} == {
        key: config[key] for key in published
    }


def test_both_versions_of_the_library_say_it_in_their_way():
    """Version 5 writes that all are tied, and whether the output is scaled."""
    fourth = t5.model_of(GATED)
    said = {"tie_word_embeddings": True, "scale_decoder_outputs": False}
    fifth = GATED | said | {"is_gated_act": True, "dense_act_fn": "gelu_new"}
    assert settings(t5.model_of(fifth, has_head=True)) == settings(fourth)
    tied = t5.model_of(fifth, has_head=False)
    assert tied.tie_embeddings and tied.logit_scale == fourth.logit_scale == 1
    assert t5.model_of(PLAIN).logit_scale == 512**-0.5
    assert t5.model_of(PLAIN, has_head=True).tie_embeddings


def test_what_is_stored_twice(saved, folder):
    weights, shared = folder / t5.WEIGHTS, saved[1]["params"]["embedding"]["embedding"]
    twice = dict.fromkeys((*t5.COPIES, "lm_head.weight"), shared)
    edit(weights, **twice, **{t5.IGNORED: np.zeros((32, 2), np.float32)})
    assert_same(t5.load(str(folder))[1], saved[1])
    edit(weights, **{"shared.weight": None})
    assert_same(t5.load(str(folder))[1], saved[1])
    edit(weights, **{"shared.weight": shared, "lm_head.weight": shared + 1})
    match = "lm_head.weight in .* differs from shared.weight, which it is tied to"
    with pytest.raises(UserError, match=match):
        t5.load(str(folder))


def test_logits_of_their_own(tmp_path):
    model = t5.model_of(GATED | SMALL)
    variables = random_variables(t5.expected_leaves(model))
    t5.save(str(tmp_path), model, variables, end=3)
    assert load_file(tmp_path / t5.WEIGHTS)["lm_head.weight"].shape == (9, 4)
    loaded, again = t5.load(str(tmp_path))
    assert settings(loaded) == settings(model)
    assert_same(again, variables)
    assert json.loads((tmp_path / "config.json").read_text())["eos_token_id"] == 3
    edit(tmp_path / t5.WEIGHTS, **{"lm_head.weight": None})
    with pytest.raises(UserError, match=r"lacks lm_head.weight with shape \(9, 4\)"):
        t5.load(str(tmp_path))


@pytest.mark.parametrize(
    ("changed", "match"),
    [
        (
            {"encoder.block.1.layer.0.SelfAttention.q.weight": None},
            r"lacks encoder.block.1.layer.0.SelfAttention.q.weight with shape \(6, 4\)"
            r".*params/encoder/layers/block_0/mixer/query/kernel\[1\] with shape "
            r"\(2, 4, 6\)",
        ),
        (
            {"encoder.block.2.layer.0.layer_norm.weight": np.zeros(4, np.float32)},
            r"holds encoder.block.2.layer.0.layer_norm.weight with shape \(4,\)",
        ),
        (
            {"decoder.final_layer_norm.weight": np.zeros(5, np.float32)},
            r"decoder.final_layer_norm.weight in .* has shape \(5,\), but \(4,\)",
        ),
    ],
)
def test_leaves_that_do_not_fit(folder, changed, match):
    edit(folder / t5.WEIGHTS, **changed)
    with pytest.raises(UserError, match=match):
        t5.load(str(folder))


@pytest.mark.parametrize(
    ("changed", "match"),
    [
        ({"feed_forward_proj": "gated-mish"}, "feed_forward_proj = .gated-mish.*relu"),
        ({"is_gated_act": True}, "feed_forward_proj = .relu.*is_gated_act = true"),
        ({"dense_act_fn": "gelu"}, "feed_forward_proj = .relu.*dense_act_fn = .gelu"),
        ({"model_type": "umt5"}, "model_type = .umt5.*t5"),
        ({"d_model": 4.0}, "d_model = 4.0 .*expected a width"),
        ({"dropout_rate": 1}, "dropout_rate = 1 .*from 0 to below 1"),
        ({"pruned_heads": {"0": [1]}}, "pruned_heads"),
        ({"num_experts": 8}, "num_experts = 8 in config.json is not supported"),
        (
            {"tie_word_embeddings": False, "scale_decoder_outputs": True},
            "scale_decoder_outputs = true .*false, as tie_word_embeddings is",
        ),
    ],
)
def test_configs_that_are_not_read(folder, changed, match):
    configure(folder, **changed)
    with pytest.raises(UserError, match=match):
        t5.load(str(folder))


def test_files_that_are_missing_or_cut(folder):
    weights = folder / t5.WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(UserError, match="is not a safetensors file.*save_pretrained"):
        t5.load(str(folder))
    weights.unlink()
    with pytest.raises(UserError, match="no weights at .*save_pretrained"):
        t5.load(str(folder))
    (folder / "config.json").unlink()
    with pytest.raises(UserError, match="no config.json in .*save_pretrained"):
        t5.load(str(folder))


def with_core(stack, core):
    return partial(stack.blocks[0].keywords["mixer"], core=core)


def with_block(stack, **changed):
    return replace(stack, blocks=(partial(stack.blocks[0], **changed),))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda m: {"logit_bias": True}, "logit_bias = True of the model"),
        (lambda m: {"logit_scale": 0.1}, "logit_scale = 0.1 of the model"),
        (
            lambda m: {"tie_embeddings": False},
            "logit_scale = 0.5 of the model .*expected 1.0",
        ),
        (
            lambda m: {"encoder": with_block(m.encoder, residual=PostNorm)},
            "encoder.blocks.0.residual = PostNorm .*expected PreNorm",
        ),
        (
            lambda m: {"decoder": replace(m.decoder, final_norm=LayerNorm)},
            "decoder.final_norm = LayerNorm .*expected RMSNorm",
        ),
        (
            lambda m: {"decoder": replace(m.decoder, bias=RelativeBias(2))},
            "decoder.bias.bidirectional = True .*expected False",
        ),
        (
            lambda m: {
                "decoder": with_block(m.decoder, mixer=with_core(m.decoder, Softmax()))
            },
            "decoder.blocks.0.mixer.core.scale = inverse_sqrt .*expected unscaled",
        ),
        (
            lambda m: {
                "encoder": with_block(m.encoder, mixer=partial(Attention, num_heads=3))
            },
            "d_kv = null in config.json is not supported",
        ),
        (lambda m: {"encoder": replace(m.encoder, bias=None)}, "encoder.bias"),
    ],
)
def test_models_without_a_counterpart(tmp_path, change, match):
    model = replace(MODEL, **change(MODEL))
    with pytest.raises(UserError, match=match):
        t5.save(str(tmp_path / "new"), model, {})
    assert not (tmp_path / "new").exists()


def test_how_it_is_computed_is_free():
    body = replace(MODEL.encoder, remat=True, unroll=2, dtype="bfloat16")
    model = replace(MODEL, encoder=body, dtype="bfloat16")
    assert t5.config_of(model) == t5.config_of(MODEL)


def test_every_activation_comes_back():
    for name, (gated, activation) in t5.PROJECTIONS.items():
        written = t5.config_of(t5.model_of(PLAIN | {"feed_forward_proj": name}))
        there = t5.PROJECTIONS[written["feed_forward_proj"]]
        ours, again = (t5.ACTIVATIONS[a] for a in (activation, there[1]))
        assert there[0] == gated and settings(ours) == settings(again), name


def test_initial_weights_are_theirs():
    """Standard deviations of Mesh TensorFlow's T5; the factor multiplies them."""
    sizes = {"d_model": 64, "d_kv": 8, "d_ff": 256, "num_heads": 16, "vocab_size": 512}
    config = PLAIN | sizes | {"num_layers": 2, "initializer_factor": 2.0}
    model = t5.model_of(config)
    tokens = jnp.zeros((1, 1), jnp.int32)
    params = slow.jit(model.init)(slow.key(0), tokens, tokens)["params"]
    block = params["encoder"]["layers"]["block_0"]
    for leaf, std in [
        (params["embedding"]["embedding"], 1.0),
        (params["encoder"]["bias"]["embedding"], 64**-0.5),
        (block["mixer"]["query"]["kernel"], (64 * 8) ** -0.5),
        (block["mixer"]["value"]["kernel"], 64**-0.5),
        (block["mixer"]["out"]["kernel"], (16 * 8) ** -0.5),
        (block["mlp"]["up"]["kernel"], 64**-0.5),
        (block["mlp"]["down"]["kernel"], 256**-0.5),
    ]:
        assert np.std(leaf) == pytest.approx(2 * std, rel=0.1)
