import math
from functools import partial

import jax
import jax.numpy as jnp
import pytest

from research.errors import UserError
from research.layers.norms import InstanceNormPlus
from research.layers.refine import average_pool
from research.models.refinenet import (
    RefineNet,
    ncsn,
    ncsnv2,
    ncsnv2_deeper,
    ncsnv2_deepest,
)
from tests.layers import slow

LEVEL_NORM = partial(InstanceNormPlus, num_levels=3)
SMALL = RefineNet(8, (1, 2), (1, 1), norm=LEVEL_NORM, pool=average_pool)
X = jax.random.uniform(jax.random.key(0), (3, 8, 4, 3))
T = jnp.array([2.0, 0.0, 1.0])


def shapes(network, size=(32, 32)):
    x = jnp.zeros((1, *size, 3))
    return jax.eval_shape(
        lambda: network.init(jax.random.key(0), x, jnp.ones(1), train=False)
    )["params"]


@pytest.fixture(scope="module")
def variables():
    return {"params": slow.random_params(SMALL, X, T, False)}


@pytest.fixture(scope="module")
def output(variables):
    return slow.jit(partial(SMALL.apply, train=False))(variables, X, T)


@pytest.mark.parametrize(
    ("network", "num_params"), [(ncsn(), 30_117_635), (ncsnv2(), 29_694_083)]
)
def test_true_size(network, num_params):
    leaves = jax.tree.leaves(shapes(network))
    assert sum(math.prod(leaf.shape) for leaf in leaves) == num_params
    assert {leaf.dtype for leaf in leaves} == {jnp.dtype("float32")}


@pytest.mark.parametrize(
    ("network", "size", "widths", "resolutions"),
    [
        (ncsn(8), 28, (8, 16, 16, 16), (28, 14, 14, 14)),
        (ncsnv2(8), 32, (8, 16, 16, 16), (32, 16, 16, 16)),
        (ncsnv2_deeper(8), 96, (8, 16, 16, 32, 32), (96, 48, 24, 24, 24)),
        (ncsnv2_deepest(8), 256, (8, 16, 16, 16, 32, 32), (256, 128, 64, 32, 32, 32)),
    ],
)
def test_stages(network, size, widths, resolutions):
    outputs = jax.eval_shape(
        lambda x: network.init_with_output(
            jax.random.key(0),
            x,
            jnp.zeros(3),
            train=False,
            capture_intermediates=True,
            mutable=["params", "intermediates"],
        ),
        jnp.zeros((3, size, size, 1)),
    )[1]["intermediates"]
    for stage, (width, resolution) in enumerate(zip(widths, resolutions, strict=True)):
        for block in (0, 1):
            (h,) = outputs[f"stage_{stage}_block_{block}"]["__call__"]
            assert h.shape == (3, resolution, resolution, width)
        (h,) = outputs[f"refine_{stage}"]["__call__"]
        assert h.shape == (3, resolution, resolution, widths[max(stage - 1, 0)])
    assert f"stage_{len(widths)}_block_0" not in outputs
    assert outputs["__call__"][0].shape == (3, size, size, 1)


def test_names(variables):
    params = variables["params"]
    assert set(params) == {
        "conv_in",
        "stage_0_block_0",
        "stage_0_block_1",
        "stage_1_block_0",
        "stage_1_block_1",
        "refine_1",
        "refine_0",
        "norm_out",
        "conv_out",
    }
    assert params["norm_out"]["scale"].shape == (3, 8)
    assert params["refine_0"]["out_2"].keys() == {"conv1", "conv2"}
    with_norms = shapes(SMALL.clone(refine_norm=LEVEL_NORM))
    assert with_norms["refine_0"]["out_2"]["norm1"]["scale"].shape == (3, 8)


def test_centres_images(variables, output):
    """The first convolution sees 2x - 1, also where it pads."""
    params = variables["params"]
    halved = params | {"conv_in": dict(params["conv_in"])}
    halved["conv_in"]["kernel"] = 2 * params["conv_in"]["kernel"]
    y = slow.apply(SMALL, halved, X / 2 + 0.25, T, False)
    assert float(abs(y - output).max() / abs(output).max()) < 1e-4


def test_examples_are_independent_and_depend_on_their_level(variables, output):
    apply = slow.jit(partial(SMALL.apply, train=False))
    other_image = apply(variables, X.at[1].add(0.1), T) != output
    other_level = apply(variables, X, T.at[1].set(1.0)) != output
    for changed in (other_image, other_level):
        assert changed.any((1, 2, 3)).tolist() == [False, True, False]


def test_levels_without_tables_do_not_matter():
    network = SMALL.clone(norm=InstanceNormPlus)
    params = slow.random_params(network, X, T, False)
    apply = slow.jit(partial(network.apply, train=True))
    y, other = (apply({"params": params}, X, t) for t in (T, 1e3 * T))
    assert (y == other).all() and jnp.isfinite(y).all()


def test_bfloat16(variables, output):
    network = SMALL.clone(dtype="bfloat16", refine_norm=None)
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes(network))} == {
        jnp.dtype("float32")
    }
    apply = partial(network.apply, train=False)
    watched = partial(apply, capture_intermediates=True, mutable=["intermediates"])
    outputs = jax.eval_shape(watched, variables, X, T)[1]["intermediates"]
    del outputs["__call__"]
    assert {leaf.dtype for leaf in jax.tree.leaves(outputs)} == {jnp.dtype("bfloat16")}
    y = slow.jit(apply)(variables, X, T)
    assert y.dtype == jnp.float32
    error = float(abs(y - output).max() / abs(output).max())
    assert 1e-4 < error < 0.1


@pytest.mark.parametrize(
    ("network", "size"),
    [
        (ncsnv2(8), (31, 32)),
        (ncsnv2_deeper(8), (64, 66)),
        (ncsnv2_deepest(8), (60, 64)),
    ],
)
def test_sizes_that_cannot_be_halved_are_refused(network, size):
    halvings = sum(dilation == 1 for dilation in network.dilations) - 1
    with pytest.raises(UserError, match=f"{size[0]}x{size[1]}.*of {2**halvings},"):
        shapes(network, size)


@pytest.mark.parametrize("dilations", [(1,), (1, 1, 1), (2, 1)])
def test_dilations_that_do_not_fit_are_refused(dilations):
    with pytest.raises(UserError, match="one for each stage"):
        shapes(SMALL.clone(dilations=dilations))
