"""The body that sequence models share: blocks with slots, and stacks of like blocks."""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from research.errors import UserError
from research.layers.attention import Attention
from research.layers.cores import SEES_ALL, Bias, Mask
from research.layers.dropout import Dropout
from research.layers.mlp import FeedForward
from research.layers.residual import PreNorm

Slot = Callable[..., nn.Module]
"""Builds a module, given at least `name`."""


class TransformerBlock(nn.Module):
    """A mixer of positions, then a mixer of channels, each a branch of the stream.

    Attributes:
      mixer: of positions, such as `Attention`; called with the stream, `mask`, `bias`,
        `positions`, `train` and `decode`, and with a `code` where there is one.
      cross: attention to another sequence, between the two; None is for none.
      mlp: of channels, called with the stream and `train`; None is for none, as where
        the mixer is a gated attention unit.
      residual: how each branch joins the stream.
      parallel: both mixers read the same input and are added up (no `cross`).
    """

    mixer: Slot = partial(Attention, num_heads=8)
    cross: Slot | None = None
    mlp: Slot | None = partial(FeedForward, mlp_dim=2048)
    residual: Slot = PreNorm
    parallel: bool = False

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch length dim"],
        context: Float[Array, "batch keys context_dim"] | None = None,
        *,
        mask: Mask = SEES_ALL,
        context_mask: Mask = SEES_ALL,
        bias: Bias | None = None,
        positions: Int[Array, "#batch length"] | None = None,
        code: Float[Array, "#batch length dim"] | None = None,
        context_code: Float[Array, "#batch keys context_dim"] | None = None,
        train: bool = False,
        decode: bool = False,
    ) -> Float[Array, "batch length dim"]:
        """`code` and `context_code` are added where attention compares; see there.

        Raises `UserError` if there is no context for `cross` to attend to.
        """
        own = {} if code is None else {"code": code}
        across = {} if context_code is None else {"context_code": context_code}
        mixer = self.mixer(name="mixer")
        mlp = None if self.mlp is None else self.mlp(name="mlp")

        def mix(h: Array) -> Array:
            out = mixer(
                h,
                mask=mask,
                bias=bias,
                positions=positions,
                train=train,
                decode=decode,
                **own,
            )
            return out + mlp(h, train) if self.parallel and mlp else out

        x = self.residual(name="mixer_residual")(x, mix, train)
        if self.cross is not None:
            if context is None and not decode:
                raise UserError("a block with cross attention needs a context")
            cross = self.cross(name="cross")
            x = self.residual(name="cross_residual")(
                x,
                lambda h: cross(
                    h,
                    context,
                    mask=context_mask,
                    train=train,
                    decode=decode,
                    **own,
                    **across,
                ),
                train,
            )
        if mlp and not self.parallel:
            x = self.residual(name="mlp_residual")(x, lambda h: mlp(h, train), train)
        return x


class Stack(nn.Module):
    """`num_layers` blocks, one after the other.

    Like blocks are scanned over: they are compiled once, and their parameters lie under
    `layers/` with one more axis in front.

    Where the collection `intermediates` is asked for, it gets `moments` of the stream:
    before the first layer as `stream_in`, and after each under `layers/`.

    Attributes:
      num_layers: a multiple of the number of `blocks`.
      blocks: builds one round of layers, mostly a single one; further rounds repeat
        them.
      final_norm: of the output, where the blocks leave the stream as it is.
      dropout_rate: of the output, in training.
      bias: called without arguments for the `Bias` of every layer's mixer, one for
        all: a `RelativeBias`, an `Alibi`.
      remat: keeps nothing of a round for the backward pass, and computes it again.
      unroll: rounds in one iteration of the scan.
      dtype: of the output.
    """

    num_layers: int
    blocks: tuple[Slot, ...] = (TransformerBlock,)
    final_norm: Slot | None = None
    dropout_rate: float = 0.0
    bias: Callable[[], Bias] | None = None
    remat: bool = False
    unroll: int = 1
    dtype: str = "float32"

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch length dim"],
        context: Float[Array, "batch keys context_dim"] | None = None,
        *,
        mask: Mask = SEES_ALL,
        context_mask: Mask = SEES_ALL,
        positions: Int[Array, "#batch length"] | None = None,
        code: Float[Array, "#batch length dim"] | None = None,
        context_code: Float[Array, "#batch keys context_dim"] | None = None,
        train: bool = False,
        decode: bool = False,
        every_layer: bool = False,
    ) -> Float[Array, "*layers batch length dim"]:
        """The stream after the last layer, or, one by one, after `every_layer`.

        Args:
          x: the stream.
          context: what its `cross` attention, if any, attends to.
          mask, context_mask: who sees whom.
          positions: of x.
          code, context_code: added in every layer where attention compares; see
            `Attention`.
          train: whether to drop out.
          decode: see `Attention`.
          every_layer: the output has a first axis for the layers, and the final norm
            is of each.

        Raises `UserError` where `blocks` do not divide `num_layers`.
        """
        rounds, rest = divmod(self.num_layers, len(self.blocks))
        if rest or rounds < 1:
            raise UserError(
                f"num_layers={self.num_layers} is no multiple of the "
                f"{len(self.blocks)} blocks that repeat"
            )
        bias = None if self.bias is None else self.bias()
        _tap(self, "stream_in", x)
        one_round = nn.remat(_Round, prevent_cse=False) if self.remat else _Round
        scanned = nn.scan(
            one_round,
            variable_axes={True: 0},
            split_rngs={True: True},
            length=rounds,
            in_axes=nn.broadcast,  # pyright: ignore[reportArgumentType]
            unroll=self.unroll,
        )
        x, each = scanned(self.blocks, train, decode, every_layer, name="layers")(
            x, context, mask, context_mask, bias, positions, code, context_code
        )
        if each is not None:
            x = each.reshape(-1, *x.shape)
        if self.final_norm is not None:
            x = self.final_norm(dtype=self.dtype, name="final_norm")(x, train)
        return Dropout(self.dropout_rate, name="dropout")(x, train)


class _Round(nn.Module):
    """Each of the blocks once."""

    blocks: tuple[Slot, ...]
    train: bool
    decode: bool
    every_layer: bool

    @nn.compact
    def __call__(
        self,
        x: Array,
        context: Array | None,
        mask: Mask,
        context_mask: Mask,
        bias: Bias | None,
        positions: Array | None,
        code: Array | None,
        context_code: Array | None,
    ) -> tuple[Array, Array | None]:
        codes = {"code": code, "context_code": context_code}
        codes = {name: it for name, it in codes.items() if it is not None}
        each = []
        for index, block in enumerate(self.blocks):
            x = block(name=f"block_{index}")(
                x,
                context,
                mask=mask,
                context_mask=context_mask,
                bias=bias,
                positions=positions,
                train=self.train,
                decode=self.decode,
                **codes,
            )
            _tap(self, f"stream_{index}", x)
            each.append(x)
        return x, jnp.stack(each) if self.every_layer else None


def _tap(module: nn.Module, name: str, x: Array) -> None:
    if module.is_mutable_collection("intermediates"):
        module.sow("intermediates", name, moments(x))


def moments(x: Float[Array, "batch length dim"]) -> Float[Array, "2"]:
    """The second moment of a stream, and what part of it differs within a sequence.

    Where the latter is next to nothing, all positions of a sequence are alike: its rank
    has collapsed (Dong et al. 2021, arXiv:2103.03404), and no gradient is left for
    queries and keys, since it makes no difference to which position one attends.
    """
    x = x.astype(jnp.float32)
    second = jnp.square(x).mean()
    return jnp.stack([second, x.var(1).mean() / second])
