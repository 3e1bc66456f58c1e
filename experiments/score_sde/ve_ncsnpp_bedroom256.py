"""NCSN++ cont. (VE) on LSUN bedroom 256x256: Song et al. 2021, arXiv:2011.13456.

    python -m launch.prepare experiments/score_sde/ve_ncsnpp_bedroom256.py
    python -m launch.train experiments/score_sde/ve_ncsnpp_bedroom256.py

ve_ncsnpp_celebahq256 with the largest noise of bedrooms.
Published: no number in the paper's tables.
Official setting: yang-song/score_sde, configs/ve/bedroom_ncsnpp_continuous.py, at
commit 0acb9e0e. Every value below is theirs. Ours: ?
Differs: they crop to a square and then scale to 256 pixels, here the shorter side is
scaled and then the middle cropped. LSUN's shorter sides have 256 pixels, so that both
only crop, alike.
Parameters: 65,574,549.
"""

from dataclasses import replace

from experiments.score_sde import ve_ncsnpp_celebahq256
from research.data.loader import Data
from research.data.sources import Tfds
from research.data.transforms import CenterCrop, RandomFlip, Resize
from research.diffusion.processes import VE
from research.evals.loss import HeldOutLoss
from research.experiment import Experiment


def experiment(num_steps: int = 2_400_000, batch_size: int = 64) -> Experiment:
    """The published setting."""
    base = ve_ncsnpp_celebahq256.experiment(num_steps, batch_size)
    square = (Resize(256), CenterCrop(256))
    return replace(
        base,
        task=replace(base.task, process=VE(sigma_min=0.01, sigma_max=378.0)),
        data=Data(
            train=Tfds("lsun/bedroom", split="train"),
            eval={"validation": Tfds("lsun/bedroom", split="validation")},
            spec={"image": ((256, 256, 3), "uint8")},
            batch_size=batch_size,
            transforms=(*square, RandomFlip()),
            eval_transforms=square,
            num_workers=8,
        ),
        evals={
            **base.evals,
            "validation": HeldOutLoss(split="validation", batch_size=64, every=10_000),
        },
    )
