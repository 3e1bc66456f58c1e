"""Linear attention: a kernel's features in place of the softmax."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from research.errors import UserError
from research.layers.cores.base import SEES_ALL, Bias, Mask
from research.layers.cores.kernel_sums import (
    Features,
    Mixed,
    advance,
    mix,
)

FeatureMap = Callable[[Array], Features]
"""From float32 queries or keys, (batch, length, heads, dim), to non-negative features.

Sums over keys are exact however these are made; that no weight is negative is what
keeps the denominator from zero.
"""


def elu_plus_one(x: Float[Array, "*lead dim"]) -> Features:
    """elu(x) + 1 (Katharopoulos et al. 2020, arXiv:2006.16236, Eq. 7)."""
    return Features(nn.elu(x) + 1)


def relu(x: Float[Array, "*lead dim"]) -> Features:
    """max(x, 0): a query may have no feature at all, and then gets zeros."""
    return Features(nn.relu(x))


def relu_plus(x: Float[Array, "*lead dim"], epsilon: float = 1e-3) -> Features:
    """max(x, 0) + epsilon: no query is without features."""
    return Features(nn.relu(x) + epsilon)


def squared_relu(x: Float[Array, "*lead dim"]) -> Features:
    """max(x, 0)^2."""
    return Features(nn.relu(x) ** 2)


def exponential(x: Float[Array, "*lead dim"]) -> Features:
    """e^x (Su 2021, kexue.fm/archives/8338), of any size."""
    largest = jax.lax.stop_gradient(x.max(-1))
    return Features(jnp.exp(x - largest[..., None]), largest)


def softmax_features(x: Float[Array, "*lead dim"]) -> Features:
    """softmax(x) over the features (Su 2020, kexue.fm/archives/7546)."""
    return Features(jax.nn.softmax(x))


def taylor(x: Float[Array, "*lead dim"]) -> Features:
    """[1, x/|x|]: the weight is 1 + cos(q, k) (Su 2020, kexue.fm/archives/7546).

    The first order of e^(q k) for queries and keys of length one.
    """
    length = jnp.sqrt(jnp.maximum(jnp.sum(x**2, -1, keepdims=True), 1e-12))
    return Features(jnp.concatenate([jnp.ones_like(length), x / length], axis=-1))


class Linear(nn.Module):
    """sum phi(q) psi(k) v / (sum phi(q) psi(k) + epsilon), in linear time.

    Katharopoulos et al. 2020, arXiv:2006.16236, Eq. 5, with any features (Su 2020,
    kexue.fm/archives/7546, where phi and psi may differ). Decoding keeps the two sums,
    of constant size. Takes no bias.

    Attributes:
      feature_map: phi, of the queries.
      key_map: psi, of the keys; None is for `feature_map`.
      epsilon: added to the denominator, as the official code does.
      chunk_size: of the positions that causal attention takes at once; changes speed
        and memory, not the result.
    """

    feature_map: FeatureMap = elu_plus_one
    key_map: FeatureMap | None = None
    epsilon: float = 1e-6
    chunk_size: int = 64

    @nn.compact
    def __call__(
        self,
        query: Float[Array, "batch queries heads dim"],
        key: Float[Array, "batch keys kv_heads dim"],
        value: Float[Array, "batch keys kv_heads value_dim"],
        *,
        mask: Mask = SEES_ALL,
        bias: Bias | None = None,
        train: bool = False,
        decode: bool = False,
    ) -> Float[Array, "batch queries heads value_dim"]:
        refuse_bias(self, bias)
        queries = self.feature_map(query.astype(jnp.float32))
        keys = (self.key_map or self.feature_map)(key.astype(jnp.float32))
        start = advance(self, key.shape[1]) if decode else None
        mixed = mix(
            self, queries.values, keys, value, mask, self.chunk_size, decode, start
        )
        denominator = mixed.denominator + self.epsilon * _inverse_scale(queries, mixed)
        # Of exponentials so unlike that no product is left of them: 1 / x^2 is finite.
        denominator = jnp.maximum(denominator, 1e-18)
        return (mixed.numerator / denominator[..., None]).astype(value.dtype)


def _inverse_scale(
    query: Features, mixed: Mixed
) -> Float[Array, "batch queries heads"]:
    """What a number without unit is in the units of the denominator."""
    scale = jnp.zeros_like(mixed.denominator)
    for part in (query.log_scale, mixed.log_scale):
        if part is not None:
            scale += part
    return jnp.exp(jnp.minimum(-scale, 80.0))  # e^89 is no float32


def refuse_bias(core: nn.Module, bias: Bias | None) -> None:
    """Raises `UserError` if there is one."""
    if bias is not None:
        raise UserError(
            f"{type(core).__name__} has no logits to add a bias to: leave bias out, or "
            "turn queries and keys by their positions (rotary)"
        )
