"""The VE process on scikit-learn's digits: the VE settings at a laptop's size.

    python -m launch.train experiments/score_sde/ve_ddpmpp_digits.py

The network and data of vp_ddpmpp_digits under what Song et al. 2021, arXiv:2011.13456,
pin for VE: data on [0, 1], half the summed loss, the network's output divided by sigma,
a predictor-corrector with reverse diffusion and Langevin steps at snr 0.16. sigma_max
is the largest distance between two digits, 4.8, rounded up (technique 1 of Song & Ermon
2020, arXiv:2006.09011). Required beforehand, from a residual MLP on the same data:
FD-pixel < 0.40, classifier confidence > 0.63, label entropy > 0.95, bits/dim < 2.75.
Ours: 0.08662, 0.8707, 0.995 and 1.94 bits/dim.
"""

from dataclasses import replace

from experiments.score_sde import vp_ddpmpp_digits
from research.diffusion.parameterizations import ScaledScore
from research.diffusion.processes import VE
from research.diffusion.samplers import Langevin, PredictorCorrector, reverse_diffusion
from research.evals.digits import DigitQuality
from research.evals.likelihood import BitsPerDim
from research.experiment import Experiment, Required
from research.losses import half_sum_over_dims


def experiment(num_steps: int = 1600, batch_size: int = 64) -> Experiment:
    """A few minutes on two CPU cores."""
    base = vp_ddpmpp_digits.experiment(num_steps, batch_size)
    return replace(
        base,
        task=replace(
            base.task,
            process=VE(sigma_min=0.01, sigma_max=5.0),
            pixels=replace(base.task.pixels, low=0.0, high=1.0),
            sampler=PredictorCorrector(
                predictor=reverse_diffusion,
                corrector=Langevin(snr=0.16),
                num_steps=200,
                min_time=1e-5,
            ),
            reduction=half_sum_over_dims,
            predicts=ScaledScore(),
        ),
        offline_evals={
            "quality": DigitQuality(num_samples=1000, batch_size=250),
            "likelihood": BitsPerDim(split="test", num_examples=120, batch_size=120),
        },
        required=(
            Required("quality/fd_pixel", below=0.40),
            Required("quality/confidence", above=0.63),
            Required("quality/label_entropy", above=0.95),
            Required("likelihood/bits_per_dim", below=2.75),
        ),
    )
