"""Transformers over tokens: decoders, encoders, and encoders with decoders.

Their bodies are `research.layers.stack.Stack`s: what a layer is made of, and in which
order, is the body's own setting.
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.nn.initializers import Initializer
from jaxtyping import Array, Bool, Float, Int

from research.decoding.cache import empty_cache, take_cache_rows, with_context
from research.decoding.prompts import Reorder, State, Step
from research.errors import UserError
from research.layers.cores import Mask
from research.layers.dropout import Dropout
from research.layers.embeddings import LevelEmbedding, TokenEmbedding
from research.layers.initializers import Normal, lecun
from research.layers.linear import Dense
from research.layers.stack import Stack

Segments = Int[Array, "batch length"]
"""1, 2, ... for the sequences packed into a row, 0 for padding."""


class LanguageModel(nn.Module):
    """Logits of each next token: a decoder without an encoder.

    Attributes:
      embedding: of the tokens.
      body: blocks that can be causal.
      tie_embeddings: logits are products with the tokens' vectors.
      logit_scale: of the body's output, before the logits.
      logits_init: of the kernel of untied logits.
      dtype: of the logits' product; the logits are float32.
    """

    embedding: TokenEmbedding | LevelEmbedding
    body: Stack
    tie_embeddings: bool = True
    logit_scale: float = 1.0
    logits_init: Initializer = lecun()
    dtype: str = "float32"

    @nn.compact
    def __call__(
        self,
        tokens: Int[Array, "batch length"],
        *,
        segments: Segments | None = None,
        positions: Int[Array, "#batch length"] | None = None,
        train: bool = False,
        decode: bool = False,
    ) -> Float[Array, "batch length vocab_size"]:
        """With `decode`, tokens follow those of the calls before (`cache`)."""
        if decode:
            positions = _count(self, tokens.shape[1])
        mask = Mask(
            causal=True, segments=None if segments is None else (segments, segments)
        )
        x = self.embedding(tokens, positions, train=train)
        x = self.body(x, mask=mask, positions=positions, train=train, decode=decode)
        x *= self.logit_scale
        if self.tie_embeddings:
            return self.embedding.attend(x)
        return _logits(self, x, self.embedding.vocab_size)

    @nn.nowrap
    def decoding(
        self, variables: Mapping[str, Any], rows: int, max_length: int
    ) -> tuple[Step, State, Reorder]:
        """For `research.decoding.search`: from before the first token."""
        tokens = jnp.zeros((rows, max_length), jnp.int32)
        cache = empty_cache(lambda: self.init(jax.random.key(0), tokens, decode=True))

        def step(cache: State, token: Array) -> tuple[State, Array]:
            logits, changed = self.apply(
                {**variables, "cache": cache},
                token[:, None],
                decode=True,
                mutable=["cache"],
            )
            return changed["cache"], logits[:, 0]

        return step, cache, take_cache_rows


class Encoder(nn.Module):
    """Vectors for tokens that see each other, padding apart.

    Attributes:
      embedding: of the tokens.
      body: its blocks.
      pad: the token that is padding, where a caller does not say what is.
    """

    embedding: TokenEmbedding
    body: Stack
    pad: int = 0

    def __call__(
        self,
        tokens: Int[Array, "batch length"],
        *,
        valid: Bool[Array, "batch length"] | None = None,
        segments: Segments | None = None,
        positions: Int[Array, "#batch length"] | None = None,
        types: Int[Array, "batch length"] | None = None,
        train: bool = False,
    ) -> Float[Array, "batch length dim"]:
        """`valid`: what is no padding."""
        mask = Mask(
            valid=tokens != self.pad if valid is None else valid,
            segments=None if segments is None else (segments, segments),
        )
        x = self.embedding(tokens, positions, types, train)
        return self.body(x, mask=mask, positions=positions, train=train)

    def attend(self, x: Float[Array, "*batch dim"]) -> Float[Array, "*batch vocab"]:
        """Products with every token's vector."""
        return self.embedding.attend(x)


class MaskedLanguageModel(nn.Module):
    """Logits of the tokens behind a mask: an encoder with BERT's head.

    Devlin et al. 2019, arXiv:1810.04805: a dense layer, its activation and a norm, then
    products with the tokens' vectors and a bias for each token.

    Attributes:
      encoder: of the tokens.
      norm: of the head.
      activation: of the head.
      kernel_init: of the head.
      dtype: of the computation; the logits are float32.
    """

    encoder: Encoder
    norm: Callable[..., nn.Module]
    activation: Callable[[Array], Array] = jax.nn.gelu
    kernel_init: Initializer = Normal(0.02)
    dtype: str = "float32"

    @nn.compact
    def __call__(
        self,
        tokens: Int[Array, "batch length"],
        *,
        valid: Bool[Array, "batch length"] | None = None,
        segments: Segments | None = None,
        positions: Int[Array, "#batch length"] | None = None,
        types: Int[Array, "batch length"] | None = None,
        train: bool = False,
    ) -> Float[Array, "batch length vocab_size"]:
        x = self.encoder(
            tokens,
            valid=valid,
            segments=segments,
            positions=positions,
            types=types,
            train=train,
        )
        x = Dense(
            x.shape[-1], kernel_init=self.kernel_init, dtype=self.dtype, name="dense"
        )(x)
        x = self.norm(dtype=self.dtype, name="norm")(self.activation(x), train)
        logits = self.encoder.attend(x)
        return logits + _bias(self, logits.shape[-1])


class SequenceClassifier(nn.Module):
    """Logits of the class of a sequence, or of a pair of them.

    Attributes:
      encoder: of the tokens.
      num_classes: of the logits; None is for the vector that they would be made from.
      pooling: "first" takes the vector of the first token, "mean" that of all which are
        no padding.
      hidden_dim: of a layer with an activation before the logits; None is for none.
      activation: of that layer.
      dropout_rate: of what the logits are made from, in training.
      pairs: tokens hold two sequences of equal length, one behind the other, which are
        encoded apart; with u and v theirs, the head sees [u, v, u v, u - v] (Tay et al.
        2021, arXiv:2011.04006, official code).
      kernel_init: of the head.
      dtype: of the computation; the logits are float32.
    """

    encoder: Encoder
    num_classes: int | None
    pooling: Literal["first", "mean"] = "first"
    hidden_dim: int | None = None
    activation: Callable[[Array], Array] = jax.nn.relu
    dropout_rate: float = 0.0
    pairs: bool = False
    kernel_init: Initializer = lecun()
    dtype: str = "float32"

    @nn.compact
    def __call__(
        self,
        tokens: Int[Array, "batch length"],
        *,
        valid: Bool[Array, "batch length"] | None = None,
        types: Int[Array, "batch length"] | None = None,
        train: bool = False,
    ) -> Float[Array, "batch features"]:
        """`valid` and `types` as in `Encoder`."""
        if self.pairs:

            def halves(part: Array | None) -> Any:
                return None if part is None else part.reshape(2 * len(part), -1)

            pooled = self._pool(halves(tokens), halves(valid), halves(types), train)
            left, right = pooled.reshape(len(tokens), 2, -1).swapaxes(0, 1)
            x = jnp.concatenate([left, right, left * right, left - right], axis=-1)
        else:
            x = self._pool(tokens, valid, types, train)

        def dense(features: int, name: str, dtype: str) -> nn.Module:
            return Dense(features, kernel_init=self.kernel_init, dtype=dtype, name=name)

        if self.hidden_dim:
            x = self.activation(dense(self.hidden_dim, "dense", self.dtype)(x))
        if self.num_classes is None:
            return x
        x = Dropout(self.dropout_rate, name="dropout")(x, train)
        return dense(self.num_classes, "logits", "float32")(x)

    def _pool(self, tokens: Any, valid: Any, types: Any, train: bool) -> Array:
        valid = tokens != self.encoder.pad if valid is None else valid
        x = self.encoder(tokens, valid=valid, types=types, train=train)
        if self.pooling == "first":
            return x[:, 0]
        valid = valid[:, :, None]
        return (x * valid).sum(1) / jnp.maximum(valid.sum(1), 1)


class EncoderDecoder(nn.Module):
    """Logits of each next target token, given the source (Vaswani et al. 2017).

    Attributes:
      embedding: of target tokens, and of the source's, too, unless those have one.
      encoder, decoder: bodies; the decoder's blocks attend across.
      source_embedding: of source tokens; None is for the same.
      tie_embeddings: logits are products with the target tokens' vectors.
      logit_scale: of the decoder's output, before the logits (T5: embed_dim^-0.5).
      logit_bias: whether a bias is learnt for each token (Marian).
      pad: the token of the source that is padding.
      logits_init: of the kernel of untied logits.
      dtype: of the logits' product; the logits are float32.
    """

    embedding: TokenEmbedding
    encoder: Stack
    decoder: Stack
    source_embedding: TokenEmbedding | None = None
    tie_embeddings: bool = True
    logit_scale: float = 1.0
    logit_bias: bool = False
    pad: int = 0
    logits_init: Initializer = lecun()
    dtype: str = "float32"

    def __post_init__(self):
        if self.encoder is self.decoder:
            raise UserError(
                "the encoder and the decoder are one stack, and would share all "
                "parameters: build two, or give one of them as encoder.clone()"
            )
        super().__post_init__()

    def __call__(
        self,
        source: Int[Array, "batch source_length"],
        target: Int[Array, "batch target_length"],
        *,
        source_segments: Int[Array, "batch source_length"] | None = None,
        target_segments: Int[Array, "batch target_length"] | None = None,
        source_positions: Int[Array, "batch source_length"] | None = None,
        target_positions: Int[Array, "batch target_length"] | None = None,
        train: bool = False,
    ) -> Float[Array, "batch target_length vocab_size"]:
        """`target` is what is known before each position: shifted by one."""
        encoded = self.encode(
            source,
            segments=source_segments,
            positions=source_positions,
            train=train,
        )
        return self.decode(
            target,
            encoded,
            source != self.pad,
            segments=target_segments,
            source_segments=source_segments,
            positions=target_positions,
            train=train,
        )

    def encode(
        self,
        source: Int[Array, "batch length"],
        *,
        segments: Segments | None = None,
        positions: Int[Array, "batch length"] | None = None,
        train: bool = False,
    ) -> Float[Array, "batch length dim"]:
        """Vectors for the source; `pad` is padding."""
        mask = Mask(
            valid=source != self.pad,
            segments=None if segments is None else (segments, segments),
        )
        embedding = self.source_embedding or self.embedding
        x = embedding(source, positions, train=train)
        return self.encoder(x, mask=mask, positions=positions, train=train)

    @nn.compact
    def decode(
        self,
        target: Int[Array, "batch target_length"],
        encoded: Float[Array, "batch source_length dim"] | None,
        valid: Bool[Array, "batch source_length"],
        *,
        segments: Int[Array, "batch target_length"] | None = None,
        source_segments: Int[Array, "batch source_length"] | None = None,
        positions: Int[Array, "#batch target_length"] | None = None,
        train: bool = False,
        decode: bool = False,
    ) -> Float[Array, "batch target_length vocab_size"]:
        """Logits after each target token.

        With `decode` the tokens follow those of the calls before (`cache`), and
        `encoded` is only given at the first one.
        """
        if decode:
            positions = _count(self, target.shape[1])
        own = across = None
        if segments is not None and source_segments is not None:
            own, across = (segments, segments), (segments, source_segments)
        x = self.embedding(target, positions, train=train)
        x = self.decoder(
            x,
            encoded,
            mask=Mask(causal=True, segments=own),
            context_mask=Mask(valid=valid, segments=across),
            positions=positions,
            train=train,
            decode=decode,
        )
        x *= self.logit_scale
        vocab_size = self.embedding.vocab_size
        if self.tie_embeddings:
            logits = self.embedding.attend(x)
        else:
            logits = _logits(self, x, vocab_size)
        return logits + _bias(self, vocab_size) if self.logit_bias else logits

    @nn.nowrap
    def decoding(
        self,
        variables: Mapping[str, Any],
        source: Int[Array, "batch source_length"],
        max_length: int,
    ) -> tuple[Step, State, Reorder]:
        """For `research.decoding.search`: from before the first target token."""
        encoded: Any = self.apply(variables, source, method="encode")
        valid = source != self.pad
        target = jnp.zeros((len(source), max_length), jnp.int32)

        def run(cache: Any, tokens: Array, encoded: Array | None, valid: Array) -> Any:
            return self.apply(
                {**variables, "cache": cache},
                tokens,
                encoded,
                valid,
                decode=True,
                mutable=["cache"],
                method="decode",
            )

        def init() -> Any:
            options: Any = {"decode": True, "method": "decode"}
            return self.init(jax.random.key(0), target, encoded, valid, **options)

        cache = empty_cache(init)
        _, primed = run(cache, target[:, :1], encoded, valid)
        cache = with_context(cache, primed["cache"])

        def step(state: State, token: Array) -> tuple[State, Array]:
            logits, changed = run(
                state["cache"], token[:, None], None, state["context_valid"]
            )
            return {**state, "cache": changed["cache"]}, logits[:, 0]

        return step, {"cache": cache, "context_valid": valid}, take_cache_rows


def _logits(model: LanguageModel | EncoderDecoder, x: Array, vocab_size: int) -> Array:
    """Untied logits, without a bias."""
    return Dense(
        vocab_size,
        use_bias=False,
        kernel_init=model.logits_init,
        dtype=model.dtype,
        name="logits",
        parent=model,
    )(x).astype(jnp.float32)


def _bias(model: nn.Module, vocab_size: int) -> Float[Array, "1 1 vocab_size"]:
    bias = model.param("logit_bias", nn.initializers.zeros, (vocab_size,))
    return bias[None, None]


def _count(model: nn.Module, length: int) -> Int[Array, "1 length"]:
    """The positions of the next tokens, which are counted in `cache`."""
    is_new = not model.has_variable("cache", "position")
    position = model.variable("cache", "position", jnp.zeros, (), jnp.int32)
    start = position.value
    if not is_new:
        position.value = start + length
    return start + jnp.arange(length)[None]
