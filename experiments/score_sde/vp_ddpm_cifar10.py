"""DDPM on CIFAR-10: Ho et al. 2020 as in Song et al. 2021, arXiv:2011.13456, Table 1.

    python -m launch.train experiments/score_sde/vp_ddpm_cifar10.py

The network and the chain of DDPM (arXiv:2006.11239). The rows of Table 1 are samplers,
with the ratios of Table 5. FID by predictor, 1000 steps alone (P1000), 2000 alone
(P2000), and 1000 with a corrector step each (PC1000):

                         P1000    P2000    PC1000
    ancestral             3.24     3.24      3.21    snr 0.01
    reverse_diffusion     3.21     3.19      3.18    snr 0.01
    probability flow      3.59     3.23      3.06    snr 0.04

and 19.06 for 2000 corrector steps alone (C2000, snr 0.27). With the option `--set`:

    task.sampler.predictor=reverse_diffusion
    'task.sampler.predictor=partial(reverse_diffusion, noise_scale=0.0)'    # the flow
    task.sampler.num_steps=2000                                             # 2000
    task.sampler.corrector=research.diffusion.samplers.Langevin(snr=0.01)   # PC
    task.sampler.predictor=None                                             # C

Differs: for 2000 steps Table 1 interpolates the network's 1000 levels linearly and
Table 4 takes the one below; here the network is told the time between two levels, and
its output divided by the deviation of the one below.

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
            Published("fid", 3.24, "Table 1, ancestral, P1000"),
            Published("fid", 3.21, "Table 1, reverse diffusion, P1000"),
            Published("fid", 3.59, "Table 1, probability flow, P1000"),
            Published("fid", 3.24, "Table 1, ancestral, P2000"),
            Published("fid", 3.19, "Table 1, reverse diffusion, P2000"),
            Published("fid", 3.23, "Table 1, probability flow, P2000"),
            Published("fid", 3.21, "Table 1, ancestral, PC1000"),
            Published("fid", 3.18, "Table 1, reverse diffusion, PC1000"),
            Published("fid", 3.06, "Table 1, probability flow, PC1000"),
            Published("fid", 19.06, "Table 1, corrector only, C2000"),
            Published("bits_per_dim", 3.28, "Table 2, uniform dequantization"),
        ),
    )
