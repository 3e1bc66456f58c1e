"""Swin v2-T on ImageNet-1K: Liu et al. 2022, arXiv:2111.09883, and MODELHUB.md.

    python -m launch.train experiments/swin/swinv2_t_imagenet1k.py
    python -m launch.train experiments/swin/swinv2_t_imagenet1k.py --with window_size=16

swin_t_imagenet1k with the blocks of Swin v2, on images of 256 pixels.
Published (microsoft/Swin-Transformer, MODELHUB.md): with windows of 8 top-1 81.8, top-5
95.9 and 5.9 G multiply-adds; of 16 82.8, 96.2 and 6.6 G. Ours: ?
Official settings: configs/swinv2/swinv2_tiny_patch4_window8_256.yaml and
swinv2_tiny_patch4_window16_256.yaml.
Differs: as swin_t_imagenet1k.
Parameters: 28,347,154, whatever the windows.
"""

from functools import partial

from experiments.swin import swin_t_imagenet1k as base
from research.experiment import Experiment
from research.models.swin import Swin, swin_v2


def experiment(
    num_steps: int = base.NUM_STEPS,
    batch_size: int = 1024,
    window_size: int = 8,
    images: str = "",
    dtype: str = "bfloat16",
) -> Experiment:
    """The published setting."""
    return of(
        base.TINY,
        drop_path_rate=0.2,
        num_params=28_347_154,
        tops={8: (0.818, 0.959), 16: (0.828, 0.962)},
        num_steps=num_steps,
        batch_size=batch_size,
        window_size=window_size,
        images=images,
        dtype=dtype,
    )


def of(
    size: partial[Swin],
    *,
    drop_path_rate: float,
    num_params: int,
    tops: dict[int, tuple[float, float]],
    num_steps: int,
    batch_size: int,
    window_size: int,
    images: str,
    dtype: str,
    rows: int = 128,
) -> Experiment:
    """The setting of Swin v2 on ImageNet-1K, for another size of the model.

    Args:
      size: of those in swin_t_imagenet1k.
      drop_path_rate: of the last block.
      num_params: of all, the head included.
      tops: top-1 and top-5 that the official repository gives, by `window_size`.
      num_steps: of batches of 1024; a fifteenth warms up.
      batch_size: the rates are in proportion to it.
      window_size: of the stages whose maps are as large.
      images: a folder; empty is TFDS.
      dtype: of the computation.
      rows: that share one draw of mixup and CutMix.
    """
    return base.of(
        swin_v2(
            **size.keywords,
            window_size=window_size,
            drop_path_rate=drop_path_rate,
            image_size=256,
            dtype=dtype,
        ),
        num_steps=num_steps,
        batch_size=batch_size,
        images=images,
        resolution=256,
        rows=rows,
        num_params=num_params,
        published=base.top(*tops[window_size]) if window_size in tops else (),
    )
