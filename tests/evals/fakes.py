"""A task whose every answer is known, and a run to ask it in."""

from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from research.data.loader import Data
from research.diffusion.pixels import Pixels
from research.evals.base import Context
from research.train.sharding import make_mesh

VARIABLES = {"params": {"offset": jnp.array(0.5)}}


@dataclass(frozen=True)
class KnownTask:
    """Loss and likelihood are the mean level of an image plus an offset and noise."""

    noise: float = 0.0
    pixels: Pixels = Pixels(levels=17)
    image_shape: tuple[int, int, int] = (4, 4, 1)
    traces: tuple[list, ...] = ()

    def __hash__(self):
        return hash(self.noise)

    def _values(self, variables, images, rng):
        level = images.astype(jnp.float32).mean((1, 2, 3))
        noise = jax.random.normal(rng, level.shape)
        return variables["params"]["offset"] + level + self.noise * noise

    def init(self, rng, batch):
        return VARIABLES

    def loss(self, variables, batch, rng, train):
        for trace in self.traces:
            trace.append(train)
        values = self._values(variables, batch["image"], rng)
        total, count = jnp.sum(values * batch["mask"]), jnp.sum(batch["mask"])
        metrics = {"loss": (total, count), "double": (2 * total, count)}
        return total / count, (metrics, {})

    def log_likelihood(self, variables, images, rng, num_probes=1):
        nfe = jnp.array(10 * num_probes)
        return self._values(variables, images, rng), nfe

    def sample(self, variables, rng, num):
        shape = (num, *self.image_shape)
        levels = jax.random.randint(rng, shape, 0, self.pixels.levels)
        return {
            "image": levels.astype(jnp.uint8),
            "nfe": jnp.array(3),
            "finite": jnp.array(True),
        }


def make_images(num, seed=0, shape=(4, 4, 1)):
    return np.random.default_rng(seed).integers(0, 17, (num, *shape), np.uint8)


def make_source(images):
    return [{"image": image, "label": i} for i, image in enumerate(images)]


def make_context(folder="", num_train=20, num_test=11, mesh=None, **kwargs):
    data = Data(
        train=make_source(make_images(num_train, seed=1)),
        eval={"test": make_source(make_images(num_test))},
        batch_size=8,
    )
    context = {"data": data, "step": 70, "seed": 3, "folder": Path(folder)}
    return Context(mesh=mesh or make_mesh(), **(context | kwargs))
