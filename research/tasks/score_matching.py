"""Score-based generative modelling of images, at discrete or continuous noise levels.

A network learns the score of images perturbed by a diffusion process, at all times at
once, by denoising (Song et al. 2021, "Score-Based Generative Modeling through
Stochastic Differential Equations", arXiv:2011.13456). NCSN (arXiv:1907.05600) and DDPM
(arXiv:2006.11239) are the same at the times of their levels.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from typing import Protocol, runtime_checkable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, UInt8

from research.diffusion.guidance import Measurement, solve
from research.diffusion.likelihood import log_likelihood
from research.diffusion.parameterizations import (
    Condition,
    Noise,
    Parameterization,
    scales,
    time,
)
from research.diffusion.pixels import Pixels
from research.diffusion.processes import Process, Score, batch_mul
from research.diffusion.samplers import PredictorCorrector, Sampler
from research.errors import UserError
from research.losses import Reduction, denoising_score_matching, mean_over_dims
from research.tasks.base import Batch, Metrics, Variables


@runtime_checkable
class Times(Protocol):
    """The distribution of the times that a model is trained at."""

    def __call__(
        self, rng: Key[Array, ""], num: int, min_time: float
    ) -> Float[Array, "num"]:
        """`num` independent times in [min_time, 1]."""
        ...


def uniform(rng: Key[Array, ""], num: int, min_time: float) -> Float[Array, "num"]:
    """Continuous training (arXiv:2011.13456, Eq. 7)."""
    return jax.random.uniform(rng, (num,), minval=min_time)


@dataclass(frozen=True)
class UniformLevels:
    """The times i/(N-1) of a chain of N levels, each as often as the others.

    Discrete training: with VE the objective of NCSN (arXiv:1907.05600, Eq. 6), with
    DDPM that of DDPM (arXiv:2006.11239, Eq. 14). `min_time` plays no part.
    """

    num_levels: int = 1000

    def __post_init__(self):
        if self.num_levels < 2:
            raise UserError(f"num_levels={self.num_levels}: expected at least 2")

    def __call__(
        self, rng: Key[Array, ""], num: int, min_time: float
    ) -> Float[Array, "num"]:
        levels = jax.random.randint(rng, (num,), 0, self.num_levels)
        return levels / (self.num_levels - 1)


@dataclass(frozen=True)
class ScoreMatching:
    """Denoising score matching at random times.

    Attributes:
      network: called `network(x, condition, train=...)` with x (batch, height, width,
        channels) in the data range and condition (batch,).
      process: takes the images to noise.
      pixels: the data range of the images.
      sampler: draws from the model.
      image_shape: height, width, channels.
      min_time: the smallest time that is trained on and integrated to for likelihoods.
      likelihood_weighting: weights the loss by g(t)^2, a bound on the likelihood,
        instead of std(t)^2.
      reduction: the loss over an image's dimensions.
      times: the distribution of the times that are trained on.
      condition: what the network is told of a time.
      predicts: what the network's output stands for.
    """

    network: nn.Module
    process: Process
    pixels: Pixels
    sampler: Sampler
    image_shape: tuple[int, int, int]
    min_time: float = 1e-5
    likelihood_weighting: bool = False
    reduction: Reduction = mean_over_dims
    times: Times = uniform
    condition: Condition = time
    predicts: Parameterization = Noise()

    def init(self, rng: Key[Array, ""], batch: Batch) -> Variables:
        """Fresh variables; raises `UserError` if images are not of `image_shape`."""
        shape = batch["image"].shape[1:]
        if shape != self.image_shape:
            raise UserError(
                f"The task's image_shape is {self.image_shape} but the batch holds"
                f" images of shape {shape}; set image_shape or resize the images."
            )
        x = jnp.zeros((1, *self.image_shape))
        return self.network.init(rng, x, jnp.ones(1), train=False)

    def loss(
        self, variables: Variables, batch: Batch, rng: Key[Array, ""], train: bool
    ) -> tuple[Float[Array, ""], tuple[Metrics, Variables]]:
        """The mean over the batch's images of the weighted denoising error."""
        pixels_rng, time_rng, noise_rng, dropout_rng = jax.random.split(rng, 4)
        x0 = self.pixels.to_data(batch["image"], pixels_rng)
        t = self.times(time_rng, x0.shape[0], self.min_time)
        noise = jax.random.normal(noise_rng, x0.shape)
        mean, std = self.process.marginal(x0, t)
        x = mean + batch_mul(std, noise)

        # Collections that the forward pass may change, such as batch statistics.
        mutable = [name for name in variables if name != "params"] if train else []
        prediction, changed = self.network.apply(
            variables,
            x,
            self.condition(self.process, t),
            train=train,
            rngs={"dropout": dropout_rng},
            mutable=mutable,
        )
        losses = denoising_score_matching(
            self._to_score(prediction, x, t),
            noise,
            std,
            self.process.diffusion(t) if self.likelihood_weighting else None,
            self.reduction,
        )
        mask = batch.get("mask", jnp.ones_like(losses))
        total, count = jnp.sum(mask * losses), jnp.sum(mask)
        return total / jnp.maximum(count, 1), ({"loss": (total, count)}, changed)

    def score(
        self,
        variables: Variables,
        x: Float[Array, "batch height width channels"],
        t: Float[Array, "batch"],
    ) -> Float[Array, "batch height width channels"]:
        """The model's gradient of the log-density of x(t)."""
        condition = self.condition(self.process, t)
        output = self.network.apply(variables, x, condition, train=False)
        return self._to_score(output, x, t)

    def sample(
        self, variables: Variables, rng: Key[Array, ""], num: int
    ) -> dict[str, Array]:
        """Draws `num` images.

        Returns:
          `image`, uint8 (num, height, width, channels) in the source's levels; `nfe`,
          the network evaluations; and `finite`, false if the sampler failed or
          diverged, where the images mean nothing.
        """
        return self.sample_from(partial(self.score, variables), rng, num)

    def sample_from(
        self, score: Score, rng: Key[Array, ""], num: int
    ) -> dict[str, Array]:
        """What `sample` returns, with another score, such as a guided one."""
        shape = (num, *self.image_shape)
        x, evaluations = self.sampler(rng, score, self.process, shape)
        return self._drawn(x, evaluations)

    def restore(
        self,
        variables: Variables,
        images: UInt8[Array, "batch height width channels"],
        rng: Key[Array, ""],
        measure: Callable[[Array], Measurement],
    ) -> dict[str, Array]:
        """Draws images that agree with what `measure` keeps of the given ones.

        Returns:
          As `sample`.

        Raises:
          UserError: the task's sampler is not a predictor-corrector one.
        """
        if not isinstance(self.sampler, PredictorCorrector):
            raise UserError(
                "measurements are imposed on a PredictorCorrector, but the task's "
                f"sampler is a {type(self.sampler).__name__}: --set task.sampler=..."
            )
        pixels_rng, sampler_rng = jax.random.split(rng)
        x, evaluations = solve(
            sampler_rng,
            self.sampler,
            partial(self.score, variables),
            self.process,
            measure(self.pixels.to_data(images, pixels_rng)),
        )
        return self._drawn(x, evaluations)

    def log_likelihood(
        self,
        variables: Variables,
        images: UInt8[Array, "batch height width channels"],
        rng: Key[Array, ""],
        num_probes: int = 1,
    ) -> tuple[Float[Array, "batch"], Int[Array, ""]]:
        """Bits per dimension of each uniformly dequantized image, and evaluations.

        Dequantized whatever training did, as published (arXiv:2011.13456, section 4.3).
        """
        pixels_rng, probes_rng = jax.random.split(rng)
        nats, _, evaluations = log_likelihood(
            probes_rng,
            partial(self.score, variables),
            self.process,
            replace(self.pixels, dequantize=True).to_data(images, pixels_rng),
            num_probes=num_probes,
            min_time=self.min_time,
        )
        return self.pixels.bits_per_dim(nats, prod(self.image_shape)), evaluations

    def _drawn(self, x, evaluations):
        return {
            "image": self.pixels.to_levels(x),
            "nfe": evaluations,
            "finite": jnp.isfinite(x).all(),
        }

    def _to_score(self, output, x, t):
        # float32 whatever the network computes in.
        a, s = scales(self.process, t)
        noise = self.predicts.to_noise(output.astype(jnp.float32), x, a, s)
        return batch_mul(-1 / s, noise)
