"""Swin v2-S on ImageNet-1K: Liu et al. 2022, arXiv:2111.09883, and MODELHUB.md.

    python -m launch.train experiments/swin/swinv2_s_imagenet1k.py
    python -m launch.train experiments/swin/swinv2_s_imagenet1k.py --with window_size=16

swin_s_imagenet1k with the blocks of Swin v2, on images of 256 pixels.
Published (microsoft/Swin-Transformer, MODELHUB.md): with windows of 8 top-1 83.7, top-5
96.6 and 11.5 G multiply-adds; of 16 84.1, 96.8 and 12.6 G. Ours: ?
Official settings: configs/swinv2/swinv2_small_patch4_window8_256.yaml and
swinv2_small_patch4_window16_256.yaml.
Differs: as swin_t_imagenet1k.
Parameters: 49,728,418, whatever the windows.
"""

from experiments.swin import swinv2_t_imagenet1k as base
from research.experiment import Experiment


def experiment(
    num_steps: int = base.base.NUM_STEPS,
    batch_size: int = 1024,
    window_size: int = 8,
    images: str = "",
    dtype: str = "bfloat16",
) -> Experiment:
    """The published setting."""
    return base.of(
        base.base.SMALL,
        drop_path_rate=0.3,
        num_params=49_728_418,
        tops={8: (0.837, 0.966), 16: (0.841, 0.968)},
        num_steps=num_steps,
        batch_size=batch_size,
        window_size=window_size,
        images=images,
        dtype=dtype,
    )
