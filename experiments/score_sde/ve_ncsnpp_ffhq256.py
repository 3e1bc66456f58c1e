"""NCSN++ cont. (VE) on FFHQ 256x256: Song et al. 2021, arXiv:2011.13456.

    python -m launch.train experiments/score_sde/ve_ncsnpp_ffhq256.py

ve_ncsnpp_celebahq256 on other faces.
Published: no number in the paper's tables.
Official setting: yang-song/score_sde, configs/ve/ffhq_256_ncsnpp_continuous.py, at
commit 0acb9e0e. Every value below is theirs. Ours: ?
Differs: their images come from FFHQ's TFRecords at 256 pixels; here from image files of
that size in subfolders of `folder` (`--with folder=PATH`).
Parameters: 65,574,549.
"""

from experiments.score_sde import ve_ncsnpp_celebahq256
from research.experiment import Experiment


def experiment(
    num_steps: int = 2_400_000,
    batch_size: int = 64,
    folder: str = "~/data/twelvefold/ffhq256",
) -> Experiment:
    """The published setting."""
    return ve_ncsnpp_celebahq256.experiment(num_steps, batch_size, folder)
