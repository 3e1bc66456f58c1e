import json
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors.numpy import load_file

from research import pretrained
from research.errors import UserError
from research.layers.norms import BatchNorm
from research.models.image_classifier import ImageClassifier
from research.models.resnet import FrozenBatchNorm, ResNet
from research.pretrained import resnet
from research.pretrained.configs import settings
from research.pretrained.start import FromPretrained
from tests.pretrained.shapes import (
    assert_same,
    configure,
    count,
    edit,
    random_variables,
    their_shapes,
)

LAYOUTS = Path(__file__).parent / "layouts"

# microsoft/resnet-50, as published, less its labels.
PUBLISHED = {
    "architectures": ["ResNetForImageClassification"],
    "depths": [3, 4, 6, 3],
    "downsample_in_first_stage": False,
    "embedding_size": 64,
    "hidden_act": "relu",
    "hidden_sizes": [256, 512, 1024, 2048],
    "layer_type": "bottleneck",
    "model_type": "resnet",
    "num_channels": 3,
    "torch_dtype": "float32",
    "transformers_version": "4.18.0.dev0",
}
LABELS = {"id2label": {str(i): f"LABEL_{i}" for i in range(3)}}
SMALL = {"embedding_size": 2, "hidden_sizes": [8, 16, 32], "depths": [1, 2, 1]}
KINDS = [resnet.CLASSIFIER, resnet.MODEL, resnet.BACKBONE]


def small(kind):
    return resnet.model_of(PUBLISHED | SMALL | LABELS | {"architectures": [kind]})


def layout(config, num_classes):
    """Names and shapes of a classifier of transformers."""
    shapes, width = {}, config["embedding_size"]

    def layer(name, size, wide, channels):
        shapes[f"resnet.{name}.convolution.weight"] = (channels, wide, size, size)
        for leaf in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"resnet.{name}.normalization.{leaf}"] = (channels,)

    layer("embedder.embedder", 7, 3, width)
    for stage, depth in enumerate(config["depths"]):
        channels = config["hidden_sizes"][stage]
        for number in range(depth):
            block = f"encoder.stages.{stage}.layers.{number}"
            if number == 0:
                layer(f"{block}.shortcut", 1, width, channels)
            layer(f"{block}.layer.0", 1, width, channels // 4)
            layer(f"{block}.layer.1", 3, channels // 4, channels // 4)
            layer(f"{block}.layer.2", 1, channels // 4, channels)
            width = channels
    return shapes | {
        "classifier.1.weight": (num_classes, width),
        "classifier.1.bias": (num_classes,),
    }


def test_published_layout():
    labels = {"id2label": {str(i): str(i) for i in range(1000)}}
    model = resnet.model_of(PUBLISHED | labels)
    leaves = resnet.expected_leaves(model)
    shapes = their_shapes(resnet.leaf_names(leaves), leaves)
    assert shapes == layout(PUBLISHED, 1000)
    written = json.loads(json.dumps(resnet.config_of(model)))
    assert settings(resnet.model_of(written)) == settings(model)
    read = PUBLISHED.keys() - resnet.TRANSFORMERS
    assert {key: written[key] for key in read} == {key: PUBLISHED[key] for key in read}


def test_published_layout_of_timm():
    there = json.loads((LAYOUTS / "timm-resnet50.json").read_text())
    model = resnet.model_of(there["config"])
    leaves = resnet.expected_leaves(model)
    names = resnet.timm_names(leaves)
    shapes = their_shapes(names, leaves)
    params = {k: v for k, v in shapes.items() if "running" not in k}
    assert count(params) == there["params"]
    shapes |= {k: v.shape for k, v in resnet.batches_tracked(names).items()}
    assert shapes == {key: tuple(shape) for key, shape in there["tensors"].items()}
    written = resnet.timm_config_of(model)
    assert written["architecture"] == "resnet50" and "model_args" not in written


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_come_back(tmp_path, kind):
    model = small(kind)
    variables = random_variables(resnet.expected_leaves(model))
    pretrained.save(str(tmp_path), model, variables)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architectures"] == [kind]
    loaded, again = pretrained.load(str(tmp_path))
    assert settings(loaded) == settings(model)
    assert_same(again, variables)
    # The part of it that another network begins with, the norms as they come.
    learnt, part = resnet.backbone(str(tmp_path), norm=BatchNorm)
    base, expected = model, variables
    if isinstance(model, ImageClassifier):
        base = model.backbone
        expected = {name: tree["backbone"] for name, tree in variables.items()}
    assert settings(learnt) == settings(base)
    assert_same(part, expected)


def test_leaves_that_shapes_cannot_tell(tmp_path):
    model = small(resnet.CLASSIFIER)
    variables = random_variables(resnet.expected_leaves(model))
    resnet.save(str(tmp_path), model, variables)
    theirs = load_file(tmp_path / resnet.WEIGHTS)
    params, averages = (
        variables[name]["backbone"]["stage_1_block_0"]
        for name in ("params", "batch_stats")
    )
    layer = "resnet.encoder.stages.1.layers.0.layer.1"
    kernel = np.einsum("yxio->oiyx", params["conv_1"]["kernel"])
    np.testing.assert_array_equal(theirs[f"{layer}.convolution.weight"], kernel)
    norm = params["norm_1"] | averages["norm_1"]
    names = ("scale", "weight"), ("bias",) * 2, ("mean", "running_mean")
    for ours, name in (*names, ("var", "running_var")):
        there = theirs[f"{layer}.normalization.{name}"]
        np.testing.assert_array_equal(there, norm[ours])


@pytest.mark.parametrize(
    "args",
    [
        {},
        {"output_stride": 16},
        {"num_classes": 0, "in_chans": 3, "global_pool": "avg"},
    ],
)
def test_timm_both_ways(tmp_path, args):
    config = {"architecture": "resnet26", "model_args": args}
    model = resnet.model_of(config | {"pretrained_cfg": {"tag": "x"}})
    assert isinstance(model, ImageClassifier)
    assert model.num_classes == (args.get("num_classes", 1000) or None)
    leaves = resnet.expected_leaves(model)
    zeros = {path: np.zeros(leaf.shape, np.float32) for path, leaf in leaves.items()}
    variables = unflatten_dict(zeros, sep="/")
    resnet.save_timm(str(tmp_path), model, variables)
    loaded, again = pretrained.load(str(tmp_path))
    assert settings(loaded) == settings(model)
    assert_same(again, variables)
    stored = load_file(tmp_path / resnet.WEIGHTS)
    assert stored["layer1.0.bn1.num_batches_tracked"].shape == ()


def test_a_network_begins_with_frozen_norms(tmp_path):
    """What was learnt becomes constant; the head is left aside."""
    model = small(resnet.CLASSIFIER)
    variables = random_variables(resnet.expected_leaves(model))
    resnet.save(str(tmp_path), model, variables)
    network = ResNet((1, 2, 1), channels=2, norm=FrozenBatchNorm)
    shapes = jax.eval_shape(
        lambda: network.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    )
    expected = {
        path.replace("/", "/backbone/", 1): leaf
        for path, leaf in flatten_dict(shapes, sep="/").items()
    }
    expected["params/project/kernel"] = jax.ShapeDtypeStruct((32, 8), jnp.float32)
    start = FromPretrained(str(tmp_path), under="backbone", load=resnet.backbone)
    given = start(expected)
    assert given.keys() == expected.keys() - {"params/project/kernel"}
    leaves = flatten_dict(variables, sep="/")
    for path, value in given.items():
        if path.startswith("frozen/"):
            learns = path.endswith(("scale", "bias"))
            source = "params" if learns else "batch_stats"
            path = path.replace("frozen", source, 1)
        np.testing.assert_array_equal(value, leaves[path])


@pytest.mark.parametrize(
    ("changed", "match"),
    [
        ({"layer_type": "basic"}, "layer_type = .basic.*bottleneck"),
        ({"downsample_in_bottleneck": True}, "downsample_in_bottleneck = true"),
        ({"hidden_sizes": [8, 16, 64]}, r"hidden_sizes = .*expected \[8, 16, 32\]"),
        ({"num_channels": 1}, "num_channels = 1"),
        ({"architectures": ["ResNetOther"]}, "architectures"),
    ],
)
def test_configs_that_are_not_read(tmp_path, changed, match):
    model = small(resnet.MODEL)
    resnet.save(str(tmp_path), model, random_variables(resnet.expected_leaves(model)))
    configure(tmp_path, **changed)
    with pytest.raises(UserError, match=match):
        pretrained.load(str(tmp_path))


def test_leaves_that_do_not_fit(tmp_path):
    model = small(resnet.MODEL)
    resnet.save(str(tmp_path), model, random_variables(resnet.expected_leaves(model)))
    edit(tmp_path / resnet.WEIGHTS, **{"pooler.weight": np.zeros(3, np.float32)})
    for read in (pretrained.load, resnet.backbone):
        with pytest.raises(UserError, match="holds pooler.weight"):
            read(str(tmp_path))


@pytest.mark.parametrize(
    ("model", "match"),
    [
        (ResNet(output_stride=16), "output_stride = 16 .*expected 32"),
        (ResNet(norm=partial(BatchNorm, epsilon=1e-3)), "norm.epsilon = 0.001"),
        (
            ImageClassifier(ResNet(depths=(1, 1, 1, 1), channels=8), norm=BatchNorm),
            "norm = BatchNorm .*expected None",
        ),
    ],
)
def test_models_without_a_counterpart(tmp_path, model, match):
    with pytest.raises(UserError, match=match):
        pretrained.save(str(tmp_path / "new"), model, {})
    assert not (tmp_path / "new").exists()
