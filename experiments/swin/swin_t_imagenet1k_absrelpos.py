"""Swin-T with both kinds of positions on ImageNet-1K: Liu et al. 2021, Table 4.

    python -m launch.train experiments/swin/swin_t_imagenet1k_absrelpos.py

swin_t_imagenet1k with a learnt vector for each place of the first map, added to it,
beside the bias of distances (arXiv:2103.14030, section 4.4).
Published: top-1 81.3, as without the vectors. Ours: ?
Parameters: 28,589,410: 301,056 more, of the 56x56 vectors.
"""

from functools import partial

from experiments.swin import swin_t_imagenet1k as base
from research.experiment import Experiment, Published
from research.models.swin import MapPosition


def experiment(
    num_steps: int = base.NUM_STEPS,
    batch_size: int = 1024,
    images: str = "",
    dtype: str = "bfloat16",
) -> Experiment:
    """The published setting."""
    return base.of(
        base.TINY(
            absolute=partial(MapPosition, (56, 56)),
            drop_path_rate=0.2,
            image_size=224,
            dtype=dtype,
        ),
        num_steps=num_steps,
        batch_size=batch_size,
        images=images,
        no_decay=("/position/", "absolute/"),
        num_params=28_589_410,
        published=(Published("val/top1", 0.813, "Liu et al. 2021, Table 4"),),
    )
