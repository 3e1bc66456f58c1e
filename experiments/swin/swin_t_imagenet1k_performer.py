"""Swin-T with Performer's attention on ImageNet-1K: Liu et al. 2021, Table 6.

    python -m launch.train experiments/swin/swin_t_imagenet1k_performer.py

swin_t_imagenet1k whose attention is that of the Performer over the whole map: one
window, not shifted, and no bias, which no product of features can have (arXiv:
2103.14030, section 4.4, and Choromanski et al. 2021, arXiv:2009.14794).
Published: top-1 79.0, and 81.3 with shifted windows; of the setting nothing but that.
Random features are of Performer's default number here. Ours: ?
Parameters: 28,265,032, those of swin_t_imagenet1k_nopos.
"""

from functools import partial

from experiments.swin import swin_t_imagenet1k as base
from research.experiment import Experiment, Published
from research.layers.cores import Performer
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
            window_size=(56, 28, 14, 7),
            attention=partial(WindowAttention, core=Performer(), position=None),
            drop_path_rate=0.2,
            image_size=224,
            dtype=dtype,
        ),
        num_steps=num_steps,
        batch_size=batch_size,
        images=images,
        no_decay=(),
        num_params=28_265_032,
        published=(Published("val/top1", 0.790, "Liu et al. 2021, Table 6"),),
    )
