"""NCSN++ cont. (VP) on CIFAR-10: Song et al. 2021, arXiv:2011.13456, appendix H.

    python -m launch.train experiments/score_sde/vp_ncsnpp_cifar10.py

vp_ddpmpp_cifar10 with the network found for VE: FIR resampling and a residual input
pyramid. The time embedding stays sinusoidal.
Published: no number in the paper's tables, which give VP and sub-VP to DDPM++.
Official setting: yang-song/score_sde, configs/vp/cifar10_ncsnpp_continuous.py, at
commit 0acb9e0e. Every value below is theirs. Ours: ?
Parameters: 62,693,251, those of the discrete VE network.
"""

from dataclasses import replace

from experiments.score_sde import vp_ddpmpp_cifar10
from research.experiment import Experiment
from research.layers.blocks import ResidualPyramid
from research.layers.conv import fir_downsample, fir_upsample


def experiment(num_steps: int = 1_300_000, batch_size: int = 128) -> Experiment:
    """The published setting."""
    base = vp_ddpmpp_cifar10.experiment(num_steps, batch_size)
    return replace(
        base,
        task=replace(
            base.task,
            network=replace(
                base.task.network,
                downsample=fir_downsample,
                upsample=fir_upsample,
                input_pyramid=ResidualPyramid,
            ),
        ),
        num_params=62_693_251,
        published=(),
    )
