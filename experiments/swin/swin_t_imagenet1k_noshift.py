"""Swin-T without shifted windows on ImageNet-1K: Liu et al. 2021, Table 4.

    python -m launch.train experiments/swin/swin_t_imagenet1k_noshift.py

swin_t_imagenet1k, whose windows stay in their places: no token ever sees another
window's before stages merge (arXiv:2103.14030, section 4.4).
Published: top-1 80.2, and 81.3 with shifts. Ours: ?
Parameters: 28,288,354, those of swin_t_imagenet1k.
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
        base.TINY(shifts=(0.0,), drop_path_rate=0.2, image_size=224, dtype=dtype),
        num_steps=num_steps,
        batch_size=batch_size,
        images=images,
        num_params=28_288_354,
        published=(Published("val/top1", 0.802, "Liu et al. 2021, Table 4"),),
    )
