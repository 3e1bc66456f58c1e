"""NCSN++ cont. (VE) on LSUN church 256x256: Song et al. 2021, arXiv:2011.13456.

    python -m launch.prepare experiments/score_sde/ve_ncsnpp_church256.py
    python -m launch.train experiments/score_sde/ve_ncsnpp_church256.py

ve_ncsnpp_bedroom256 with churches, outdoors, and their largest noise.
Published: no number in the paper's tables.
Official setting: yang-song/score_sde, configs/ve/church_ncsnpp_continuous.py, at commit
0acb9e0e. Every value below is theirs. Ours: ?
Parameters: 65,574,549.
"""

from dataclasses import replace

from experiments.score_sde import ve_ncsnpp_bedroom256
from research.data.sources import Tfds
from research.diffusion.processes import VE
from research.experiment import Experiment


def experiment(num_steps: int = 2_400_000, batch_size: int = 64) -> Experiment:
    """The published setting."""
    base = ve_ncsnpp_bedroom256.experiment(num_steps, batch_size)
    return replace(
        base,
        task=replace(base.task, process=VE(sigma_min=0.01, sigma_max=380.0)),
        data=replace(
            base.data,
            train=Tfds("lsun/church_outdoor", split="train"),
            eval={"validation": Tfds("lsun/church_outdoor", split="validation")},
        ),
    )
