"""Inception-v3 as the Fréchet Inception Distance uses it.

Szegedy et al. (2016), "Rethinking the Inception Architecture for Computer Vision", in
the TensorFlow graph of 2015-12-05 with 1008 classes, by which Heusel et al. (2017) and
all since them measure FID. It differs from later Inception-v3 releases: average pools
do not count their padding, the last block max-pools, and images are resized without
half-pixel centres.

Only for inference: the batch statistics are those of the checkpoint.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

# On accelerators the default would round the inputs of products to fewer bits, and the
# distance compares small differences of features.
PRECISION = jax.lax.Precision.HIGHEST

Layer = tuple[int, tuple[int, int]]
"""Output channels and kernel size of one convolution."""


class ConvNorm(nn.Module):
    """Convolution without bias, batch norm from running statistics, ReLU."""

    features: int
    kernel_size: tuple[int, int]
    stride: int = 1
    padding: str = "SAME"

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch new_height new_width features"]:
        x = nn.Conv(
            self.features,
            self.kernel_size,
            self.stride,
            self.padding,
            use_bias=False,
            precision=PRECISION,
            name="conv",
        )(x)
        x = nn.BatchNorm(use_running_average=True, epsilon=1e-3, name="norm")(x)
        return nn.relu(x)


def chain(x: Array, name: str, *layers: Layer) -> Array:
    """Convolutions one after the other, each keeping height and width."""
    for index, (features, kernel_size) in enumerate(layers):
        x = ConvNorm(features, kernel_size, name=f"{name}_{index}")(x)
    return x


def average_pool(x: Array) -> Array:
    return nn.avg_pool(x, (3, 3), (1, 1), "SAME", count_include_pad=False)


def max_pool(x: Array) -> Array:
    return nn.max_pool(x, (3, 3), (1, 1), "SAME")


def shrink_pool(x: Array) -> Array:
    return nn.max_pool(x, (3, 3), (2, 2), "VALID")


class InceptionA(nn.Module):
    """Figure 5, on the 35x35 grid; the released graph kept one 5x5 convolution."""

    pool_features: int

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch height width features"]:
        branches = [
            chain(x, "point", (64, (1, 1))),
            chain(x, "wide", (48, (1, 1)), (64, (5, 5))),
            chain(x, "double", (64, (1, 1)), (96, (3, 3)), (96, (3, 3))),
            chain(average_pool(x), "pool", (self.pool_features, (1, 1))),
        ]
        return jnp.concatenate(branches, axis=-1)


class ReductionA(nn.Module):
    """Figure 10, from the 35x35 to the 17x17 grid."""

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch new_height new_width features"]:
        double = chain(x, "double", (64, (1, 1)), (96, (3, 3)))
        branches = [
            ConvNorm(384, (3, 3), 2, "VALID", name="single_last")(x),
            ConvNorm(96, (3, 3), 2, "VALID", name="double_last")(double),
            shrink_pool(x),
        ]
        return jnp.concatenate(branches, axis=-1)


class InceptionB(nn.Module):
    """Figure 6 with n = 7, on the 17x17 grid: 7x7 convolutions cut into 1x7 and 7x1."""

    inner_features: int

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch height width features"]:
        n = self.inner_features
        row, column = (1, 7), (7, 1)
        branches = [
            chain(x, "point", (192, (1, 1))),
            chain(x, "single", (n, (1, 1)), (n, row), (192, column)),
            chain(
                x, "double", (n, (1, 1)), (n, column), (n, row), (n, column), (192, row)
            ),
            chain(average_pool(x), "pool", (192, (1, 1))),
        ]
        return jnp.concatenate(branches, axis=-1)


class ReductionB(nn.Module):
    """From the 17x17 to the 8x8 grid."""

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch new_height new_width features"]:
        single = chain(x, "single", (192, (1, 1)))
        double = chain(x, "double", (192, (1, 1)), (192, (1, 7)), (192, (7, 1)))
        branches = [
            ConvNorm(320, (3, 3), 2, "VALID", name="single_last")(single),
            ConvNorm(192, (3, 3), 2, "VALID", name="double_last")(double),
            shrink_pool(x),
        ]
        return jnp.concatenate(branches, axis=-1)


class InceptionC(nn.Module):
    """Figure 7, on the 8x8 grid: 3x3 convolutions fanned out into 1x3 and 3x1."""

    max_pooled: bool

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch height width features"]:
        single = chain(x, "single", (384, (1, 1)))
        double = chain(x, "double", (448, (1, 1)), (384, (3, 3)))
        pooled = max_pool(x) if self.max_pooled else average_pool(x)
        branches = [
            chain(x, "point", (320, (1, 1))),
            ConvNorm(384, (1, 3), name="single_row")(single),
            ConvNorm(384, (3, 1), name="single_column")(single),
            ConvNorm(384, (1, 3), name="double_row")(double),
            ConvNorm(384, (3, 1), name="double_column")(double),
            chain(pooled, "pool", (192, (1, 1))),
        ]
        return jnp.concatenate(branches, axis=-1)


class InceptionV3(nn.Module):
    """Images of any size to pooled features and class logits.

    23,850,960 parameters. The Inception Score uses `unbiased_logits`, which leave out
    the last bias, as its authors' code does (openai/improved-gan, inception_score).
    """

    num_classes: int = 1008

    @nn.compact
    def __call__(
        self, images: UInt8[Array, "batch height width channels"]
    ) -> dict[str, Float[Array, "batch features"]]:
        """Levels 0 to 255 in 1 or 3 channels -> `features` (batch, 2048), `logits` and
        `unbiased_logits` (batch, num_classes)."""
        x = resize(images.astype(jnp.float32), 299)
        x = jnp.broadcast_to((x - 128) / 128, (*x.shape[:3], 3))
        x = ConvNorm(32, (3, 3), 2, "VALID", name="stem_0")(x)
        x = ConvNorm(32, (3, 3), 1, "VALID", name="stem_1")(x)
        x = ConvNorm(64, (3, 3), name="stem_2")(x)
        x = shrink_pool(x)
        x = ConvNorm(80, (1, 1), name="stem_3")(x)
        x = ConvNorm(192, (3, 3), 1, "VALID", name="stem_4")(x)
        x = shrink_pool(x)
        for index, pool_features in enumerate((32, 64, 64)):
            x = InceptionA(pool_features, name=f"a_{index}")(x)
        x = ReductionA(name="reduce_a")(x)
        for index, inner_features in enumerate((128, 160, 160, 192)):
            x = InceptionB(inner_features, name=f"b_{index}")(x)
        x = ReductionB(name="reduce_b")(x)
        for index, max_pooled in enumerate((False, True)):
            x = InceptionC(max_pooled, name=f"c_{index}")(x)
        features = x.mean(axis=(1, 2))
        unbiased = nn.Dense(
            self.num_classes, use_bias=False, precision=PRECISION, name="logits"
        )(features)
        bias = self.param("logits_bias", nn.initializers.zeros, (self.num_classes,))
        return {
            "features": features,
            "logits": unbiased + bias[None],
            "unbiased_logits": unbiased,
        }


def resize(
    images: Float[Array, "batch height width channels"], size: int
) -> Float[Array, "batch size size channels"]:
    """Bilinear, with output pixel i taken at input position `i * input / size`.

    This is TensorFlow 1's `resize_bilinear(align_corners=False)`: corners instead of
    centres are aligned, and shrinking does not filter.
    """
    _, height, width, _ = images.shape
    rows = jnp.asarray(_interpolation(height, size))
    columns = jnp.asarray(_interpolation(width, size))
    x = jnp.einsum("bhwc,yh->bywc", images, rows, precision=PRECISION)
    return jnp.einsum("bywc,xw->byxc", x, columns, precision=PRECISION)


def _interpolation(old: int, new: int) -> Float[np.ndarray, "new old"]:
    """Row i holds the weights of the old pixels in new pixel i."""
    # float32, as there: the fractions of far pixels are rounded alike.
    position = np.arange(new, dtype=np.float32) * np.float32(old / new)
    low = np.floor(position).astype(int)
    high = np.minimum(low + 1, old - 1)
    fraction = position - low
    weights = np.zeros((new, old), np.float32)
    np.add.at(weights, (np.arange(new), low), 1 - fraction)
    np.add.at(weights, (np.arange(new), high), fraction)
    return weights
