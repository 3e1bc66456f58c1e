import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from safetensors.numpy import load_file, save_file

from research.errors import UserError
from research.layers.positions import Sinusoidal
from research.layers.residual import PreNorm
from research.models.transformer import (
    Encoder,
    MaskedLanguageModel,
    SequenceClassifier,
)
from research.pretrained import bert
from research.pretrained.configs import settings
from tests.pretrained.shapes import (
    assert_same,
    configure,
    count,
    edit,
    random_variables,
    their_shapes,
)

# google-bert/bert-base-uncased, as published.
PUBLISHED = {
    "architectures": ["BertForMaskedLM"],
    "attention_probs_dropout_prob": 0.1,
    "gradient_checkpointing": False,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "hidden_size": 768,
    "initializer_range": 0.02,
    "intermediate_size": 3072,
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 512,
    "model_type": "bert",
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "pad_token_id": 0,
    "position_embedding_type": "absolute",
    "transformers_version": "4.6.0.dev0",
    "type_vocab_size": 2,
    "use_cache": True,
    "vocab_size": 30522,
}
SMALL = {
    "hidden_size": 4,
    "intermediate_size": 6,
    "max_position_embeddings": 7,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "type_vocab_size": 3,
    "vocab_size": 9,
}
MODEL = bert.model_of(PUBLISHED | SMALL)

# Each kind, with the parameters of its base size; the last is without a pooler.
KINDS = {
    "BertModel": (SequenceClassifier, 109_482_240),
    "BertForMaskedLM": (MaskedLanguageModel, 109_514_298),
    "BertForSequenceClassification": (SequenceClassifier, 109_483_778),
    None: (Encoder, 109_482_240 - 768 * 769),
}


def layout(config, kind):
    """Names and shapes of their tensors."""
    dim, mlp_dim = config["hidden_size"], config["intermediate_size"]
    shapes = {
        f"embeddings.{name}_embeddings.weight": (config[size], dim)
        for name, size in {
            "word": "vocab_size",
            "position": "max_position_embeddings",
            "token_type": "type_vocab_size",
        }.items()
    }
    norms, layers = ["embeddings.LayerNorm"], {}
    for number in range(config["num_hidden_layers"]):
        layer = f"encoder.layer.{number}"
        for name in ("self.query", "self.key", "self.value", "output.dense"):
            layers[f"{layer}.attention.{name}"] = (dim, dim)
        layers[f"{layer}.intermediate.dense"] = (mlp_dim, dim)
        layers[f"{layer}.output.dense"] = (dim, mlp_dim)
        norms += [f"{layer}.attention.output.LayerNorm", f"{layer}.output.LayerNorm"]
    prefix = "" if kind in ("BertModel", None) else "bert."
    if kind in ("BertModel", "BertForSequenceClassification"):
        layers["pooler.dense"] = (dim, dim)
    shapes |= {f"{name}.weight": shape for name, shape in layers.items()}
    shapes |= {f"{name}.bias": shape[:1] for name, shape in layers.items()}
    for leaf in ("weight", "bias"):
        shapes |= {f"{norm}.{leaf}": (dim,) for norm in norms}
    shapes = {f"{prefix}{name}": shape for name, shape in shapes.items()}
    if kind == "BertForMaskedLM":
        head = "cls.predictions"
        shapes |= {
            f"{head}.bias": (config["vocab_size"],),
            f"{head}.transform.dense.weight": (dim, dim),
            f"{head}.transform.dense.bias": (dim,),
            f"{head}.transform.LayerNorm.weight": (dim,),
            f"{head}.transform.LayerNorm.bias": (dim,),
        }
    if kind == "BertForSequenceClassification":
        shapes |= {"classifier.weight": (2, dim), "classifier.bias": (2,)}
    return shapes


def model_of(kind, **changed):
    config = PUBLISHED | changed | {"architectures": [kind or "BertModel"]}
    return bert.model_of(config, has_pooler=kind is not None)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder of a masked language model, and what it holds."""
    folder = tmp_path_factory.mktemp("bert")
    variables = random_variables(bert.expected_leaves(MODEL))
    bert.save(str(folder), MODEL, variables)
    return folder, variables


@pytest.fixture
def folder(saved, tmp_path):
    return Path(shutil.copytree(saved[0], tmp_path / "bert"))


@pytest.mark.parametrize("kind", KINDS)
def test_published_layouts(kind):
    model, (kind_of_ours, parameters) = model_of(kind), KINDS[kind]
    assert isinstance(model, kind_of_ours)
    leaves = bert.expected_leaves(model)
    shapes = their_shapes(bert.leaf_names(leaves), leaves)
    assert shapes == layout(PUBLISHED, kind)
    assert count(shapes) == parameters
    written = bert.config_of(model)
    again = bert.model_of(json.loads(json.dumps(written)), has_pooler=kind is not None)
    assert settings(again) == settings(model)
    read = PUBLISHED.keys() - bert.FREE
    read -= {"position_embedding_type", "initializer_range"}
    assert {key: written[key] for key in read} == {key: PUBLISHED[key] for key in read}
    assert written["architectures"] == [kind or "BertModel"]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "BertForMaskedLM"])
def test_kinds_come_back(tmp_path, kind):
    labels = {"0": "no", "1": "yes", "2": "perhaps"}
    model = model_of(kind, **SMALL, id2label=labels, classifier_dropout=0.3)
    if kind == "BertForSequenceClassification":
        assert (model.num_classes, model.dropout_rate) == (3, 0.3)
    variables = random_variables(bert.expected_leaves(model))
    bert.save(str(tmp_path), model, variables)
    loaded, again = bert.load(str(tmp_path))
    assert settings(loaded) == settings(model)
    assert_same(again, variables)
    if kind in ("BertModel", None):
        # A part of another model's file has its prefix.
        tensors = load_file(tmp_path / bert.WEIGHTS)
        prefixed = {f"bert.{name}": tensor for name, tensor in tensors.items()}
        save_file(prefixed, tmp_path / bert.WEIGHTS)
        assert_same(bert.load(str(tmp_path))[1], variables)


def test_first_files(saved, folder):
    """As bert-base-uncased still is: gamma and beta, and what pretraining added."""
    weights = folder / bert.WEIGHTS
    tensors = load_file(weights)
    tensors = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): tensor
        for name, tensor in tensors.items()
    }
    table = tensors["bert.embeddings.word_embeddings.weight"]
    tensors |= {
        "bert.embeddings.position_ids": np.arange(7)[None],
        "bert.pooler.dense.bias": np.zeros(4, np.float32),
        "bert.pooler.dense.weight": np.zeros((4, 4), np.float32),
        "cls.predictions.decoder.bias": tensors["cls.predictions.bias"],
        "cls.predictions.decoder.weight": table,
        "cls.seq_relationship.bias": np.zeros(2, np.float32),
        "cls.seq_relationship.weight": np.zeros((2, 4), np.float32),
    }
    save_file(tensors, weights)
    assert_same(bert.load(str(folder))[1], saved[1])
    configure(folder, architectures=["BertForPreTraining"])
    assert_same(bert.load(str(folder))[1], saved[1])
    edit(weights, **{"cls.predictions.decoder.weight": table + 1})
    with pytest.raises(UserError, match="decoder.weight in .* differs from bert.embed"):
        bert.load(str(folder))


def test_the_encoder_is_one_part_for_all():
    """Leaves of a pretrained encoder stand where those of a classifier do."""

    def encoder(kind):
        leaves = bert.expected_leaves(model_of(kind, **SMALL))
        return {p: leaf for p, leaf in leaves.items() if p.startswith("params/encoder")}

    assert encoder("BertForMaskedLM") == encoder("BertForSequenceClassification")


@pytest.mark.parametrize(
    ("changed", "match"),
    [
        (
            {"bert.encoder.layer.1.output.dense.bias": None},
            r"lacks bert.encoder.layer.1.output.dense.bias with shape \(4,\).*"
            r"/body/layers/block_0/mlp/down/bias\[1\] with shape \(2, 4\)",
        ),
        (
            {"qa_outputs.weight": np.zeros((2, 4), np.float32)},
            r"holds qa_outputs.weight with shape \(2, 4\)",
        ),
        (
            {"bert.embeddings.token_type_embeddings.weight": np.zeros((2, 4), "f4")},
            r"token_type_embeddings.weight in .* has shape \(2, 4\), but \(3, 4\)",
        ),
    ],
)
def test_leaves_that_do_not_fit(folder, changed, match):
    edit(folder / bert.WEIGHTS, **changed)
    with pytest.raises(UserError, match=match):
        bert.load(str(folder))


@pytest.mark.parametrize(
    ("changed", "match"),
    [
        ({"architectures": ["BertForTokenClassification"]}, "architectures = .*Token"),
        ({"architectures": "BertModel"}, "architectures = .BertModel. .*a list"),
        ({"hidden_act": "mish"}, "hidden_act = .mish.*gelu"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type"),
        ({"is_decoder": True}, "is_decoder = true .*expected false"),
        ({"num_attention_heads": 3}, "num_attention_heads = 3 .*of hidden_size, 4"),
        ({"layer_norm_eps": 0}, "layer_norm_eps = 0 .*a positive number"),
        ({"model_type": "roberta"}, "model_type = .roberta.*bert"),
    ],
)
def test_configs_that_are_not_read(folder, changed, match):
    configure(folder, **changed)
    with pytest.raises(UserError, match=match):
        bert.load(str(folder))


def with_encoder(**changed):
    return replace(MODEL, encoder=replace(MODEL.encoder, **changed))


@pytest.mark.parametrize(
    ("model", "match"),
    [
        (replace(MODEL, activation=jax.nn.relu), "activation = relu .*expected gelu"),
        (
            with_encoder(
                body=replace(
                    MODEL.encoder.body,
                    blocks=(partial(MODEL.encoder.body.blocks[0], residual=PreNorm),),
                )
            ),
            "encoder.body.blocks.0.residual = PreNorm .*expected PostNorm",
        ),
        (
            with_encoder(embedding=replace(MODEL.encoder.embedding, scale=2.0)),
            "encoder.embedding.scale = 2.0 .*expected 1.0",
        ),
        (
            with_encoder(
                embedding=replace(MODEL.encoder.embedding, positions=Sinusoidal())
            ),
            "Encoder has no setting embedding.positions.max_length",
        ),
        (
            replace(model_of("BertForSequenceClassification"), pooling="mean"),
            "pooling = 'mean' .*expected 'first'",
        ),
        (
            replace(model_of("BertForSequenceClassification"), hidden_dim=None),
            "hidden_dim = None .*expected 768",
        ),
    ],
)
def test_models_without_a_counterpart(tmp_path, model, match):
    with pytest.raises(UserError, match=match):
        bert.save(str(tmp_path / "new"), model, {})
    assert not (tmp_path / "new").exists()


def test_variables_that_do_not_fit(tmp_path, saved):
    variables = flatten_dict(saved[1], sep="/")
    assert "params/logit_bias" in variables
    params = {k: v for k, v in saved[1]["params"].items() if k != "logit_bias"}
    with pytest.raises(UserError, match=r"params/logit_bias.*None, expected \(9,\)"):
        bert.save(str(tmp_path / "new"), MODEL, {"params": params})
    assert not (tmp_path / "new").exists()
