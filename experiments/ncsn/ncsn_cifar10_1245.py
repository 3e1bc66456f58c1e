"""NCSN with techniques 1, 2, 4 and 5 of NCSNv2 on CIFAR-10: arXiv:2006.09011.

    python -m launch.train experiments/ncsn/ncsn_cifar10_1245.py

ncsn_cifar10_5 with the larger noise (technique 1), the more levels (2) and the shorter
runs at each (4) of ncsnv2_cifar10. What is left is technique 3, the network that is not
told its level.
Published: no number; NCSN without and NCSNv2 with all techniques are in Table 1.
Official setting: yang-song/score_sde, configs/ve/ncsn/cifar10_1245.py, at commit
0acb9e0e. Every value below is theirs. Ours: ?
Parameters: 39,750,659; none is published. Each norm has a row for each of 232 levels.
"""

from dataclasses import replace

from experiments.ncsn import ncsn_cifar10_5
from research.diffusion.parameterizations import Level
from research.diffusion.processes import VE
from research.diffusion.samplers import AnnealedCorrector, PredictorCorrector
from research.experiment import Experiment
from research.models.refinenet import ncsn
from research.tasks.score_matching import UniformLevels


def experiment(num_steps: int = 1_300_000, batch_size: int = 128) -> Experiment:
    """The published setting."""
    base = ncsn_cifar10_5.experiment(num_steps, batch_size)
    return replace(
        base,
        task=replace(
            base.task,
            network=ncsn(channels=128, num_levels=232),
            process=VE(sigma_min=0.01, sigma_max=50.0),
            sampler=PredictorCorrector(
                predictor=None,
                corrector=AnnealedCorrector(snr=0.176, num_steps=5),
                num_steps=232,
                min_time=1e-5,
            ),
            times=UniformLevels(232),
            condition=Level(232),
        ),
        num_params=39_750_659,
    )
