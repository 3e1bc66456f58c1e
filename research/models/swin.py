"""Swin Transformer: a pyramid of maps, attention in shifted windows.

Liu et al. 2021, arXiv:2103.14030, and, by other slots, Swin v2: Liu et al. 2022,
arXiv:2111.09883. Published sizes, with 1000 classes, at 224 pixels:

    embed dim  depths         heads           window  parameters
    96         2, 2, 6, 2     3, 6, 12, 24    7       28,288,354   Swin-T
    96         2, 2, 18, 2    3, 6, 12, 24    7       49,606,258   Swin-S
    128        2, 2, 18, 2    4, 8, 16, 32    7       87,768,224   Swin-B
    192        2, 2, 18, 2    6, 12, 24, 48   7       196,532,476  Swin-L
    96         2, 2, 6, 2     3, 6, 12, 24    8       28,347,154   Swin v2-T, 256 pixels

and at 384 pixels with a window of 12.
"""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.nn.initializers import Initializer
from jaxtyping import Array, Float

from research.errors import UserError
from research.layers.cores import Softmax, unscaled
from research.layers.dropout import Dropout
from research.layers.initializers import Normal, torch_linear, within
from research.layers.linear import Dense
from research.layers.mlp import FeedForward, gelu
from research.layers.norms import LayerNorm
from research.layers.residual import PreNorm, ResPostNorm
from research.layers.windows import ContinuousPosition, Cosine, WindowAttention

Slot = Callable[..., nn.Module]
"""Builds a module, given at least `name`."""

Norm: Slot = partial(LayerNorm, epsilon=1e-5)


class PatchEmbedding(nn.Module):
    """A linear map of each square of pixels: a convolution with its size for a stride.

    An image that the squares do not divide gets zeros below and to the right.

    Attributes:
      patch_size: the side of a square.
      embed_dim: of its vector.
      kernel_init: of the kernel; the bias is uniform within 1 / sqrt(fan in), as
        PyTorch's.
      dtype: of the computation.
    """

    patch_size: int
    embed_dim: int
    kernel_init: Initializer = torch_linear()
    dtype: str = "float32"

    @nn.compact
    def __call__(
        self, image: Float[Array, "batch height width image_channels"]
    ) -> Float[Array, "batch rows columns embed_dim"]:
        side, channels = self.patch_size, image.shape[-1]
        shape = (side, side, channels, self.embed_dim)
        kernel = self.param("kernel", self.kernel_init, shape).astype(self.dtype)
        init = within((side**2 * channels) ** -0.5)
        bias = self.param("bias", init, (self.embed_dim,)).astype(self.dtype)
        x = _pad(image.astype(self.dtype), side)
        batch, height, width, _ = x.shape
        x = x.reshape(batch, height // side, side, width // side, side, channels)
        return jnp.einsum("bhywxi,yxim->bhwm", x, kernel) + bias[None, None, None]


class MapPosition(nn.Module):
    """A vector for each place of a map of one size, learnt.

    Attributes:
      size: rows and columns of the map.
      embedding_init: of the vectors.
    """

    size: tuple[int, int]
    embedding_init: Initializer = Normal(0.02)

    @nn.compact
    def __call__(
        self, height: int, width: int, embed_dim: int
    ) -> Float[Array, "rows columns embed_dim"]:
        """Raises `UserError` for a map of another size."""
        if (height, width) != self.size:
            raise UserError(
                f"positions of a map of {self.size} were given one of "
                f"{(height, width)}: resize the images, or the positions"
            )
        shape = (height * width, embed_dim)
        table = self.param("embedding", self.embedding_init, shape)
        return table.reshape(height, width, embed_dim)


class PatchMerging(nn.Module):
    """Halves a map and doubles its channels: a norm, then a linear map of 2x2 places.

    A map that they do not divide gets zeros below and to the right.

    Attributes:
      norm: of four places' channels.
      kernel_init: of the linear map.
      dtype: of the computation.
    """

    norm: Slot = Norm
    kernel_init: Initializer = Normal(0.02)
    dtype: str = "float32"

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"], train: bool = False
    ) -> Float[Array, "batch rows columns merged_channels"]:
        x = self.norm(dtype=self.dtype, name="norm")(_quads(x), train)
        return Dense(
            x.shape[-1] // 2,
            use_bias=False,
            kernel_init=self.kernel_init,
            dtype=self.dtype,
            name="reduction",
        )(x)


class PatchMergingPostNorm(nn.Module):
    """As `PatchMerging`, but the norm after the linear map (Liu et al. 2022)."""

    norm: Slot = Norm
    kernel_init: Initializer = Normal(0.02)
    dtype: str = "float32"

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"], train: bool = False
    ) -> Float[Array, "batch rows columns merged_channels"]:
        x = Dense(
            2 * x.shape[-1],
            use_bias=False,
            kernel_init=self.kernel_init,
            dtype=self.dtype,
            name="reduction",
        )(_quads(x))
        return self.norm(dtype=self.dtype, name="norm")(x, train)


class SwinBlock(nn.Module):
    """Attention in windows, then a feed-forward layer, each a branch of the stream.

    Attributes:
      mixer: of places, called with the stream and `train`.
      mlp: of channels, called alike.
      residual: how each branch joins the stream.
    """

    mixer: Slot
    mlp: Slot
    residual: Slot = PreNorm

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"], train: bool = False
    ) -> Float[Array, "batch height width channels"]:
        mixer, mlp = self.mixer(name="mixer"), self.mlp(name="mlp")
        residual = self.residual(name="mixer_residual")
        x = residual(x, lambda h: mixer(h, train), train)
        residual = self.residual(name="mlp_residual")
        return residual(x, lambda h: mlp(h, train), train)


class Swin(nn.Module):
    """Feature maps of an image, of strides 4, 8, 16 and 32 where patches are of 4.

    The defaults are Swin-T, as trained on ImageNet-1k. Swin v2 is `swin_v2`.

    Differs: transformers drops no path of the feed-forward layers; the official code
    does.

    Attributes:
      embed_dim: channels of the first map; each further one has twice as many.
      depths: blocks of each stage.
      num_heads: of each stage.
      window_size: of all stages, or of each.
      shifts: of the blocks of a stage in turn, in parts of the window; (0.0,) is for
        none.
      image_size: that windows are made for: in a stage whose map of such an image is no
        larger than a window, they are that map, and not shifted, whatever image comes.
        None is for windows that shrink to the map of the image that comes.
      patch_size: the side of the squares of pixels that a map begins with.
      patch_norm: of their vectors; None is for none.
      absolute: positions added to the first map, built with `name` and called with its
        height, width and channels, such as `MapPosition`; None is for none.
      attention: of all stages, or of each; built with `num_heads`, `window_size`,
        `shift`, `shrinks`, `dtype` and `name`.
      mlp: built with `mlp_dim`, `dtype` and `name`.
      mlp_ratio: of `mlp_dim` to the channels.
      residual: built with `drop_path_rate`, `dtype` and `name`.
      merge: from a stage to the next, built with `dtype` and `name`.
      out_norm: of each map that is returned; None is for none.
      out_stages: whose maps are returned, in order; None is for all.
      dropout_rate: of the vectors of the patches, in training.
      drop_path_rate: of the last block, in training; it grows in equal steps from zero
        at the first.
      remat: keeps nothing of a block for the backward pass, and computes it again.
      dtype: of the computation.
    """

    embed_dim: int = 96
    depths: tuple[int, ...] = (2, 2, 6, 2)
    num_heads: tuple[int, ...] = (3, 6, 12, 24)
    window_size: int | tuple[int, ...] = 7
    shifts: tuple[float, ...] = (0.0, 0.5)
    image_size: int | None = None
    patch_size: int = 4
    patch_norm: Slot | None = Norm
    absolute: Slot | None = None
    attention: Slot | tuple[Slot, ...] = partial(WindowAttention)
    mlp: Slot = partial(FeedForward, activation=gelu, kernel_init=Normal(0.02))
    mlp_ratio: float = 4.0
    residual: Slot = partial(PreNorm, norm=Norm)
    merge: Slot = PatchMerging
    out_norm: Slot | None = None
    out_stages: tuple[int, ...] | None = None
    dropout_rate: float = 0.0
    drop_path_rate: float = 0.2
    remat: bool = False
    dtype: str = "float32"

    @nn.compact
    def __call__(
        self,
        image: Float[Array, "batch height width image_channels"],
        train: bool = False,
    ) -> tuple[Float[Array, "batch rows columns channels"], ...]:
        """The map of each of `out_stages`, before it is merged.

        Raises `UserError` for stages of unequal number, or heads that do not divide the
        channels.
        """
        stages = len(self.depths)
        windows, attentions = self.window_size, self.attention
        windows = windows if isinstance(windows, tuple) else (windows,) * stages
        if not isinstance(attentions, tuple):
            attentions = (attentions,) * stages
        for name in ("num_heads", "window_size", "attention"):
            value = getattr(self, name)
            if isinstance(value, tuple) and len(value) != stages:
                raise UserError(
                    f"{name} has {len(value)} values for the {stages} stages of "
                    f"depths={self.depths}: expected one for each"
                )
        x = PatchEmbedding(
            self.patch_size, self.embed_dim, dtype=self.dtype, name="patch_embedding"
        )(image)
        if self.patch_norm is not None:
            x = self.patch_norm(dtype=self.dtype, name="patch_norm")(x, train)
        if self.absolute is not None:
            x += self.absolute(name="absolute")(*x.shape[1:])[None].astype(self.dtype)
        x = Dropout(self.dropout_rate, name="dropout")(x, train)
        make_block: Any = SwinBlock
        if self.remat:
            make_block = nn.remat(SwinBlock, static_argnums=(2,))
        rates = iter(np.linspace(0, self.drop_path_rate, sum(self.depths)).tolist())
        maps = []
        for stage, depth in enumerate(self.depths):
            window, shifts = windows[stage], self.shifts
            if self.image_size is not None:
                side = self.image_size // self.patch_size // 2**stage
                if side <= window:
                    window, shifts = side, (0.0,)
            for block in range(depth):
                x = make_block(
                    mixer=partial(
                        attentions[stage],
                        num_heads=self.num_heads[stage],
                        window_size=window,
                        shift=int(window * shifts[block % len(shifts)]),
                        shrinks=self.image_size is None,
                        dtype=self.dtype,
                    ),
                    mlp=partial(
                        self.mlp,
                        mlp_dim=int(self.mlp_ratio * x.shape[-1]),
                        dtype=self.dtype,
                    ),
                    residual=partial(
                        self.residual, drop_path_rate=next(rates), dtype=self.dtype
                    ),
                    name=f"stage_{stage}_block_{block}",
                )(x, train)
            if self.out_stages is None or stage in self.out_stages:
                out = x
                if self.out_norm is not None:
                    name = f"out_norm_{stage}"
                    out = self.out_norm(dtype=self.dtype, name=name)(x, train)
                maps.append(out)
            if stage < stages - 1:
                x = self.merge(dtype=self.dtype, name=f"merge_{stage}")(x, train)
        return tuple(maps)


AttentionV2: Slot = partial(
    WindowAttention,
    core=Softmax(scale=unscaled),
    position=ContinuousPosition,
    match=Cosine,
    use_key_bias=False,
)
ResidualV2: Slot = partial(
    ResPostNorm, norm=partial(Norm, scale_init=nn.initializers.zeros)
)


def swin_v2(
    *, trained_window_sizes: tuple[int | None, ...] | None = None, **settings: Any
) -> Swin:
    """Swin v2, by default v2-T with windows of 8 as for images of 256 pixels.

    Cosines for products, positions by a small network, keys without a bias, and norms
    after the branches.

    Args:
      trained_window_sizes: of each stage, where windows have grown since training.
      settings: of `Swin`, other than these.
    """
    slots: dict[str, Any] = dict(
        window_size=8,
        attention=AttentionV2,
        residual=ResidualV2,
        merge=PatchMergingPostNorm,
    )
    if trained_window_sizes is not None:
        slots["attention"] = trained_with(AttentionV2, trained_window_sizes)
    return Swin(**(slots | settings))


def trained_with(attention: Slot, sizes: tuple[int | None, ...]) -> tuple[Slot, ...]:
    """Attention of each stage, given how large windows were when it was trained."""
    return tuple(
        partial(attention, position=partial(ContinuousPosition, trained_window_size=n))
        for n in sizes
    )


def resize(
    leaves: Mapping[str, np.ndarray], expected: Mapping[str, jax.ShapeDtypeStruct]
) -> dict[str, np.ndarray]:
    """Parameters for windows, or a first map, of another size.

    Tables of distances and positions of the first map are interpolated with PyTorch's
    bicubic, as the official code does to fine-tune. Swin v2 needs nothing for its
    windows, but to be told what they were: `trained_window_size`.

    Args:
      leaves: host arrays by path, such as
        `params/backbone/stage_0_block_0/mixer/position/table`.
      expected: the shape of leaves of the new model by path.

    Returns:
      All of `leaves`; those that are neither, or of the same shape, as they are.

    Raises:
      UserError: positions of a map that is not square.
    """

    def fitted(path: str, leaf: np.ndarray) -> np.ndarray:
        is_positional = path.endswith(("position/table", "absolute/embedding"))
        if not is_positional or path not in expected:
            return leaf
        rows = expected[path].shape[0]
        side, new_side = math.isqrt(len(leaf)), math.isqrt(rows)
        if rows == len(leaf):
            return leaf
        if side**2 != len(leaf) or new_side**2 != rows:
            raise UserError(
                f"{path} has {len(leaf)} positions, and {rows} are wanted: expected "
                "squares of both"
            )
        weights = _bicubic(side, new_side)
        square = leaf.reshape(side, side, -1)
        new = np.einsum("ij,jkc,lk->ilc", weights, square, weights)
        return new.reshape(rows, -1).astype(leaf.dtype)

    return {path: fitted(path, np.asarray(leaf)) for path, leaf in leaves.items()}


def _bicubic(size: int, new_size: int) -> np.ndarray:
    """What each new sample has of each old one (Keys 1981, with -0.75 for -0.5)."""
    place = (np.arange(new_size) + 0.5) * size / new_size - 0.5
    taps = np.floor(place).astype(int)[:, None] + np.arange(-1, 3)
    x = np.abs(place[:, None] - taps)
    near = 1.25 * x**3 - 2.25 * x**2 + 1
    far = -0.75 * (x**3 - 5 * x**2 + 8 * x - 4)
    weights = np.zeros((new_size, size))
    rows = np.broadcast_to(np.arange(new_size)[:, None], taps.shape)
    # Beyond the border there is more of what is at it.
    taps = taps.clip(0, size - 1)
    np.add.at(weights, (rows, taps), np.where(x <= 1, near, far))
    return weights


def _pad(x: Array, multiple: int) -> Array:
    """Zeros below and to the right, to sides that are multiples."""
    below, right = -x.shape[1] % multiple, -x.shape[2] % multiple
    if not below and not right:
        return x
    return jnp.pad(x, ((0, 0), (0, below), (0, right), (0, 0)))


def _quads(
    x: Float[Array, "batch height width channels"],
) -> Float[Array, "batch rows columns four_channels"]:
    """Four places' channels side by side, those of a column one after the other."""
    x = _pad(x, 2)
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // 2, 2, width // 2, 2, channels)
    x = x.transpose(0, 1, 3, 4, 2, 5)
    return x.reshape(batch, height // 2, width // 2, 4 * channels)
