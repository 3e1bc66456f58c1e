"""Swin-T on ImageNet-22K: microsoft/Swin-Transformer, MODELHUB.md.

    python -m launch.train experiments/swin/swin_t_imagenet22k.py --with images=FOLDER

swin_b_imagenet22k at another size.
Published: no number of its own; swin_t_imagenet22k_imagenet1k goes on from it. Ours: ?
Official setting: configs/swin/swin_tiny_patch4_window7_224_22k.yaml.
Parameters: 44,315,083, with a head of 21,841 classes.
"""

from experiments.swin import swin_b_imagenet22k as base
from research.experiment import Experiment


def experiment(
    images: str = "~/data/twelvefold/imagenet22k",
    num_steps: int = base.NUM_STEPS,
    batch_size: int = 4096,
    dtype: str = "bfloat16",
) -> Experiment:
    """The published setting."""
    return base.of(
        base.base.TINY(drop_path_rate=0.1, image_size=224, dtype=dtype),
        images=images,
        num_steps=num_steps,
        batch_size=batch_size,
        num_params=44_315_083,
    )
