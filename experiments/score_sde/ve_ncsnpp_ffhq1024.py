"""NCSN++ cont. (VE) on FFHQ 1024x1024: Song et al. 2021, arXiv:2011.13456.

    python -m launch.train experiments/score_sde/ve_ncsnpp_ffhq1024.py

ve_ncsnpp_celebahq1024 on other faces, and with the mean over pixels as the loss.
Published: no number in the paper's tables.
Official setting: yang-song/score_sde, configs/ve/ffhq_ncsnpp_continuous.py, at commit
0acb9e0e. Every value below is theirs; so is the reduction, half a sum in their other
files for VE. (Adam hardly minds a factor, but the gradient's clipping does.) Ours: ?
Differs: their images come from FFHQ's TFRecords at 1024 pixels; here from image files
of that size in subfolders of `folder` (`--with folder=PATH`), such as FFHQ's own.
Parameters: 105,785,896.
"""

from dataclasses import replace

from experiments.score_sde import ve_ncsnpp_celebahq1024
from research.experiment import Experiment
from research.losses import mean_over_dims


def experiment(
    num_steps: int = 2_400_000,
    batch_size: int = 8,
    folder: str = "~/data/twelvefold/ffhq1024",
) -> Experiment:
    """The published setting."""
    base = ve_ncsnpp_celebahq1024.experiment(num_steps, batch_size, folder)
    return replace(base, task=replace(base.task, reduction=mean_over_dims))
