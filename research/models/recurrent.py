"""Recurrent networks over tokens: language models, and encoders with decoders.

The published ones differ in a few places, each a setting of `Decoder`:

- Sutskever et al. 2014, arXiv:1409.3215: the decoder starts from the encoder's states
  and sees nothing else of the source, which is read in reverse (`reverse_source`).
- Cho et al. 2014, arXiv:1406.1078: it sees the encoder's last state at every step
  (`alignment=LastState()`, `align_first`).
- Bahdanau et al. 2015, arXiv:1409.0473: it looks at the source by its last state before
  each step (`alignment=Additive()`, `align_first`, `readout=MaxoutReadout()`,
  `bridge=TanhBridge()`).
- Luong et al. 2015, arXiv:1508.04025: it looks by its new state, and the next step sees
  what came of it (`alignment=General(...)`, `attentional=AttentionalVector(...)`,
  `input_feeding`).
- GNMT, Wu et al. 2016, arXiv:1609.08144: its bottom layer looks as Bahdanau's, and what
  it saw goes to all layers (`align_first`, seven layers in `upper`); the second version
  of tensorflow/nmt looks after the step instead (`input_feeding`).
"""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.nn.initializers import Initializer
from jaxtyping import Array, Bool, Float, Int

from research.decoding.prompts import Reorder, State, Step, take_rows
from research.errors import UserError
from research.layers.alignment import Alignment
from research.layers.dropout import Dropout
from research.layers.embeddings import TokenEmbedding
from research.layers.initializers import lecun
from research.layers.linear import Dense
from research.layers.recurrent import RecurrentStack, reverse_valid

States = tuple[Any, ...]
"""One state for each recurrent layer, see `RecurrentStack`."""


class RecurrentLanguageModel(nn.Module):
    """Logits of each next token, from a state that has seen those before it.

    Attributes:
      embedding: of the tokens, without positions.
      body: layers that run forward.
      dropout_rate: of the body's output, in training.
      tie_embeddings: logits are products with the tokens' vectors, which are as wide as
        the body then (Press & Wolf 2017, arXiv:1608.05859).
      logit_bias: whether a bias is learnt for each token.
      logits_init: of the kernel of untied logits.
      dtype: of the logits' product; the logits are float32.
    """

    embedding: TokenEmbedding
    body: RecurrentStack
    dropout_rate: float = 0.0
    tie_embeddings: bool = False
    logit_bias: bool = True
    logits_init: Initializer = lecun()
    dtype: str = "float32"

    def __call__(
        self,
        tokens: Int[Array, "batch length"],
        *,
        segments: Int[Array, "batch length"] | None = None,
        positions: Int[Array, "#batch length"] | None = None,
        train: bool = False,
    ) -> Float[Array, "batch length vocab_size"]:
        """From before the first token of each segment; `positions` play no part."""
        del positions
        return self.run(None, tokens, segments=segments, train=train)[1]

    @nn.compact
    def run(
        self,
        states: States | None,
        tokens: Int[Array, "batch length"],
        *,
        segments: Int[Array, "batch length"] | None = None,
        train: bool = False,
    ) -> tuple[States, Float[Array, "batch length vocab_size"]]:
        """Goes on from the states after the tokens before; None is for no tokens.

        Raises:
          UserError: layers that would see the future, or tied embeddings of another
            width than the body.
        """
        if self.body.num_bidirectional:
            raise UserError(
                f"num_bidirectional={self.body.num_bidirectional}: a language model "
                "would see the tokens that it predicts; set it to 0"
            )
        x = self.embedding(tokens, train=train)
        x, states = self.body(x, states=states, segments=segments, train=train)
        return states, _logits(self, x, train)

    @nn.nowrap
    def decoding(
        self, variables: Mapping[str, Any], rows: int, max_length: int
    ) -> tuple[Step, State, Reorder]:
        """For `research.decoding.search`, from before the first token."""
        del max_length
        start = self.body.start(rows)

        def step(states: State, token: Array) -> tuple[State, Array]:
            found: Any = self.apply(variables, states, token[:, None], method="run")
            states, logits = found
            return states, logits[:, 0]

        return step, start, take_rows


class Memory(NamedTuple):
    """What a decoder can look at: of the source, and the same at every step.

    Attributes:
      keys: the encoder's outputs.
      projected: what the alignment needs of them.
      valid: False for padding.
    """

    keys: Float[Array, "batch source_length key_dim"]
    projected: Float[Array, "batch ..."]
    valid: Bool[Array, "batch source_length"]


class DecoderState(NamedTuple):
    """What a decoder has come to, the batch first in every leaf.

    Attributes:
      layers: the states of the layers that look at the source.
      upper: those of the layers above.
      fed: what the next step sees of this one, None where it sees nothing.
      weights: those of the last look at the source, None where there is none.
      memory: what there is to look at.
    """

    layers: States
    upper: States
    fed: Float[Array, "batch fed_dim"] | None
    weights: Float[Array, "batch source_length"] | None
    memory: Memory | None


# The decoder's first states


Bridge = Callable[[States, int, int], States]
"""`(the encoder's last states, number of layers, hidden dim)` to the first states."""


def last_states(finals: States, num_layers: int, hidden_dim: int) -> States:
    """The encoder's topmost states: layer by layer the same if there are as many.

    Of a layer that runs both ways the forward state comes first, so that in GNMT's
    shape the decoder's bottom layer takes the one that ran backward.
    """
    del hidden_dim
    if len(finals) < num_layers:
        raise UserError(
            f"the encoder has {len(finals)} states for a decoder of {num_layers} layers"
            ": use another bridge, such as zero_states"
        )
    return finals[len(finals) - num_layers :]


def zero_states(finals: States, num_layers: int, hidden_dim: int) -> States:
    """All zero, whatever the encoder's."""

    def zero(leaf: Array) -> Array:
        return jnp.zeros((leaf.shape[0], hidden_dim), leaf.dtype)

    return (jax.tree.map(zero, finals[-1]),) * num_layers


class TanhBridge(nn.Module):
    """tanh(W h), h the topmost of the encoder's states (Bahdanau et al., App. A.2.2).

    If the encoder's top layer runs both ways, that is the one which ran backward.

    Attributes:
      kernel_init: of W.
      dtype: of its product.
    """

    kernel_init: Initializer = lecun()
    dtype: str = "float32"

    @nn.compact
    def __call__(self, finals: States, num_layers: int, hidden_dim: int) -> States:
        leaves, tree = jax.tree.flatten(finals[-1])

        def dense(x: Array, name: str) -> Array:
            layer = Dense(
                hidden_dim, kernel_init=self.kernel_init, dtype=self.dtype, name=name
            )
            return jnp.tanh(layer(x))

        return tuple(
            jax.tree.unflatten(
                tree, [dense(x, f"layer_{n}_{i}") for i, x in enumerate(leaves)]
            )
            for n in range(num_layers)
        )


# What is made of a state and what it saw


class AttentionalVector(nn.Module):
    """tanh(W [c, h]) (Luong et al. 2015, Eq. 5).

    Attributes:
      dim: of the vector.
      kernel_init: of W.
      dtype: of its product.
    """

    dim: int
    kernel_init: Initializer = lecun()
    dtype: str = "float32"

    @nn.compact
    def __call__(
        self,
        hidden: Float[Array, "*batch hidden_dim"],
        context: Float[Array, "*batch key_dim"],
    ) -> Float[Array, "*batch dim"]:
        layer = Dense(
            self.dim,
            use_bias=False,
            kernel_init=self.kernel_init,
            dtype=self.dtype,
            name="dense",
        )
        return jnp.tanh(layer(jnp.concatenate([context, hidden], axis=-1)))


class MaxoutReadout(nn.Module):
    """The larger ones of neighbouring pairs of U s + V e + C c (Bahdanau, App. A.2.2).

    Attributes:
      dim: what is left of twice as many.
      kernel_init: of [U, C, V].
      dtype: of their product.
    """

    dim: int = 500
    kernel_init: Initializer = lecun()
    dtype: str = "float32"

    @nn.compact
    def __call__(
        self,
        hidden: Float[Array, "*batch hidden_dim"],
        context: Float[Array, "*batch key_dim"],
        embedded: Float[Array, "*batch embed_dim"],
    ) -> Float[Array, "*batch dim"]:
        layer = Dense(
            2 * self.dim, kernel_init=self.kernel_init, dtype=self.dtype, name="dense"
        )
        h = layer(jnp.concatenate([hidden, context, embedded], axis=-1))
        return h.reshape(*h.shape[:-1], self.dim, 2).max(-1)


class Decoder(nn.Module):
    """Recurrent layers that look at the source.

    Attributes:
      layers: run step by step.
      alignment: looks at the source by the topmost of their states; None never does.
      align_first: it looks before each step, and all `layers` see the context beside
        their input; otherwise it looks after the step.
      attentional: called with state and context, gives what goes on in place of the
        state; None leaves it.
      input_feeding: the next step sees beside its token what `attentional` has given,
        or without it the context.
      upper: layers above, which see the context beside their input.
      readout: called with the state that looked, or that of `upper`, with the context
        and the token's vector, gives what logits are made of; None leaves the state.
      bridge: from the encoder's last states to the first ones of `layers` and `upper`.
    """

    layers: RecurrentStack
    alignment: Alignment | None = None
    align_first: bool = False
    attentional: AttentionalVector | None = None
    input_feeding: bool = False
    upper: RecurrentStack | None = None
    readout: Callable[..., Array] | None = None
    bridge: Bridge = last_states

    def setup(self):
        looks = self.align_first or self.input_feeding or self.attentional
        if self.alignment is None and (looks or self.upper or self.readout):
            raise UserError(
                "align_first, attentional, input_feeding, upper and readout need what "
                "an alignment sees: set one, such as LastState()"
            )
        self.dropout = Dropout(self.upper.dropout_rate if self.upper else 0.0)

    def start(
        self,
        finals: States,
        keys: Float[Array, "batch source_length key_dim"],
        valid: Bool[Array, "batch source_length"],
    ) -> DecoderState:
        """Before the first token.

        Args:
          finals: the encoder's last states.
          keys: its outputs.
          valid: False for padding.

        Raises:
          UserError: a bridge whose states are not those of the layers.
        """
        stacks = [self.layers] if self.upper is None else [self.layers, self.upper]
        expected = jax.eval_shape(
            lambda: sum((stack.start(len(keys)) for stack in stacks), ())
        )
        states = self.bridge(finals, len(expected), self.layers.hidden_dim)
        shapes = jax.eval_shape(lambda: states)
        if jax.tree.map(jnp.shape, shapes) != jax.tree.map(jnp.shape, expected):
            raise UserError(
                f"the bridge gives {shapes} for the decoder's first states, which are "
                f"{expected}: use another one, or cells and hidden_dim like the "
                "encoder's"
            )
        count = self.layers.num_layers
        fed = weights = memory = None
        if self.alignment is not None:
            memory = Memory(keys, self.alignment.project(keys), valid)
            weights = jnp.zeros(valid.shape)
        if self.input_feeding:
            width = self.attentional.dim if self.attentional else keys.shape[-1]
            fed = jnp.zeros((len(keys), width), keys.dtype)
        return DecoderState(states[:count], states[count:], fed, weights, memory)

    def __call__(
        self,
        state: DecoderState,
        embedded: Float[Array, "batch length embed_dim"],
        train: bool = False,
    ) -> tuple[DecoderState, Float[Array, "batch length out_dim"]]:
        """Goes on by the tokens' vectors, and gives what logits are made of.

        One after the other, where a step has to look before the next one can begin.
        """
        if self.alignment is None or embedded.shape[1] == 1:
            state, seen = self._advance(state, embedded, train)
        else:
            memory = state.memory

            def step(decoder: Decoder, state: DecoderState, embedded: Array) -> Any:
                state = state._replace(memory=memory)
                state, seen = decoder._advance(state, embedded[:, None], train)
                seen = jax.tree.map(lambda x: x[:, 0], seen)
                return state._replace(memory=None), seen

            scan = nn.scan(
                step,
                variable_broadcast="params",
                split_rngs={"params": False, "dropout": True},
                in_axes=1,
                out_axes=1,
            )
            state, seen = scan(self, state._replace(memory=None), embedded)
            state = state._replace(memory=memory)
        hidden, looked, context = seen
        if self.upper is not None:
            x = self.dropout(hidden, train)
            hidden, upper = self.upper(
                x, states=state.upper, context=context, train=train
            )
            state = state._replace(upper=upper)
        if self.readout is not None:
            looked = hidden if looked is None else looked
            hidden = self.readout(looked, context, embedded)
        return state, hidden

    def _advance(
        self,
        state: DecoderState,
        embedded: Float[Array, "batch length embed_dim"],
        train: bool,
    ) -> tuple[DecoderState, Any]:
        """One step of `layers`, or any number if there is nothing to look at.

        Beside the state: what goes on of each step, the state that looked where that is
        another one, and the context.
        """
        x, looked, context, weights = embedded, None, None, None

        def look(query: Array) -> tuple[Array, Array]:
            assert self.alignment is not None and state.memory is not None
            # Computed again for the backward pass: of all steps together its hidden
            # layer is as large as target length x source length x dim.
            attend = nn.remat(lambda module, *args: module(*args), prevent_cse=False)
            keys, projected, valid = state.memory
            context, weights = attend(self.alignment, query, keys, valid, projected)
            return context[:, None], weights

        if self.input_feeding:
            assert state.fed is not None
            x = jnp.concatenate([x, state.fed[:, None].astype(x.dtype)], axis=-1)
        if self.align_first:
            query = self.layers.cell.output(state.layers[-1])
            looked = query[:, None].astype(x.dtype)
            context, weights = look(query)
        hidden, layers = self.layers(
            x, states=state.layers, context=context, train=train
        )
        state = state._replace(layers=layers)
        if self.alignment is None:
            return state, (hidden, None, None)
        if context is None:
            context, weights = look(hidden[:, 0])
        fed = context
        if self.attentional is not None:
            fed = hidden = self.attentional(hidden, context)
        if state.fed is not None:
            state = state._replace(fed=fed[:, 0].astype(state.fed.dtype))
        return state._replace(weights=weights), (hidden, looked, context)


class RecurrentSeq2Seq(nn.Module):
    """Logits of each next target token, given the source.

    Attributes:
      embedding: of target tokens, and of the source's, too, unless those have one.
      encoder: of the source's vectors.
      decoder: from the encoder to what logits are made of.
      source_embedding: of source tokens; None is for the same.
      reverse_source: the source is read from its last token to its first.
      dropout_rate: of what logits are made of, in training.
      tie_embeddings: logits are products with the target tokens' vectors, which are as
        wide as what they are made of then.
      logit_bias: whether a bias is learnt for each token.
      logits_init: of the kernel of untied logits.
      dtype: of the logits' product; the logits are float32.
    """

    pad: ClassVar[int] = 0
    """The token that is padding."""

    embedding: TokenEmbedding
    encoder: RecurrentStack
    decoder: Decoder
    source_embedding: TokenEmbedding | None = None
    reverse_source: bool = False
    dropout_rate: float = 0.0
    tie_embeddings: bool = False
    logit_bias: bool = False
    logits_init: Initializer = lecun()
    dtype: str = "float32"

    def __post_init__(self):
        stacks = [self.encoder, self.decoder.layers, self.decoder.upper]
        names = ["encoder", "decoder.layers", "decoder.upper"]
        for number, stack in enumerate(stacks):
            first = next(n for n, other in enumerate(stacks) if other is stack)
            if stack is not None and first != number:
                raise UserError(
                    f"{names[first]} and {names[number]} are one stack, and would "
                    "share all parameters: build two, or give one of them as "
                    f"{names[first]}.clone()"
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
        """`target` is what is known before each position: shifted by one.

        A row is one pair, whose tokens come before all padding: logits of rows with
        several segments are NaN. Positions play no part.
        """
        del source_positions, target_positions
        _, logits = self.decode(self.encode(source, train=train), target, train=train)
        for segments in (source_segments, target_segments):
            if segments is not None:
                packed = (segments > 1).any(1)[:, None, None]
                logits = jnp.where(packed, jnp.nan, logits)
        return logits

    def encode(
        self, source: Int[Array, "batch length"], *, train: bool = False
    ) -> DecoderState:
        """The decoder's state before the first token."""
        valid = source != self.pad
        if self.reverse_source:
            source = reverse_valid(source, valid)
        x = (self.source_embedding or self.embedding)(source, train=train)
        keys, finals = self.encoder(x, valid, train=train)
        return self.decoder.start(finals, keys, valid)

    @nn.compact
    def decode(
        self,
        state: DecoderState,
        target: Int[Array, "batch length"],
        *,
        train: bool = False,
    ) -> tuple[DecoderState, Float[Array, "batch length vocab_size"]]:
        """Goes on by the tokens that follow those of the calls before.

        Raises:
          UserError: tied embeddings of another width than what logits are made of.
        """
        x = self.embedding(target, train=train)
        state, x = self.decoder(state, x, train)
        return state, _logits(self, x, train)

    def step(
        self, state: DecoderState, token: Int[Array, "batch"]
    ) -> tuple[DecoderState, Float[Array, "batch vocab_size"]]:
        """`decode` by one token."""
        state, logits = self.decode(state, token[:, None])
        return state, logits[:, 0]

    @nn.nowrap
    def decoding(
        self,
        variables: Mapping[str, Any],
        source: Int[Array, "batch source_length"],
        max_length: int,
    ) -> tuple[Step, State, Reorder]:
        """For `research.decoding.search`, from before the first token."""
        del max_length
        start: Any = self.apply(variables, source, method="encode")

        def step(state: State, token: Array) -> tuple[State, Array]:
            found: Any = self.apply(variables, state, token, method="step")
            return found

        return step, start, take_decoder_rows


def take_decoder_rows(state: DecoderState, index: Int[Array, "chosen"]) -> DecoderState:
    """The state of other rows; see `research.decoding.prompts.Reorder`.

    Rows of the memory are only taken where their number changes: within a search they
    are the same for all hypotheses of a source.
    """
    memory, state = state.memory, state._replace(memory=None)
    if memory is not None and len(memory.valid) != len(index):
        memory = take_rows(memory, index)
    return take_rows(state, index)._replace(memory=memory)


def _logits(
    model: RecurrentLanguageModel | RecurrentSeq2Seq,
    x: Float[Array, "batch length dim"],
    train: bool,
) -> Float[Array, "batch length vocab_size"]:
    embedding = model.embedding
    x = Dropout(model.dropout_rate, name="dropout", parent=model)(x, train)
    if not model.tie_embeddings:
        dense = Dense(
            embedding.vocab_size,
            use_bias=False,
            kernel_init=model.logits_init,
            dtype=model.dtype,
            name="logits",
            parent=model,
        )
        logits = dense(x).astype(jnp.float32)
    elif x.shape[-1] != embedding.embed_dim:
        raise UserError(
            f"tie_embeddings: the tokens' vectors have embed_dim={embedding.embed_dim}"
            f", but what logits are made of has {x.shape[-1]}: make them equal"
        )
    else:
        logits = embedding.attend(x)
    if model.logit_bias:
        zeros = nn.initializers.zeros
        bias = model.param("logit_bias", zeros, (embedding.vocab_size,))
        logits += bias[None, None]
    return logits
