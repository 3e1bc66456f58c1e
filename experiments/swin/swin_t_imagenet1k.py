"""Swin-T on ImageNet-1K: Liu et al. 2021, arXiv:2103.14030, Table 1a.

    python -m launch.prepare experiments/swin/swin_t_imagenet1k.py
    python -m launch.train experiments/swin/swin_t_imagenet1k.py

Images are TFDS's `imagenet2012` or, with `--with images=FOLDER`, those of a folder with
train/CLASS/ and val/CLASS/.
Published: top-1 81.3 in the paper, 81.2 in the official README, and top-5 95.5 there;
4.5 G multiply-adds. Ours: ?
Official setting: microsoft/Swin-Transformer, configs/swin/
swin_tiny_patch4_window7_224.yaml and config.py at commit 00f28005: 300 epochs with a
batch of 1024, 20 of them to warm up; eight processes of 128 images.
Where paper and code differ: gradients are clipped to a norm of 5 in the code, as here,
and of 1 in the paper's appendix A2.1.
Differs: bfloat16 where theirs computes in float16; see also `RandomErasing`,
`MixupCutMix` and `WindowAttention`.
Parameters: 28,288,354, as published. The siblings of this file say what they change.
"""

from functools import partial

from research.data.augment import IMAGENET_MEAN, IMAGENET_STD, imagenet
from research.data.loader import Data
from research.data.sources import ImageFolder, Source, Tfds
from research.data.transforms import CenterCrop, Resize, Transform
from research.evals.accuracy import Accuracy
from research.experiment import Experiment, Published
from research.models.image_classifier import ImageClassifier
from research.models.swin import Swin
from research.tasks.image_classification import ImageClassification, MixupCutMix
from research.train.checkpoints import Checkpoints
from research.train.optimizers import AdamW
from research.train.schedules import Cosine, Warmup

TINY = partial(Swin, embed_dim=96, depths=(2, 2, 6, 2), num_heads=(3, 6, 12, 24))
SMALL = partial(Swin, embed_dim=96, depths=(2, 2, 18, 2), num_heads=(3, 6, 12, 24))
BASE = partial(Swin, embed_dim=128, depths=(2, 2, 18, 2), num_heads=(4, 8, 16, 32))
LARGE = partial(Swin, embed_dim=192, depths=(2, 2, 18, 2), num_heads=(6, 12, 24, 48))

PAPER = "Liu et al. 2021, Table 1"
REPOSITORY = "microsoft/Swin-Transformer, MODELHUB.md"

NUM_STEPS = 300 * 1251
"""300 epochs of batches of 1024; what is left of an epoch is dropped."""


def experiment(
    num_steps: int = NUM_STEPS,
    batch_size: int = 1024,
    images: str = "",
    dtype: str = "bfloat16",
) -> Experiment:
    """The published setting."""
    return of(
        TINY(drop_path_rate=0.2, image_size=224, dtype=dtype),
        num_steps=num_steps,
        batch_size=batch_size,
        images=images,
        num_params=28_288_354,
        published=(
            Published("val/top1", 0.813, PAPER),
            Published("val/top1", 0.812, REPOSITORY),
            Published("val/top5", 0.955, REPOSITORY),
        ),
    )


def of(
    backbone: Swin,
    *,
    num_params: int,
    num_steps: int = NUM_STEPS,
    batch_size: int = 1024,
    images: str = "",
    resolution: int = 224,
    rows: int = 128,
    no_decay: tuple[str, ...] = ("/position/",),
    published: tuple[Published, ...] = (),
) -> Experiment:
    """The setting of training from scratch on ImageNet-1K, with another backbone.

    Args:
      backbone: for images of `resolution`.
      num_params: of all, the head included.
      num_steps: of batches of 1024; a fifteenth warms up.
      batch_size: the rates are in proportion to it.
      images: a folder; empty is TFDS.
      resolution: the side of an image.
      rows: that share one draw of mixup and CutMix: the batch of one process of theirs.
      no_decay: patterns of tables that lose no weight, besides biases and norms.
      published: of the table's row.
    """
    share, warmup_steps = batch_size / 1024, num_steps // 15
    cosine = Cosine(1e-3 * share, num_steps - warmup_steps, end=1e-5 * share)
    return Experiment(
        task=classification(backbone, rows=rows),
        data=imagenet1k(images, resolution, batch_size, crops(resolution)),
        optimizer=AdamW(
            Warmup(cosine, warmup_steps, initial=1e-6 * share),
            weight_decay=0.05,
            no_decay=no_decay,
            clip_norm=5.0,
        ),
        num_steps=num_steps,
        evals={"val": Accuracy(split="val", batch_size=512, every=12_510)},
        checkpoints=Checkpoints(every=2_502, keep_last=2),
        num_params=num_params,
        published=published,
    )


def top(top1: float, top5: float) -> tuple[Published, ...]:
    """Accuracies that the official repository gives."""
    return (
        Published("val/top1", top1, REPOSITORY),
        Published("val/top5", top5, REPOSITORY),
    )


def classification(
    backbone: Swin, num_classes: int = 1000, rows: int = 128
) -> ImageClassification:
    """The task of all rows of the table."""
    return ImageClassification(
        ImageClassifier(backbone, num_classes, dtype=backbone.dtype),
        num_classes,
        IMAGENET_MEAN,
        IMAGENET_STD,
        smoothing=0.1,
        mix=MixupCutMix(mixup=0.8, cutmix=1.0, prob=1.0, switch_prob=0.5, rows=rows),
    )


def crops(resolution: int) -> tuple[Transform, ...]:
    """The middle of an image, as much of it as 224 are of 256 pixels."""
    return (Resize(resolution * 256 // 224), CenterCrop(resolution))


def imagenet1k(
    images: str,
    resolution: int,
    batch_size: int,
    eval_transforms: tuple[Transform, ...],
) -> Data:
    """ImageNet-1K with the augmentation of the official code, from a folder or TFDS."""

    def source(split: str, name: str) -> Source:
        if images:
            return ImageFolder(f"{images}/{split}")
        return Tfds("imagenet2012", split=name)

    return Data(
        train=source("train", "train"),
        eval={"val": source("val", "validation")},
        spec={"image": ((resolution, resolution, 3), "uint8"), "label": ((), "int32")},
        batch_size=batch_size,
        transforms=imagenet(resolution),
        eval_transforms=eval_transforms,
        num_workers=8,
    )
