"""Score-based generative modelling of images in continuous time.

A network learns the score of images perturbed by a diffusion process, at all times at
once, by denoising (Song et al. 2021, "Score-Based Generative Modeling through
Stochastic Differential Equations", arXiv:2011.13456).
"""

from dataclasses import dataclass, replace
from functools import partial
from math import prod

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, UInt8

from research.diffusion.likelihood import log_likelihood
from research.diffusion.pixels import Pixels
from research.diffusion.processes import Process, batch_mul
from research.diffusion.samplers import Sampler
from research.errors import UserError
from research.losses import Reduction, denoising_score_matching, mean_over_dims
from research.tasks.base import Batch, Metrics, Variables


@dataclass(frozen=True)
class ScoreMatching:
    """Denoising score matching with t uniform on [min_time, 1].

    Attributes:
      network: called `network(x, t, train=...)` with x (batch, height, width, channels)
        in the data range and t (batch,) in [0, 1]; predicts the noise in x.
      process: takes the images to noise.
      pixels: the data range of the images.
      sampler: draws from the model.
      image_shape: height, width, channels.
      min_time: the smallest time that is trained on and integrated to for likelihoods.
      likelihood_weighting: weights the loss by g(t)^2, a bound on the likelihood,
        instead of std(t)^2.
      reduction: the loss over an image's dimensions.
    """

    network: nn.Module
    process: Process
    pixels: Pixels
    sampler: Sampler
    image_shape: tuple[int, int, int]
    min_time: float = 1e-5
    likelihood_weighting: bool = False
    reduction: Reduction = mean_over_dims

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
        t = jax.random.uniform(time_rng, x0.shape[:1], minval=self.min_time)
        noise = jax.random.normal(noise_rng, x0.shape)
        mean, std = self.process.marginal(x0, t)

        # Collections that the forward pass may change, such as batch statistics.
        mutable = [name for name in variables if name != "params"] if train else []
        prediction, changed = self.network.apply(
            variables,
            mean + batch_mul(std, noise),
            t,
            train=train,
            rngs={"dropout": dropout_rng},
            mutable=mutable,
        )
        losses = denoising_score_matching(
            self._to_score(prediction, std),
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
        _, std = self.process.marginal(x, t)
        return self._to_score(self.network.apply(variables, x, t, train=False), std)

    def sample(
        self, variables: Variables, rng: Key[Array, ""], num: int
    ) -> dict[str, Array]:
        """Draws `num` images.

        Returns:
          `image`, uint8 (num, height, width, channels) in the source's levels; `nfe`,
          the network evaluations; and `finite`, false if the sampler failed or
          diverged, where the images mean nothing.
        """
        score = partial(self.score, variables)
        shape = (num, *self.image_shape)
        x, evaluations = self.sampler(rng, score, self.process, shape)
        return {
            "image": self.pixels.to_levels(x),
            "nfe": evaluations,
            "finite": jnp.isfinite(x).all(),
        }

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

    def _to_score(self, prediction, std):
        # float32 whatever the network computes in.
        return batch_mul(-1 / std, prediction.astype(jnp.float32))
