"""Codes of positions, which attention compares but does not pass on; every layer."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from research.layers.attention import Attention
from research.layers.mlp import FeedForward
from research.layers.norms import LayerNorm
from research.layers.residual import PostNorm
from research.layers.stack import Stack, TransformerBlock
from tests.layers import slow

DRAWS = np.random.default_rng(0)
X, CONTEXT = DRAWS.normal(size=(2, 3, 8)), DRAWS.normal(size=(2, 4, 8))
CODE, CONTEXT_CODE = DRAWS.normal(size=(1, 3, 8)), DRAWS.normal(size=(2, 4, 8))


def attend(params, asks, asked, answers):
    """One head."""
    query, key, value = (
        slow.dense(params[name], h)
        for name, h in (("query", asks), ("key", asked), ("value", answers))
    )
    logits = query @ key.swapaxes(1, 2) / query.shape[-1] ** 0.5
    weights = np.exp(logits)
    weights = weights / weights.sum(-1, keepdims=True)
    return slow.dense(params["out"], weights @ value)


def test_attention_compares_codes_and_passes_on_values():
    attention = Attention(num_heads=1)
    params = slow.random_params(attention, jnp.asarray(X))
    x, context, code, context_code = map(jnp.asarray, (X, CONTEXT, CODE, CONTEXT_CODE))

    own = slow.jit(lambda: attention.apply({"params": params}, x, code=code))()
    expected = attend(params, X + CODE, X + CODE, X)
    np.testing.assert_allclose(own, expected, atol=1e-5)
    across = slow.jit(
        lambda: attention.apply(
            {"params": params}, x, context, code=code, context_code=context_code
        )
    )()
    expected = attend(params, X + CODE, CONTEXT + CONTEXT_CODE, CONTEXT)
    np.testing.assert_allclose(across, expected, atol=1e-5)


def test_codes_reach_every_layer_and_every_layer_is_told():
    attention = partial(Attention, num_heads=1)
    blocks = tuple(
        partial(
            TransformerBlock,
            mixer=attention,
            cross=attention,
            mlp=partial(FeedForward, mlp_dim=5),
            residual=partial(PostNorm, norm=LayerNorm),
        )
        for _ in range(2)
    )
    stack = Stack(num_layers=4, blocks=blocks, final_norm=LayerNorm)
    x, context, code, context_code = map(jnp.asarray, (X, CONTEXT, CODE, CONTEXT_CODE))
    params = slow.random_params(stack, x, context)
    codes = dict(code=code, context_code=context_code)

    @slow.jit
    def run(params, codes):
        last = stack.apply({"params": params}, x, context, **codes)
        each = stack.apply({"params": params}, x, context, every_layer=True, **codes)
        return last, each

    @slow.jit
    def by_hand(params, codes):
        h, each = x, []
        for number in range(2):
            for name in ("block_0", "block_1"):
                layer = jax.tree.map(lambda a, n=number: a[n], params["layers"][name])
                h = blocks[0]().apply({"params": layer}, h, context, **codes)
                each.append(h)
        norm = {"params": params["final_norm"]}
        return jnp.stack([LayerNorm().apply(norm, h) for h in each])

    last, each = run(params, codes)
    assert each.shape == (4, *X.shape)
    np.testing.assert_allclose(each, by_hand(params, codes), atol=1e-5)
    np.testing.assert_array_equal(each[-1], last)
    assert abs(each[-1] - run(params, {})[1][-1]).max() > 0.01
