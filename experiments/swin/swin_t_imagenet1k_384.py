"""Swin-T on larger images of ImageNet-1K: Liu et al. 2021, arXiv:2103.14030, Table 8.

    python -m launch.train experiments/swin/swin_t_imagenet1k_384.py
    python -m launch.train experiments/swin/swin_t_imagenet1k_384.py \
        --with resolution=320

swin_b_imagenet22k_imagenet1k from the run of swin_t_imagenet1k, whose head stays.
Published: top-1 81.6 at 256 pixels, 82.1 at 320, 82.2 at 384. Ours: ?
The paper tells no more of the setting than that larger models are fine-tuned; windows
of a 32nd of the image keep their number, and drop path is that of swin_t_imagenet1k,
as in the official configs/swin/swin_base_patch4_window12_384_finetune.yaml.
Parameters: 28,288,354 and what tables of larger windows have more.
"""

from experiments.swin import swin_b_imagenet22k_imagenet1k as base
from research.experiment import Experiment, Published
from research.models.swin import resize
from research.train.start import Fitted, FromRun

TOP1 = {
    256: 0.816,
    320: 0.821,
    384: 0.822,
}
"""Of Table 8, by the side of an image."""


def experiment(
    num_steps: int = base.NUM_STEPS,
    batch_size: int = 1024,
    resolution: int = 384,
    images: str = "",
    model: str = "runs/swin_t_imagenet1k",
    dtype: str = "bfloat16",
) -> Experiment:
    """The published setting; `model` is the workdir of the run before."""
    window_size = resolution // 32
    # Each of the tables has a number for every distance and head.
    added = ((2 * window_size - 1) ** 2 - 13**2) * 138
    return base.of(
        base.base.TINY(
            window_size=window_size,
            drop_path_rate=0.2,
            image_size=resolution,
            dtype=dtype,
        ),
        start=Fitted(FromRun(model), fit=resize),
        num_steps=num_steps,
        batch_size=batch_size,
        resolution=resolution,
        images=images,
        num_params=28_288_354 + added,
        published=(Published("val/top1", TOP1[resolution], "Liu et al. 2021, Table 8"),)
        if resolution in TOP1
        else (),
    )
