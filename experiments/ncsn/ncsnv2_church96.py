"""NCSNv2 on LSUN church 96x96: Song & Ermon 2020, arXiv:2006.09011, Table 4.

    python -m launch.prepare experiments/ncsn/ncsnv2_church96.py
    python -m launch.train experiments/ncsn/ncsnv2_church96.py

The network with five stages, on churches, outdoors.
Published: samples, without a score.
Official setting: ermongroup/ncsnv2, configs/church.yml, at commit 1bcea03b. Every value
below is theirs but the size of the images: 64 in the file, 96 in the paper and in the
README, which are followed. Ours: ?
Differs: where an odd number of pixels is cut off the longer side, the odd one is cut at
its end; torchvision rounds to an even margin before the middle.
Parameters: 83,445,379; none is published.
"""

from dataclasses import replace

from experiments.ncsn import ncsnv2_cifar10
from research.data.loader import Data
from research.data.sources import Tfds
from research.data.transforms import CenterCrop, RandomFlip, Resize
from research.diffusion.parameterizations import Level
from research.diffusion.processes import VE
from research.diffusion.samplers import AnnealedLangevin
from research.evals.loss import HeldOutLoss
from research.evals.samples import SampleGrid
from research.experiment import Experiment
from research.models.refinenet import ncsnv2_deeper
from research.tasks.score_matching import UniformLevels


def experiment(num_steps: int = 200_000, batch_size: int = 128) -> Experiment:
    """The published setting."""
    base = ncsnv2_cifar10.experiment(num_steps, batch_size)
    square = (Resize(96, interpolation="bilinear"), CenterCrop(96))
    return replace(
        base,
        task=replace(
            base.task,
            network=ncsnv2_deeper(channels=128),
            process=VE(sigma_min=0.01, sigma_max=140.0),
            sampler=AnnealedLangevin(
                num_levels=788, num_steps=4, step_size=4.9e-6, denoise=True
            ),
            image_shape=(96, 96, 3),
            times=UniformLevels(788),
            condition=Level(788),
        ),
        data=Data(
            train=Tfds("lsun/church_outdoor", split="train"),
            eval={"validation": Tfds("lsun/church_outdoor", split="validation")},
            spec={"image": ((96, 96, 3), "uint8")},
            batch_size=batch_size,
            transforms=(*square, RandomFlip()),
            eval_transforms=square,
            num_workers=8,
        ),
        evals={
            "validation": HeldOutLoss(split="validation", every=5000),
            "samples": SampleGrid(num=64, every=50_000),
        },
        num_params=83_445_379,
        published=(),
    )
