"""DDPM++ cont. (sub-VP) on scikit-learn's digits: vp_ddpmpp_digits, another process.

    python -m launch.train experiments/score_sde/subvp_ddpmpp_digits.py

Song et al. 2021, arXiv:2011.13456, Table 2 at a laptop's size; it differs from
vp_ddpmpp_digits in the process alone. Required beforehand, from a residual MLP on the
same data: held-out loss < 0.18, FD-pixel < 0.45, classifier confidence > 0.68,
bits/dim < 2.85. Ours: 0.1394, 0.088, 0.830 and 1.99 bits/dim.
"""

from dataclasses import replace

from experiments.score_sde import vp_ddpmpp_digits
from research.diffusion.processes import SubVP
from research.experiment import Experiment, Required


def experiment(num_steps: int = 1600, batch_size: int = 64) -> Experiment:
    """A few minutes on two CPU cores."""
    base = vp_ddpmpp_digits.experiment(num_steps, batch_size)
    return replace(
        base,
        task=replace(base.task, process=SubVP(beta_min=0.1, beta_max=20.0)),
        required=(
            Required("test/loss", below=0.18),
            Required("quality/fd_pixel", below=0.45),
            Required("quality/confidence", above=0.68),
            Required("likelihood/bits_per_dim", below=2.85),
        ),
    )
