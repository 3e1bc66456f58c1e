"""Swin-T without positions on ImageNet-1K: Liu et al. 2021, Table 4.

    python -m launch.train experiments/swin/swin_t_imagenet1k_nopos.py

swin_t_imagenet1k without a bias of distances (arXiv:2103.14030, section 4.4).
Published: top-1 80.1, and 81.3 with it. Ours: ?
Parameters: 28,265,032, less the 23,322 of the biases' tables.
"""

from functools import partial

from experiments.swin import swin_t_imagenet1k as base
from research.experiment import Experiment, Published
from research.layers.windows import WindowAttention


def experiment(
    num_steps: int = base.NUM_STEPS,
    batch_size: int = 1024,
    images: str = "",
    dtype: str = "bfloat16",
) -> Experiment:
    """The published setting."""
    return base.of(
        base.TINY(
            attention=partial(WindowAttention, position=None),
            drop_path_rate=0.2,
            image_size=224,
            dtype=dtype,
        ),
        num_steps=num_steps,
        batch_size=batch_size,
        images=images,
        no_decay=(),
        num_params=28_265_032,
        published=(Published("val/top1", 0.801, "Liu et al. 2021, Table 4"),),
    )
