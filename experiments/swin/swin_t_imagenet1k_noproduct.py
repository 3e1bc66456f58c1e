"""Swin-T whose attention is of positions alone: Liu et al. 2021, Table 4.

    python -m launch.train experiments/swin/swin_t_imagenet1k_noproduct.py

swin_t_imagenet1k without the first term of Eq. 4, the product of queries and keys
("rel. pos. w/o app.", arXiv:2103.14030, section 4.4).
Published: top-1 79.3, and 81.3 with the product. Ours: ?
Differs: the projections to queries and keys are there and learn nothing; whether the
published model has them is not told.
Parameters: 28,288,354, those of swin_t_imagenet1k.
"""

from functools import partial

from experiments.swin import swin_t_imagenet1k as base
from research.experiment import Experiment, Published
from research.layers.windows import PositionAlone, WindowAttention


def experiment(
    num_steps: int = base.NUM_STEPS,
    batch_size: int = 1024,
    images: str = "",
    dtype: str = "bfloat16",
) -> Experiment:
    """The published setting."""
    return base.of(
        base.TINY(
            attention=partial(WindowAttention, match=PositionAlone),
            drop_path_rate=0.2,
            image_size=224,
            dtype=dtype,
        ),
        num_steps=num_steps,
        batch_size=batch_size,
        images=images,
        num_params=28_288_354,
        published=(Published("val/top1", 0.793, "Liu et al. 2021, Table 4"),),
    )
