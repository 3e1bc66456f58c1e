"""DDPM on CIFAR-10: Ho et al. 2020 as in Song et al. 2021, arXiv:2011.13456, Table 1.

    python -m launch.train experiments/score_sde/vp_ddpm_cifar10.py

The network and the chain of DDPM (arXiv:2006.11239). The rows of Table 1 are samplers:

    --set task.sampler.predictor=reverse_diffusion                              # 3.21
    --set 'task.sampler.corrector=research.diffusion.samplers.Langevin(snr=0.01)'

and both together 3.18.

Published: FID 3.24 (ancestral, 1000 steps), 3.37 (ODE), 3.28 bits/dim (Table 2).
Official setting: yang-song/score_sde, configs/vp/ddpm/cifar10.py, at commit 0acb9e0e.
Every value below is theirs. Ours: ?
Parameters: 35,218,947.
"""

from dataclasses import replace
from functools import partial

from experiments.score_sde import vp_ddpmpp_discrete_cifar10
from research.experiment import Experiment, Published
from research.layers.attention import PixelAttention
from research.layers.blocks import NearestConv, StridedConv, ddpm_block


def experiment(num_steps: int = 1_300_000, batch_size: int = 128) -> Experiment:
    """The published setting."""
    base = vp_ddpmpp_discrete_cifar10.experiment(num_steps, batch_size)
    return replace(
        base,
        task=replace(
            base.task,
            network=replace(
                base.task.network,
                num_res_blocks=2,
                block=partial(ddpm_block, dropout_rate=0.1),
                attention=partial(PixelAttention, skip_scale=1.0),
                downsample=StridedConv,
                upsample=NearestConv,
            ),
        ),
        num_params=35_218_947,
        published=(
            Published("fid", 3.24, "Table 1, ancestral, 1000 steps"),
            Published("bits_per_dim", 3.28, "Table 2, uniform dequantization"),
        ),
    )
