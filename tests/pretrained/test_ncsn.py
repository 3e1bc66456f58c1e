import json
import math
from functools import cache, partial
from pathlib import Path

import jax
import numpy as np
import pytest
from flax.traverse_util import unflatten_dict
from safetensors.numpy import load_file, save_file

from research.errors import UserError
from research.layers.norms import GroupNorm, InstanceNormPlus
from research.models.refinenet import (
    RefineNet,
    ncsn,
    ncsnv2,
    ncsnv2_deeper,
    ncsnv2_deepest,
)
from research.pretrained import ncsn as tables

LAYOUTS = Path(__file__).parent / "layouts"
IMAGE = (16, 16, 3)
SMALL = RefineNet(8, norm=partial(InstanceNormPlus, num_levels=3))


def layout(name):
    """Names and shapes of a released state dict, as they are published."""
    return json.loads((LAYOUTS / f"{name}-cifar10.json").read_text())["tensors"]


@cache  # tracing a network takes half a second
def leaves_of(network):
    return tables.expected_leaves(network, IMAGE)


def names_of(network):
    """Our paths by their name, in the order of the table."""
    names = {}
    for ours, (theirs, _) in tables.leaf_names(network, leaves_of(network)).items():
        names.setdefault(theirs, []).append(ours)
    return names


def shapes_of(network):
    """The shapes under their names that follow from ours."""
    shapes = {}
    for name, ours in names_of(network).items():
        *first, channels = leaves_of(network)[ours[0]].shape
        shape = [*first, channels * len(ours)]
        if len(shape) == 4:
            height, width, inputs, outputs = shape
            shape = [outputs, inputs, height, width]
        shapes[name] = shape
    return shapes


def random_weights(network):
    rng = np.random.default_rng(0)
    return {
        name: rng.standard_normal(shape, np.float32)
        for name, shape in shapes_of(network).items()
    }


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """A file of the public layout with random weights, and these."""
    path = tmp_path_factory.mktemp("released") / "ncsn.safetensors"
    weights = random_weights(SMALL)
    save_file(weights, path)
    return str(path), weights


@pytest.mark.parametrize(("name", "network"), [("ncsn", ncsn()), ("ncsnv2", ncsnv2())])
def test_every_name_and_shape_at_true_size(name, network):
    theirs = layout(name)
    # The levels of NCSNv2, which are no parameters.
    assert theirs.pop("sigmas", None) == {"ncsn": None, "ncsnv2": [232]}[name]
    assert shapes_of(network) == theirs
    ours = leaves_of(network)
    claimed = [path for paths in names_of(network).values() for path in paths]
    assert sorted(claimed) == sorted(ours)
    num_params = sum(map(math.prod, theirs.values()))
    assert num_params == sum(leaf.size for leaf in ours.values())


@pytest.mark.parametrize(
    ("network", "stages"),
    [
        (ncsnv2_deeper(), ("1", "2", "3", "4", "5")),
        (ncsnv2_deepest(), ("1", "2", "3", "31", "4", "5")),
    ],
)
def test_names_of_deeper_networks(network, stages):
    names = names_of(network)
    assert {name.split(".")[0] for name in names} == {
        *("begin_conv", "normalizer", "end_conv"),
        *(f"res{stage}" for stage in stages),
        *(f"refine{stage}" for stage in stages),
    }
    # Only the coarsest refine block has one input, only the finest three last units.
    assert {f"refine{stage}" for stage in stages} - {"refine1"} == {
        name.split(".")[0] for name in names if "msf.convs.1.weight" in name
    }
    assert [name for name in names if "output_convs.3_2_conv" in name] == [
        "refine5.output_convs.3_2_conv.weight"
    ]


def test_there_and_back(released, tmp_path):
    path, weights = released
    variables = tables.load(path, SMALL, IMAGE)
    params = variables["params"]
    theirs = weights["res2.0.conv2.conv.weight"]
    kernel = params["stage_1_block_0"]["conv2"]["kernel"]
    assert kernel.shape == (3, 3, 8, 16)
    assert kernel[0, 2, 3, 4] == theirs[4, 3, 0, 2]
    embed = weights["res2.1.normalize1.embed.weight"]
    norm = params["stage_1_block_1"]["norm1"]
    for i, name in enumerate(("scale", "mean_scale", "bias")):
        np.testing.assert_array_equal(norm[name], embed[:, 16 * i : 16 * (i + 1)])
    again = str(tmp_path / "ours.safetensors")
    tables.save(again, SMALL, IMAGE, variables)
    written = load_file(again)
    assert written.keys() == weights.keys()
    assert all(np.array_equal(written[name], weights[name]) for name in weights)


def test_sigmas(tmp_path):
    network, path = ncsnv2(8), str(tmp_path / "ncsnv2.safetensors")
    weights = random_weights(network)
    save_file(weights | {"sigmas": np.geomspace(50, 0.01, 232)}, path)
    variables = tables.load(path, network, IMAGE)
    sigmas = np.geomspace(50, 0.01, 232)
    tables.save(path, network, IMAGE, variables, sigmas)
    written = load_file(path)
    assert written.keys() == weights.keys() | {"sigmas"}
    assert written["sigmas"].dtype == np.float32
    np.testing.assert_allclose(written["sigmas"], sigmas, rtol=1e-6)


def test_image_channels(tmp_path):
    path = str(tmp_path / "mnist.safetensors")
    weights = random_weights(SMALL)
    weights["begin_conv.weight"] = np.ones((8, 1, 3, 3), np.float32)
    weights["end_conv.weight"] = np.ones((1, 8, 3, 3), np.float32)
    weights["end_conv.bias"] = np.ones(1, np.float32)
    save_file(weights, path)
    variables = tables.load(path, SMALL, (28, 28, 1))
    tables.save(path, SMALL, (28, 28, 1), variables)
    assert load_file(path)["begin_conv.weight"].shape == (8, 1, 3, 3)
    with pytest.raises(UserError, match=r"\(8, 1, 3, 3\).*\(8, 3, 3, 3\)"):
        tables.load(path, SMALL, IMAGE)


def refused(tmp_path, weights, match):
    path = str(tmp_path / "ncsn.safetensors")
    save_file(weights, path)
    with pytest.raises(UserError, match=match):
        tables.load(path, SMALL, IMAGE)


def test_every_leaf_is_claimed(released, tmp_path):
    weights = released[1]
    name = "res3.0.normalize2.embed.weight"
    ours = r"params/stage_2_block_0/norm2/scale with shape \(3, 16\)"
    lacking = {key: leaf for key, leaf in weights.items() if key != name}
    refused(tmp_path, lacking, rf"lacks {name} with shape \(3, 48\).*{ours}")
    other = weights | {name: np.zeros((10, 48), np.float32)}
    refused(tmp_path, other, rf"{name}.*\(10, 48\).*\(3, 48\).*{ours}")
    flat = weights | {name: np.zeros(48, np.float32)}
    refused(tmp_path, flat, rf"{name}.*\(48,\).*\(3, 48\).*{ours}")
    more = weights | {"res5.0.conv1.bias": np.zeros(8, np.float32)}
    refused(tmp_path, more, r"res5.0.conv1.bias with shape \(8,\)")


def test_other_files_are_refused(tmp_path):
    with pytest.raises(UserError, match="ermongroup/ncsn"):
        tables.load(str(tmp_path / "missing.safetensors"), SMALL, IMAGE)
    path = tmp_path / "weights.pth"
    path.write_bytes(b"\x80\x02}q\x00.")
    with pytest.raises(UserError, match="not a safetensors file"):
        tables.load(str(path), SMALL, IMAGE)


def test_networks_without_a_public_layout_are_refused():
    with pytest.raises(UserError, match="no released network has 2 stages"):
        names_of(RefineNet(8, (1, 2), (1, 1)))

    class OtherNorm(GroupNorm):
        def __call__(self, x, level):
            return super().__call__(x)

    with pytest.raises(UserError, match=r"params/norm_out/scale with shape \(8,\)"):
        names_of(RefineNet(8, norm=OtherNorm))


def test_save_claims_every_leaf(tmp_path):
    leaves = dict(leaves_of(SMALL))
    path = tmp_path / "no.safetensors"
    kernel = "params/conv_in/kernel"
    for name, shape in {kernel: (3, 3, 3, 9), "params/other": (1,)}.items():
        wrong = leaves | {name: jax.ShapeDtypeStruct(shape, np.float32)}
        with pytest.raises(UserError, match=name):
            tables.save(str(path), SMALL, IMAGE, unflatten_dict(wrong, sep="/"))
    del leaves[kernel]
    with pytest.raises(UserError, match=rf"{kernel}.*None.*\(3, 3, 3, 8\)"):
        tables.save(str(path), SMALL, IMAGE, unflatten_dict(leaves, sep="/"))
    assert not path.exists()
