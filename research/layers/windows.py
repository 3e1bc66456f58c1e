"""Attention inside windows of a map, shifted from layer to layer, and its positions.

Liu et al. 2021, arXiv:2103.14030 (Swin), and Liu et al. 2022, arXiv:2111.09883 (Swin
v2). A window's tokens are in the order of rows; windows lie side by side in the batch.
"""

import functools
import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jax.nn.initializers import Initializer
from jaxtyping import Array, Float

from research.layers.attention import Attention
from research.layers.cores import SEES_ALL, Bias, Core, Mask, Softmax
from research.layers.cores.base import HasCore
from research.layers.initializers import Normal
from research.layers.linear import Dense

Position = Callable[..., Callable[[int], Bias]]
"""Built with `num_heads`, `window_size` and `name`, called with the side of a window.

A smaller one than it was built for has the biases of the distances that are in it.
"""


def partition(
    x: Float[Array, "batch height width channels"], window: int
) -> Float[Array, "windows tokens channels"]:
    """The windows of a map that they divide, row by row, one example after another."""
    return rearrange(x, "b (i y) (j x) c -> (b i j) (y x) c", y=window, x=window)


def reverse(
    windows: Float[Array, "windows tokens channels"],
    height: int,
    width: int,
    window: int,
) -> Float[Array, "batch height width channels"]:
    """The map of which `partition` made the windows."""
    sizes = dict(i=height // window, j=width // window, y=window, x=window)
    return rearrange(windows, "(b i j) (y x) c -> b (i y) (j x) c", **sizes)


def regions(height: int, width: int, window: int, shift: int) -> np.ndarray:
    """Where the tokens of each window of a rolled map came from.

    Rolling by `shift` brings what was at the beginning next to what was at the end: the
    last windows hold tokens that were no neighbours. Tokens of one window see each
    other where they have the same number (section 3.2 and the official code's mask).

    Returns:
      int32 (windows, tokens).
    """

    def bands(size: int) -> np.ndarray:
        place = np.arange(size)
        return (place >= size - window).astype(np.int32) + (place >= size - shift)

    areas = 3 * bands(height)[:, None] + bands(width)[None]
    return rearrange(areas, "(i y) (j x) -> (i j) (y x)", y=window, x=window)


def relative_index(window: int, extent: int) -> np.ndarray:
    """The row of a table of distances for each query and key of a window.

    Args:
      window: the side of the window.
      extent: the side of the windows that the table was made for, with a row for each
        of (2 extent - 1)^2 distances.

    Returns:
      int32 (tokens, tokens).
    """
    place = np.arange(window)
    distances = place[:, None] - place[None] + extent - 1
    rows, columns = distances[:, None, :, None], distances[None, :, None, :]
    index = rows * (2 * extent - 1) + columns
    return index.reshape(window**2, window**2).astype(np.int32)


class RelativePosition(nn.Module):
    """A learnt number for each head and each distance, down and across.

    Liu et al. 2021, Eq. 4.

    Attributes:
      num_heads: of the queries.
      window_size: the side of the largest window.
      table_init: of the numbers. The official normal is cut off at 100 standard
        deviations, so that it is none.
    """

    num_heads: int
    window_size: int
    table_init: Initializer = Normal(0.02)

    @nn.compact
    def __call__(self, window: int) -> Bias:
        shape = ((2 * self.window_size - 1) ** 2, self.num_heads)
        table = self.param("table", self.table_init, shape)
        return _bias(table, window, self.window_size)


class ContinuousPosition(nn.Module):
    """A small network's number for each head and each distance, down and across.

    16 sigmoid(MLP(log-spaced distances)): Liu et al. 2022, section 3.3 and the official
    code. So that windows may grow after training, distances are in parts of the window
    that it was trained with.

    Attributes:
      num_heads: of the queries.
      window_size: the side of the largest window.
      trained_window_size: of the training that the parameters are from; None is for
        this window's own.
      hidden_dim: of the network.
      kernel_init, out_init: of its two layers.
    """

    num_heads: int
    window_size: int
    trained_window_size: int | None = None
    hidden_dim: int = 512
    kernel_init: Initializer = Normal(0.02)
    out_init: Initializer = Normal(0.02)

    @nn.compact
    def __call__(self, window: int) -> Bias:
        unit = max((self.trained_window_size or self.window_size) - 1, 1)
        steps = np.arange(1 - self.window_size, self.window_size) / unit
        spaced = np.sign(steps) * np.log2(8 * np.abs(steps) + 1) / math.log2(8)
        pairs = np.stack(np.meshgrid(spaced, spaced, indexing="ij"), axis=-1)
        x = jnp.asarray(pairs.reshape(-1, 2), jnp.float32)
        x = Dense(self.hidden_dim, kernel_init=self.kernel_init, name="up")(x)
        x = Dense(
            self.num_heads, use_bias=False, kernel_init=self.out_init, name="down"
        )(jax.nn.relu(x))
        return _bias(16 * jax.nn.sigmoid(x), window, self.window_size)


def _bias(table: Array, window: int, extent: int) -> Bias:
    """Of a table with a row for each distance in windows of side `extent`."""
    return jax.tree_util.Partial(functools.partial(_look_up, window, extent), table)


def _look_up(
    window: int, extent: int, table: Array, queries: Array, keys: Array
) -> Float[Array, "heads queries keys"]:
    index = jnp.asarray(relative_index(window, extent))[queries][:, keys]
    return jnp.moveaxis(table[index], -1, 0)


class Cosine(nn.Module):
    """Queries and keys whose products are cosines, times a learnt scale of each head.

    Liu et al. 2022, Eq. 2 and the official code: the scale starts at 10 and never
    exceeds 100. The core must not scale the logits again: `Softmax(unscaled)`.
    """

    num_heads: int

    @nn.compact
    def __call__(
        self,
        query: Float[Array, "batch queries heads dim"],
        key: Float[Array, "batch keys kv_heads dim"],
    ) -> tuple[Array, Array]:
        init = nn.initializers.constant(math.log(10))
        scale = self.param("logit_scale", init, (self.num_heads,))
        scale = jnp.exp(jnp.minimum(scale, math.log(100)))[None, None, :, None]

        def unit(x: Array, scale: Array | float) -> Array:
            square = jnp.square(x.astype(jnp.float32)).sum(-1, keepdims=True)
            # Under the root: padding has keys of zero.
            factor = jax.lax.rsqrt(jnp.maximum(square, 1e-24)) * scale
            return (x * factor).astype(x.dtype)

        return unit(query, scale), unit(key, 1.0)


class PositionAlone(nn.Module):
    """Queries of zero: logits without the dot product, only with their bias.

    The last ablation of positions of Liu et al. 2021, Table 4. The projections to
    queries and keys are there and learn nothing.
    """

    num_heads: int

    @nn.compact
    def __call__(self, query: Array, key: Array) -> tuple[Array, Array]:
        return jnp.zeros_like(query), key


class WindowAttention(HasCore):
    """Attention of the tokens of each window of a map to each other.

    The map is rolled up and left by `shift`, cut into windows, and rolled back; those
    who were no neighbours before do not see each other. A map that windows do not
    divide gets zeros below and to the right, before it is rolled, which are seen like
    any other token: what is known of them is the biases of the projections (the code in
    transformers; timm's rolls first, and so has other windows).

    Differs: the official code adds -100 to the logits of tokens that do not see each
    other; here they have no weight at all.

    Attributes:
      num_heads: divides the channels.
      window_size: the side of a window, in tokens.
      shift: in tokens.
      shrinks: a map with no side longer than a window is one window of its shorter side
        and the shift is none; otherwise it is padded to a window.
      core: mixes the values of a window.
      position: bias of the logits; None is for none, and needed for cores that take
        none. Then tokens of a window are ordered by where they came from.
      match: see `Attention`.
      use_bias, use_key_bias: of the projections; see `Attention`.
      kernel_init: of the projections' kernels.
      dense: the linear layers, built with `features` and keywords as `nn.Dense`.
      dtype: of the computation; parameters and softmax are float32.
    """

    num_heads: int
    window_size: int = 7
    shift: int = 0
    shrinks: bool = True
    core: Core = Softmax()
    position: Position | None = RelativePosition
    match: Callable[..., nn.Module] | None = None
    use_bias: bool = True
    use_key_bias: bool | None = None
    kernel_init: Initializer = Normal(0.02)
    dense: Callable[..., nn.Module] = Dense
    dtype: str = "float32"

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"], train: bool = False
    ) -> Float[Array, "batch height width channels"]:
        """Raises `UserError` if the heads do not divide the channels."""
        _, height, width, _ = x.shape
        window, shift = self.window_size, self.shift
        if self.shrinks and min(height, width) <= window:
            window, shift = min(height, width), 0
        bias = None
        if self.position is not None:
            position = self.position(
                num_heads=self.num_heads, window_size=self.window_size, name="position"
            )
            bias = position(window)

        below, right = -height % window, -width % window
        if below or right:
            x = jnp.pad(x, ((0, 0), (0, below), (0, right), (0, 0)))
        _, rows, columns, _ = x.shape
        if shift:
            x = jnp.roll(x, (-shift, -shift), (1, 2))
        h = partition(x, window)
        mask, order = SEES_ALL, None
        if shift:
            areas = regions(rows, columns, window, shift)
            if bias is None:
                # A segment of a `Mask` has no gaps, which some cores rely on.
                order = np.argsort(areas, axis=1, kind="stable")
                areas = np.take_along_axis(areas, order, axis=1)
                h = _reorder(h, order)
            segments = jnp.broadcast_to(areas[None], (len(x), *areas.shape))
            segments = segments.reshape(h.shape[:2])
            mask = Mask(segments=(segments, segments))
        h = Attention(
            self.num_heads,
            core=self.core,
            match=self.match,
            use_bias=self.use_bias,
            use_key_bias=self.use_key_bias,
            use_out_bias=True,
            kernel_init=self.kernel_init,
            dense=self.dense,
            dtype=self.dtype,
            name="attention",
        )(h, mask=mask, bias=bias, train=train)
        if order is not None:
            h = _reorder(h, np.argsort(order, axis=1))
        x = reverse(h, rows, columns, window)
        if shift:
            x = jnp.roll(x, (shift, shift), (1, 2))
        return x[:, :height, :width]


def _reorder(h: Array, order: np.ndarray) -> Array:
    """Tokens of each window in an order of that window's own."""
    windows = h.reshape(-1, *order.shape, h.shape[-1])
    index = jnp.asarray(order)[None, :, :, None]
    return jnp.take_along_axis(windows, index, axis=2).reshape(h.shape)
