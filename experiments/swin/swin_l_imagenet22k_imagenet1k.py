"""Swin-L on ImageNet-1K after ImageNet-22K: Liu et al. 2021, arXiv:2103.14030, 1b.

    python -m launch.train experiments/swin/swin_l_imagenet22k_imagenet1k.py
    python -m launch.train experiments/swin/swin_l_imagenet22k_imagenet1k.py \
        --with resolution=384

swin_b_imagenet22k_imagenet1k at another size, from the run of swin_l_imagenet22k.
Published: at 224 pixels top-1 86.3, top-5 97.9 and 34.5 G multiply-adds; at 384, with
windows of 12, 87.3, 98.2 and 103.9 G. Ours: ?
Official settings: configs/swin/swin_large_patch4_window7_224_22kto1k_finetune.yaml and
configs/swin/swin_large_patch4_window12_384_22kto1k_finetune.yaml.
Parameters: 196,532,476; 196,735,516 with windows of 12.
"""

from experiments.swin import swin_b_imagenet22k_imagenet1k as base
from research.experiment import Experiment
from research.models.swin import resize
from research.train.start import Fitted, FromRun


def experiment(
    num_steps: int = base.NUM_STEPS,
    batch_size: int = 1024,
    resolution: int = 224,
    images: str = "",
    model: str = "runs/swin_l_imagenet22k",
    dtype: str = "bfloat16",
) -> Experiment:
    """The published setting; `model` is the workdir of the run before."""
    large = resolution > 224
    backbone = base.base.LARGE(
        window_size=12 if large else 7,
        drop_path_rate=0.2,
        image_size=resolution,
        dtype=dtype,
    )
    return base.of(
        backbone,
        start=Fitted(FromRun(model), fit=resize, fresh=base.NEW_HEAD),
        num_steps=num_steps,
        batch_size=batch_size,
        resolution=resolution,
        images=images,
        num_params=196_735_516 if large else 196_532_476,
        published=base.base.top(0.873, 0.982) if large else base.base.top(0.863, 0.979),
    )
