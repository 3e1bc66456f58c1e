"""DDPM++ cont. (sub-VP) on CIFAR-10: Song et al. 2021, arXiv:2011.13456, Tables 2, 3.

    python -m launch.train experiments/score_sde/subvp_ddpmpp_cifar10.py

vp_ddpmpp_cifar10 with the sub-VP process, for likelihoods.
Published: FID 2.61 and IS 9.56 (best checkpoint, Euler-Maruyama), FID 3.16 (last
checkpoint, ODE), 3.02 bits/dim.
Official setting: yang-song/score_sde, configs/subvp/cifar10_ddpmpp_continuous.py, at
commit 0acb9e0e. Every value below is theirs. Ours: ?
Parameters: 61,804,419.
"""

from dataclasses import replace

from experiments.score_sde import vp_ddpmpp_cifar10
from research.diffusion.processes import SubVP
from research.experiment import Experiment, Published


def experiment(num_steps: int = 1_300_000, batch_size: int = 128) -> Experiment:
    """The published setting."""
    base = vp_ddpmpp_cifar10.experiment(num_steps, batch_size)
    return replace(
        base,
        task=replace(base.task, process=SubVP(beta_min=0.1, beta_max=20.0)),
        published=(
            Published("fid", 2.61, "Table 3, best checkpoint"),
            Published("inception_score", 9.56, "Table 3, best checkpoint"),
            Published("bits_per_dim", 3.02, "Table 2, uniform dequantization"),
        ),
    )
