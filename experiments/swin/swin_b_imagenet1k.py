"""Swin-B on ImageNet-1K: Liu et al. 2021, arXiv:2103.14030, Table 1a.

    python -m launch.train experiments/swin/swin_b_imagenet1k.py

swin_s_imagenet1k with a third more channels, of which half of the last blocks are
dropped. Its processes hold 64 images, and two batches of them for each step.
Published: top-1 83.5 in the table and the official repository, 83.3 in the paper's text
and Table 8; top-5 96.5; 15.4 G multiply-adds. Ours: ?
Official setting: configs/swin/swin_base_patch4_window7_224.yaml.
Parameters: 87,768,224, as published.
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
        base.BASE(drop_path_rate=0.5, image_size=224, dtype=dtype),
        num_steps=num_steps,
        batch_size=batch_size,
        images=images,
        rows=64,
        num_params=87_768_224,
        published=(
            Published("val/top1", 0.835, base.PAPER),
            Published("val/top5", 0.965, base.REPOSITORY),
        ),
    )
