"""DDPM on LSUN church 256x256, as in Song et al. 2021, arXiv:2011.13456.

    python -m launch.prepare experiments/score_sde/vp_ddpm_church256.py
    python -m launch.train experiments/score_sde/vp_ddpm_church256.py

vp_ddpm_bedroom256 with churches, outdoors.
Published: no number in the paper's tables.
Official setting: yang-song/score_sde, configs/vp/ddpm/church.py, at commit 0acb9e0e.
Every value below is theirs. Ours: ?
Parameters: 111,569,923.
"""

from dataclasses import replace

from experiments.score_sde import vp_ddpm_bedroom256
from research.data.sources import Tfds
from research.experiment import Experiment


def experiment(num_steps: int = 2_400_000, batch_size: int = 64) -> Experiment:
    """The published setting."""
    base = vp_ddpm_bedroom256.experiment(num_steps, batch_size)
    return replace(
        base,
        data=replace(
            base.data,
            train=Tfds("lsun/church_outdoor", split="train"),
            eval={"validation": Tfds("lsun/church_outdoor", split="validation")},
        ),
    )
