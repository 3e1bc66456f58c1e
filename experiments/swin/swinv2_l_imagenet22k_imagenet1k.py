"""Swin v2-L on ImageNet-1K after ImageNet-22K: Liu et al. 2022, arXiv:2111.09883.

    python -m launch.train experiments/swin/swinv2_l_imagenet22k_imagenet1k.py
    python -m launch.train experiments/swin/swinv2_l_imagenet22k_imagenet1k.py \
        --with resolution=384

swin_l_imagenet22k_imagenet1k with the blocks of Swin v2, from swinv2_l_imagenet22k: the
windows of 12 pixels grow to a sixteenth of the image, and the network of positions goes
on to be told distances in parts of those that it was trained with.
Published in microsoft/Swin-Transformer, MODELHUB.md: at 256 pixels top-1 86.9, top-5
98.0 and 47.5 G multiply-adds; at 384 87.6, 98.3 and 115.4 G. Ours: ?
Official settings: configs/swinv2/
swinv2_large_patch4_window12to16_192to256_22kto1k_ft.yaml and
swinv2_large_patch4_window12to24_192to384_22kto1k_ft.yaml.
Differs: as swin_b_imagenet22k_imagenet1k.
Parameters: 196,739,932, whatever the windows.
"""

from experiments.swin import swinv2_b_imagenet22k_imagenet1k as base
from research.experiment import Experiment


def experiment(
    num_steps: int = base.base.NUM_STEPS,
    batch_size: int = 1024,
    resolution: int = 256,
    images: str = "",
    model: str = "runs/swinv2_l_imagenet22k",
    dtype: str = "bfloat16",
) -> Experiment:
    """The published setting; `model` is the workdir of the run before."""
    return base.of(
        base.sizes.LARGE,
        num_params=196_739_932,
        tops={256: (0.869, 0.98), 384: (0.876, 0.983)},
        num_steps=num_steps,
        batch_size=batch_size,
        resolution=resolution,
        images=images,
        model=model,
        dtype=dtype,
    )
