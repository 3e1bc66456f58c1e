"""DDPM++ (VP, discrete) on CIFAR-10: Song et al. 2021, arXiv:2011.13456, Table 3.

    python -m launch.train experiments/score_sde/vp_ddpmpp_discrete_cifar10.py

vp_ddpmpp_cifar10 trained at the 1000 steps of DDPM's chain and sampled by it.
Published: FID 2.78, IS 9.64.
Official setting: yang-song/score_sde, configs/vp/cifar10_ddpmpp.py, at commit 0acb9e0e.
Every value below is theirs. Ours: ?
Parameters: 61,804,419.
"""

from dataclasses import replace

from experiments.score_sde import vp_ddpmpp_cifar10
from research.diffusion.processes import DDPM
from research.diffusion.samplers import PredictorCorrector, ancestral
from research.experiment import Experiment, Published
from research.tasks.score_matching import UniformLevels


def experiment(num_steps: int = 1_300_000, batch_size: int = 128) -> Experiment:
    """The published setting."""
    base = vp_ddpmpp_cifar10.experiment(num_steps, batch_size)
    return replace(
        base,
        task=replace(
            base.task,
            process=DDPM(beta_min=0.1, beta_max=20.0, num_levels=1000),
            times=UniformLevels(1000),
            sampler=PredictorCorrector(
                predictor=ancestral, num_steps=1000, min_time=1e-3
            ),
        ),
        published=(
            Published("fid", 2.78, "Table 3"),
            Published("inception_score", 9.64, "Table 3"),
        ),
    )
