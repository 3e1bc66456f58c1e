"""Swin-T on larger images of ImageNet-1K: Liu et al. 2021, arXiv:2103.14030, Table 8.

    python -m launch.train experiments/swin/swin_t_imagenet1k_384.py
    python -m launch.train experiments/swin/swin_t_imagenet1k_384.py \
        --with resolution=320

swin_b_imagenet22k_imagenet1k from the run of swin_t_imagenet1k, whose head stays.
Published: top-1 81.6 at 256 pixels, 82.1 at 320, 82.2 at 384. Ours: ?
The paper tells no more of the setting than that larger models are fine-tuned; windows
of a 32nd of the image keep their number, and drop path is that of swin_t_imagenet1k,
as in the official configs/swin/swin_base_patch4_window12_384_finetune.yaml.
Parameters: 28,288,354 and what tables of larger windows have more.
"""

from functools import partial

from experiments.swin import swin_b_imagenet22k_imagenet1k as base
from research.experiment import Experiment, Published
from research.models.swin import Swin, resize
from research.train.start import Fitted, FromRun

sizes = base.base
"""Where TINY, SMALL, BASE and LARGE are."""


def experiment(
    num_steps: int = base.NUM_STEPS,
    batch_size: int = 1024,
    resolution: int = 384,
    images: str = "",
    model: str = "runs/swin_t_imagenet1k",
    dtype: str = "bfloat16",
) -> Experiment:
    """The published setting; `model` is the workdir of the run before."""
    return of(
        sizes.TINY,
        drop_path_rate=0.2,
        num_params=28_288_354,
        top1={256: 0.816, 320: 0.821, 384: 0.822},
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
    drop_path_rate: float,
    num_params: int,
    top1: dict[int, float],
    num_steps: int,
    batch_size: int,
    resolution: int,
    images: str,
    model: str,
    dtype: str,
) -> Experiment:
    """The setting of larger images, for another size of the model.

    Args:
      size: of `sizes`.
      drop_path_rate: of the last block.
      num_params: with windows of 7, the head included.
      top1: of the table's row, by the side of an image.
      num_steps: of batches of 1024; a sixth warms up.
      batch_size: the rates are in proportion to it.
      resolution: the side of an image.
      images: a folder; empty is TFDS.
      model: the workdir of the run before.
      dtype: of the computation.
    """
    window_size = resolution // 32
    backbone = size(
        window_size=window_size,
        drop_path_rate=drop_path_rate,
        image_size=resolution,
        dtype=dtype,
    )
    # Each of the tables has a number for every distance and head.
    heads = sum(
        depth * heads
        for depth, heads in zip(backbone.depths, backbone.num_heads, strict=True)
    )
    added = ((2 * window_size - 1) ** 2 - 13**2) * heads
    return base.of(
        backbone,
        start=Fitted(FromRun(model), fit=resize),
        num_steps=num_steps,
        batch_size=batch_size,
        resolution=resolution,
        images=images,
        num_params=num_params + added,
        published=(Published("val/top1", top1[resolution], "Liu et al. 2021, Table 8"),)
        if resolution in top1
        else (),
    )
