"""NCSNv2 on CelebA 64x64: Song & Ermon 2020, arXiv:2006.09011, Table 1.

    python -m launch.prepare experiments/ncsn/ncsnv2_celeba64.py
    python -m launch.train experiments/ncsn/ncsnv2_celeba64.py

Images are cropped to the middle 140 pixels and scaled down.
Published: FID 10.23 with the last denoising step (28.86 without it,
`--set task.sampler.denoise=False`), 10,000 samples against the test images, of the
checkpoint with the least FID of 1000 samples.
Official setting: ermongroup/ncsnv2, configs/celeba.yml, at commit 1bcea03b. Every value
below is theirs. Ours: ?
Parameters: 29,694,083, those of CIFAR-10.
"""

from dataclasses import replace
from functools import partial

from experiments.ncsn import ncsnv2_cifar10
from research.data.loader import Data
from research.data.sources import Tfds
from research.data.transforms import CenterCrop, RandomFlip, Resize
from research.diffusion.parameterizations import Level
from research.diffusion.processes import VE
from research.diffusion.samplers import AnnealedLangevin
from research.evals.frechet import FrechetInception
from research.experiment import Experiment, Published
from research.pretrained import inception
from research.tasks.score_matching import UniformLevels


def experiment(num_steps: int = 210_000, batch_size: int = 128) -> Experiment:
    """The published setting."""
    base = ncsnv2_cifar10.experiment(num_steps, batch_size)
    scaled = (CenterCrop(140), Resize(64, interpolation="bilinear"))
    return replace(
        base,
        task=replace(
            base.task,
            process=VE(sigma_min=0.01, sigma_max=90.0),
            sampler=AnnealedLangevin(
                num_levels=500, num_steps=5, step_size=3.3e-6, denoise=True
            ),
            image_shape=(64, 64, 3),
            times=UniformLevels(500),
            condition=Level(500),
        ),
        data=Data(
            train=Tfds("celeb_a", split="train"),
            eval={"test": Tfds("celeb_a", split="test")},
            spec={"image": ((64, 64, 3), "uint8")},
            batch_size=batch_size,
            transforms=(*scaled, RandomFlip()),
            eval_transforms=scaled,
            num_workers=8,
        ),
        offline_evals={
            "inception": FrechetInception(
                network=partial(
                    inception.load,
                    path="~/data/twelvefold/pt_inception-2015-12-05.safetensors",
                ),
                reference_split="test",
                num_samples=10_000,
            ),
        },
        published=(Published("fid", 10.23, "Table 1, denoised"),),
    )
