import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.errors import UserError
from research.layers.norms import (
    BatchNorm,
    GroupNorm,
    InstanceNormPlus,
    LayerNorm,
    RMSNorm,
    ScaleNorm,
)
from tests.layers import slow


@pytest.mark.parametrize(
    ("channels", "num_groups"), [(8, 2), (12, 3), (128, 32), (192, 32)]
)
def test_slow_formula(channels, num_groups):
    x = np.random.default_rng(0).normal(2.0, 3.0, size=(2, 3, 5, channels))
    params = slow.random_params(GroupNorm(), jnp.asarray(x))
    ours = slow.apply(GroupNorm(), params, jnp.asarray(x))
    np.testing.assert_allclose(
        ours, slow.group_norm(params, x, num_groups), rtol=1e-4, atol=1e-5
    )


def test_constant_images_become_the_bias():
    # Rounding makes the variance of some of them negative.
    x = jnp.linspace(1.0, 1e3, 64)[:, None, None, None] * jnp.ones((64, 3, 3, 8))
    params = {"scale": jnp.ones(8), "bias": jnp.arange(8.0)}
    y = slow.apply(GroupNorm(), params, x)
    expected = jnp.broadcast_to(jnp.arange(8.0), x.shape)
    np.testing.assert_allclose(y, expected, atol=0.5)


def test_shift_and_scale_of_a_group_do_not_matter():
    x = jax.random.normal(jax.random.key(0), (2, 4, 4, 8))
    factor = jnp.repeat(jnp.array([3.0, 0.5]), 4)[None, None, None]
    params = {"scale": jnp.ones(8), "bias": jnp.zeros(8)}
    y, rescaled = (
        slow.apply(GroupNorm(), params, value) for value in (x, factor * x + 1)
    )
    np.testing.assert_allclose(y, rescaled, atol=1e-4)


def test_moments_are_float32_in_bfloat16():
    # Squares around 900 are 4 apart in bfloat16: their mean would miss the variance.
    noise = jax.random.normal(jax.random.key(0), (1, 16, 16, 8))
    x = (30 + 2 * noise).astype(jnp.bfloat16)
    norm = GroupNorm(dtype="bfloat16")
    y, variables = slow.jit(norm.init_with_output)(jax.random.key(0), x)
    assert y.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    exact = slow.group_norm(variables["params"], np.float64(x), 2)
    np.testing.assert_allclose(np.float64(y), exact, atol=0.02)


@pytest.mark.parametrize("channels", [3, 14, 150])
def test_unequal_groups_are_refused(channels):
    with pytest.raises(UserError, match=f"{channels} channels"):
        GroupNorm().init(jax.random.key(0), jnp.zeros((1, 2, 2, channels)))


LEVEL = jnp.array([4, 0, 4])


def slow_instance_norm_plus(params, x, levels):
    """One example and channel at a time; `params` are tables over the levels."""
    scale, mean_scale, bias = (
        np.float64(params[name]) for name in ("scale", "mean_scale", "bias")
    )
    y = np.empty_like(x)
    for example, level in enumerate(levels):
        means = x[example].mean((0, 1))
        variance = ((means - means.mean()) ** 2).sum() / (len(means) - 1)
        means = (means - means.mean()) / np.sqrt(variance + 1e-5)
        for c in range(x.shape[-1]):
            plane = x[example, :, :, c]
            plane = (plane - plane.mean()) / np.sqrt(plane.var() + 1e-5)
            plane = plane + mean_scale[level, c] * means[c]
            y[example, :, :, c] = scale[level, c] * plane + bias[level, c]
    return y


@pytest.mark.parametrize("num_levels", [None, 5])
def test_slow_instance_norm_plus(num_levels):
    x = np.random.default_rng(0).normal(2.0, 3.0, size=(3, 4, 5, 6))
    norm = InstanceNormPlus(num_levels)
    params = slow.random_params(norm, jnp.asarray(x), LEVEL)
    assert {leaf.shape for leaf in params.values()} == {
        (6,) if not num_levels else (5, 6)
    }
    ours = slow.apply(norm, params, jnp.asarray(x), LEVEL)
    tables = {name: np.broadcast_to(leaf, (5, 6)) for name, leaf in params.items()}
    expected = slow_instance_norm_plus(tables, x, [4, 0, 4])
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-5)


def test_instance_norm_plus_starts_near_the_identity_of_its_formula():
    norm = InstanceNormPlus(num_levels=500)
    x = jnp.ones((3, 2, 2, 8))
    params = slow.jit(norm.init)(slow.key(0), x, LEVEL)["params"]
    assert (params["bias"] == 0).all()
    for name in ("scale", "mean_scale"):
        assert abs(float(params[name].mean()) - 1) < 2e-3
        assert abs(float(params[name].std()) - 0.02) < 2e-3


def test_a_level_that_is_not_there_gives_nan():
    norm = InstanceNormPlus(num_levels=5)
    x = jax.random.normal(jax.random.key(0), (3, 2, 2, 4))
    params = slow.random_params(norm, x, LEVEL)
    y = slow.apply(norm, params, x, jnp.array([4, 5, 0]))
    assert np.isnan(y).all((1, 2, 3)).tolist() == [False, True, False]


def test_instance_norm_plus_moments_are_float32_in_bfloat16():
    noise = jax.random.normal(jax.random.key(0), (3, 16, 16, 8))
    x = (30 + 2 * noise).astype(jnp.bfloat16)
    norm = InstanceNormPlus(dtype="bfloat16")
    params = slow.random_params(norm, x, LEVEL)
    y = slow.apply(norm, params, x, LEVEL)
    assert y.dtype == jnp.bfloat16
    tables = {name: np.float64(leaf)[None] for name, leaf in params.items()}
    exact = slow_instance_norm_plus(tables, np.float64(x), [0, 0, 0])
    np.testing.assert_allclose(np.float64(y), exact, atol=0.02)


# Of sequences

SEQUENCE = np.random.default_rng(0).normal(2.0, 3.0, size=(3, 5, 8))


def slow_layer_norm(x):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6)


def slow_rms_norm(x):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)


@pytest.mark.parametrize(
    "norm, slow_norm", [(LayerNorm, slow_layer_norm), (RMSNorm, slow_rms_norm)]
)
@pytest.mark.parametrize("use_scale", [True, False])
@pytest.mark.parametrize("use_bias", [True, False])
def test_slow_norms_of_a_position(norm, slow_norm, use_scale, use_bias):
    norm = norm(use_scale=use_scale, use_bias=use_bias)
    x = jnp.asarray(SEQUENCE)
    params = slow.random_params(norm, x) if use_scale or use_bias else {}
    assert ("scale" in params, "bias" in params) == (use_scale, use_bias)
    expected = slow_norm(SEQUENCE)
    expected = expected * np.float64(params.get("scale", 1.0))
    expected = expected + np.float64(params.get("bias", 0.0))
    ours = slow.apply(norm, params, x)
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("unit", [False, True])
def test_slow_scale_norm(unit):
    norm = ScaleNorm(unit=unit)
    x = jnp.asarray(SEQUENCE)
    lengths = np.linalg.norm(SEQUENCE, axis=-1, keepdims=True)
    lengths = lengths / 8**0.5 if unit else lengths
    ours = slow.apply(norm, {"scale": jnp.asarray(0.7)}, x)
    np.testing.assert_allclose(ours, 0.7 * SEQUENCE / lengths, rtol=1e-5)


def test_scale_norms_begin_alike_and_with_a_second_moment_of_one():
    x = jnp.asarray(SEQUENCE)
    init = slow.jit(ScaleNorm().init_with_output)
    y, variables = init(slow.key(0), x)
    assert variables["params"]["scale"] == jnp.sqrt(8.0)
    unit, _ = slow.jit(ScaleNorm(unit=True).init_with_output)(slow.key(0), x)
    np.testing.assert_allclose(y, unit, rtol=1e-6)
    np.testing.assert_allclose(jnp.square(y).mean(-1), 1.0, rtol=1e-5)


@pytest.mark.parametrize("unit", [False, True])
def test_scale_norm_of_zero_has_a_finite_gradient(unit):
    norm = ScaleNorm(unit=unit)
    params = {"params": {"scale": jnp.asarray(2.0)}}
    gradient = slow.jit(jax.grad(lambda x: norm.apply(params, x).sum()))
    np.testing.assert_allclose(gradient(jnp.zeros((1, 4))), 2 / 1e-5, rtol=1e-5)


def test_slow_batch_norm_and_its_averages():
    norm = BatchNorm(momentum=0.75)
    x = jnp.asarray(SEQUENCE)
    params = slow.random_params(norm, x)
    scale, bias = np.float64(params["scale"]), np.float64(params["bias"])
    stats = {"mean": jnp.zeros(8), "var": jnp.ones(8)}

    @slow.jit
    def train(stats, x):
        variables = {"params": params, "batch_stats": stats}
        return norm.apply(variables, x, True, mutable=["batch_stats"])

    flat = SEQUENCE.reshape(15, 8)
    expected = (SEQUENCE - flat.mean(0)) / np.sqrt(flat.var(0) + 1e-5) * scale + bias
    y, changed = train(stats, x)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)
    y, changed = train(changed["batch_stats"], 2 * x)
    mean = 0.75 * 0.25 * flat.mean(0) + 0.25 * 2 * flat.mean(0)
    var = 0.75**2 + 0.75 * 0.25 * flat.var(0) + 0.25 * 4 * flat.var(0)
    stats = changed["batch_stats"]
    np.testing.assert_allclose(stats["mean"], mean, rtol=1e-5)
    np.testing.assert_allclose(stats["var"], var, rtol=1e-5)

    evaluated = norm.apply({"params": params, "batch_stats": stats}, x)
    expected = (SEQUENCE - mean) / np.sqrt(var + 1e-5) * scale + bias
    np.testing.assert_allclose(evaluated, expected, rtol=1e-4, atol=1e-5)


def test_batch_norm_starts_with_no_average_of_its_first_batch():
    norm = BatchNorm()
    variables = slow.jit(lambda: norm.init(slow.key(0), 5 + jnp.ones((2, 3)), True))()
    np.testing.assert_array_equal(variables["batch_stats"]["mean"], 0)
    np.testing.assert_array_equal(variables["batch_stats"]["var"], 1)


@pytest.mark.parametrize("norm", [LayerNorm, RMSNorm, ScaleNorm, BatchNorm])
def test_norms_of_sequences_are_float32_in_bfloat16(norm):
    noise = jax.random.normal(jax.random.key(0), (4, 16, 64))
    x = (30 + 2 * noise).astype(jnp.bfloat16)
    norm = norm(dtype="bfloat16")

    @slow.jit
    def run(x):
        y, variables = norm.init_with_output(jax.random.key(0), x, True)
        return y, variables

    y, variables = run(x)
    assert y.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    exact, _ = run(x.astype(jnp.float32))
    np.testing.assert_array_equal(y, exact)
