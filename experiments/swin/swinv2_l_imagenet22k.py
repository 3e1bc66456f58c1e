"""Swin v2-L on ImageNet-22K: Liu et al. 2022, arXiv:2111.09883.

    python -m launch.train experiments/swin/swinv2_l_imagenet22k.py --with images=FOLDER

swin_l_imagenet22k with the blocks of Swin v2, on images of 192 pixels with windows of
12 and twice the weight decay.
Published: no number of its own; swinv2_l_imagenet22k_imagenet1k goes on from it. Ours:
?
Official setting: microsoft/Swin-Transformer, configs/swinv2/
swinv2_large_patch4_window12_192_22k.yaml.
Parameters: 228,772,549, with a head of 21,841 classes.
"""

from experiments.swin import swinv2_b_imagenet22k as base
from research.experiment import Experiment


def experiment(
    images: str = "~/data/twelvefold/imagenet22k",
    num_steps: int = base.base.NUM_STEPS,
    batch_size: int = 4096,
    dtype: str = "bfloat16",
) -> Experiment:
    """The published setting."""
    return base.of(
        base.sizes.LARGE,
        num_params=228_772_549,
        images=images,
        num_steps=num_steps,
        batch_size=batch_size,
        dtype=dtype,
    )
