"""Controllable generation: samples of an unconditional model that obey a condition.

Given p(y | x(t)), the conditional score is score(x, t) + grad log p(y | x(t)), and any
sampler takes it (Song et al. 2021, arXiv:2011.13456, section 5 and appendix I). Where y
is some coordinates of x in an orthonormal basis, as in inpainting, colourization and
every other linear measurement without noise, p(y | x(t)) is not needed: the known
coordinates are drawn from their own marginal.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from research.diffusion.processes import Process, Score, batch_mul
from research.diffusion.samplers import Corrector, Predictor, PredictorCorrector
from research.errors import UserError

LogLikelihood = Callable[[Float[Array, "batch ..."], Float[Array, "batch"]], jax.Array]
"""`(x, t)` to log p(y | x(t)) of each example's condition, `(batch,)`."""


def guided(score: Score, log_likelihood: LogLikelihood, weight: float = 1.0) -> Score:
    """The score of p(x(t)) p(y | x(t))^weight (arXiv:2011.13456, Eq. 14).

    With the log-probability that a classifier trained on noisy images gives to the
    wanted class, it is class-conditional generation; weights above 1 sharpen it.
    """

    def conditional(x: Array, t: Array) -> Array:
        gradient = jax.grad(lambda x: log_likelihood(x, t).sum())(x)
        return score(x, t) + weight * gradient

    return conditional


def _identity(x: Array) -> Array:
    return x


@dataclass(frozen=True)
class Measurement:
    """Coordinates of x(0) that are known, in an orthonormal basis.

    Attributes:
      value: the coordinates of each example; where `mask` is 0 it does not matter.
      mask: 1 where known and 0 elsewhere, of the shape of `value`, or of one example.
      transform: takes x to its coordinates; orthonormal, so that noise stays white.
      inverse: takes them back.
    """

    value: Float[Array, "batch ..."]
    mask: Float[Array, "..."]
    transform: Callable[[Array], Array] = _identity
    inverse: Callable[[Array], Array] = _identity

    def impose(
        self,
        rng: Key[Array, ""] | None,
        x: Float[Array, "batch ..."],
        t: Float[Array, "batch"],
        process: Process,
    ) -> Float[Array, "batch ..."]:
        """`x` with its known coordinates drawn anew at t; without key, their mean."""
        known, std = process.marginal(self.value, t)
        if rng is not None:
            noise = jax.random.normal(rng, known.shape, known.dtype)
            known = known + batch_mul(std, noise)
        mask = jnp.broadcast_to(self.mask, known.shape)
        return self.inverse(jnp.where(mask > 0, known, self.transform(x)))


def inpainting(
    image: Float[Array, "batch height width channels"],
    mask: Float[Array, "height width"],
) -> Measurement:
    """The pixels of `image` where `mask` is 1 are known."""
    return Measurement(image, jnp.broadcast_to(mask[..., None], image.shape[1:]))


def left_half(image: Float[Array, "batch height width channels"]) -> Measurement:
    """Inpainting of the right half."""
    _, height, width, _ = image.shape
    known = jnp.arange(width) < width // 2
    return inpainting(image, jnp.broadcast_to(jnp.float32(known), (height, width)))


# The first coordinate is sqrt(3) times the mean of the channels.
_COLOURS = np.array([[1, 1, 1], [1, -1, 0], [1, 1, -2]]) / np.sqrt([[3], [2], [6]])


def colourization(image: Float[Array, "batch height width channels"]) -> Measurement:
    """The mean of the three channels of `image` is known, and no colour.

    Raises:
      UserError: images that do not have three channels.
    """
    if image.shape[-1] != 3:
        raise UserError(
            f"colourization needs images of 3 channels, got {image.shape[-1]}"
        )
    basis = jnp.asarray(_COLOURS, jnp.float32)

    def transform(x: Array) -> Array:
        return jnp.einsum("...c,kc->...k", x, basis, precision="highest")

    def inverse(x: Array) -> Array:
        return jnp.einsum("...k,kc->...c", x, basis, precision="highest")

    gray = jnp.broadcast_to(image.mean(axis=-1, keepdims=True), image.shape)
    mask = jnp.zeros(image.shape[1:]).at[..., 0].set(1)
    return Measurement(transform(gray), mask, transform, inverse)


def linear(
    values: Float[Array, "batch rows"],
    matrix: Float[np.ndarray, "rows dims"],
    shape: tuple[int, ...],
) -> Measurement:
    """The products of `matrix` with the values of an example are known, without noise.

    The singular vectors of the matrix are the orthonormal basis: those of its row space
    are known. Inconsistent values are met in the least squares.

    Args:
      values: of every row for every example, in the data range.
      matrix: any; its columns are an example's values in C order.
      shape: of an example; its values are as many as the columns.

    Raises:
      UserError: a matrix that is zero or does not fit the shape.
    """
    if matrix.shape[1] != math.prod(shape):
        raise UserError(
            f"a matrix with {matrix.shape[1]} columns does not take examples of shape "
            f"{shape}, which have {math.prod(shape)} values"
        )
    left, scales, right = np.linalg.svd(np.float64(matrix))
    rank = int(np.sum(scales > scales[0] * 1e-6)) if scales[0] else 0
    if not rank:
        raise UserError("a matrix of zeros tells nothing of an example")
    basis = jnp.asarray(right, jnp.float32)
    from_values = jnp.asarray(left[:, :rank] / scales[:rank], jnp.float32)
    known = jnp.einsum("br,rk->bk", values, from_values, precision="highest")

    def transform(x: Array) -> Array:
        flat = x.reshape(x.shape[0], -1)
        return jnp.einsum("bd,kd->bk", flat, basis, precision="highest")

    def inverse(y: Array) -> Array:
        flat = jnp.einsum("bk,kd->bd", y, basis, precision="highest")
        return flat.reshape(-1, *shape)

    unknown = len(right) - rank
    mask = jnp.float32(jnp.arange(len(right)) < rank)
    return Measurement(jnp.pad(known, ((0, 0), (0, unknown))), mask, transform, inverse)


def low_resolution(
    image: Float[Array, "batch height width channels"], factor: int
) -> Measurement:
    """The means of squares of `factor` x `factor` pixels of `image` are known.

    Raises:
      UserError: squares that do not tile the image.
    """
    batch, height, width, channels = image.shape
    if height % factor or width % factor:
        raise UserError(
            f"images of {height}x{width} cannot be tiled by squares of {factor} pixels"
        )

    def means(size: int) -> np.ndarray:
        return np.repeat(np.eye(size // factor), factor, axis=1) / factor

    matrix = np.kron(np.kron(means(height), means(width)), np.eye(channels))
    values = jnp.einsum(
        "bd,rd->br",
        image.reshape(batch, -1),
        jnp.asarray(matrix, jnp.float32),
        precision="highest",
    )
    return linear(values, matrix, image.shape[1:])


@dataclass(frozen=True)
class _ImposingPredictor:
    predictor: Predictor
    measurement: Measurement

    def __call__(self, rng, x, t, dt, score, process):
        predictor_rng, rng = jax.random.split(rng)
        x, mean = self.predictor(predictor_rng, x, t, dt, score, process)
        return (
            self.measurement.impose(rng, x, t, process),
            self.measurement.impose(None, mean, t, process),
        )


@dataclass(frozen=True)
class _ImposingCorrector:
    corrector: Corrector
    measurement: Measurement

    @property
    def num_steps(self) -> int:
        return self.corrector.num_steps

    def __call__(self, rng, x, t, dt, score, process):
        corrector_rng, rng = jax.random.split(rng)
        x = self.corrector(corrector_rng, x, t, dt, score, process)
        return self.measurement.impose(rng, x, t, process)


def solve(
    rng: Key[Array, ""],
    sampler: PredictorCorrector,
    score: Score,
    process: Process,
    measurement: Measurement,
) -> tuple[Float[Array, "batch ..."], Int[Array, ""]]:
    """Samples that agree with a measurement, and the number of score evaluations.

    The sampler's own steps, with the known coordinates imposed after each of them
    (arXiv:2011.13456, appendix I.2; Algorithms of the official code). Without
    `sampler.denoise` the known coordinates too keep the noise of `sampler.min_time`.

    Raises:
      UserError: a sampler without a predictor.
    """
    if sampler.predictor is None:
        raise UserError(
            "a measurement is imposed on a predictor, which this sampler lacks"
        )
    imposing = replace(
        sampler,
        predictor=_ImposingPredictor(sampler.predictor, measurement),
        corrector=sampler.corrector
        and _ImposingCorrector(sampler.corrector, measurement),
    )
    shape = measurement.inverse(measurement.value).shape
    return imposing(rng, score, process, shape)
