"""DDPM's network on VE, CIFAR-10: Song et al. 2021, arXiv:2011.13456, Table 1.

    python -m launch.train experiments/score_sde/ve_ddpm_cifar10.py

SMLD's objective at 1000 levels, told their index, the noisiest 0. The rows of Table 1
are samplers, with the ratios of Table 5. FID by predictor, 1000 steps alone (P1000),
2000 alone (P2000), and 1000 with a corrector step each (PC1000):

                         P1000    P2000    PC1000
    ancestral             4.98     4.88      3.62    snr 0.17
    reverse_diffusion     4.79     4.74      3.60    snr 0.16
    probability flow     15.41    10.54      3.51    snr 0.17

and 20.43 for 2000 corrector steps alone (C2000, snr 0.22). With the option `--set`:

    task.sampler.predictor=ancestral
    'task.sampler.predictor=partial(reverse_diffusion, noise_scale=0.0)'    # the flow
    task.sampler.corrector=None                                             # P
    task.sampler.num_steps=2000                                             # 2000
    task.sampler.corrector.snr=0.17                                         # PC
    task.sampler.predictor=None                                             # C

Differs: for 2000 steps Table 1 interpolates the network's 1000 levels linearly and
Table 4 takes the one below; here the network is told the nearest.

Published: FID 3.60 (reverse diffusion, PC1000: the sampler below).
Official setting: yang-song/score_sde, configs/ve/cifar10_ddpm.py, at commit 0acb9e0e.
Every value below is theirs. Ours: ?
Parameters: 35,218,947.
"""

from dataclasses import replace
from functools import partial

from experiments.score_sde import vp_ddpm_cifar10
from research.diffusion.parameterizations import Level, ScaledScore
from research.diffusion.pixels import Pixels
from research.diffusion.processes import VE
from research.diffusion.samplers import Langevin, PredictorCorrector, reverse_diffusion
from research.experiment import Experiment, Published
from research.layers.embeddings import SinusoidalEmbedding
from research.losses import half_sum_over_dims
from research.train.state import Ema


def experiment(num_steps: int = 1_300_000, batch_size: int = 128) -> Experiment:
    """The published setting."""
    base = vp_ddpm_cifar10.experiment(num_steps, batch_size)
    return replace(
        base,
        task=replace(
            base.task,
            network=replace(
                base.task.network,
                time_embedding=partial(SinusoidalEmbedding, scale=1.0),
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
            condition=Level(1000),
            predicts=ScaledScore(),
        ),
        ema=Ema(rate=0.999),
        published=(
            Published("fid", 3.60, "Table 1, reverse diffusion, PC1000"),
            Published("fid", 3.62, "Table 1, ancestral, PC1000"),
            Published("fid", 3.51, "Table 1, probability flow, PC1000"),
            Published("fid", 4.79, "Table 1, reverse diffusion, P1000"),
            Published("fid", 4.98, "Table 1, ancestral, P1000"),
            Published("fid", 15.41, "Table 1, probability flow, P1000"),
            Published("fid", 4.74, "Table 1, reverse diffusion, P2000"),
            Published("fid", 4.88, "Table 1, ancestral, P2000"),
            Published("fid", 10.54, "Table 1, probability flow, P2000"),
            Published("fid", 20.43, "Table 1, corrector only, C2000"),
        ),
    )
