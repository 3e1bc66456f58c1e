"""DDPM and NCSN++ against diffusers' `UNet2DModel`, live, folders going both ways.

All in float32.
"""

import math

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import UNet2DModel
from diffusers.models.embeddings import GaussianFourierProjection
from safetensors.numpy import load_file, save_file

from research.pretrained import unet2d
from tests.layers import slow

TOLERANCE = 1e-4  # of the largest element of the output
STEPS = np.array([0.0, 371.0, 999.0], np.float32)
SIGMAS = np.array([0.01, 1.7, 348.0], np.float32)

DDPM = dict(
    flip_sin_to_cos=False,
    freq_shift=1,
    downsample_padding=0,
    attention_head_dim=None,
    norm_eps=1e-6,
    norm_num_groups=4,
)


# What is published for 256 pixels (score_sde's configs/ve), in diffusers' terms.
NCSNPP = dict(
    time_embedding_type="fourier",
    norm_eps=1e-6,
    norm_num_groups=None,
    attention_head_dim=None,
    mid_block_scale_factor=math.sqrt(2),
    center_input_sample=True,
)


def levels(*attended: bool, kind: str = "") -> dict:
    """Their block types, the finest level first."""
    down, up = (
        ["Attn" * there + f"{kind}{way}Block2D" for there in order]
        for way, order in (("Down", attended), ("Up", attended[::-1]))
    )
    return dict(down_block_types=down, up_block_types=up)


CONFIGS = {
    "odd-blocks": DDPM
    | dict(
        sample_size=[16, 8],
        layers_per_block=3,
        block_out_channels=[8, 16],
        **levels(False, True),
    ),
    "heads": DDPM
    | dict(
        sample_size=8,
        layers_per_block=1,
        block_out_channels=[8, 8, 24],
        attention_head_dim=4,
        norm_num_groups=2,
        norm_eps=1e-2,
        center_input_sample=True,
        in_channels=1,
        out_channels=1,
        **levels(True, False, True),
    ),
    "one-level": DDPM
    | dict(
        sample_size=[5, 7],
        layers_per_block=1,
        block_out_channels=[16],
        norm_num_groups=8,
        norm_eps=1e-5,
        dropout=0.3,
        **levels(False),
    ),
    # Their defaults, but for the widths.
    "library-defaults": dict(
        sample_size=[8, 12],
        layers_per_block=1,
        block_out_channels=[8, 16],
        norm_num_groups=8,
        attention_head_dim=8,
        **levels(True, False),
    ),
    "fourier": DDPM
    | dict(
        sample_size=4,
        layers_per_block=1,
        block_out_channels=[8],
        time_embedding_type="fourier",
        **levels(True),
    ),
    "ncsnpp": NCSNPP
    | dict(
        sample_size=16,
        layers_per_block=2,
        block_out_channels=[64, 128],
        **levels(False, True, kind="Skip"),
    ),
    "ncsnpp-odd-blocks": NCSNPP
    | dict(
        sample_size=[8, 24],
        layers_per_block=1,
        block_out_channels=[12, 24],
        center_input_sample=False,
        norm_eps=1e-4,
        attention_head_dim=4,
        dropout=0.2,
        **levels(False, False, kind="Skip"),
    ),
    "ncsnpp-one-level": NCSNPP
    | dict(
        sample_size=[5, 7],
        layers_per_block=3,
        block_out_channels=[128],
        time_embedding_type="positional",
        attention_head_dim=32,
        norm_num_groups=32,
        **levels(True, kind="Skip"),
    ),
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_there_and_back(config, tmp_path):
    theirs = randomized(UNet2DModel(**config)).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    network, variables = unet2d.load(str(tmp_path / "theirs"))

    size = theirs.config["sample_size"]
    height, width = (size, size) if isinstance(size, int) else size
    x = np.random.default_rng(0).random(
        (3, height, width, theirs.config["in_channels"]), np.float32
    )
    expected = outputs(theirs, x)
    apply = slow.jit(lambda v, x, t: network.apply(v, x, t, train=False))
    fourier = theirs.config["time_embedding_type"] == "fourier"
    t = np.log(SIGMAS) if fourier else STEPS / 999
    ours = apply(variables, jnp.asarray(x), jnp.asarray(t))
    if fourier:
        # Their network divides by the level itself.
        expected = expected * SIGMAS[:, None, None, None]
    scale = np.abs(expected).max()
    assert scale > 0.1
    np.testing.assert_allclose(ours, expected, rtol=0, atol=TOLERANCE * scale)

    unet2d.save(str(tmp_path / "ours"), network, variables, (height, width))
    again = UNet2DModel.from_pretrained(tmp_path / "ours").eval()
    np.testing.assert_array_equal(outputs(again, x), outputs(theirs, x))
    written = {key for key in unet2d.KEYS if not key.startswith("_")}
    if fourier:  # does not read these,
        written -= {"flip_sin_to_cos", "freq_shift"}
    if "Skip" in str(config):  # nor these, but for numbers of groups that null is too.
        written -= {"downsample_padding", "norm_num_groups"}
    for key in written:
        assert plain(again.config[key]) == plain(theirs.config[key]), key
    files = [tmp_path / name / unet2d.WEIGHTS for name in ("theirs", "ours")]
    before, after = map(load_file, files)
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize(
    ("mults", "size", "num_blocks", "num_params"),
    [
        ((8, 8, 16, 16, 16, 16, 16), 256, 2, 65_574_549),
        ((1, 2, 4, 8, 16, 32, 32, 32), 1024, 1, 105_785_896),
    ],
)
def test_published_ncsnpp(mults, size, num_blocks, num_params):
    """Names and shapes of all leaves, with attention at 16 pixels, in no memory."""
    attended = [size // 2**level == 16 for level in range(len(mults))]
    config = NCSNPP | dict(
        sample_size=size,
        layers_per_block=num_blocks,
        block_out_channels=[16 * mult for mult in mults],
        **levels(*attended, kind="Skip"),
    )
    with torch.device("meta"):
        state = UNet2DModel(**config).state_dict()
    theirs = {name: tuple(leaf.shape) for name, leaf in state.items()}
    assert sum(map(math.prod, theirs.values())) == num_params
    network = unet2d.network_of(config)
    leaves = unet2d.expected_leaves(network, (size, size, 3))
    ours = {}
    for path, (name, axes) in unet2d.leaf_names(network, leaves).items():
        shape = leaves[path].shape
        shape = (1,) * (len(axes) - len(shape)) + shape
        ours[name] = tuple(shape[axis] for axis in np.argsort(axes))
    assert ours == theirs


def test_older_names_of_attention(tmp_path):
    """Their library reads these too, to the same weights."""
    theirs = randomized(UNet2DModel(**CONFIGS["heads"]))
    theirs.save_pretrained(tmp_path)
    weights = load_file(tmp_path / unet2d.WEIGHTS)
    older = {}
    for name, weight in weights.items():
        for before, now in unet2d.OLDER.items():
            name = name.replace(f".{now}.", f".{before}.")
        older[name] = weight
    assert older.keys() != weights.keys()
    _, variables = unet2d.load(str(tmp_path))
    save_file(older, tmp_path / unet2d.WEIGHTS, metadata={"format": "pt"})
    _, again = unet2d.load(str(tmp_path))
    for module in ("mid_attention", "down_0_attention_0"):
        for name, part in variables["params"][module].items():
            for leaf in part:
                assert np.array_equal(part[leaf], again["params"][module][name][leaf])
    reference = UNet2DModel.from_pretrained(tmp_path)
    for name, weight in reference.state_dict().items():
        assert np.array_equal(weight.numpy(), weights[name])


def randomized(module: torch.nn.Module) -> torch.nn.Module:
    """Every leaf matters, and activations stay of order one."""
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        if parameter.ndim > 1:
            std = parameter[0].numel() ** -0.5
            torch.nn.init.normal_(parameter, 0, std, generator=generator)
        else:
            torch.nn.init.uniform_(parameter, 0.2, 1.2, generator=generator)
    if isinstance(getattr(module, "time_proj", None), GaussianFourierProjection):
        # As published.
        torch.nn.init.normal_(module.time_proj.weight, 0, 16, generator=generator)
    return module


def outputs(unet: UNet2DModel, x: np.ndarray) -> np.ndarray:
    fourier = unet.config["time_embedding_type"] == "fourier"
    with torch.no_grad():
        x_torch = torch.from_numpy(x).permute(0, 3, 1, 2)
        t = torch.from_numpy(SIGMAS if fourier else STEPS)
        return unet(x_torch, t).sample.permute(0, 2, 3, 1).numpy()


def plain(value):
    return list(value) if isinstance(value, tuple) else value
