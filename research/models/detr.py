"""Detection as a translation of an image into a set of objects.

Carion et al. 2020, arXiv:2005.12872: a Transformer's encoder over the coarsest map of a
backbone, and a decoder whose inputs are learnt queries, each of which is answered with
a class, or none, and a box, and, with a `MaskHead`, with a mask.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.nn.initializers import Initializer
from jaxtyping import Array, Bool, Float

from research.errors import UserError
from research.layers.conv import nearest_resize
from research.layers.cores import Mask
from research.layers.initializers import (
    Normal,
    VarianceScaling,
    torch_linear,
    xavier,
)
from research.layers.linear import Dense
from research.layers.norms import GroupNorm
from research.layers.stack import Slot, Stack

Positions = Callable[[Array, int], Array]
"""Which pixels of a map are valid (batch, height, width), and a number of dimensions,
to a code of each pixel (batch or 1, height, width, dim)."""

INPUT_SCALE = 0.1
"""Of the positions where they are a part of the encoder's input (official code)."""


@dataclass(frozen=True)
class SinePositions:
    """Sines and cosines of the row, then of the column, each half of the dimensions.

    Rows and columns are counted from one, over the valid pixels, and scaled so that the
    last one is at `scale`: a place in the image, not in the padded batch.

    Attributes:
      max_period: the inverse of the smallest frequency.
      scale: of the last row and column.
    """

    max_period: float = 10_000.0
    scale: float = 2 * math.pi

    def __call__(
        self, valid: Bool[Array, "batch height width"], embed_dim: int
    ) -> Float[Array, "batch height width embed_dim"]:
        """Raises `UserError` for dimensions that are no multiple of four."""
        if embed_dim % 4:
            raise UserError(
                f"SinePositions of {embed_dim} dimensions: expected a multiple of four,"
                " for a sine and a cosine of rows and of columns"
            )
        half = embed_dim // 2

        def waves(axis: int) -> Array:
            place = jnp.cumsum(valid, axis, dtype=jnp.float32)
            last = jax.lax.slice_in_dim(place, place.shape[axis] - 1, None, axis=axis)
            place = place / (last + 1e-6) * self.scale
            exponents = jnp.arange(0, half, 2, jnp.float32) / half
            periods = jnp.power(self.max_period, exponents)
            angles = place[..., None] / periods[None, None, None]
            pairs = jnp.stack([jnp.sin(angles), jnp.cos(angles)], axis=-1)
            return pairs.reshape(*place.shape, half)

        return jnp.concatenate([waves(1), waves(2)], axis=-1)


class LearnedPositions(nn.Module):
    """Learnt vectors of the column, then of the row, each half of the dimensions.

    Attributes:
      max_size: rows, and columns, of the largest map.
      embedding_init: of both tables; from 0 to 1 in the official code.
    """

    max_size: int = 50
    embedding_init: Initializer = nn.initializers.uniform(1.0)

    @nn.compact
    def __call__(
        self, valid: Bool[Array, "batch height width"], embed_dim: int
    ) -> Float[Array, "1 height width embed_dim"]:
        """Raises `UserError` for a map that is too large."""
        _, height, width = valid.shape
        if max(height, width) > self.max_size:
            raise UserError(
                f"LearnedPositions of a map of {height}x{width}: expected at most "
                f"max_size={self.max_size} rows and columns"
            )
        shape = (self.max_size, embed_dim // 2)
        rows, columns = (
            self.param(name, self.embedding_init, shape) for name in ("row", "column")
        )
        parts = (columns[None, :width], rows[:height, None])
        parts = [jnp.broadcast_to(p, (height, width, p.shape[-1])) for p in parts]
        return jnp.concatenate(parts, axis=-1)[None]


class MaskHead(nn.Module):
    """Logits of a mask for each query, in the resolution of the backbone's finest map.

    App. A of the paper: where a query looks, in maps of several heads, joins the map
    that the encoder read, and five convolutions and three upsamplings, each followed by
    the sum with a finer map of the backbone, turn them into a mask.

    Attributes:
      num_heads: maps of where a query looks.
      norm: after each convolution but the last.
      kernel_init: of the convolutions; Kaiming's uniform one for no activation, as in
        the official code.
      dtype: of the computation; the softmax and the logits are float32.
    """

    num_heads: int = 8
    norm: Callable[..., nn.Module] = partial(
        GroupNorm, max_groups=8, min_group_size=1, epsilon=1e-5
    )
    kernel_init: Initializer = VarianceScaling(1.0, "fan_in", "uniform")
    dtype: str = "float32"

    @nn.compact
    def __call__(
        self,
        answers: Float[Array, "batch queries dim"],
        memory: Float[Array, "batch height width dim"],
        valid: Bool[Array, "batch height width"],
        features: Float[Array, "batch height width dim"],
        finer: tuple[Float[Array, "batch ..."], ...],
    ) -> Float[Array, "batch queries mask_height mask_width"]:
        """`answers` and `memory` are what decoder and encoder return, `features` what
        the encoder read, `finer` the maps of the backbone, from coarse to fine."""
        batch, queries, dim = answers.shape
        looks = self._looks(answers, memory, valid)

        def norm(h: Array, number: int) -> Array:
            h = self.norm(dtype=self.dtype, name=f"norm_{number}")(h)
            return nn.relu(h)

        first = _JointConv(self.kernel_init, dtype=self.dtype, name="conv_0")
        h = norm(first(features, looks.reshape(-1, *looks.shape[2:])), 0)
        h = norm(self._conv(dim // 2, "conv_1")(h), 1)
        for number, level in enumerate(finer):
            size = h.shape[-1]
            adapted = Dense(
                size,
                kernel_init=self.kernel_init,
                dtype=self.dtype,
                name=f"adapter_{number}",
            )(level)
            adapted = jnp.repeat(adapted, queries, axis=0)
            h = adapted + nearest_resize(h, *level.shape[1:3])
            h = norm(self._conv(size // 2, f"conv_{number + 2}")(h), number + 2)
        logits = self._conv(1, "logits")(h).astype(jnp.float32)
        return logits.reshape(batch, queries, *logits.shape[1:3])

    def _conv(self, channels: int, name: str) -> nn.Conv:
        return nn.Conv(
            channels,
            (3, 3),
            padding=1,
            kernel_init=self.kernel_init,
            dtype=self.dtype,
            name=name,
        )

    def _looks(
        self, answers: Array, memory: Array, valid: Array
    ) -> Float[Array, "batch queries height width heads"]:
        """Attention weights without values; all heads' weights add up to one."""
        batch, queries, dim = answers.shape
        height, width = valid.shape[1:]

        def project(h: Array, name: str) -> Array:
            dense = Dense(dim, kernel_init=xavier(), dtype=self.dtype, name=name)
            return dense(h).reshape(batch, -1, self.num_heads, dim // self.num_heads)

        logits = jnp.einsum(
            "bqhd,bkhd->bqkh",
            project(answers, "query"),
            project(memory, "key"),
            preferred_element_type=jnp.float32,
        )
        logits = logits / math.sqrt(dim // self.num_heads)
        seen = valid.reshape(batch, 1, -1, 1)
        logits = jnp.where(seen, logits, jnp.finfo(jnp.float32).min)
        weights = jax.nn.softmax(logits.reshape(batch, queries, -1))
        return weights.reshape(batch, queries, height, width, self.num_heads)


class _JointConv(nn.Module):
    """A 3x3 convolution of what images and what their queries have, side by side.

    It is linear: the part of an image is the same for all of its queries.
    """

    kernel_init: Initializer
    dtype: str

    @nn.compact
    def __call__(
        self,
        shared: Float[Array, "images height width shared_channels"],
        own: Float[Array, "queries height width own_channels"],
    ) -> Float[Array, "queries height width channels"]:
        parts, width = [shared, own], shared.shape[-1] + own.shape[-1]
        kernel = self.param("kernel", self.kernel_init, (3, 3, width, width))
        bias = self.param("bias", nn.initializers.zeros, (width,))
        kernels = jnp.split(kernel.astype(self.dtype), [shared.shape[-1]], axis=2)
        one, other = (
            jax.lax.conv_general_dilated(
                part.astype(self.dtype),
                kernel,
                (1, 1),
                "SAME",
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
            )
            for part, kernel in zip(parts, kernels, strict=True)
        )
        one = jnp.repeat(one, len(own) // len(shared), axis=0)
        return one + other + bias.astype(self.dtype)[None, None, None]


class DETR(nn.Module):
    """Classes, boxes and perhaps masks of the objects that queries find in an image.

    Attributes:
      backbone: called with images and `train`, returns maps, the coarsest one last.
      encoder: of the coarsest map's pixels; None is for none.
      decoder: its blocks attend across; its final norm is of every layer's output.
      embed_dim: of both.
      num_queries: how many objects can be found.
      num_classes: one more logit is for no object, the last one.
      positions: of the pixels; None is for none.
      positions_at: "attention" adds the positions to the queries and keys of every
        layer of the encoder, and to the keys that the decoder attends to, and the
        learnt queries to those of every layer of the decoder, which starts from zeros.
        "input" adds positions and queries where encoder and decoder begin.
      encoder_positions: whether the encoder, too, is told the positions.
      mask_head: builds a `MaskHead`; None is for none.
      dtype: of the projection to `embed_dim`; the heads are float32.
    """

    backbone: nn.Module
    encoder: Stack | None
    decoder: Stack
    embed_dim: int = 256
    num_queries: int = 100
    num_classes: int = 91
    positions: Positions | None = SinePositions()
    positions_at: Literal["attention", "input"] = "attention"
    encoder_positions: bool = True
    mask_head: Slot | None = None
    dtype: str = "float32"

    def __post_init__(self):
        if self.encoder is self.decoder:
            raise UserError(
                "the encoder and the decoder are one stack, and would share all "
                "parameters: build two, or give one of them as encoder.clone()"
            )
        super().__post_init__()

    @nn.compact
    def __call__(
        self,
        image: Float[Array, "batch height width colors"],
        valid: Bool[Array, "batch height width"],
        train: bool = False,
    ) -> dict[str, Array]:
        """What each query found, after every layer of the decoder.

        Args:
          image: normalised, zeros where it is padding.
          valid: which pixels are no padding.
          train: whether to drop out.

        Returns:
          `logits` (layers, batch, queries, classes + 1); `boxes` (layers, batch,
          queries, 4): center x, center y, width and height, relative to the valid part;
          and, with a mask head, of the last layer `masks` (batch, queries, height / 4,
          width / 4), logits.
        """
        *finer, coarsest = self.backbone(image, train)
        batch, height, width, _ = coarsest.shape
        valid = nearest_resize(valid[..., None], height, width)[..., 0]
        features = Dense(
            self.embed_dim,
            kernel_init=torch_linear(),
            dtype=self.dtype,
            name="project",
        )(coarsest)
        queries = self.param(
            "queries", Normal(1.0), (self.num_queries, self.embed_dim)
        )[None]

        def flat(maps: Array) -> Array:
            return maps.reshape(maps.shape[0], height * width, -1)

        x, mask, codes = flat(features), Mask(valid=valid.reshape(batch, -1)), None
        start = jnp.zeros((batch, *queries.shape[1:]), x.dtype)
        if self.positions is not None:
            codes = flat(self.positions(valid, self.embed_dim)).astype(x.dtype)
        if self.positions_at == "input":
            if codes is not None and self.encoder_positions:
                x = x + INPUT_SCALE * codes
            start = start + queries.astype(x.dtype)
            codes, queries = None, None
        if self.encoder is not None:
            own = codes if self.encoder_positions else None
            x = self.encoder(x, mask=mask, code=own, train=train)
        answers = self.decoder(
            start,
            x,
            context_mask=mask,
            code=queries,
            context_code=codes,
            train=train,
            every_layer=True,
        )

        def dense(features: int, name: str) -> Dense:
            return Dense(features, kernel_init=torch_linear(), name=name)

        h = answers
        for number in range(2):
            h = nn.relu(dense(self.embed_dim, f"box_{number}")(h))
        found = {
            "logits": dense(self.num_classes + 1, "classes")(answers),
            "boxes": nn.sigmoid(dense(4, "box_2")(h)),
        }
        if self.mask_head is not None:
            found["masks"] = self.mask_head(name="mask_head")(
                answers[-1],
                x.reshape(batch, height, width, -1),
                valid,
                features,
                tuple(reversed(finer)),
            )
        return found
