"""The smallest run with every moving part, for `launch.soak` and the tests of faults.

VP diffusion of real digits with a network of two layers; dropout, accumulation, an
average and a schedule are on, so that whatever a resumed run forgets changes a bit.
"""

import flax.linen as nn
import jax.numpy as jnp

from research.data.loader import Data
from research.data.sources import Digits
from research.data.transforms import RandomFlip
from research.diffusion.pixels import Pixels
from research.diffusion.processes import VP
from research.diffusion.samplers import PredictorCorrector
from research.evals.loss import HeldOutLoss
from research.experiment import Experiment
from research.tasks.score_matching import ScoreMatching
from research.train.checkpoints import Checkpoints
from research.train.optimizers import Adam
from research.train.schedules import Cosine
from research.train.state import Ema


class Network(nn.Module):
    """Two dense layers on pixels and time."""

    width: int = 64
    dropout_rate: float = 0.1

    @nn.compact
    def __call__(self, x, t, train: bool):
        flat = x.reshape(x.shape[0], -1)
        h = jnp.concatenate([flat, t[:, None]], axis=-1)
        h = nn.silu(nn.Dense(self.width, name="hidden")(h))
        h = nn.Dropout(self.dropout_rate, deterministic=not train)(h)
        return nn.Dense(flat.shape[1], name="out")(h).reshape(x.shape)


def experiment(num_steps: int = 20, batch_size: int = 16) -> Experiment:
    """A second of training, saved often."""
    return Experiment(
        task=ScoreMatching(
            network=Network(),
            process=VP(),
            pixels=Pixels(levels=17, dequantize=True),
            sampler=PredictorCorrector(num_steps=10),
            image_shape=(8, 8, 1),
        ),
        data=Data(
            train=Digits(split="train"),
            eval={"test": Digits(split="test")},
            spec={"image": ((8, 8, 1), "uint8"), "label": ((), "int32")},
            batch_size=batch_size,
            transforms=(RandomFlip(),),
        ),
        optimizer=Adam(Cosine(1e-2, num_steps, warmup_steps=3), clip_norm=1.0),
        num_steps=num_steps,
        ema=Ema(rate=0.9),
        num_microbatches=2,
        evals={"test": HeldOutLoss(batch_size=64)},
        checkpoints=Checkpoints(every=5, keep_last=3),
        log_every=5,
    )
