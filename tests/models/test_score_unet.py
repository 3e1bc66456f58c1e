from collections import Counter
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.errors import UserError
from research.layers.attention import PixelAttention
from research.layers.blocks import (
    InputSkip,
    NearestConv,
    ResidualOutput,
    ResidualPyramid,
    StridedConv,
    concatenate,
    ddpm_block,
)
from research.layers.conv import fir_downsample, fir_upsample
from research.layers.embeddings import FourierEmbedding, SinusoidalEmbedding
from research.models.score_unet import ScoreUNet
from tests.layers import slow

# How often each shape occurs in the released checkpoints of yang-song/score_sde,
# vp/cifar10_ddpmpp_continuous (4 blocks) and vp/cifar10_ddpmpp_deep_continuous (8),
# convolutions as HWIO and dense layers as (in, out). Not among them is the buffer of
# 1000 noise levels, `sigmas`, which is no parameter.
PUBLISHED = {
    (3,): (1, 1),
    (128,): (71, 123),
    (256,): (271, 459),
    (384,): (4, 4),
    (512,): (30, 54),
    (128, 512): (1, 1),
    (256, 256): (24, 40),
    (512, 128): (10, 18),
    (512, 256): (34, 58),
    (512, 512): (1, 1),
    (1, 1, 128, 128): (1, 1),
    (1, 1, 128, 256): (1, 1),
    (1, 1, 256, 128): (4, 8),
    (1, 1, 256, 256): (5, 5),
    (1, 1, 384, 128): (1, 1),
    (1, 1, 384, 256): (1, 1),
    (1, 1, 512, 256): (14, 26),
    (3, 3, 3, 128): (1, 1),
    (3, 3, 128, 3): (1, 1),
    (3, 3, 128, 128): (15, 27),
    (3, 3, 128, 256): (1, 1),
    (3, 3, 256, 128): (4, 8),
    (3, 3, 256, 256): (52, 88),
    (3, 3, 384, 128): (1, 1),
    (3, 3, 384, 256): (1, 1),
    (3, 3, 512, 256): (14, 26),
}

SMALL = ScoreUNet(
    channels=8, channel_mults=(1, 2), num_res_blocks=1, attention_resolutions=(4,)
)
FIR = ScoreUNet(downsample=fir_downsample, upsample=fir_upsample)
NCSNPP = FIR.clone(time_embedding=FourierEmbedding, input_pyramid=ResidualPyramid)
SKIPPING = NCSNPP.clone(input_pyramid=InputSkip, output_skip=fir_upsample)
RESIDUAL = NCSNPP.clone(output_skip=ResidualOutput)
CONCATENATING = SKIPPING.clone(input_pyramid=partial(InputSkip, combine=concatenate))
DDPM = ScoreUNet(
    num_res_blocks=2,
    block=ddpm_block,
    attention=partial(PixelAttention, skip_scale=1.0),
    downsample=StridedConv,
    upsample=NearestConv,
)
X = jax.random.normal(jax.random.key(0), (2, 8, 4, 3))
T = jnp.array([0.2, 0.9])


def shapes(network, size=(8, 4)):
    x = jnp.zeros((1, *size, 3))
    return jax.eval_shape(
        lambda: network.init(jax.random.key(0), x, jnp.ones(1), train=False)
    )


@pytest.fixture(scope="module")
def variables():
    return {"params": slow.random_params(SMALL, X, T, False)}


@pytest.fixture(scope="module")
def output(variables):
    return slow.jit(partial(SMALL.apply, train=False))(variables, X, T)


@pytest.mark.parametrize(
    ("num_res_blocks", "column", "num_params"),
    [(4, 0, 61_804_419), (8, 1, 106_632_579)],
)
def test_true_size(num_res_blocks, column, num_params):
    published = shapes(ScoreUNet(num_res_blocks=num_res_blocks), size=(32, 32))
    leaves = jax.tree.leaves(published)
    assert sum(leaf.size for leaf in leaves) == num_params
    assert Counter(leaf.shape for leaf in leaves) == {
        shape: counts[column] for shape, counts in PUBLISHED.items()
    }
    assert {leaf.dtype for leaf in leaves} == {jnp.dtype("float32")}


@pytest.mark.parametrize(
    ("network", "size", "num_params"),
    [
        pytest.param(
            NCSNPP.clone(time_embedding=partial(SinusoidalEmbedding, scale=1.0)),
            32,
            62_693_251,
            id="ncsnpp-positional",
        ),
        # A norm of 256 channels and four 3x3 convolutions more than NCSN++ has.
        pytest.param(
            RESIDUAL,
            32,
            62_758_915 + 512 + 3 * (9 * 256 + 1) * 256 + (9 * 256 + 1) * 128,
            id="ncsnpp-residual-output",
        ),
        pytest.param(
            SKIPPING.clone(channel_mults=(1, 1, 2, 2, 2, 2, 2), num_res_blocks=2),
            256,
            65_574_549,
            id="ncsnpp-256",
        ),
        pytest.param(
            SKIPPING.clone(
                channels=16,
                channel_mults=(1, 2, 4, 8, 16, 32, 32, 32),
                num_res_blocks=1,
            ),
            1024,
            105_785_896,
            id="ncsnpp-1024",
        ),
    ],
)
def test_true_size_of_relatives(network, size, num_params):
    # Of the official configurations (yang-song/score_sde_pytorch); those of the other
    # released checkpoints are counted where their layouts are compared.
    leaves = jax.tree.leaves(shapes(network, size=(size, size)))
    assert sum(leaf.size for leaf in leaves) == num_params


def test_names():
    assert set(shapes(SMALL)["params"]) == {
        "time_hidden",
        "time_out",
        "conv_in",
        "down_0_block_0",
        "down_0_resample",
        "down_1_block_0",
        "down_1_attention_0",
        "mid_block_0",
        "mid_attention",
        "mid_block_1",
        "up_1_block_0",
        "up_1_block_1",
        "up_1_attention",
        "up_1_resample",
        "up_0_block_0",
        "up_0_block_1",
        "norm_out",
        "conv_out",
    }


def test_names_of_relatives():
    small = {
        "channels": 8,
        "channel_mults": (1, 2),
        "num_res_blocks": 1,
        "attention_resolutions": (4,),
    }
    names = set(shapes(SMALL)["params"])
    residual = shapes(NCSNPP.clone(**small))["params"]
    assert set(residual) == names | {"time_embedding", "down_0_input"}
    assert set(residual["down_0_input"]) == {"residual"}
    skipping = shapes(SKIPPING.clone(**small))["params"]
    heads = {f"up_{i}_{part}" for i in (0, 1) for part in ("norm_out", "conv_out")}
    assert set(skipping) == set(residual) - {"norm_out", "conv_out"} | heads
    assert set(skipping["down_0_input"]) == {"combine"}
    growing = shapes(RESIDUAL.clone(**small))["params"]
    first = {"up_1_norm_out", "up_1_conv_out"}
    assert set(growing) == set(residual) | first | {"up_0_output"}
    assert set(growing["up_0_output"]) == {"residual"}
    beside = shapes(CONCATENATING.clone(**small))["params"]
    assert set(beside) == set(skipping)
    assert set(beside["down_0_input"]) == {"combine"}
    ddpm = shapes(DDPM.clone(**small))["params"]
    assert set(ddpm) == names
    assert set(ddpm["down_0_resample"]) == set(ddpm["up_1_resample"]) == {"conv"}


def test_starts_near_zero():
    network = ScoreUNet(8, (1,), num_res_blocks=0, attention_resolutions=())
    init = partial(network.init_with_output, train=False)
    y, _ = slow.jit(init)(slow.key(0), X, T)
    assert y.shape == X.shape
    assert 0 < float(abs(y).max()) < 1e-3


def test_examples_are_independent_and_depend_on_their_time(variables):
    @slow.jit
    def change(x_tangent, t_tangent):
        apply = partial(SMALL.apply, variables, train=False)
        return jax.jvp(apply, (X, T), (x_tangent, t_tangent))[1]

    nothing = jnp.zeros_like(X), jnp.zeros_like(T)
    for x_tangent, t_tangent in [
        (nothing[0].at[1].set(1.0), nothing[1]),
        (nothing[0], nothing[1].at[1].set(1.0)),
    ]:
        tangent = change(x_tangent, t_tangent)
        assert (tangent[0] == 0).all()
        assert (tangent[1] != 0).all()


def test_dropout_only_in_training(variables, output):
    @slow.jit
    def train(seed):
        rngs = {"dropout": slow.key(seed)}
        return SMALL.apply(variables, X, T, train=True, rngs=rngs)

    assert (train(0) == train(0)).all()
    assert (train(0) != train(1)).any()
    # The blocks' own rate is 0.1, so that most of the signal is what it was.
    error = abs(train(0) - output).mean() / abs(output).mean()
    assert 0.01 < float(error) < 1


def test_bfloat16(variables, output):
    network = SMALL.clone(dtype="bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes(network))} == {
        jnp.dtype("float32")
    }
    apply = partial(network.apply, train=False)
    watched = partial(apply, capture_intermediates=True, mutable=["intermediates"])
    outputs = jax.eval_shape(watched, variables, X, T)[1]["intermediates"]
    del outputs["__call__"], outputs["time_embedding"]
    assert {leaf.dtype for leaf in jax.tree.leaves(outputs)} == {jnp.dtype("bfloat16")}
    text = str(jax.make_jaxpr(apply)(variables, X, T))
    for operation in ("rsqrt", "exp"):
        lines = [line for line in text.splitlines() if f" = {operation} " in line]
        assert lines and all(":f32[" in line for line in lines)
    y = slow.jit(apply)(variables, X, T)
    assert y.dtype == jnp.float32
    error = float(abs(y - output).max() / abs(output).max())
    assert 1e-4 < error < 0.05


def test_slots():
    class Fourier(nn.Module):
        embed_dim: int

        @nn.compact
        def __call__(self, t):
            return jnp.zeros((t.shape[0], 2 * self.embed_dim))

    class Scale(nn.Module):
        channels: int
        resample: object
        dtype: str

        @nn.compact
        def __call__(self, x, time, train):
            x = x if self.resample is None else self.resample(x)
            scale = self.param("scale", nn.initializers.ones, (self.channels,))
            return x.mean(-1, keepdims=True) * scale[None, None, None]

    class Nothing(nn.Module):
        dtype: str

        @nn.compact
        def __call__(self, x):
            return x

    network = SMALL.clone(
        time_embedding=Fourier,
        block=Scale,
        attention=Nothing,
        downsample=lambda x: x[:, ::2, ::2],
        upsample=lambda x: x.repeat(2, 1).repeat(2, 2),
    )
    params = shapes(network)["params"]
    assert params["time_hidden"]["kernel"].shape == (16, 32)
    assert params["down_0_resample"].keys() == {"scale"}
    assert "mid_attention" not in params


def test_data_range(variables, output):
    network = SMALL.clone(data_range=(0.0, 2.0))
    apply = slow.jit(partial(network.apply, train=False))
    # Halves and whole numbers lose no digits on the way.
    np.testing.assert_allclose(apply(variables, X + 1, T), output, atol=1e-4)


def test_input_pyramid_sees_every_level():
    seen = []

    class Pyramid(nn.Module):
        channels: int
        dtype: str

        @nn.compact
        def __call__(self, pyramid, h):
            seen.append((pyramid.shape[1:3], h.shape[1:], self.name))
            return pyramid[:, ::2, ::2], jnp.zeros_like(h)

    network = SMALL.clone(channel_mults=(1, 2, 4), input_pyramid=Pyramid)
    shapes(network, (8, 16))
    assert seen == [
        ((8, 16), (4, 8, 8), "down_0_input"),
        ((4, 8), (2, 4, 16), "down_1_input"),
    ]


def test_output_is_the_sum_of_every_levels_image():
    network = SMALL.clone(output_skip=lambda x: 10 * x.repeat(2, 1).repeat(2, 2))
    params = slow.random_params(network, X, T, False)
    for name, bias in {"up_0_conv_out": 1.0, "up_1_conv_out": 2.0}.items():
        params[name] = {
            "kernel": 0 * params[name]["kernel"],
            "bias": jnp.full(3, bias),
        }
    y = slow.apply(network, params, X, T, False)
    np.testing.assert_array_equal(y, np.full(X.shape, 21.0))


def test_a_module_as_output_carries_the_features_to_every_finer_level():
    seen = []

    class Carry(nn.Module):
        channels: int
        dtype: str

        @nn.compact
        def __call__(self, pyramid, h):
            seen.append((self.channels, pyramid.shape[1:], h.shape[1:], self.name))
            return jnp.concatenate([h, h], axis=-1)

    network = SMALL.clone(channel_mults=(1, 2, 4), output_skip=partial(Carry))
    params = shapes(network, (8, 16))["params"]
    assert seen == [
        (16, (2, 4, 32), (4, 8, 16), "up_1_output"),
        (8, (4, 8, 32), (8, 16, 8), "up_0_output"),
    ]
    # What it returns is also what the network goes on with.
    assert params["up_1_resample"]["norm1"]["scale"].shape == (32,)
    assert params["norm_out"]["scale"].shape == (16,)
    assert params["conv_out"]["kernel"].shape == (3, 3, 16, 3)


def test_every_parameter_of_the_pyramids_matters():
    network = CONCATENATING.clone(
        channels=8,
        channel_mults=(1, 1),
        num_res_blocks=0,
        attention_resolutions=(),
        output_skip=ResidualOutput,
    )
    params = slow.random_params(network, X, T, False)

    @slow.jit
    def gradients(params):
        apply = partial(network.apply, train=False)
        y, pullback = jax.vjp(lambda params: apply({"params": params}, X, T), params)
        return pullback(y)[0]

    found = gradients(params)
    for name in ("down_0_input", "up_1_norm_out", "up_1_conv_out", "up_0_output"):
        for leaf in jax.tree.leaves(found[name]):
            assert jnp.isfinite(leaf).all() and (leaf != 0).all()


@pytest.mark.parametrize("network", [NCSNPP, SKIPPING, RESIDUAL, CONCATENATING, DDPM])
def test_relatives_in_bfloat16(network):
    network = network.clone(
        channels=8,
        channel_mults=(1, 2),
        num_res_blocks=1,
        attention_resolutions=(4,),
        dtype="bfloat16",
    )
    params = shapes(network)["params"]
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    watched = partial(
        network.apply,
        train=False,
        capture_intermediates=True,
        mutable=["intermediates"],
    )
    x, others = jax.eval_shape(watched, {"params": params}, X, T)
    assert x.dtype == jnp.float32
    for name, outputs in others["intermediates"].items():
        # The smaller images of the input keep its precision.
        h = outputs if name != "down_0_input" else jax.tree.leaves(outputs)[1:]
        if name not in ("__call__", "time_embedding"):
            dtypes = {leaf.dtype for leaf in jax.tree.leaves(h)}
            assert dtypes == {jnp.dtype("bfloat16")}


@pytest.mark.parametrize("size", [(12, 8), (8, 20), (4, 4)])
def test_sizes_that_cannot_be_halved_are_refused(size):
    network = SMALL.clone(channel_mults=(1, 1, 1, 1), attention_resolutions=())
    with pytest.raises(UserError, match="multiples of 8"):
        shapes(network, size)


def test_attention_where_no_level_is_refused():
    with pytest.raises(UserError, match=r"\[16\].*\[8, 4\]"):
        shapes(SMALL.clone(attention_resolutions=(16, 4)))
