"""Swin-T on ImageNet-1K after ImageNet-22K: microsoft/Swin-Transformer, MODELHUB.md.

    python -m launch.train experiments/swin/swin_t_imagenet22k_imagenet1k.py

swin_b_imagenet22k_imagenet1k at another size, from the run of swin_t_imagenet22k.
Published: top-1 80.9, top-5 96.0; 4.5 G multiply-adds. Ours: ?
Official setting: configs/swin/swin_tiny_patch4_window7_224_22kto1k_finetune.yaml.
Parameters: 28,288,354.
"""

from experiments.swin import swin_b_imagenet22k_imagenet1k as base
from research.experiment import Experiment
from research.train.start import Fitted, FromRun


def experiment(
    num_steps: int = base.NUM_STEPS,
    batch_size: int = 1024,
    images: str = "",
    model: str = "runs/swin_t_imagenet22k",
    dtype: str = "bfloat16",
) -> Experiment:
    """The published setting; `model` is the workdir of the run before."""
    return base.of(
        base.base.TINY(drop_path_rate=0.1, image_size=224, dtype=dtype),
        start=Fitted(FromRun(model), fresh=base.NEW_HEAD),
        num_steps=num_steps,
        batch_size=batch_size,
        images=images,
        num_params=28_288_354,
        published=base.base.top(0.809, 0.96),
    )
