"""Two modes in the plane by explicit score matching, with the true score.

    python -m launch.train experiments/ncsn/mixture_esm.py

The network, data and optimiser of `mixture_ssm_vr` (Song & Ermon 2019,
arXiv:1907.05600, Fig. 2) under another objective, to compare all of them by the Fisher
divergence. Ours: 0.00018.
"""

from dataclasses import replace

from experiments.ncsn import mixture_ssm_vr
from experiments.ncsn.mixture_ssm_vr import DENSITY
from research.experiment import Experiment, Required
from research.tasks.vector_score import Explicit


def experiment(num_steps: int = 10_000, batch_size: int = 128) -> Experiment:
    """Some seconds on a CPU."""
    base = mixture_ssm_vr.experiment(num_steps, batch_size)
    return replace(
        base,
        task=replace(base.task, objective=Explicit(DENSITY)),
        required=(Required("test/fisher_divergence", below=0.005),),
    )
