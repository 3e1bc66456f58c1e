from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.layers.cores.base import Mask
from research.layers.cores.entropy_invariant import EntropyInvariant
from research.layers.cores.mixed_chunk import MixedChunk
from research.layers.cores.softmax import Softmax
from research.layers.gated import GatedAttentionUnit
from research.layers.norms import RMSNorm
from research.layers.positions import Rotary
from research.layers.residual import PostNorm
from research.layers.stack import Stack, TransformerBlock
from tests.layers import slow

X = np.random.default_rng(0).normal(size=(2, 7, 6))
VALID = np.arange(7)[None] < np.array([7, 5])[:, None]
POSITIONS = jnp.array([[0, 1, 2, 0, 1, 2, 3]])


def turn(x, positions):
    return x * jnp.cos(positions)[:, :, None, None]


def tilt(queries, keys):
    return (0.1 * (keys[None, :] - queries[:, None]))[None]


def own_tilt(name):
    return lambda: tilt


def run(module, mask, x=X, **options):
    x = jnp.asarray(x, jnp.float32)
    options["mask"] = mask
    shapes = jax.eval_shape(partial(module.init, **options), slow.key(0), x)["params"]
    draws = np.random.default_rng(1)
    params = jax.tree.map(
        lambda leaf: jnp.asarray(draws.normal(size=leaf.shape), jnp.float32), shapes
    )
    out = slow.jit(partial(module.apply, **options))({"params": params}, x)
    return out, params


def slow_unit(params, weigh, branches=1):
    """`weigh(queries, keys)` makes the weights of one row from lists of branches'."""
    gate, value, shared = (
        slow.swish(slow.dense(params[name], X)) for name in ("gate", "value", "shared")
    )
    scale, shift = np.float64(params["scale"]), np.float64(params["shift"])
    turns = np.cos(POSITIONS[0])[:, None]
    out = np.zeros_like(X)
    for row in range(len(X)):
        made = [
            turns * (shared[row] * a + b) for a, b in zip(scale, shift, strict=True)
        ]
        weights = weigh(made[:branches], made[branches:], row)
        mixed = weights @ value[row]
        out[row] = slow.dense(params["out"], gate[row] * mixed)
    return out


QUERIES, KEYS = np.indices((7, 7))


def squared_relu(query, key, seen, width):
    logits = query @ key.T / width**0.5 + 0.1 * (KEYS - QUERIES)
    count = np.maximum(seen.sum(-1, keepdims=True), 1)
    return np.where(seen, np.maximum(logits, 0) ** 2, 0) / count


def test_slow_flash_quad():
    unit = GatedAttentionUnit(1.5, 4, rotary=turn, relative_bias=own_tilt)
    mask = Mask(valid=jnp.asarray(VALID))
    ours, params = run(unit, mask, positions=POSITIONS)
    assert params["value"]["kernel"].shape == (6, 9)

    def weigh(queries, keys, row):
        return squared_relu(queries[0], keys[0], VALID[row][None].repeat(7, 0), 4)

    np.testing.assert_allclose(ours, slow_unit(params, weigh), rtol=1e-4, atol=1e-4)


def test_slow_flash():
    unit = GatedAttentionUnit(key_dim=4, core=MixedChunk(3), rotary=turn)
    ours, params = run(unit, Mask(causal=True), bias=tilt, positions=POSITIONS)

    def weigh(queries, keys, row):
        same = KEYS // 3 == QUERIES // 3
        near = squared_relu(queries[0], keys[0], same & (KEYS <= QUERIES), 4)
        before = KEYS // 3 < QUERIES // 3
        far = np.where(before, queries[1] @ keys[1].T, 0)
        return near + far / np.maximum(before.sum(-1, keepdims=True), 1)

    expected = slow_unit(params, weigh, branches=2)
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-4)


def test_biases_of_the_call_and_of_the_unit_add_up():
    mask = Mask()
    both, params = run(
        GatedAttentionUnit(key_dim=4, relative_bias=own_tilt), mask, bias=tilt
    )
    twice = GatedAttentionUnit(key_dim=4)
    doubled = slow.jit(
        lambda x: twice.apply(
            {"params": params}, x, mask=mask, bias=lambda q, k: 2 * tilt(q, k)
        )
    )(jnp.asarray(X, jnp.float32))
    np.testing.assert_allclose(both, doubled, rtol=1e-5, atol=1e-5)


def test_two_units_have_the_parameters_of_a_transformer_layer():
    dim = 768
    x = jax.ShapeDtypeStruct((1, 2, dim), jnp.float32)
    shapes = jax.eval_shape(GatedAttentionUnit().init, slow.key(0), x)
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    # Three wide kernels and Z's, biases, and scales and shifts.
    assert count == 3 * dim * 2 * dim + dim * 128 + (2 * 2 * dim + 128 + dim) + 4 * 128
    assert abs(2 * count / (12 * dim**2) - 1) < 0.03


@pytest.mark.parametrize("stacked", [False, True], ids=["unit", "stack"])
def test_decodes_as_it_trains(stacked):
    module = GatedAttentionUnit(key_dim=4, rotary=Rotary())
    if stacked:
        core = MixedChunk(3, EntropyInvariant())
        unit = partial(GatedAttentionUnit, key_dim=4, rotary=Rotary(), core=core)
        block = partial(TransformerBlock, mixer=unit, mlp=None)
        module = Stack(2, (block, block))  # which were given one core, and have two
    mask = Mask(causal=True)
    expected, params = run(module, mask)
    step = slow.jit(partial(module.apply, mask=mask, decode=True, mutable=["cache"]))
    x = jnp.asarray(X, jnp.float32)
    _, state = step({"params": params}, x, positions=jnp.arange(7)[None])
    for position in range(7):
        here = slice(position, position + 1)
        out, state = step(
            {"params": params, **state}, x[:, here], positions=jnp.array([[position]])
        )
        np.testing.assert_allclose(out, expected[:, here], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("causal", [False, True])
def test_padding_changes_nothing(causal):
    for core in (GatedAttentionUnit().core, MixedChunk(3)):
        unit = GatedAttentionUnit(key_dim=4, core=core)
        longer = np.concatenate([X, np.full((2, 3, 6), 9.0)], 1)
        valid = jnp.arange(10)[None].repeat(2, 0) < 7
        padded, _ = run(unit, Mask(valid=valid, causal=causal), longer)
        alone, _ = run(unit, Mask(causal=causal))
        np.testing.assert_allclose(padded[:, :7], alone, rtol=1e-5, atol=1e-5)


def test_gau_alpha():
    """Su's variant: no biases, softmax_plus, a norm without a scale after the sum."""
    core = EntropyInvariant(Softmax(), base=4.0)
    unit = partial(GatedAttentionUnit, key_dim=4, core=core, use_bias=False)
    norm = partial(RMSNorm, use_scale=False)
    block = TransformerBlock(unit, mlp=None, residual=partial(PostNorm, norm=norm))
    ours, params = run(block, Mask(valid=jnp.asarray(VALID)))
    params = params["mixer"]
    names = {
        jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(params)
    }
    assert names == {"['scale']"} | {
        f"['{name}']['kernel']" for name in ("gate", "value", "shared", "out")
    }
    gate, value, shared = (
        slow.swish(X @ np.float64(params[name]["kernel"]))
        for name in ("gate", "value", "shared")
    )
    query, key = (shared * np.float64(row) for row in params["scale"])
    for row, count in enumerate((7, 5)):
        scale = np.log(count) / np.log(4) / 4**0.5
        weights = np.exp(scale * query[row] @ key[row, :count].T)
        weights /= weights.sum(-1, keepdims=True)
        mixed = gate[row] * (weights @ value[row, :count])
        total = X[row] + mixed @ np.float64(params["out"]["kernel"])
        total /= np.sqrt((total**2).mean(-1, keepdims=True) + 1e-6)
        np.testing.assert_allclose(ours[row], total, rtol=1e-4, atol=1e-4)


def test_bfloat16():
    unit = GatedAttentionUnit(key_dim=4, core=MixedChunk(3), dtype="bfloat16")
    x = jax.ShapeDtypeStruct(X.shape, jnp.bfloat16)
    out, variables = jax.eval_shape(unit.init_with_output, slow.key(0), x)
    assert out.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
