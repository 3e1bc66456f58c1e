"""Constants by depth, residual arrangements, and norms within branches."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.layers import depth
from research.layers.attention import Attention
from research.layers.initializers import xavier
from research.layers.mlp import FeedForward
from research.layers.norms import LayerNorm, RMSNorm
from research.layers.residual import (
    LayerScale,
    Plain,
    PostNorm,
    PreNorm,
    Ramp,
    ReZero,
    Sandwich,
)
from research.layers.stack import Stack, TransformerBlock, moments
from tests.layers import slow

X = np.random.default_rng(0).normal(2.0, 3.0, size=(2, 5, 8))


# Constants


@pytest.mark.parametrize(
    "num_layers, skip, gain",
    # By hand from (2N)^(1/4) and (8N)^(-1/4).
    [(6, 1.861210, 0.379918), (18, 2.449490, 0.288675), (100, 3.760603, 0.188030)],
)
def test_deepnorm_alone(num_layers, skip, gain):
    scales = depth.deepnorm(num_layers)
    assert scales.skip == pytest.approx(skip, rel=1e-6)
    assert scales.gain == pytest.approx(gain, rel=1e-6)


def test_deepnorm_of_an_encoder_and_its_decoder():
    encoder, decoder = depth.deepnorm_pair(encoder_layers=18, decoder_layers=6)
    both = math.exp((4 * math.log(18) + math.log(6)) / 16)
    assert encoder.skip == pytest.approx(0.81 * both)
    assert encoder.gain == pytest.approx(0.87 / both)
    assert decoder.skip == pytest.approx(math.sqrt(math.sqrt(18)))
    assert decoder.gain == pytest.approx(1 / math.sqrt(math.sqrt(72)))
    # A released code divides by 1.15, which is the same to its digits.
    assert encoder.gain == pytest.approx(1.15**-1 / both, rel=1e-3)


def test_gains_of_sub_ln_and_of_both_fixups():
    assert depth.sub_ln(12) == pytest.approx(math.log(24) ** 0.5)
    encoder, decoder = depth.sub_ln_pair(12, 6)
    assert decoder == pytest.approx(math.log(18) ** 0.5)
    assert encoder == pytest.approx((math.log(18) * math.log(24) / 3) ** 0.5)
    assert depth.tfixup(16) == pytest.approx(0.67 / 2)
    assert depth.tfixup_cross(9) == pytest.approx(1 / 3)
    assert depth.fixup(num_branches=64, branch_layers=2) == pytest.approx(1 / 8)
    assert depth.fixup(num_branches=64, branch_layers=4) == pytest.approx(1 / 2)


def test_scales_for_other_optimizers():
    for scales, skip, gain in (
        (depth.sgd_scales(8), 2, 1 / 2),
        (depth.adam_scales(8), 4, 1 / 4),
        (depth.lamb_scales(8), 1, 1 / 4),
    ):
        assert (scales.skip, scales.gain) == (pytest.approx(skip), pytest.approx(gain))


def test_inits_go_to_the_slots_that_they_are_for():
    attention = Attention(num_heads=2, **depth.attention_inits(0.25, 0.5))
    mlp = FeedForward(mlp_dim=32, **depth.mlp_inits(0.25))
    x = jnp.ones((1, 3, 64))
    for module, plain in ((attention, Attention(2)), (mlp, FeedForward(32))):
        params, ones = (
            slow.jit(m.init)(slow.key(0), x)["params"]
            for m in (module, plain.clone(kernel_init=xavier()))
        )
        for name in params:
            gain = 0.5 if name in ("query", "key") else 0.25
            np.testing.assert_allclose(
                params[name]["kernel"], gain * ones[name]["kernel"], rtol=1e-6
            )


# Residual arrangements, around a branch that is known


def branch(x):
    return jnp.tanh(2 * x) + 0.1 * x[..., ::-1]


def slow_branch(x):
    return np.tanh(2 * x) + 0.1 * x[..., ::-1]


def slow_norm(params, x):
    x = x - x.mean(-1, keepdims=True)
    x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)
    return x * np.float64(params["scale"]) + np.float64(params["bias"])


def number(params, name):
    return np.float64(params[name])


ARRANGEMENTS = {
    "pre": (
        PreNorm(branch_scale=0.3),
        lambda p, x: x + 0.3 * slow_branch(slow_norm(p["norm"], x)),
    ),
    "post": (
        PostNorm(skip_scale=1.7),
        lambda p, x: slow_norm(p["norm"], 1.7 * x + slow_branch(x)),
    ),
    "sandwich": (
        Sandwich(),
        lambda p, x: x + slow_norm(p["out_norm"], slow_branch(slow_norm(p["norm"], x))),
    ),
    "rezero": (ReZero(), lambda p, x: x + number(p, "scale") * slow_branch(x)),
    "layer scale": (
        LayerScale(),
        lambda p, x: x + number(p, "scale") * slow_branch(slow_norm(p["norm"], x)),
    ),
    "plain": (Plain(), lambda p, x: x + slow_branch(x)),
    "fixup": (
        Plain(fixup=True),
        lambda p, x: (
            x
            + number(p, "scale") * slow_branch(x + number(p, "shift"))
            + number(p, "bias")
        ),
    ),
}


@pytest.mark.parametrize("name", ARRANGEMENTS)
def test_slow_formula(name):
    residual, formula = ARRANGEMENTS[name]

    class Joined(type(residual)):
        """The same module, called with an array alone."""

        def __call__(self, x):
            return super().__call__(x, branch, train=True)

    fields = residual.__dataclass_fields__
    joined = Joined(
        **{n: getattr(residual, n) for n in fields if n not in ("parent", "name")}
    )
    shapes = jax.eval_shape(joined.init, jax.random.key(0), jnp.asarray(X))
    params = slow.random_params(joined, jnp.asarray(X)) if shapes else {}
    ours = slow.apply(joined, params, jnp.asarray(X))
    np.testing.assert_allclose(ours, formula(params, X), rtol=1e-4, atol=1e-4)


def stack_of(residual, num_layers=3, **options):
    block = partial(
        TransformerBlock,
        mixer=partial(Attention, num_heads=2),
        mlp=partial(FeedForward, mlp_dim=8),
        residual=residual,
    )
    return Stack(num_layers, (block,), **options)


@pytest.mark.parametrize(
    "residual",
    [ReZero, partial(LayerScale, initial=0.0), partial(Ramp, num_steps=10)],
    ids=["rezero", "layer scale", "ramp"],
)
def test_starts_as_the_identity(residual):
    y, variables = slow.jit(stack_of(residual).init_with_output)(
        slow.key(0), jnp.asarray(X)
    )
    np.testing.assert_array_equal(y, jnp.asarray(X))
    assert jax.tree.leaves(variables["params"])


def test_layer_scale_starts_at_its_initial():
    init = slow.jit(stack_of(partial(LayerScale, initial=1e-4)).init)
    layer = init(slow.key(0), jnp.asarray(X))["params"]["layers"]["block_0"]
    np.testing.assert_allclose(layer["mlp_residual"]["scale"], np.full((3, 8), 1e-4))


@pytest.mark.parametrize("norm", [None, partial(RMSNorm, use_scale=False)])
def test_a_ramp_climbs_in_training_and_then_stays(norm):
    ramp = Ramp(num_steps=4, norm=norm)
    x = jnp.asarray(X)

    @slow.jit
    def train(variables):
        return ramp.apply(variables, x, branch, True, mutable=["ramp"])

    variables = slow.jit(lambda: ramp.init(slow.key(0), x, branch, True))()
    for scale in (0, 0.25, 0.5, 0.75, 1, 1):
        y, variables = train(variables)
        expected = X + scale * slow_branch(X)
        if norm is not None:
            expected = expected / np.sqrt((expected**2).mean(-1, keepdims=True) + 1e-6)
        np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
    evaluated = ramp.apply(variables, x, branch)  # changes nothing, and may not
    np.testing.assert_allclose(evaluated, y, rtol=1e-5, atol=1e-5)


# Norms within branches


def test_sub_ln_normalises_what_goes_into_the_last_projections():
    mlp = FeedForward(mlp_dim=6, out_norm=LayerNorm)
    params = slow.random_params(mlp, jnp.asarray(X))
    hidden = np.maximum(slow.dense(params["up"], X), 0)
    expected = slow.dense(params["down"], slow_norm(params["out_norm"], hidden))
    ours = slow.apply(mlp, params, jnp.asarray(X))
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-4)

    attention = Attention(num_heads=2, out_norm=LayerNorm)
    params = slow.random_params(attention, jnp.asarray(X))
    assert params["out_norm"]["scale"].shape == (8,)
    plain = Attention(num_heads=2)
    rest = {name: part for name, part in params.items() if name != "out_norm"}
    eye = {"kernel": jnp.eye(8), "bias": jnp.zeros(8)}
    mixed = slow.apply(plain, {**rest, "out": eye}, jnp.asarray(X))
    expected = slow.dense(
        params["out"], slow_norm(params["out_norm"], np.float64(mixed))
    )
    ours = slow.apply(attention, params, jnp.asarray(X))
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-4)


# What a stack tells of its stream


def test_moments_by_hand():
    second, spread = moments(jnp.asarray(X))
    assert second == pytest.approx((X**2).mean(), rel=1e-5)
    expected = X.var(1).mean() / (X**2).mean()
    assert spread == pytest.approx(expected, rel=1e-5)
    alike = jnp.broadcast_to(jnp.asarray(X[:, :1]), X.shape)
    assert moments(alike)[1] < 1e-12


@pytest.mark.parametrize("remat", [False, True])
def test_a_stack_sows_its_stream_only_where_it_is_asked_to(remat, monkeypatch):
    stack = stack_of(PreNorm, remat=remat)
    x = jnp.asarray(X)
    variables = slow.jit(stack.init)(slow.key(0), x)
    assert set(variables) == {"params"}

    @slow.jit
    def tapped(variables):
        return stack.apply(variables, x, mutable=["intermediates"])

    y, changed = tapped(variables)
    np.testing.assert_array_equal(y, slow.jit(stack.apply)(variables, x))
    sown = changed["intermediates"]
    np.testing.assert_allclose(sown["stream_in"][0], moments(x), rtol=1e-5)
    (layers,) = sown["layers"]["stream_0"]
    assert layers.shape == (3, 2)
    np.testing.assert_allclose(layers[-1], moments(y), rtol=1e-5)
    text = str(jax.make_jaxpr(stack.apply)(variables, x))
    monkeypatch.setattr("research.layers.stack._tap", lambda *_: None)
    assert str(jax.make_jaxpr(stack.apply)(variables, x)) == text
