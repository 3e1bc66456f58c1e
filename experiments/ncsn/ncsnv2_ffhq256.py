"""NCSNv2 on FFHQ 256x256: Song & Ermon 2020, arXiv:2006.09011, Table 4.

    python -m launch.train experiments/ncsn/ncsnv2_ffhq256.py

The network with six stages.
Published: samples, without a score.
Official setting: ermongroup/ncsnv2, configs/ffhq.yml, at commit 1bcea03b. Every value
below is theirs, Adam's large epsilon too. The paper's table is quoted with a tenth of
the step size; the file's is what technique 4 gives (`ladders.step_size`: 8.9e-7).
Ours: ?
Differs: their images come from an LMDB, a tenth of them held out at random; here from
image files of 256 pixels in subfolders of `folder`/train and `folder`/test
(`--with folder=PATH`).
Parameters: 94,132,611; none is published.
"""

from dataclasses import replace

from experiments.ncsn import ncsnv2_cifar10
from research.data.loader import Data
from research.data.sources import ImageFolder
from research.data.transforms import RandomFlip
from research.diffusion.parameterizations import Level
from research.diffusion.processes import VE
from research.diffusion.samplers import AnnealedLangevin
from research.evals.loss import HeldOutLoss
from research.evals.samples import SampleGrid
from research.experiment import Experiment
from research.models.refinenet import ncsnv2_deepest
from research.tasks.score_matching import UniformLevels
from research.train.optimizers import Adam
from research.train.schedules import Constant


def experiment(
    num_steps: int = 80_000,
    batch_size: int = 32,
    folder: str = "~/data/twelvefold/ffhq256",
) -> Experiment:
    """The published setting."""
    base = ncsnv2_cifar10.experiment(num_steps, batch_size)
    return replace(
        base,
        task=replace(
            base.task,
            network=ncsnv2_deepest(channels=128),
            process=VE(sigma_min=0.01, sigma_max=348.0),
            sampler=AnnealedLangevin(
                num_levels=2311, num_steps=3, step_size=9e-7, denoise=True
            ),
            image_shape=(256, 256, 3),
            times=UniformLevels(2311),
            condition=Level(2311),
        ),
        data=Data(
            train=ImageFolder(f"{folder}/train", size=(256, 256)),
            eval={"test": ImageFolder(f"{folder}/test", size=(256, 256))},
            spec={"image": ((256, 256, 3), "uint8")},
            batch_size=batch_size,
            transforms=(RandomFlip(),),
            num_workers=8,
        ),
        optimizer=Adam(learning_rate=Constant(1e-4), eps=1e-3),
        evals={
            "test": HeldOutLoss(split="test", batch_size=32, every=5000),
            "samples": SampleGrid(num=64, batch_size=32, every=20_000),
        },
        num_params=94_132_611,
        published=(),
    )
