"""Attention of recurrent decoders: one query at a time looks over a sequence of keys.

An alignment scores each key against the query, and returns the keys' mean weighted by
the softmax of the scores. What of the scores depends on the keys alone is computed once
for all queries, by `project`.
"""

import math
from typing import Protocol, runtime_checkable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.nn.initializers import Initializer
from jaxtyping import Array, Bool, Float

from research.layers.initializers import lecun
from research.layers.linear import Dense

Attended = tuple[Float[Array, "batch key_dim"], Float[Array, "batch keys"]]
"""The context, and the weights (float32) with which it has been made of the keys."""


@runtime_checkable
class Alignment(Protocol):
    """From a query and keys to what the query sees of them."""

    def project(
        self, keys: Float[Array, "batch keys key_dim"]
    ) -> Float[Array, "batch ..."]:
        """What every call needs of the keys."""
        ...

    def __call__(
        self,
        query: Float[Array, "batch query_dim"],
        keys: Float[Array, "batch keys key_dim"],
        valid: Bool[Array, "batch keys"] | None = None,
        projected: Float[Array, "batch ..."] | None = None,
    ) -> Attended:
        """`valid` is False for padding; `projected` None is for `project(keys)`."""
        ...


class Scorer(nn.Module):
    """Global attention: the softmax is over all keys. Subclasses say `score`."""

    def project(
        self, keys: Float[Array, "batch keys key_dim"]
    ) -> Float[Array, "batch keys dim"]:
        """What `score` needs of the keys."""
        return keys

    def score(
        self,
        query: Float[Array, "batch query_dim"],
        projected: Float[Array, "batch keys dim"],
    ) -> Float[Array, "batch keys"]:
        """How well each key answers the query, in float32."""
        raise NotImplementedError

    def __call__(
        self,
        query: Float[Array, "batch query_dim"],
        keys: Float[Array, "batch keys key_dim"],
        valid: Bool[Array, "batch keys"] | None = None,
        projected: Float[Array, "batch ..."] | None = None,
    ) -> Attended:
        projected = self.project(keys) if projected is None else projected
        weights = _softmax(self.score(query, projected), valid)
        return _mean(weights, keys), weights


class Additive(Scorer):
    """v tanh(W q + U k) (Bahdanau et al. 2015, arXiv:1409.0473, App. A.1.2).

    Attributes:
      dim: of the hidden layer.
      normed: v is g v / |v| with a learnt g, and the hidden layer has a bias, as in
        TensorFlow's `BahdanauAttention(normalize=True)` (Salimans & Kingma 2016).
      query_init, key_init: of W and U; the paper's are normal with deviation 0.001.
      score_init: of v; the paper's is zero.
      dtype: of the hidden layer.
    """

    dim: int = 1000
    normed: bool = False
    query_init: Initializer = lecun()
    key_init: Initializer = lecun()
    score_init: Initializer = lecun()
    dtype: str = "float32"

    def setup(self):
        self.query = _dense(self.dim, self.query_init, self.dtype)
        self.key = _dense(self.dim, self.key_init, self.dtype)
        self.vector = self.param("vector", self.score_init, (self.dim, 1))
        if self.normed:
            gain = nn.initializers.constant(1 / math.sqrt(self.dim))
            self.gain = self.param("gain", gain, ())
            self.bias = self.param("bias", nn.initializers.zeros, (self.dim,))

    def project(self, keys: Array) -> Array:
        return self.key(keys)

    def score(self, query: Array, projected: Array) -> Array:
        hidden = projected + self.query(query)[:, None]
        vector = self.vector[:, 0]
        if self.normed:
            hidden += self.bias.astype(self.dtype)[None, None]
            vector = self.gain * vector / jnp.linalg.norm(vector)
        return jnp.einsum(
            "bkd,d->bk",
            jnp.tanh(hidden),
            vector.astype(self.dtype),
            preferred_element_type=jnp.float32,
        )


Concat = Additive
"""v tanh(W [q, k]) (Luong et al. 2015, arXiv:1508.04025, Eq. 8): W is both matrices."""


class Dot(Scorer):
    """q k (Luong et al. 2015, arXiv:1508.04025, Eq. 8), for keys as wide as queries.

    Attributes:
      scaled: times a learnt number that begins at 1.
    """

    scaled: bool = False

    def setup(self):
        self.scale = _scale(self) if self.scaled else 1.0

    def score(self, query: Array, projected: Array) -> Array:
        return self.scale * _dots(query, projected)


class General(Scorer):
    """q W k (Luong et al. 2015, arXiv:1508.04025, Eq. 8).

    Attributes:
      dim: of the queries.
      scaled: times a learnt number that begins at 1, as in TensorFlow's
        `LuongAttention(scale=True)`.
      key_init: of W.
      dtype: of its product.
    """

    dim: int
    scaled: bool = False
    key_init: Initializer = lecun()
    dtype: str = "float32"

    def setup(self):
        self.key = _dense(self.dim, self.key_init, self.dtype)
        self.scale = _scale(self) if self.scaled else 1.0

    def project(self, keys: Array) -> Array:
        return self.key(keys)

    def score(self, query: Array, projected: Array) -> Array:
        return self.scale * _dots(query, projected)


class Location(Scorer):
    """W q, a score for each place (Luong et al. 2015, arXiv:1508.04025, section 3.1).

    What stands there plays no part; places beyond the last are never looked at.

    Attributes:
      num_places: of the longest source.
      query_init: of W.
      dtype: of its product.
    """

    num_places: int
    query_init: Initializer = lecun()
    dtype: str = "float32"

    def setup(self):
        self.query = _dense(self.num_places, self.query_init, self.dtype)

    def score(self, query: Array, projected: Array) -> Array:
        scores = self.query(query).astype(jnp.float32)[:, : projected.shape[1]]
        beyond = ((0, 0), (0, projected.shape[1] - scores.shape[1]))
        return jnp.pad(scores, beyond, constant_values=-1e30)


class LocalP(nn.Module):
    """Attention to a window around a place that the query predicts.

    Luong et al. 2015, arXiv:1508.04025, section 3.2, local-p: of n valid keys, which
    come first, the place is p = n sigmoid(v tanh(W q)); keys up to `window` from it get
    the softmax of their scores times exp(-2 (position - p)^2 / window^2).

    Attributes:
      scorer: of the keys.
      window: D, on either side.
      dim: of the hidden layer that predicts the place.
      kernel_init: of W and v.
      dtype: of W q.
    """

    scorer: Scorer
    window: int = 10
    dim: int = 1000
    kernel_init: Initializer = lecun()
    dtype: str = "float32"

    def setup(self):
        self.place_hidden = _dense(self.dim, self.kernel_init, self.dtype)
        self.place = _dense(1, self.kernel_init, "float32")

    def project(
        self, keys: Float[Array, "batch keys key_dim"]
    ) -> Float[Array, "batch keys dim"]:
        return self.scorer.project(keys)

    def __call__(
        self,
        query: Float[Array, "batch query_dim"],
        keys: Float[Array, "batch keys key_dim"],
        valid: Bool[Array, "batch keys"] | None = None,
        projected: Float[Array, "batch ..."] | None = None,
    ) -> Attended:
        """The weights add up to less than one."""
        projected = self.project(keys) if projected is None else projected
        if valid is None:
            valid = jnp.ones(keys.shape[:2], bool)
        share = jax.nn.sigmoid(self.place(jnp.tanh(self.place_hidden(query))))
        place = share * valid.sum(1, keepdims=True)
        distance = jnp.arange(keys.shape[1])[None] - place
        near = valid & (jnp.abs(distance) <= self.window)
        weights = _softmax(self.scorer.score(query, projected), near)
        weights *= jnp.exp(-2 * jnp.square(distance / self.window))
        return _mean(weights, keys), weights


class LastState(nn.Module):
    """No attention: the last state of the encoder at every step (Cho et al. 2014).

    Attributes:
      bidirectional: the second half of each key has run from the last to the first.
    """

    bidirectional: bool = False

    def project(
        self, keys: Float[Array, "batch keys key_dim"]
    ) -> Float[Array, "batch keys key_dim"]:
        return keys

    def __call__(
        self,
        query: Float[Array, "batch query_dim"],
        keys: Float[Array, "batch keys key_dim"],
        valid: Bool[Array, "batch keys"] | None = None,
        projected: Float[Array, "batch ..."] | None = None,
    ) -> Attended:
        """The weight is at the last valid key."""
        del query, projected
        if valid is None:
            valid = jnp.ones(keys.shape[:2], bool)
        weights = jax.nn.one_hot(valid.sum(1) - 1, keys.shape[1])
        last = _mean(weights, keys)
        if self.bidirectional:
            half = keys.shape[-1] // 2
            last = jnp.concatenate([last[:, :half], keys[:, 0, half:]], axis=-1)
        return last, weights


def _dense(dim: int, init: Initializer, dtype: str) -> Dense:
    return Dense(dim, use_bias=False, kernel_init=init, dtype=dtype)


def _scale(module: nn.Module) -> Float[Array, ""]:
    return module.param("scale", nn.initializers.ones, ())


def _dots(
    query: Float[Array, "batch dim"], projected: Float[Array, "batch keys dim"]
) -> Float[Array, "batch keys"]:
    return jnp.einsum(
        "bd,bkd->bk", query, projected, preferred_element_type=jnp.float32
    )


def _softmax(
    scores: Float[Array, "batch keys"], seen: Bool[Array, "batch keys"] | None
) -> Float[Array, "batch keys"]:
    """Over what is seen; all zero where nothing is."""
    if seen is None:
        return jax.nn.softmax(scores)
    return jnp.where(seen, jax.nn.softmax(jnp.where(seen, scores, -1e30)), 0)


def _mean(
    weights: Float[Array, "batch keys"], keys: Float[Array, "batch keys key_dim"]
) -> Float[Array, "batch key_dim"]:
    return jnp.einsum("bk,bkd->bd", weights.astype(keys.dtype), keys)
