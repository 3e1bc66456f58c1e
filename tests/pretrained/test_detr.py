import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from research import pretrained
from research.errors import UserError
from research.layers.residual import PreNorm
from research.models.detr import LearnedPositions
from research.models.resnet import ResNet
from research.pretrained import detr
from research.pretrained.configs import settings
from tests.pretrained.shapes import (
    assert_same,
    configure,
    count,
    random_variables,
    their_shapes,
)

LAYOUTS = Path(__file__).parent / "layouts"
NAMES = ["detr-resnet-50", "detr-resnet-101", "detr-resnet-50-panoptic"]
SMALL = {
    "architectures": ["DetrForSegmentation"],
    "model_type": "detr",
    "use_timm_backbone": False,
    "backbone_config": {
        "model_type": "resnet",
        "embedding_size": 2,
        "hidden_sizes": [8, 16, 32, 64],
        "depths": [1, 1, 1, 1],
    },
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 1,
    "encoder_ffn_dim": 6,
    "decoder_ffn_dim": 5,
    "decoder_attention_heads": 4,
    "num_queries": 3,
    "id2label": {"0": "a", "1": "b"},
}
MODEL = detr.model_of(SMALL)


def published(name):
    return json.loads((LAYOUTS / f"{name}.json").read_text())


@pytest.fixture(scope="module")
def variables():
    return random_variables(detr.expected_leaves(MODEL))


@pytest.mark.parametrize("name", NAMES)
def test_published_layouts(name):
    there = published(name)
    config = there["config"]
    model = detr.model_of(config)
    leaves = detr.expected_leaves(model)
    shapes = their_shapes(detr.leaf_names(leaves), leaves)
    assert shapes == {key: tuple(shape) for key, shape in there["tensors"].items()}
    norms = (".bn", "downsample.1.")
    params = {
        key: shape
        for key, shape in shapes.items()
        if not (any(part in key for part in norms) and "backbone" in key)
    }
    assert count(params) == there["params"]
    assert model.num_classes == (250 if "panoptic" in name else 91)
    written = json.loads(json.dumps(detr.config_of(model)))
    assert settings(detr.model_of(written)) == settings(model)
    read = config.keys() - detr.FREE - {"num_hidden_layers", "scale_embedding"}
    assert {key: written[key] for key in read} == {key: config[key] for key in read}
    assert written["architectures"] == config["architectures"]


@pytest.mark.parametrize(
    ("name", "num_params"),
    [("detr-resnet-50", 41_524_768), ("detr-resnet-101", 60_464_672)],
)
def test_published_parameters(name, num_params):
    """As the paper counts them; the norms are constants."""
    leaves = detr.expected_leaves(detr.model_of(published(name)["config"]))
    params = {k: leaf.size for k, leaf in leaves.items() if k.startswith("params/")}
    assert sum(params.values()) == num_params
    sides = ("params/encoder/", "params/decoder/")
    transformer = [size for k, size in params.items() if k.startswith(sides)]
    assert sum(transformer) == 17_363_456


@pytest.mark.parametrize(
    "backbone",
    [
        {"use_timm_backbone": True, "backbone": "resnet50", "dilation": True},
        {"backbone": "resnet50", "backbone_kwargs": {"output_stride": 16}},
        {
            "backbone_config": {
                "model_type": "timm_backbone",
                "backbone": "resnet50.a1_in1k",
                "features_only": True,
                "freeze_batch_norm_2d": False,
                "is_encoder_decoder": False,
                "out_features": ["layer1", "layer2", "layer3", "layer4"],
                "out_indices": [1, 2, 3, 4],
                "output_hidden_states": False,
                "output_stride": 16,
                "return_dict": True,
                "stage_names": ["act1", "layer1", "layer2", "layer3", "layer4"],
                "use_pretrained_backbone": False,
            }
        },
    ],
)
def test_ways_to_tell_of_a_dilated_backbone(backbone):
    own = {k: v for k, v in SMALL.items() if "backbone" not in k}
    model = detr.model_of(own | backbone)
    assert isinstance(model.backbone, ResNet)
    assert (model.backbone.depths, model.backbone.output_stride) == ((3, 4, 6, 3), 16)
    again = detr.model_of(detr.config_of(model))
    assert settings(again) == settings(model)


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("masks", [False, True])
def test_what_is_saved_is_loaded(tmp_path, variables, masks, learned):
    model = replace(
        MODEL,
        mask_head=MODEL.mask_head if masks else None,
        positions=LearnedPositions() if learned else MODEL.positions,
    )
    here = random_variables(detr.expected_leaves(model))
    pretrained.save(str(tmp_path), model, here)
    loaded, again = pretrained.load(str(tmp_path))
    assert settings(loaded) == settings(model)
    assert_same(again, here)
    prefix = "detr.model" if masks else "model"
    path = tmp_path / detr.WEIGHTS
    tensors = load_file(path)
    start = f"{prefix}.backbone.conv_encoder.model."
    assert f"{start}embedder.embedder.convolution.weight" in tensors
    if learned:
        for name in ("row", "column"):
            table = tensors[f"{prefix}.position_embedding.{name}_embeddings.weight"]
            np.testing.assert_array_equal(table, here["params"]["positions"][name])
        # As version 4 wrote them.
        older = {
            name.replace(
                f"{prefix}.position_embedding", f"{prefix}.backbone.position_embedding"
            ): tensor
            for name, tensor in tensors.items()
        }
        assert older.keys() != tensors.keys()
        save_file(older, path)
        assert_same(pretrained.load(str(tmp_path))[1], here)


def test_leaves_that_shapes_cannot_tell(tmp_path, variables):
    detr.save(str(tmp_path), MODEL, variables)
    theirs = load_file(tmp_path / detr.WEIGHTS)
    layer, ours = "detr.model.decoder.layers.0", variables["params"]["decoder"]
    block = ours["layers"]["block_0"]
    for residual, name in (
        ("mixer_residual", "self_attn_layer_norm"),
        ("cross_residual", "encoder_attn_layer_norm"),
        ("mlp_residual", "final_layer_norm"),
    ):
        for leaf, there in (("scale", "weight"), ("bias", "bias")):
            expected = block[residual]["norm"][leaf][0]
            np.testing.assert_array_equal(theirs[f"{layer}.{name}.{there}"], expected)
    for mixer, name in (("mixer", "self_attn"), ("cross", "encoder_attn")):
        for part, there in (("query", "q"), ("key", "k"), ("value", "v")):
            expected = block[mixer][part]["kernel"][0].reshape(16, 16).T
            there = theirs[f"{layer}.{name}.{there}_proj.weight"]
            np.testing.assert_array_equal(there, expected)


@pytest.mark.parametrize(
    ("changed", "match"),
    [
        ({"num_hidden_layers": 4}, "num_hidden_layers = 4 .*expected 2, as encoder_la"),
        ({"hidden_size": 8}, "hidden_size = 8 .*expected 16"),
        ({"d_model": 18}, "d_model = 18 .*multiple of four"),
        ({"encoder_attention_heads": 3}, "encoder_attention_heads = 3 .*divisor"),
        ({"position_embedding_type": "none"}, "position_embedding_type"),
        ({"architectures": ["DetrModel"]}, "architectures"),
        ({"dilation": True}, "dilation = true .*timm's only"),
        ({"backbone_config": None}, "use_timm_backbone = false"),
        (
            {"backbone_config": None, "use_timm_backbone": True, "backbone": "vit"},
            "backbone = .vit.*resnet50",
        ),
        ({"backbone_config": {"model_type": "swin"}}, "model_type = .swin"),
        ({"scale_embedding": True}, "scale_embedding = true"),
    ],
)
def test_configs_that_are_not_read(tmp_path, variables, changed, match):
    detr.save(str(tmp_path), MODEL, variables)
    configure(tmp_path, **changed)
    with pytest.raises(UserError, match=match):
        pretrained.load(str(tmp_path))


def with_blocks(**changed):
    encoder = MODEL.encoder
    return replace(
        MODEL, encoder=replace(encoder, blocks=(partial(encoder.blocks[0], **changed),))
    )


@pytest.mark.parametrize(
    ("model", "match"),
    [
        (replace(MODEL, positions=None), "positions = None .*expected SinePositions"),
        (replace(MODEL, positions_at="input"), "positions_at = 'input'"),
        (replace(MODEL, encoder_positions=False), "encoder_positions = False"),
        (replace(MODEL, encoder=None), "no setting encoder.blocks"),
        (with_blocks(residual=PreNorm), "residual = PreNorm .*expected PostNorm"),
        (
            replace(MODEL, backbone=replace(MODEL.backbone, output_stride=16)),
            "output_stride = 16 .*expected 32",
        ),
        (
            replace(MODEL, mask_head=partial(MODEL.mask_head, num_heads=4)),
            "mask_head.num_heads = 4 .*expected 8",
        ),
    ],
)
def test_models_without_a_counterpart(tmp_path, model, match):
    with pytest.raises(UserError, match=match):
        pretrained.save(str(tmp_path / "new"), model, {})
    assert not (tmp_path / "new").exists()


def test_a_missing_leaf_is_named(tmp_path, variables):
    detr.save(str(tmp_path), MODEL, variables)
    tensors = load_file(tmp_path / detr.WEIGHTS)
    gone = "mask_head.lay1.weight"
    del tensors[gone]
    save_file(tensors, tmp_path / detr.WEIGHTS)
    match = r"lacks mask_head.lay1.weight with shape \(24, 24, 3, 3\)"
    with pytest.raises(UserError, match=match):
        pretrained.load(str(tmp_path))
