"""NCSN++ (VP, discrete) on CIFAR-10: Song et al. 2021, arXiv:2011.13456, appendix H.

    python -m launch.train experiments/score_sde/vp_ncsnpp_discrete_cifar10.py

vp_ncsnpp_cifar10 trained at the 1000 steps of DDPM's chain, and sampled by running that
chain backwards (reverse diffusion).
Published: no number in the paper's tables.
Official setting: yang-song/score_sde, configs/vp/cifar10_ncsnpp.py, at commit 0acb9e0e.
Every value below is theirs. Ours: ?
Parameters: 62,693,251.
"""

from dataclasses import replace

from experiments.score_sde import vp_ncsnpp_cifar10
from research.diffusion.processes import DDPM
from research.diffusion.samplers import PredictorCorrector, reverse_diffusion
from research.experiment import Experiment
from research.tasks.score_matching import UniformLevels


def experiment(num_steps: int = 1_300_000, batch_size: int = 128) -> Experiment:
    """The published setting."""
    base = vp_ncsnpp_cifar10.experiment(num_steps, batch_size)
    return replace(
        base,
        task=replace(
            base.task,
            process=DDPM(beta_min=0.1, beta_max=20.0, num_levels=1000),
            times=UniformLevels(1000),
            sampler=PredictorCorrector(
                predictor=reverse_diffusion, num_steps=1000, min_time=1e-3
            ),
        ),
    )
