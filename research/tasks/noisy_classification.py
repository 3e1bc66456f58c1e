"""Classification of images at all noise levels of a diffusion process."""

from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from research.diffusion.parameterizations import Condition, time
from research.diffusion.pixels import Pixels
from research.diffusion.processes import Process, batch_mul
from research.losses import cross_entropy
from research.tasks.base import Batch, Metrics, Variables
from research.tasks.score_matching import Times, uniform


@dataclass(frozen=True)
class NoisyClassification:
    """p(y | x(t)) of the perturbed image x(t), at random times.

    What steers an unconditional model to a class (Song et al. 2021, arXiv:2011.13456,
    App. I.1): the cross-entropy, each noise level counting alike.

    Attributes:
      network: called `network(x, condition, train=...)` with x (batch, height, width,
        channels) in the data range and condition (batch,), returns the logits (batch,
        classes).
      process: takes the images to noise; the steered model's own.
      pixels: the data range of the images.
      image_shape: height, width, channels.
      min_time: the smallest time that is trained on.
      times: the distribution of the times that are trained on.
      condition: what the network is told of a time.
    """

    network: nn.Module
    process: Process
    pixels: Pixels
    image_shape: tuple[int, int, int]
    min_time: float = 1e-5
    times: Times = uniform
    condition: Condition = time

    def init(self, rng: Key[Array, ""], batch: Batch) -> Variables:
        x = jnp.zeros((1, *self.image_shape))
        return self.network.init(rng, x, jnp.ones(1), train=False)

    def loss(
        self, variables: Variables, batch: Batch, rng: Key[Array, ""], train: bool
    ) -> tuple[Float[Array, ""], tuple[Metrics, Variables]]:
        """The mean cross-entropy; `accuracy` beside it, over all noise levels too."""
        pixels_rng, time_rng, noise_rng, dropout_rng = jax.random.split(rng, 4)
        x0 = self.pixels.to_data(batch["image"], pixels_rng)
        t = self.times(time_rng, x0.shape[0], self.min_time)
        mean, std = self.process.marginal(x0, t)
        x = mean + batch_mul(std, jax.random.normal(noise_rng, x0.shape))

        mutable = [name for name in variables if name != "params"] if train else []
        logits, changed = self.network.apply(
            variables,
            x,
            self.condition(self.process, t),
            train=train,
            rngs={"dropout": dropout_rng},
            mutable=mutable,
        )
        losses = cross_entropy(logits, batch["label"])
        mask = batch.get("mask", jnp.ones_like(losses))
        right = jnp.argmax(logits, axis=-1) == batch["label"]
        total, count = jnp.sum(mask * losses), jnp.sum(mask)
        metrics = {"loss": (total, count), "accuracy": (jnp.sum(mask * right), count)}
        return total / jnp.maximum(count, 1), (metrics, changed)

    def log_likelihood(
        self,
        variables: Variables,
        label: Int[Array, "batch"],
        x: Float[Array, "batch height width channels"],
        t: Float[Array, "batch"],
    ) -> Float[Array, "batch"]:
        """log p(label | x(t)) of each example."""
        condition = self.condition(self.process, t)
        logits = self.network.apply(variables, x, condition, train=False)
        return -cross_entropy(jnp.asarray(logits), label)
