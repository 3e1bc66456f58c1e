"""Swin-B on larger images of ImageNet-1K: Liu et al. 2021, arXiv:2103.14030, Table 8.

    python -m launch.train experiments/swin/swin_b_imagenet1k_384.py
    python -m launch.train experiments/swin/swin_b_imagenet1k_384.py \
        --with resolution=320

swin_b_imagenet22k_imagenet1k from the run of swin_b_imagenet1k, whose head stays.
Published: top-1 83.7 at 256 pixels, 84.0 at 320, 84.5 (top-5 97.0, 47.0 G multiply-
adds, 47.1 in the repository) at 384. Ours: ?
Official setting: configs/swin/swin_base_patch4_window12_384_finetune.yaml. For the
other sizes there is none: windows of a 32nd of the image keep their number.
Where paper and code differ: drop path is 0.5 in the code, as here, and 0.1 in the
paper; the rate as in swin_b_imagenet22k_imagenet1k.
Parameters: 87,768,224 and what tables of larger windows have more: 87,903,584 at 384.
"""

from experiments.swin import swin_t_imagenet1k_384 as base
from research.experiment import Experiment


def experiment(
    num_steps: int = base.base.NUM_STEPS,
    batch_size: int = 1024,
    resolution: int = 384,
    images: str = "",
    model: str = "runs/swin_b_imagenet1k",
    dtype: str = "bfloat16",
) -> Experiment:
    """The published setting; `model` is the workdir of the run before."""
    return base.of(
        base.sizes.BASE,
        drop_path_rate=0.5,
        num_params=87_768_224,
        top1={256: 0.837, 320: 0.84, 384: 0.845},
        num_steps=num_steps,
        batch_size=batch_size,
        resolution=resolution,
        images=images,
        model=model,
        dtype=dtype,
    )
