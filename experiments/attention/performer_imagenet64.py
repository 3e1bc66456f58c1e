"""Performer on ImageNet 64x64: Choromanski et al. 2021, arXiv:2009.14794.

    python -m launch.prepare experiments/attention/performer_imagenet64.py
    python -m launch.train experiments/attention/performer_imagenet64.py

reformer_imagenet64 of width 512 with another core, with 256 features
that are drawn anew at each step.
Published: 3.69 bits a dimension after 100,000 steps, with 6 layers (section 4.4).
Ours: ?
Appendix A.2: 8 heads, feed-forward layers of 2048, a rate of 0.001 throughout, dropout
and decay 0.1, clipped to a norm of 0.5.
Differs: the batch, which is told as the largest possible, is of 8 images.
"""

from experiments.attention import reformer_imagenet64 as base
from research.experiment import Experiment
from research.layers.cores import Performer
from research.train.schedules import Constant


def experiment(num_steps: int = 100_000, batch_size: int = 8) -> Experiment:
    """The published setting."""
    return base.of(
        Performer(),
        num_steps,
        batch_size,
        dims=(192, 192, 128),
        mlp_dim=2048,
        learning_rate=Constant(1e-3),
        dropout_rate=0.1,
        weight_decay=0.1,
        clip_norm=0.5,
        bits=(3.69, "arXiv:2009.14794, section 4.4"),
        num_params=19_194_240,
    )
