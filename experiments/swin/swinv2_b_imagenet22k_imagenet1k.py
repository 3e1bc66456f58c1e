"""Swin v2-B on ImageNet-1K after ImageNet-22K: Liu et al. 2022, arXiv:2111.09883.

    python -m launch.train experiments/swin/swinv2_b_imagenet22k_imagenet1k.py
    python -m launch.train experiments/swin/swinv2_b_imagenet22k_imagenet1k.py \
        --with resolution=384

swin_b_imagenet22k_imagenet1k with the blocks of Swin v2, from swinv2_b_imagenet22k: the
windows of 12 pixels grow to a sixteenth of the image, and the network of positions goes
on to be told distances in parts of those that it was trained with.
Published in microsoft/Swin-Transformer, MODELHUB.md: at 256 pixels top-1 86.2, top-5
97.9 and 21.8 G multiply-adds; at 384 87.1, 98.2 and 54.7 G. Ours: ?
Official settings: configs/swinv2/
swinv2_base_patch4_window12to16_192to256_22kto1k_ft.yaml and
swinv2_base_patch4_window12to24_192to384_22kto1k_ft.yaml.
Differs: as swin_b_imagenet22k_imagenet1k.
Parameters: 87,918,816, whatever the windows.
"""

from functools import partial

from experiments.swin import swin_b_imagenet22k_imagenet1k as base
from research.experiment import Experiment
from research.models.swin import Swin, swin_v2
from research.train.start import Fitted, FromRun

sizes = base.base
"""Where TINY, SMALL, BASE and LARGE are."""


def experiment(
    num_steps: int = base.NUM_STEPS,
    batch_size: int = 1024,
    resolution: int = 256,
    images: str = "",
    model: str = "runs/swinv2_b_imagenet22k",
    dtype: str = "bfloat16",
) -> Experiment:
    """The published setting; `model` is the workdir of the run before."""
    return of(
        sizes.BASE,
        num_params=87_918_816,
        tops={256: (0.862, 0.979), 384: (0.871, 0.982)},
        num_steps=num_steps,
        batch_size=batch_size,
        resolution=resolution,
        images=images,
        model=model,
        dtype=dtype,
    )


def of(
    size: partial[Swin],
    *,
    num_params: int,
    tops: dict[int, tuple[float, float]],
    num_steps: int,
    batch_size: int,
    resolution: int,
    images: str,
    model: str,
    dtype: str,
) -> Experiment:
    """The setting of fine-tuning Swin v2 on ImageNet-1K, for another size of the model.

    Args:
      size: of `sizes`.
      num_params: of all, the head included.
      tops: top-1 and top-5 that the official repository gives, at 256 and 384 pixels.
      num_steps: of batches of 1024; a sixth warms up.
      batch_size: the rates are in proportion to it.
      resolution: the side of an image.
      images: a folder; empty is TFDS.
      model: the workdir of the run before.
      dtype: of the computation.
    """
    large = resolution > 256
    return base.of(
        swin_v2(
            **size.keywords,
            window_size=resolution // 16,
            trained_window_sizes=(12, 12, 12, 6),
            drop_path_rate=0.2,
            image_size=resolution,
            dtype=dtype,
        ),
        start=Fitted(FromRun(model), fresh=base.NEW_HEAD),
        num_steps=num_steps,
        batch_size=batch_size,
        resolution=resolution,
        images=images,
        # At 256 pixels the middle is looked at, at 384 the whole image.
        crops=None if large else base.base.crops(resolution),
        num_params=num_params,
        published=base.base.top(*tops[384 if large else 256]),
    )
