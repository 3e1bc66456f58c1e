"""DDPM++ cont. deep (VP) on CIFAR-10: Song et al. 2021, arXiv:2011.13456, Tables 2, 3.

    python -m launch.train experiments/score_sde/vp_ddpmpp_deep_cifar10.py

Eight blocks a level in place of four, the deep networks of appendix H.
Published: FID 2.41 and IS 9.68 (best checkpoint, Euler-Maruyama), FID 3.08 (last
checkpoint, ODE), 3.13 bits/dim.
Official setting: yang-song/score_sde, configs/vp/cifar10_ddpmpp_deep_continuous.py, at
commit 0acb9e0e. Every value below is theirs. Ours: ?
Parameters: 106,632,579.
"""

from dataclasses import replace

from experiments.score_sde import vp_ddpmpp_cifar10
from research.experiment import Experiment, Published


def experiment(num_steps: int = 950_000, batch_size: int = 128) -> Experiment:
    """The published setting."""
    base = vp_ddpmpp_cifar10.experiment(num_steps, batch_size)
    network = replace(base.task.network, num_res_blocks=8)
    return replace(
        base,
        task=replace(base.task, network=network),
        num_params=106_632_579,
        published=(
            Published("fid", 2.41, "Table 3, best checkpoint"),
            Published("inception_score", 9.68, "Table 3, best checkpoint"),
            Published("bits_per_dim", 3.13, "Table 2, uniform dequantization"),
        ),
    )
