"""Swin v2-B on ImageNet-22K: Liu et al. 2022, arXiv:2111.09883.

    python -m launch.train experiments/swin/swinv2_b_imagenet22k.py --with images=FOLDER

swin_b_imagenet22k with the blocks of Swin v2, on images of 192 pixels with windows of
12 and twice the weight decay.
Published: no number of its own; swinv2_b_imagenet22k_imagenet1k goes on from it. Ours:
?
Official setting: microsoft/Swin-Transformer, configs/swinv2/
swinv2_base_patch4_window12_192_22k.yaml.
Parameters: 109,280,841, with a head of 21,841 classes.
"""

from functools import partial

from experiments.swin import swin_b_imagenet22k as base
from research.experiment import Experiment
from research.models.swin import Swin, swin_v2

sizes = base.base
"""Where TINY, SMALL, BASE and LARGE are."""


def experiment(
    images: str = "~/data/twelvefold/imagenet22k",
    num_steps: int = base.NUM_STEPS,
    batch_size: int = 4096,
    dtype: str = "bfloat16",
) -> Experiment:
    """The published setting."""
    return of(
        sizes.BASE,
        num_params=109_280_841,
        images=images,
        num_steps=num_steps,
        batch_size=batch_size,
        dtype=dtype,
    )


def of(
    size: partial[Swin],
    *,
    num_params: int,
    images: str,
    num_steps: int,
    batch_size: int,
    dtype: str,
) -> Experiment:
    """The setting of Swin v2 on ImageNet-22K, for another size of the model.

    Args:
      size: of `sizes`.
      num_params: of all, the head included.
      images: a folder with train/CLASS/.
      num_steps: of batches of 4096; an eighteenth warms up.
      batch_size: the rates are in proportion to it.
      dtype: of the computation.
    """
    return base.of(
        swin_v2(
            **size.keywords,
            window_size=12,
            drop_path_rate=0.2,
            image_size=192,
            dtype=dtype,
        ),
        images=images,
        num_steps=num_steps,
        batch_size=batch_size,
        num_params=num_params,
        resolution=192,
        weight_decay=0.1,
    )
