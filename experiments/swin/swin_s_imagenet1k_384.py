"""Swin-S on larger images of ImageNet-1K: Liu et al. 2021, arXiv:2103.14030, Table 8.

    python -m launch.train experiments/swin/swin_s_imagenet1k_384.py
    python -m launch.train experiments/swin/swin_s_imagenet1k_384.py \
        --with resolution=320

swin_b_imagenet22k_imagenet1k from the run of swin_s_imagenet1k, whose head stays.
Published: top-1 83.4 at 256 pixels, 83.7 at 320, 83.9 at 384. Ours: ?
The paper tells no more of the setting than that larger models are fine-tuned; windows
of a 32nd of the image keep their number, and drop path is that of swin_s_imagenet1k,
as in the official configs/swin/swin_base_patch4_window12_384_finetune.yaml.
Parameters: 49,606,258 and what tables of larger windows have more.
"""

from experiments.swin import swin_t_imagenet1k_384 as base
from research.experiment import Experiment


def experiment(
    num_steps: int = base.base.NUM_STEPS,
    batch_size: int = 1024,
    resolution: int = 384,
    images: str = "",
    model: str = "runs/swin_s_imagenet1k",
    dtype: str = "bfloat16",
) -> Experiment:
    """The published setting; `model` is the workdir of the run before."""
    return base.of(
        base.sizes.SMALL,
        drop_path_rate=0.3,
        num_params=49_606_258,
        top1={256: 0.834, 320: 0.837, 384: 0.839},
        num_steps=num_steps,
        batch_size=batch_size,
        resolution=resolution,
        images=images,
        model=model,
        dtype=dtype,
    )
