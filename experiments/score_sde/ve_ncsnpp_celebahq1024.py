"""NCSN++ cont. (VE) on CelebA-HQ 1024x1024: Song et al. 2021, arXiv:2011.13456.

    python -m launch.train experiments/score_sde/ve_ncsnpp_celebahq1024.py

ve_ncsnpp_celebahq256 with eight levels, narrow where the image is large.
Published: samples, without a score.
Official setting: yang-song/score_sde, configs/ve/celebahq_ncsnpp_continuous.py, at
commit 0acb9e0e. Every value below is theirs. Ours: ?
Differs: their images come from the TFRecords of Progressive GAN at 1024 pixels; here
from image files of that size in a subfolder of `folder` (`--with folder=PATH`).
Parameters: 105,785,896; none is published.
"""

from dataclasses import replace

from experiments.score_sde import ve_ncsnpp_celebahq256
from research.data.sources import ImageFolder
from research.diffusion.processes import VE
from research.diffusion.samplers import Langevin, PredictorCorrector, reverse_diffusion
from research.evals.samples import SampleGrid
from research.experiment import Experiment
from research.train.state import Ema


def experiment(
    num_steps: int = 2_400_000,
    batch_size: int = 8,
    folder: str = "~/data/twelvefold/celebahq1024",
) -> Experiment:
    """The published setting."""
    base = ve_ncsnpp_celebahq256.experiment(num_steps, batch_size, folder)
    return replace(
        base,
        task=replace(
            base.task,
            network=replace(
                base.task.network,
                channels=16,
                channel_mults=(1, 2, 4, 8, 16, 32, 32, 32),
                num_res_blocks=1,
            ),
            process=VE(sigma_min=0.01, sigma_max=1348.0),
            sampler=PredictorCorrector(
                predictor=reverse_diffusion,
                corrector=Langevin(snr=0.15, num_steps=1),
                num_steps=2000,
                min_time=1e-5,
            ),
            image_shape=(1024, 1024, 3),
        ),
        data=replace(
            base.data,
            train=ImageFolder(folder, size=(1024, 1024)),
            spec={"image": ((1024, 1024, 3), "uint8")},
        ),
        ema=Ema(rate=0.9999),
        evals={"samples": SampleGrid(num=8, batch_size=8, every=50_000)},
        offline_evals={},
        num_params=105_785_896,
    )
