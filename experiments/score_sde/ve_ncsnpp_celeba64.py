"""NCSN++ (VE, discrete) on CelebA 64x64: Song et al. 2021, arXiv:2011.13456.

    python -m launch.prepare experiments/score_sde/ve_ncsnpp_celeba64.py
    python -m launch.train experiments/score_sde/ve_ncsnpp_celeba64.py

ve_ncsnpp_discrete_cifar10 with the largest noise and the corrector's ratio of CelebA.
Images are cropped to the middle 140 pixels and scaled down.
Published: no number in the paper's tables.
Official setting: yang-song/score_sde, configs/ve/celeba_ncsnpp.py and the defaults it
starts from, at commit 0acb9e0e. Every value below is theirs. Ours: ?
Differs: scaled images are rounded to 256 levels; theirs stay real numbers.
Parameters: 62,693,251, those of CIFAR-10.
"""

from dataclasses import replace

from experiments.score_sde import ve_ncsnpp_discrete_cifar10
from research.data.loader import Data
from research.data.sources import Tfds
from research.data.transforms import CenterCrop, RandomFlip, Resize
from research.diffusion.processes import VE
from research.diffusion.samplers import Langevin, PredictorCorrector, reverse_diffusion
from research.evals.loss import HeldOutLoss
from research.evals.samples import SampleGrid
from research.experiment import Experiment


def experiment(num_steps: int = 1_300_000, batch_size: int = 128) -> Experiment:
    """The published setting."""
    base = ve_ncsnpp_discrete_cifar10.experiment(num_steps, batch_size)
    scaled = (CenterCrop(140), Resize(64, interpolation="bilinear"))
    return replace(
        base,
        task=replace(
            base.task,
            process=VE(sigma_min=0.01, sigma_max=90.0),
            sampler=PredictorCorrector(
                predictor=reverse_diffusion,
                corrector=Langevin(snr=0.17, num_steps=1),
                num_steps=1000,
                min_time=1e-5,
            ),
            image_shape=(64, 64, 3),
        ),
        data=Data(
            train=Tfds("celeb_a", split="train"),
            eval={"validation": Tfds("celeb_a", split="validation")},
            spec={"image": ((64, 64, 3), "uint8")},
            batch_size=batch_size,
            transforms=(*scaled, RandomFlip()),
            eval_transforms=scaled,
            num_workers=8,
        ),
        evals={
            "validation": HeldOutLoss(split="validation", every=10_000),
            "samples": SampleGrid(num=64, every=50_000),
        },
        offline_evals={"inception": base.offline_evals["inception"]},
        published=(),
    )
