"""NCSN++ (VE, discrete) on CIFAR-10: Song et al. 2021, arXiv:2011.13456, Table 3.

    python -m launch.train experiments/score_sde/ve_ncsnpp_discrete_cifar10.py

ve_ncsnpp_cifar10 trained at 1000 levels, told their index, the noisiest 0.
Published: FID 2.45, IS 9.73 (best checkpoint, predictor-corrector).
Official setting: yang-song/score_sde, configs/ve/cifar10_ncsnpp.py, at commit 0acb9e0e.
Every value below is theirs. Ours: ?
Parameters: 62,693,251.
"""

from dataclasses import replace
from functools import partial

from experiments.score_sde import ve_ncsnpp_cifar10
from research.diffusion.parameterizations import Level
from research.experiment import Experiment, Published
from research.layers.embeddings import SinusoidalEmbedding
from research.tasks.score_matching import UniformLevels


def experiment(num_steps: int = 1_300_000, batch_size: int = 128) -> Experiment:
    """The published setting."""
    base = ve_ncsnpp_cifar10.experiment(num_steps, batch_size)
    return replace(
        base,
        task=replace(
            base.task,
            network=replace(
                base.task.network,
                time_embedding=partial(SinusoidalEmbedding, scale=1.0),
            ),
            times=UniformLevels(1000),
            condition=Level(1000),
        ),
        num_params=62_693_251,
        published=(
            Published("fid", 2.45, "Table 3, best checkpoint"),
            Published("inception_score", 9.73, "Table 3, best checkpoint"),
        ),
    )
