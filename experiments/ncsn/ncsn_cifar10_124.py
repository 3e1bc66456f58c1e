"""NCSN with techniques 1, 2 and 4 of NCSNv2 on CIFAR-10: arXiv:2006.09011.

    python -m launch.train experiments/ncsn/ncsn_cifar10_124.py

ncsn_cifar10_1245 without the average of its parameters (technique 5).
Published: no number; NCSN without and NCSNv2 with all techniques are in Table 1.
Official setting: yang-song/score_sde, configs/ve/ncsn/cifar10_124.py, at commit
0acb9e0e. Every value below is theirs. Ours: ?
Parameters: 39,750,659; none is published.
"""

from dataclasses import replace

from experiments.ncsn import ncsn_cifar10_1245
from research.experiment import Experiment


def experiment(num_steps: int = 1_300_000, batch_size: int = 128) -> Experiment:
    """The published setting."""
    return replace(ncsn_cifar10_1245.experiment(num_steps, batch_size), ema=None)
