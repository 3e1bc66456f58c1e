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

from experiments.swin import swin_t_imagenet1k as base
from research.experiment import Experiment
from research.models.swin import swin_v2

TOPS = {8: (0.842, 0.969), 16: (0.846, 0.97)}
"""Top-1 and top-5, by the size of the windows."""


def experiment(
    num_steps: int = base.NUM_STEPS,
    batch_size: int = 1024,
    window_size: int = 8,
    images: str = "",
    dtype: str = "bfloat16",
) -> Experiment:
    """The published setting."""
    return base.of(
        swin_v2(
            **base.BASE.keywords,
            window_size=window_size,
            drop_path_rate=0.5,
            image_size=256,
            dtype=dtype,
        ),
        num_steps=num_steps,
        batch_size=batch_size,
        images=images,
        resolution=256,
        rows=64,
        num_params=87_918_816,
        published=base.top(*TOPS[window_size]) if window_size in TOPS else (),
    )
