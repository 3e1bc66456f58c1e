"""NCSNv2 on LSUN tower 128x128: Song & Ermon 2020, arXiv:2006.09011, Table 4.

    python -m launch.prepare experiments/ncsn/ncsnv2_tower128.py
    python -m launch.train experiments/ncsn/ncsnv2_tower128.py

ncsnv2_church96 with larger images, and the ladder that goes with them.
Published: samples, without a score.
Official setting: ermongroup/ncsnv2, configs/tower.yml, at commit 1bcea03b. Every value
below is theirs. Ours: ?
Parameters: 83,445,379, those of churches.
"""

from dataclasses import replace

from experiments.ncsn import ncsnv2_church96
from research.data.loader import Data
from research.data.sources import Tfds
from research.data.transforms import CenterCrop, RandomFlip, Resize
from research.diffusion.parameterizations import Level
from research.diffusion.processes import VE
from research.diffusion.samplers import AnnealedLangevin
from research.experiment import Experiment
from research.tasks.score_matching import UniformLevels


def experiment(num_steps: int = 150_000, batch_size: int = 128) -> Experiment:
    """The published setting."""
    base = ncsnv2_church96.experiment(num_steps, batch_size)
    square = (Resize(128, interpolation="bilinear"), CenterCrop(128))
    return replace(
        base,
        task=replace(
            base.task,
            process=VE(sigma_min=0.01, sigma_max=190.0),
            sampler=AnnealedLangevin(
                num_levels=1086, num_steps=3, step_size=1.8e-6, denoise=True
            ),
            image_shape=(128, 128, 3),
            times=UniformLevels(1086),
            condition=Level(1086),
        ),
        data=Data(
            train=Tfds("lsun/tower", split="train"),
            eval={"validation": Tfds("lsun/tower", split="validation")},
            spec={"image": ((128, 128, 3), "uint8")},
            batch_size=batch_size,
            transforms=(*square, RandomFlip()),
            eval_transforms=square,
            num_workers=8,
        ),
    )
