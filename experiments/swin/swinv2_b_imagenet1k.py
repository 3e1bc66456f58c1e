"""Swin v2-B on ImageNet-1K: Liu et al. 2022, arXiv:2111.09883, and MODELHUB.md.

    python -m launch.train experiments/swin/swinv2_b_imagenet1k.py
    python -m launch.train experiments/swin/swinv2_b_imagenet1k.py --with window_size=16

swin_b_imagenet1k with the blocks of Swin v2, on images of 256 pixels.
Published (microsoft/Swin-Transformer, MODELHUB.md): with windows of 8 top-1 84.2, top-5
96.9 and 20.3 G multiply-adds; of 16 84.6, 97.0 and 21.8 G. Ours: ?
Official settings: configs/swinv2/swinv2_base_patch4_window8_256.yaml and
swinv2_base_patch4_window16_256.yaml.
Differs: as swin_t_imagenet1k.
Parameters: 87,918,816, whatever the windows.
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
        base.base.BASE,
        drop_path_rate=0.5,
        num_params=87_918_816,
        tops={8: (0.842, 0.969), 16: (0.846, 0.97)},
        num_steps=num_steps,
        batch_size=batch_size,
        window_size=window_size,
        images=images,
        rows=64,
        dtype=dtype,
    )
