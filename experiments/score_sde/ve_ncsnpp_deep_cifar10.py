"""NCSN++ cont. deep (VE) on CIFAR-10: Song et al. 2021, arXiv:2011.13456, Table 3.

    python -m launch.train experiments/score_sde/ve_ncsnpp_deep_cifar10.py

Eight blocks a level in place of four, the deep networks of appendix H. The
paper's best samples.
Published: FID 2.20, IS 9.89 (best checkpoint, predictor-corrector).
Official setting: yang-song/score_sde, configs/ve/cifar10_ncsnpp_deep_continuous.py, at
commit 0acb9e0e. Every value below is theirs. Ours: ?
Parameters: 107,587,075.
"""

from dataclasses import replace

from experiments.score_sde import ve_ncsnpp_cifar10
from research.experiment import Experiment, Published


def experiment(num_steps: int = 950_000, batch_size: int = 128) -> Experiment:
    """The published setting."""
    base = ve_ncsnpp_cifar10.experiment(num_steps, batch_size)
    network = replace(base.task.network, num_res_blocks=8)
    return replace(
        base,
        task=replace(base.task, network=network),
        num_params=107_587_075,
        published=(
            Published("fid", 2.20, "Table 3, best checkpoint"),
            Published("inception_score", 9.89, "Table 3, best checkpoint"),
        ),
    )
