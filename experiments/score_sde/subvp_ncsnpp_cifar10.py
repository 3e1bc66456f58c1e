"""NCSN++ cont. (sub-VP) on CIFAR-10: Song et al. 2021, arXiv:2011.13456, appendix H.

    python -m launch.train experiments/score_sde/subvp_ncsnpp_cifar10.py

vp_ncsnpp_cifar10 with the sub-VP process.
Published: no number in the paper's tables.
Official setting: yang-song/score_sde, configs/subvp/cifar10_ncsnpp_continuous.py, at
commit 0acb9e0e. Every value below is theirs. Ours: ?
Parameters: 62,693,251.
"""

from dataclasses import replace

from experiments.score_sde import vp_ncsnpp_cifar10
from research.diffusion.processes import SubVP
from research.experiment import Experiment


def experiment(num_steps: int = 1_300_000, batch_size: int = 128) -> Experiment:
    """The published setting."""
    base = vp_ncsnpp_cifar10.experiment(num_steps, batch_size)
    return replace(
        base,
        task=replace(base.task, process=SubVP(beta_min=0.1, beta_max=20.0)),
    )
