"""Swin-S on ImageNet-1K: Liu et al. 2021, arXiv:2103.14030, Table 1a.

    python -m launch.train experiments/swin/swin_s_imagenet1k.py

swin_t_imagenet1k with 18 blocks in the third stage, of which more are dropped.
Published: top-1 83.0 in the paper, 83.2 in the official repository, and top-5 96.2
there; 8.7 G multiply-adds. Ours: ?
Official setting: configs/swin/swin_small_patch4_window7_224.yaml.
Parameters: 49,606,258, as published.
"""

from experiments.swin import swin_t_imagenet1k as base
from research.experiment import Experiment, Published


def experiment(
    num_steps: int = base.NUM_STEPS,
    batch_size: int = 1024,
    images: str = "",
    dtype: str = "bfloat16",
) -> Experiment:
    """The published setting."""
    return base.of(
        base.SMALL(drop_path_rate=0.3, image_size=224, dtype=dtype),
        num_steps=num_steps,
        batch_size=batch_size,
        images=images,
        num_params=49_606_258,
        published=(
            Published("val/top1", 0.830, base.PAPER),
            Published("val/top1", 0.832, base.REPOSITORY),
            Published("val/top5", 0.962, base.REPOSITORY),
        ),
    )
