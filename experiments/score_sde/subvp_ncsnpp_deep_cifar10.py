"""NCSN++ cont. deep (sub-VP) on CIFAR-10: Song et al. 2021, arXiv:2011.13456, app. H.

    python -m launch.train experiments/score_sde/subvp_ncsnpp_deep_cifar10.py

Eight blocks a level in place of four, the deep networks of appendix H.
Published: no number in the paper's tables.
Official setting: yang-song/score_sde, configs/subvp/cifar10_ncsnpp_deep_continuous.py,
at commit 0acb9e0e. Every value below is theirs. Ours: ?
Parameters: 107,521,411; none is published.
"""

from dataclasses import replace

from experiments.score_sde import subvp_ncsnpp_cifar10
from research.experiment import Experiment


def experiment(num_steps: int = 950_000, batch_size: int = 128) -> Experiment:
    """The published setting."""
    base = subvp_ncsnpp_cifar10.experiment(num_steps, batch_size)
    network = replace(base.task.network, num_res_blocks=8)
    return replace(
        base,
        task=replace(base.task, network=network),
        num_params=107_521_411,
    )
