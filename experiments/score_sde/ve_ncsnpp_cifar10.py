"""NCSN++ cont. (VE) on CIFAR-10: Song et al. 2021, arXiv:2011.13456, Table 3.

    python -m launch.train experiments/score_sde/ve_ncsnpp_cifar10.py

Published: FID 2.38, IS 9.83 (best checkpoint, predictor-corrector).
Official setting: yang-song/score_sde, configs/ve/cifar10_ncsnpp_continuous.py, at
commit 0acb9e0e. Every value below is theirs. The paper (appendix H.2) trains for 0.95M
steps, the file for 1.3M: the file is followed. Ours: ?
Parameters: 62,758,915, the 128 fixed frequencies included.
"""

from dataclasses import replace
from functools import partial

from experiments.score_sde import vp_ddpmpp_cifar10
from research.diffusion.parameterizations import ScaledScore, log_std
from research.diffusion.pixels import Pixels
from research.diffusion.processes import VE
from research.diffusion.samplers import Langevin, PredictorCorrector, reverse_diffusion
from research.experiment import Experiment, Published
from research.layers.blocks import ResidualPyramid
from research.layers.conv import fir_downsample, fir_upsample
from research.layers.embeddings import FourierEmbedding
from research.losses import half_sum_over_dims
from research.train.state import Ema


def experiment(num_steps: int = 1_300_000, batch_size: int = 128) -> Experiment:
    """The published setting."""
    base = vp_ddpmpp_cifar10.experiment(num_steps, batch_size)
    return replace(
        base,
        task=replace(
            base.task,
            network=replace(
                base.task.network,
                downsample=fir_downsample,
                upsample=fir_upsample,
                time_embedding=partial(FourierEmbedding, scale=16.0),
                input_pyramid=ResidualPyramid,
                data_range=(0.0, 1.0),
            ),
            process=VE(sigma_min=0.01, sigma_max=50.0),
            pixels=Pixels(levels=256, low=0.0, high=1.0),
            sampler=PredictorCorrector(
                predictor=reverse_diffusion,
                corrector=Langevin(snr=0.16, num_steps=1),
                num_steps=1000,
                min_time=1e-5,
            ),
            reduction=half_sum_over_dims,
            condition=log_std,
            predicts=ScaledScore(),
        ),
        ema=Ema(rate=0.999),
        num_params=62_758_915,
        published=(
            Published("fid", 2.38, "Table 3, best checkpoint"),
            Published("inception_score", 9.83, "Table 3, best checkpoint"),
        ),
    )
