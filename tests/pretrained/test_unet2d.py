import json
import math
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from research.errors import UserError
from research.layers.attention import PixelAttention
from research.layers.blocks import BigGANBlock, ResidualPyramid, StridedConv
from research.layers.conv import fir_upsample, mean_pool
from research.layers.embeddings import SinusoidalEmbedding
from research.layers.norms import GroupNorm
from research.models.score_unet import ScoreUNet
from research.pretrained import unet2d

RELEASED = Path(__file__).parent / "layouts" / "ddpm-cifar10-32.json"
SMALL = json.loads(RELEASED.read_text())["config"] | {
    "sample_size": 4,
    "block_out_channels": [4, 8],
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
    "layers_per_block": 1,
    "norm_num_groups": 2,
}

# NCSN++ for 256 pixels: score_sde's configs/ve/celebahq_256_ncsnpp_continuous.
NCSNPP = {
    "_class_name": "UNet2DModel",
    "sample_size": 256,
    "in_channels": 3,
    "out_channels": 3,
    "center_input_sample": True,
    "time_embedding_type": "fourier",
    "down_block_types": [
        *["SkipDownBlock2D"] * 4,
        "AttnSkipDownBlock2D",
        *["SkipDownBlock2D"] * 2,
    ],
    "up_block_types": [
        *["SkipUpBlock2D"] * 2,
        "AttnSkipUpBlock2D",
        *["SkipUpBlock2D"] * 4,
    ],
    "block_out_channels": [128, 128, 256, 256, 256, 256, 256],
    "layers_per_block": 2,
    "mid_block_scale_factor": math.sqrt(2),
    "dropout": 0.0,
    "attention_head_dim": None,
    "norm_num_groups": None,
    "norm_eps": 1e-6,
}
SMALL_NCSNPP = NCSNPP | {
    "sample_size": 4,
    "block_out_channels": [32, 128],
    "down_block_types": ["SkipDownBlock2D", "AttnSkipDownBlock2D"],
    "up_block_types": ["AttnSkipUpBlock2D", "SkipUpBlock2D"],
    "layers_per_block": 1,
}


def their_shapes(config):
    """The network of a config, and the shape of each tensor that we would write."""
    network = unet2d.network_of(config)
    size = config["sample_size"]
    leaves = unet2d.expected_leaves(network, (size, size, config["in_channels"]))
    shapes = {}
    for ours, (name, axes) in unet2d.leaf_names(network, leaves).items():
        shape = leaves[ours].shape
        shape = (1,) * (len(axes) - len(shape)) + shape
        shapes[name] = [shape[axis] for axis in np.argsort(axes)]
    assert len(shapes) == len(leaves)
    return network, shapes


def test_released_layout():
    layout = json.loads(RELEASED.read_text())
    network, shapes = their_shapes(layout["config"])
    tensors = {unet2d.today(name): w for name, w in layout["tensors"].items()}
    assert len(tensors) == len(layout["tensors"])
    assert shapes == tensors
    assert sum(map(math.prod, shapes.values())) == layout["params"] == 35_746_307
    config = unet2d.config_of(network, (32, 32, 3))
    assert layout["config"].items() <= config.items()


def test_published_ncsnpp():
    """65,574,549 parameters, of which the embedding's 128 frequencies are fixed.

    The count is that of their class with this config, and of the decoder for AFHQ-Cat
    that arXiv:2509.15591 lists.
    """
    network, shapes = their_shapes(NCSNPP)
    assert sum(map(math.prod, shapes.values())) == 65_574_549
    assert shapes["time_proj.weight"] == [128]
    assert shapes["down_blocks.0.skip_conv.weight"] == [128, 3, 1, 1]
    assert shapes["up_blocks.5.skip_conv.weight"] == [3, 128, 3, 3]
    assert "up_blocks.6.skip_conv.weight" not in shapes
    assert NCSNPP.items() <= unet2d.config_of(network, (256, 256, 3)).items()
    assert network.attention_resolutions == (16,)
    assert network.data_range == (0.0, 1.0)


@pytest.fixture(scope="module")
def small():
    rng = np.random.default_rng(0)
    network, shapes = their_shapes(SMALL)
    weights = {n: rng.standard_normal(s, np.float32) for n, s in shapes.items()}
    return network, weights


def written(folder, weights, config=SMALL):
    save_file(weights, folder / unet2d.WEIGHTS)
    (folder / unet2d.CONFIG).write_text(json.dumps(config))
    return str(folder)


def test_there_and_back(small, tmp_path):
    _, weights = small
    network, variables = unet2d.load(written(tmp_path, weights))
    block = variables["params"]["up_0_block_1"]
    theirs = weights["up_blocks.1.resnets.1.conv_shortcut.weight"]
    assert block["skip"]["kernel"][2, 3] == theirs[3, 2, 0, 0]
    theirs = weights["up_blocks.1.resnets.1.conv1.weight"]
    assert block["conv1"]["kernel"][0, 2, 5, 3] == theirs[3, 5, 0, 2]
    theirs = weights["up_blocks.0.attentions.1.to_k.weight"]
    attention = variables["params"]["up_1_attention_1"]
    assert attention["key"]["kernel"][5, 6] == theirs[6, 5]
    again = tmp_path / "new" / "folder"
    unet2d.save(str(again), network, variables, (4, 4))
    kept = load_file(again / unet2d.WEIGHTS)
    assert kept.keys() == weights.keys()
    assert all(np.array_equal(kept[name], weights[name]) for name in kept)
    assert SMALL.items() <= json.loads((again / unet2d.CONFIG).read_text()).items()


def test_files_in_parts(small, tmp_path):
    folder, weights = written(tmp_path, small[1]), small[1]
    _, whole = unet2d.load(folder)
    (tmp_path / unet2d.WEIGHTS).unlink()
    index = {}
    for i, part in enumerate(np.array_split(sorted(weights), 3)):
        index |= dict.fromkeys(part.tolist(), f"part-{i}.safetensors")
        save_file(
            {name: weights[name] for name in part}, tmp_path / f"part-{i}.safetensors"
        )
    path = tmp_path / f"{unet2d.WEIGHTS}.index.json"
    path.write_text(json.dumps({"metadata": {}, "weight_map": index}))
    _, parts = unet2d.load(folder)
    assert jax.tree.all(jax.tree.map(np.array_equal, parts, whole))


def test_older_files_hold_the_frequencies_twice(tmp_path):
    _, shapes = their_shapes(SMALL_NCSNPP)
    weights = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    weights["time_proj.weight"] = np.arange(32, dtype=np.float32)
    twice = weights | {"time_proj.W": np.arange(32, dtype=np.float32)}
    _, variables = unet2d.load(written(tmp_path, twice, SMALL_NCSNPP))
    assert variables["params"]["time_embedding"]["frequencies"].tolist() == list(
        range(32)
    )


def test_every_leaf_of_theirs_is_claimed(small, tmp_path):
    def refused(match, *without, **changed):
        kept = {name: w for name, w in small[1].items() if name not in without}
        with pytest.raises(UserError, match=match):
            unet2d.load(written(tmp_path, kept | changed))

    skip = "down_blocks.1.resnets.0.conv_shortcut.weight"
    ours = "params/down_1_block_0/skip/kernel"
    refused(rf"lacks {skip}.*\(8, 4, 1, 1\).*{ours}.*\(4, 8\)", skip)
    narrow = np.zeros((8, 2, 1, 1), np.float32)
    refused(rf"{skip}.*\(8, 2, 1, 1\).*{ours}.*\(4, 8\)", **{skip: narrow})
    refused(r"other.bias with shape \(7,\)", **{"other.bias": np.zeros(7)})
    whole = np.zeros((8, 4, 1, 1), np.int32)
    refused(rf"{skip}.*I32.*F32", **{skip: whole})
    # Under its older name beside its name of today.
    twice = {"mid_block.attentions.0.query.bias": np.zeros(8, np.float32)}
    refused(r"mid_block.attentions.0.(to_q|query).bias.*\(8,\)", **twice)


def test_every_leaf_of_ours_is_claimed(small, tmp_path):
    network, variables = unet2d.load(written(tmp_path, small[1]))
    params = variables["params"]
    bias = {"bias": np.zeros(9, np.float32)}
    lacking = {name: part for name, part in params.items() if name != "norm_out"}
    for changed, match in [
        (lacking, r"norm_out/bias.*None, expected \(4,\)"),
        (params | {"other": bias}, r"other/bias.*\(9,\), expected None"),
        (params | {"conv_in": params["conv_in"] | bias}, r"conv_in/bias.*\(9,\).*\(4,"),
    ]:
        with pytest.raises(UserError, match=match):
            unet2d.save(str(tmp_path / "no"), network, {"params": changed}, (4, 4))
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize(
    ("key", "value", "supported"),
    [
        ("_class_name", "UNet2DConditionModel", '"UNet2DModel"'),
        ("sample_size", None, "height and width"),
        ("sample_size", [4, 4, 4], "height and width"),
        ("out_channels", 6, "in_channels, 3"),
        ("time_embedding_type", "learned", '"positional" or "fourier"'),
        ("time_embedding_dim", 8, "null or 16"),
        ("freq_shift", 2, "0 or 1"),
        ("flip_sin_to_cos", None, "true or false"),
        ("down_block_types", ["SkipDownBlock2D", "DownBlock2D"], "of one kind"),
        ("down_block_types", ["ResnetDownsampleBlock2D"] * 2, "list of DownBlock2D, A"),
        ("down_block_types", ["DownBlock2D"], "2 of them"),
        ("mid_block_type", None, '"UNetMidBlock2D"'),
        ("mid_block_scale_factor", 2, "1, as DownBlock2D has"),
        ("mid_block_scale_factor", "1", "a number"),
        ("up_block_types", ["UpBlock2D", "UpBlock2D"], "mirror of down_block_types"),
        ("up_block_types", ["AttnSkipUpBlock2D", "SkipUpBlock2D"], "mirror of"),
        ("block_out_channels", [4, 6], "multiples of the first"),
        ("layers_per_block", 0, "number of blocks"),
        ("downsample_padding", 2, "1 or 0"),
        ("downsample_type", "resnet", '"conv"'),
        ("dropout", "0.1", "rate"),
        ("act_fn", "relu", '"silu" or "swish"'),
        ("attention_head_dim", 3, r"divisor of each of \[4, 8\]"),
        ("norm_num_groups", 8, r"divisor of each of \[4, 8\]"),
        ("norm_num_groups", None, r"divisor of each of \[4, 8\]"),
        ("attn_norm_num_groups", 1, "norm_num_groups, 2"),
        ("norm_eps", None, "positive"),
        ("add_attention", False, "true"),
        ("num_class_embeds", 10, "null"),
        ("new_key", 1, "only _class_name, "),
    ],
)
def test_configs_that_are_refused(key, value, supported):
    refuses(SMALL, key, value, supported)


@pytest.mark.parametrize(
    ("key", "value", "supported"),
    [
        ("mid_block_scale_factor", 1, "square root of 2"),
        ("norm_num_groups", 32, "null, or 8 in the first level and 32 in the last"),
        ("attn_norm_num_groups", 1, "null or 32"),
        ("block_out_channels", [4, 96], "at least 128 channels at the levels of Attn"),
        ("block_out_channels", [2, 128], "multiples of 4"),
    ],
)
def test_configs_of_ncsnpp_that_are_refused(key, value, supported):
    refuses(SMALL_NCSNPP, key, value, supported)


def test_ncsnpp_is_for_three_channels():
    with pytest.raises(UserError, match="in_channels = 1 in config.json.*3, as Skip"):
        unet2d.network_of(SMALL_NCSNPP | {"in_channels": 1, "out_channels": 1})
    network = unet2d.network_of(SMALL_NCSNPP)
    with pytest.raises(UserError, match="in_channels = 1 .*3, as Skip"):
        unet2d.config_of(network, (4, 4, 1))


def refuses(config, key, value, supported):
    there = f"{key} = {json.dumps(value)}".replace("[", r"\[")
    with pytest.raises(UserError, match=f"{there} in config.json.*{supported}"):
        unet2d.network_of(config | {key: value})


def test_absent_keys_have_the_defaults_of_their_library():
    absent = ("norm_eps", "flip_sin_to_cos", "freq_shift", "downsample_padding")
    config = {key: value for key, value in SMALL.items() if key not in absent}
    network = unet2d.network_of(config)
    assert network.norm().epsilon == 1e-5
    embedding = network.time_embedding(4)
    assert embedding.cosines_first and not embedding.endpoint
    assert network.downsample(4).padding == (1, 1)


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        (ScoreUNet(), "block = .*ddpm_block"),
        ({"attention": PixelAttention}, "attention = .*plain sums"),
        ({"norm": GroupNorm}, "norm = .*of block and attention"),
        ({"downsample": fir_upsample}, "downsample = .*StridedConv"),
        (
            {"downsample": partial(StridedConv, padding=(1, 0))},
            "downsample = .*Strided",
        ),
        ({"upsample": fir_upsample}, "upsample = .*NearestConv"),
        (
            {"time_embedding": partial(SinusoidalEmbedding, scale=1.0)},
            "time_embedding = .*scale 999",
        ),
        ({"output_skip": fir_upsample}, "output_skip = .*None"),
        ({"attend_every_up_block": False}, "attend_every_up_block = False.*True"),
        ({"data_range": (0.0, 2.0)}, r"data_range = \(0.0, 2.0\)"),
    ],
)
def test_networks_that_they_do_not_have_are_refused(changed, expected):
    network = unet2d.network_of(SMALL)
    network = network.clone(**changed) if isinstance(changed, dict) else changed
    with pytest.raises(UserError, match=expected):
        unet2d.config_of(network, (4, 4, 3))


NARROW = partial(GroupNorm, max_groups=16)


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"input_pyramid": None}, "block = .*ddpm_block"),
        ({"input_pyramid": ResidualPyramid}, "input_pyramid = .*None or InputSkip"),
        ({"output_skip": None}, "output_skip = None.*fir_upsample"),
        ({"upsample": mean_pool}, "upsample = .*fir_upsample"),
        ({"downsample": mean_pool}, "downsample = .*fir_downsample"),
        ({"attend_every_up_block": True}, "attend_every_up_block = True.*False"),
        (
            {
                "norm": NARROW,
                "block": partial(BigGANBlock, norm=NARROW),
                "attention": partial(PixelAttention, norm=NARROW),
            },
            "norm = .*32 groups of at least 4",
        ),
        ({"attention": partial(PixelAttention, skip_scale=1.0)}, "rescaled by 1/sqrt"),
        ({"channel_mults": (1, 3)}, "block_out_channels = .*at least 128"),
    ],
)
def test_relatives_of_ncsnpp_that_they_do_not_have_are_refused(changed, expected):
    network = unet2d.network_of(SMALL_NCSNPP).clone(**changed)
    with pytest.raises(UserError, match=expected):
        unet2d.config_of(network, (4, 4, 3))


def test_other_files_are_refused(small, tmp_path):
    folder = str(tmp_path)
    with pytest.raises(UserError, match="no config.json in .*save_pretrained"):
        unet2d.load(folder)
    (tmp_path / unet2d.CONFIG).write_text(json.dumps(SMALL))
    with pytest.raises(UserError, match="no weights at .*safetensors: give"):
        unet2d.load(folder)
    written(tmp_path, small[1])
    (tmp_path / unet2d.CONFIG).write_text("{")
    with pytest.raises(UserError, match="config.json is not JSON"):
        unet2d.load(folder)
    written(tmp_path, small[1], [])
    with pytest.raises(UserError, match="config.json holds no keys"):
        unet2d.load(folder)
    written(tmp_path, small[1])
    path = tmp_path / unet2d.WEIGHTS
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(UserError, match="not a safetensors file, or not all"):
        unet2d.load(folder)
