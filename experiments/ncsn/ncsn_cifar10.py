"""NCSN on CIFAR-10: Song & Ermon 2019, arXiv:1907.05600, Table 1.

    python -m launch.train experiments/ncsn/ncsn_cifar10.py

Published: IS 8.87, FID 25.32, of the checkpoint with the least FID of 1000 samples.
Official setting: ermongroup/ncsn, configs/anneal.yml, at commit 7f27f4a1. Every value
below is theirs. The sampler is the code's: the paper's Algorithm 1 moves half as far
with the same step size. Ours: ?
Parameters: 30,117,635.
"""

from functools import partial

from research.data.loader import Data
from research.data.sources import Tfds
from research.data.transforms import RandomFlip
from research.diffusion.parameterizations import Level, RawScore
from research.diffusion.pixels import Pixels
from research.diffusion.processes import VE
from research.diffusion.samplers import AnnealedLangevin
from research.evals.frechet import FrechetInception
from research.evals.loss import HeldOutLoss
from research.evals.samples import SampleGrid
from research.experiment import Experiment, Published
from research.losses import half_sum_over_dims
from research.models.refinenet import ncsn
from research.pretrained import inception
from research.tasks.score_matching import ScoreMatching, UniformLevels
from research.train.checkpoints import Checkpoints
from research.train.optimizers import Adam
from research.train.schedules import Constant


def experiment(num_steps: int = 200_000, batch_size: int = 128) -> Experiment:
    """The published setting."""
    return Experiment(
        task=ScoreMatching(
            network=ncsn(channels=128, num_levels=10),
            process=VE(sigma_min=0.01, sigma_max=1.0),
            pixels=Pixels(levels=256, low=0.0, high=1.0, dequantize=True),
            sampler=AnnealedLangevin(
                num_levels=10, num_steps=100, step_size=2e-5, denoise=False
            ),
            image_shape=(32, 32, 3),
            reduction=half_sum_over_dims,
            times=UniformLevels(10),
            condition=Level(10),
            predicts=RawScore(),
        ),
        data=Data(
            train=Tfds("cifar10", split="train"),
            eval={"test": Tfds("cifar10", split="test")},
            spec={"image": ((32, 32, 3), "uint8"), "label": ((), "int32")},
            batch_size=batch_size,
            transforms=(RandomFlip(),),
        ),
        optimizer=Adam(learning_rate=Constant(1e-3)),
        num_steps=num_steps,
        seed=42,
        evals={
            "test": HeldOutLoss(split="test", every=5000),
            "samples": SampleGrid(num=64, every=50_000),
        },
        offline_evals={
            "inception": FrechetInception(
                network=partial(
                    inception.load,
                    path="~/data/twelvefold/pt_inception-2015-12-05.safetensors",
                ),
                num_samples=50_000,
            ),
        },
        checkpoints=Checkpoints(every=5000, keep_last=40),
        log_every=100,
        num_params=30_117_635,
        published=(
            Published("inception_score", 8.87, "Table 1"),
            Published("fid", 25.32, "Table 1"),
        ),
    )
