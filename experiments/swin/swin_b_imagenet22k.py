"""Swin-B on ImageNet-22K: Liu et al. 2021, arXiv:2103.14030, Table 1b, before the rest.

    python -m launch.train experiments/swin/swin_b_imagenet22k.py --with images=FOLDER

14,197,122 images (Fall 2011) in a folder with train/CLASS/, of 21,841 classes.
Published: no number of its own; swin_b_imagenet22k_imagenet1k goes on from it. Ours: ?
Official setting: microsoft/Swin-Transformer, configs/swin/
swin_base_patch4_window7_224_22k.yaml: 90 epochs with a batch of 4096, 5 to warm up.
Where paper and code differ: the rate falls in a half cosine in the code, as here, and
linearly in the paper; weight decay is 0.05, and 0.01 in the paper; clipping as in
swin_t_imagenet1k.
Differs: as swin_t_imagenet1k; and theirs leaves some images aside for validation.
Parameters: 109,130,249, with a head of 21,841 classes.
"""

from dataclasses import replace

from experiments.swin import swin_t_imagenet1k as base
from research.data.augment import imagenet
from research.data.loader import Data
from research.data.sources import ImageFolder
from research.experiment import Experiment
from research.models.swin import Swin
from research.train.checkpoints import Checkpoints
from research.train.optimizers import AdamW
from research.train.schedules import Cosine, Warmup

NUM_CLASSES = 21_841
NUM_STEPS = 90 * 3466
"""90 epochs of batches of 4096; what is left of an epoch is dropped."""


def experiment(
    images: str = "~/data/twelvefold/imagenet22k",
    num_steps: int = NUM_STEPS,
    batch_size: int = 4096,
    dtype: str = "bfloat16",
) -> Experiment:
    """The published setting."""
    return of(
        base.BASE(drop_path_rate=0.2, image_size=224, dtype=dtype),
        images=images,
        num_steps=num_steps,
        batch_size=batch_size,
        num_params=109_130_249,
    )


def of(
    backbone: Swin,
    *,
    images: str,
    num_steps: int,
    batch_size: int,
    num_params: int,
    resolution: int = 224,
    weight_decay: float = 0.05,
) -> Experiment:
    """The setting of pre-training on ImageNet-22K, with another backbone.

    Args:
      backbone: for images of `resolution`.
      images: a folder with train/CLASS/.
      num_steps: of batches of 4096; an eighteenth warms up.
      batch_size: the rates are in proportion to it.
      num_params: of all, the head included.
      resolution: the side of an image.
      weight_decay: 0.1 for Swin v2.
    """
    share, warmup_steps = batch_size / 4096, num_steps // 18
    cosine = Cosine(1e-3 * share, num_steps - warmup_steps, end=1e-5 * share)
    like = base.of(backbone, num_params=num_params)
    return replace(
        like,
        task=base.classification(backbone, NUM_CLASSES),
        data=Data(
            train=ImageFolder(f"{images}/train"),
            spec={
                "image": ((resolution, resolution, 3), "uint8"),
                "label": ((), "int32"),
            },
            batch_size=batch_size,
            transforms=imagenet(resolution),
            num_workers=8,
        ),
        optimizer=AdamW(
            Warmup(cosine, warmup_steps, initial=1e-6 * share),
            weight_decay=weight_decay,
            no_decay=("/position/",),
            clip_norm=5.0,
        ),
        num_steps=num_steps,
        evals={},
        checkpoints=Checkpoints(every=3466, keep_last=2),
    )
