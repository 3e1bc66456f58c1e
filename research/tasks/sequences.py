"""What tasks over tokens share: shifting, weighing and counting."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from research.losses import token_cross_entropy
from research.tasks.base import Batch, Metrics, Variables

PAD, END, UNKNOWN, BEGIN = 0, 1, 2, 3
"""The token ids that mean no word, in every vocabulary of our own."""


def shift(
    tokens: Int[Array, "batch length"],
    begin: int,
    segments: Int[Array, "batch length"] | None = None,
) -> Int[Array, "batch length"]:
    """What is known before each token: the one before it, `begin` at the first.

    With packed segments each of them has its own beginning.
    """
    known = jnp.pad(tokens[:, :-1], ((0, 0), (1, 0)), constant_values=begin)
    if segments is None:
        return known
    before = jnp.pad(segments[:, :-1], ((0, 0), (1, 0)))
    return jnp.where(segments == before, known, begin)


def token_weights(
    tokens: Int[Array, "batch length"],
    batch: Batch,
    segments: Int[Array, "batch length"] | None = None,
    pad: int = PAD,
) -> Float[Array, "batch length"]:
    """What each token counts: `weights` of the batch, else 1 for all but padding.

    Padding is what has `segments` 0, or, without them, is the token `pad`. Rows that
    stand for no example (`mask`) count nothing.
    """
    real = tokens != pad if segments is None else segments > 0
    weights = batch.get("weights", real).astype(jnp.float32)
    return weights * batch["mask"][:, None] if "mask" in batch else weights


def token_loss(
    logits: Float[Array, "batch length vocab"],
    tokens: Int[Array, "batch length"],
    weights: Float[Array, "batch length"],
    smoothing: float = 0.0,
) -> tuple[Float[Array, ""], Metrics]:
    """The mean loss a token, and metrics that count tokens.

    `loss` is in nats and smoothed, `bits` is the token's information without smoothing,
    and `accuracy` how often the likeliest token is the right one.
    """
    losses = token_cross_entropy(logits, tokens, smoothing)
    plain = token_cross_entropy(logits, tokens) if smoothing else losses
    right = jnp.argmax(logits, axis=-1) == tokens
    total, count = jnp.sum(weights * losses), jnp.sum(weights)
    metrics = {
        "loss": (total, count),
        "bits": (jnp.sum(weights * plain) / jnp.log(2.0), count),
        "accuracy": (jnp.sum(weights * right), count),
    }
    return total / jnp.maximum(count, 1), metrics


def apply(
    network: nn.Module,
    variables: Variables,
    rng: Key[Array, ""],
    train: bool,
    *inputs: Any,
    **options: Any,
) -> tuple[Any, Variables]:
    """What a network returns, and the collections that training changed.

    Options that are None are not passed. In training, layers draw from the streams
    `dropout`, `features` and `gating`.
    """
    given = {name: value for name, value in options.items() if value is not None}
    if not train:
        return network.apply(variables, *inputs, train=False, **given), {}
    names = ("dropout", "features", "gating")
    return network.apply(
        variables,
        *inputs,
        train=True,
        rngs=dict(zip(names, jax.random.split(rng, len(names)), strict=True)),
        mutable=[name for name in variables if name != "params"],
        **given,
    )
