"""NCSNv2 on CIFAR-10: Song & Ermon 2020, arXiv:2006.09011, Table 1.

    python -m launch.train experiments/ncsn/ncsnv2_cifar10.py

Published: IS 8.40, FID 10.87 with the last denoising step (8.73 and 31.75 without it,
`--set task.sampler.denoise=False`).
Official setting: ermongroup/ncsnv2, configs/cifar10.yml, at commit 1bcea03b. Every
value below is theirs; images are not dequantized. Ours: ?
Parameters: 29,694,083.
"""

from dataclasses import replace

from experiments.ncsn import ncsn_cifar10
from research.diffusion.parameterizations import Level, ScaledScore
from research.diffusion.processes import VE
from research.diffusion.samplers import AnnealedLangevin
from research.experiment import Experiment, Published
from research.models.refinenet import ncsnv2
from research.tasks.score_matching import UniformLevels
from research.train.optimizers import Adam
from research.train.schedules import Constant
from research.train.state import Ema


def experiment(num_steps: int = 300_000, batch_size: int = 128) -> Experiment:
    """The published setting."""
    base = ncsn_cifar10.experiment(num_steps, batch_size)
    return replace(
        base,
        task=replace(
            base.task,
            network=ncsnv2(channels=128),
            process=VE(sigma_min=0.01, sigma_max=50.0),
            pixels=replace(base.task.pixels, dequantize=False),
            sampler=AnnealedLangevin(
                num_levels=232, num_steps=5, step_size=6.2e-6, denoise=True
            ),
            times=UniformLevels(232),
            condition=Level(232),
            predicts=ScaledScore(),
        ),
        optimizer=Adam(learning_rate=Constant(1e-4)),
        ema=Ema(rate=0.999),
        num_params=29_694_083,
        published=(
            Published("inception_score", 8.40, "Table 1, denoised"),
            Published("fid", 10.87, "Table 1, denoised"),
        ),
    )
