import json
import math
from functools import partial
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np
import pytest
from flax.traverse_util import unflatten_dict
from safetensors.numpy import load_file, save_file

from research.errors import UserError
from research.layers.attention import PixelAttention
from research.layers.blocks import (
    InputSkip,
    NearestConv,
    ResidualOutput,
    ResidualPyramid,
    StridedConv,
    ddpm_block,
)
from research.layers.conv import fir_downsample, fir_upsample
from research.layers.embeddings import FourierEmbedding
from research.models.score_unet import ScoreUNet
from research.pretrained import score_sde

DDPM = ScoreUNet(
    num_res_blocks=2,
    block=ddpm_block,
    attention=partial(PixelAttention, skip_scale=1.0),
    downsample=StridedConv,
    upsample=NearestConv,
)
DDPMPP = ScoreUNet()
NCSNPP = ScoreUNet(
    downsample=fir_downsample,
    upsample=fir_upsample,
    time_embedding=FourierEmbedding,
    input_pyramid=ResidualPyramid,
)
SMALL = NCSNPP.clone(
    channels=8, channel_mults=(1, 2), num_res_blocks=1, attention_resolutions=(4,)
)
IMAGE = (8, 8, 3)
SIGMAS = np.array([50.0, 1.0, 0.01], np.float32)


def their_shapes(network, image_shape):
    """The shape of each of their tensors that we would write."""
    leaves = score_sde.expected_leaves(network, image_shape)
    return {
        theirs: [leaves[ours].shape[axis] for axis in np.argsort(axes)]
        for ours, (theirs, axes) in score_sde.leaf_names(network, leaves).items()
    }


@pytest.mark.parametrize(
    ("released", "network"),
    [
        ("cifar10_ddpm", DDPM),
        ("cifar10_ddpmpp_continuous-vp", DDPMPP),
        ("cifar10_ddpmpp_deep_continuous-vp", DDPMPP.clone(num_res_blocks=8)),
        ("cifar10_ncsnpp_continuous-ve", NCSNPP),
        ("cifar10_ncsnpp_deep_continuous-ve", NCSNPP.clone(num_res_blocks=8)),
    ],
)
def test_released_layouts(released, network):
    path = Path(__file__).parent / "layouts" / f"scoresde-{released}.json"
    layout = json.loads(path.read_text())
    tensors = layout["tensors"]
    assert tensors.pop("sigmas") == [1000]
    shapes = their_shapes(network, (32, 32, 3))
    assert shapes == tensors
    assert sum(map(math.prod, shapes.values())) == layout["params"]


def test_modules_without_weights_have_a_number():
    network = SMALL.clone(input_pyramid=InputSkip, output_skip=fir_upsample)
    leaves = score_sde.expected_leaves(network, IMAGE)
    table = score_sde.leaf_names(network, leaves)
    names = {ours: theirs for ours, (theirs, _) in table.items()}
    assert names["params/down_0_resample/skip/bias"] == "all_modules.5.Conv_2.bias"
    # 6 makes the image smaller.
    assert names["params/down_0_input/combine/bias"] == "all_modules.7.Conv.bias"
    assert names["params/down_1_block_0/time/bias"] == "all_modules.8.Dense_0.bias"
    assert names["params/up_1_norm_out/scale"] == "all_modules.16.weight"
    assert names["params/up_1_resample/skip/bias"] == "all_modules.18.Conv_2.bias"
    # 21 makes the image larger.
    assert names["params/up_0_block_1/skip/bias"] == "all_modules.20.Conv_2.bias"
    assert names["params/up_0_norm_out/scale"] == "all_modules.22.weight"


def test_residual_output_is_where_it_is_called():
    network = SMALL.clone(output_skip=ResidualOutput)
    leaves = score_sde.expected_leaves(network, IMAGE)
    table = score_sde.leaf_names(network, leaves)
    names = {ours: theirs for ours, (theirs, _) in table.items()}
    assert names["params/up_1_attention/norm/bias"] == "all_modules.14.GroupNorm_0.bias"
    assert names["params/up_1_norm_out/scale"] == "all_modules.15.weight"
    assert names["params/up_1_conv_out/kernel"] == "all_modules.16.weight"
    assert names["params/up_1_resample/skip/bias"] == "all_modules.17.Conv_2.bias"
    assert names["params/up_0_block_1/skip/bias"] == "all_modules.19.Conv_2.bias"
    convolution = "all_modules.20.Conv2d_0.weight"
    assert names["params/up_0_output/residual/kernel"] == convolution
    assert names["params/norm_out/scale"] == "all_modules.21.weight"
    assert names["params/conv_out/bias"] == "all_modules.22.bias"


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """A file of the public layout with random weights, and these."""
    rng = np.random.default_rng(0)
    weights = {
        name: rng.standard_normal(shape, np.float32)
        for name, shape in their_shapes(SMALL, IMAGE).items()
    } | {"sigmas": SIGMAS}
    path = tmp_path_factory.mktemp("released") / "ncsnpp.safetensors"
    save_file(weights, path)
    return path, weights


def test_there_and_back(released, tmp_path):
    path, weights = released
    variables = score_sde.load(str(path), SMALL, IMAGE)
    block, attention = (
        variables["params"][name] for name in ("down_1_block_0", "down_1_attention_0")
    )
    kernel, theirs = block["conv1"]["kernel"], weights["all_modules.7.Conv_0.weight"]
    assert kernel[0, 2, 3, 4] == theirs[4, 3, 0, 2]
    kernel, theirs = block["time"]["kernel"], weights["all_modules.7.Dense_0.weight"]
    assert kernel[5, 6] == theirs[6, 5]
    kernel, theirs = attention["key"]["kernel"], weights["all_modules.8.NIN_1.W"]
    assert kernel[5, 6] == theirs[5, 6]
    ours = str(tmp_path / "ours.safetensors")
    score_sde.save(ours, SMALL, IMAGE, variables, SIGMAS)
    again = load_file(ours)
    assert again.keys() == weights.keys()
    assert all(np.array_equal(again[name], weights[name]) for name in weights)


def test_every_leaf_of_theirs_is_claimed(released, tmp_path):
    weights = released[1]
    path = str(tmp_path / "other.safetensors")

    def refused(changed, match, *without):
        kept = {name: w for name, w in weights.items() if name not in without}
        save_file(kept | changed, path)
        with pytest.raises(UserError, match=match):
            score_sde.load(path, SMALL, IMAGE)

    dense = "all_modules.1.weight"
    lacking = rf"lacks {dense}.*params/time_hidden/kernel.*\(16, 32\)"
    refused({}, lacking, dense)
    narrow = {dense: np.zeros((32, 8), np.float32)}
    refused(narrow, rf"{dense}.*\(32, 8\).*params/time_hidden/kernel.*\(16, 32\)")
    flat = {dense: np.zeros(512, np.float32)}
    refused(flat, rf"{dense}.*\(512,\).*params/time_hidden/kernel.*\(16, 32\)")
    refused({"all_modules.99.bias": np.zeros(7)}, r"all_modules.99.bias.*\(7,\)")


def test_other_files_are_refused(tmp_path):
    with pytest.raises(UserError, match="no weights at.*score_sde_pytorch"):
        score_sde.load(str(tmp_path / "missing.safetensors"), SMALL, IMAGE)
    path = tmp_path / "checkpoint_8.pth"
    path.write_bytes(b"\x80\x02}q\x00.")
    with pytest.raises(UserError, match="not a safetensors file"):
        score_sde.load(str(path), SMALL, IMAGE)


def test_every_leaf_of_ours_is_claimed(tmp_path):
    path = tmp_path / "no.safetensors"
    leaves = dict(score_sde.expected_leaves(SMALL, IMAGE))
    bias = "params/conv_in/bias"
    wrong = {bias: (9,), "params/other": (1,)}
    variants = [
        leaves | {name: jax.ShapeDtypeStruct(shape, np.float32)}
        for name, shape in wrong.items()
    ]
    variants.append({name: leaf for name, leaf in leaves.items() if name != bias})
    for variant, name in zip(variants, [*wrong, bias], strict=True):
        with pytest.raises(UserError, match=name):
            variables = unflatten_dict(variant, sep="/")
            score_sde.save(str(path), SMALL, IMAGE, variables, SIGMAS)
    assert not path.exists()


def test_networks_that_they_do_not_have_are_refused():
    class Gain(nn.Module):
        dtype: str

        @nn.compact
        def __call__(self, x):
            gain = self.param("gain", nn.initializers.ones, x.shape[-1:])
            return x * gain[None, None, None]

    network = SMALL.clone(attention=Gain)
    leaves = score_sde.expected_leaves(network, IMAGE)
    with pytest.raises(UserError, match=r"attention_0/gain.*\(16,\).*NCSN"):
        score_sde.leaf_names(network, leaves)
