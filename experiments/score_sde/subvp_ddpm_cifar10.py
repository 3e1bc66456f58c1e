"""DDPM cont. (sub-VP) on CIFAR-10: Song et al. 2021, arXiv:2011.13456, Table 2.

    python -m launch.train experiments/score_sde/subvp_ddpm_cifar10.py

DDPM's network trained in continuous time.
Published: FID 3.56 (ODE), 3.05 bits/dim.
Official setting: yang-song/score_sde, configs/subvp/cifar10_ddpm_continuous.py, at
commit 0acb9e0e. Every value below is theirs. Ours: ?
Parameters: 35,218,947.
"""

from dataclasses import replace

from experiments.score_sde import vp_ddpm_continuous_cifar10
from research.diffusion.processes import SubVP
from research.experiment import Experiment, Published


def experiment(num_steps: int = 1_300_000, batch_size: int = 128) -> Experiment:
    """The published setting."""
    base = vp_ddpm_continuous_cifar10.experiment(num_steps, batch_size)
    return replace(
        base,
        task=replace(base.task, process=SubVP(beta_min=0.1, beta_max=20.0)),
        published=(
            Published("fid", 3.56, "Table 2, ODE"),
            Published("bits_per_dim", 3.05, "Table 2, uniform dequantization"),
        ),
    )
