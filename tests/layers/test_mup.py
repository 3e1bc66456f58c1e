"""muP by its coordinate check: how far training moves each part, at every width."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.nn.initializers import zeros

from research.errors import UserError
from research.layers.attention import Attention
from research.layers.cores import Softmax, inverse_sqrt
from research.layers.embeddings import TokenEmbedding
from research.layers.initializers import Normal
from research.layers.mlp import FeedForward, Mlp
from research.layers.mup import mup
from research.layers.norms import LayerNorm
from research.layers.stack import Stack, TransformerBlock
from research.losses import cross_entropy, token_cross_entropy
from research.models.transformer import LanguageModel
from research.train.optimizers import Adam
from research.train.schedules import Constant
from tests.layers import slow


def train(params, loss, adam, num_steps):
    state = adam.init(params)
    for _ in range(num_steps):
        updates, state = adam.update(jax.grad(loss)(params), state, params)
        params = optax.apply_updates(params, updates)
    return params


def mlp_moves(width, multipliers):
    """How far the last hidden layer and the output move in four steps, on average."""
    network = Mlp(widths=(width, width), activation=jax.nn.relu)
    adam = Adam(Constant(1e-3), multipliers=multipliers)()
    x = jax.random.normal(slow.key(1), (64, 16))
    labels = jax.random.randint(slow.key(2), (64,), 0, 16)

    def hidden(params):
        h = x
        for name in ("dense_0", "dense_1"):
            h = jax.nn.relu(h @ params[name]["kernel"] + params[name]["bias"][None])
        return h

    def output(params):
        return network.apply({"params": params}, x)

    def loss(params):
        return cross_entropy(output(params), labels).mean()

    def moves(key):
        params = network.init(key, x)["params"]
        params["out"]["kernel"] *= 0.0
        after = train(params, loss, adam, num_steps=4)
        return jnp.stack(
            [abs(part(after) - part(params)).mean() for part in (hidden, output)]
        )

    keys = jax.random.split(slow.key(0), 4)
    return np.asarray(jax.jit(lambda keys: jax.lax.map(moves, keys))(keys)).mean(0)


def test_an_mlp_moves_alike_at_every_width():
    part = mup(1024, 64, hidden="(dense_1|out)/kernel")
    base = mlp_moves(64, ())
    plain = mlp_moves(1024, ())
    scaled = mlp_moves(1024, part.multipliers)
    assert (abs(np.log(scaled / base)) <= np.log(1.3)).all(), scaled / base
    assert (plain / base >= 4).all(), plain / base


def transformer_moves(width, scale, logit_scale, multipliers):
    """The same of attention, of the feed-forward layer, and of the logits."""
    block = partial(
        TransformerBlock,
        mixer=partial(
            Attention, num_heads=2, core=Softmax(scale=scale), query_init=zeros
        ),
        mlp=partial(FeedForward, mlp_dim=2 * width),
    )
    network = LanguageModel(
        TokenEmbedding(8, width, embedding_init=Normal(1.0)),
        Stack(1, (block,), final_norm=LayerNorm),
        tie_embeddings=False,
        logit_scale=logit_scale,
        logits_init=zeros,
    )
    adam = Adam(Constant(3e-3), multipliers=multipliers)()
    tokens = jax.random.randint(slow.key(1), (16, 8), 0, 8)
    targets = jax.random.randint(slow.key(2), (16, 8), 0, 8)

    def parts(params):
        logits, sown = network.apply(
            {"params": params},
            tokens,
            mutable=["intermediates"],
            capture_intermediates=lambda module, _: module.name in ("mixer", "mlp"),
        )
        layer = sown["intermediates"]["body"]["layers"]["block_0"]
        return [*(layer[name]["__call__"][0] for name in ("mixer", "mlp")), logits]

    def loss(params):
        logits = network.apply({"params": params}, tokens)
        return token_cross_entropy(logits, targets).mean()

    @slow.jit
    def moves(key):
        params = network.init(key, tokens)["params"]
        after = train(params, loss, adam, num_steps=3)
        pairs = zip(parts(after), parts(params), strict=True)
        return jnp.stack([abs(new - old).mean() for new, old in pairs])

    return np.asarray(moves(slow.key(0)))


def test_a_transformer_moves_alike_at_every_width():
    part = mup(256, 32, head_dim=128, base_head_dim=16)
    base = transformer_moves(32, inverse_sqrt, 1.0, ())
    plain = transformer_moves(256, inverse_sqrt, 1.0, ())
    scaled = transformer_moves(
        256, part.attention_scale, part.logit_scale, part.multipliers
    )
    assert (abs(np.log(scaled / base)) <= np.log(1.3)).all(), scaled / base
    assert (plain / base >= 4).all(), plain / base


def test_the_base_width_is_as_usual():
    part = mup(128, 128)
    assert part.attention_scale(64) == inverse_sqrt(64)
    assert part.logit_scale == 1 and part.multipliers[0][1] == 1
    wide = mup(512, 128, head_dim=256, base_head_dim=64)
    assert wide.attention_scale(256) == 8 / 256
    assert wide.logit_scale == wide.multipliers[0][1] == 1 / 4
    assert wide.logits_init == Normal(128**-0.5)


def test_widths_that_do_not_go_together_are_refused():
    with pytest.raises(UserError, match="head_dim=128 is neither 64.*nor 4 times"):
        mup(512, 128, head_dim=128)
    with pytest.raises(UserError, match="expected positive"):
        mup(512, 0)
