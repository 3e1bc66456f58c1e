"""Swin-T, trained by others, on a folder of images: ants and bees.

    python -m launch.train experiments/swin/swin_t_hymenoptera.py \
        --with images=FOLDER --with model=CHECKPOINT

CHECKPOINT is a folder of Swin-T for 224 pixels as transformers or timm keep it, such as
microsoft/swin-tiny-patch4-window7-224: all of it but the head, which is drawn anew for
the classes at hand. Rates fall by a quarter from a block to the one below it, as in
BEiT's fine-tuning (Bao et al. 2022, arXiv:2106.08254). FOLDER has train/CLASS/ and
val/CLASS/.
Parameters: 27,520,892 with two classes. Ours: ?
"""

from dataclasses import replace

from experiments.swin import swin_b_imagenet22k_imagenet1k as base
from research.data.augment import RandomResizedCrop
from research.data.loader import Data
from research.data.sources import ImageFolder
from research.data.transforms import RandomFlip
from research.evals.accuracy import Accuracy
from research.experiment import Experiment
from research.pretrained.start import FromPretrained
from research.tasks.image_classification import unmixed
from research.train.checkpoints import Checkpoints
from research.train.optimizers import AdamW
from research.train.schedules import Cosine


def experiment(
    num_steps: int = 200,
    batch_size: int = 32,
    images: str = "~/data/twelvefold/hymenoptera",
    model: str = "~/data/twelvefold/swin-tiny-patch4-window7-224",
    num_classes: int = 2,
    layer_factor: float = 0.75,
) -> Experiment:
    """The setting above."""
    backbone = base.base.TINY(drop_path_rate=0.1, image_size=224)
    like = base.base.of(backbone, num_params=27_519_354 + 769 * num_classes)
    task = base.base.classification(backbone, num_classes)
    return replace(
        like,
        task=replace(task, mix=unmixed),
        data=Data(
            train=ImageFolder(f"{images}/train"),
            eval={"val": ImageFolder(f"{images}/val")},
            spec={"image": ((224, 224, 3), "uint8"), "label": ((), "int32")},
            batch_size=batch_size,
            transforms=(RandomResizedCrop(224, scale=(0.35, 1.0)), RandomFlip()),
            eval_transforms=base.base.crops(224),
            num_workers=2,
        ),
        optimizer=AdamW(
            Cosine(1e-3, num_steps=num_steps, warmup_steps=num_steps // 10),
            weight_decay=0.05,
            no_decay=("/position/",),
            rates=base.by_depth(backbone, layer_factor),
            clip_norm=5.0,
        ),
        num_steps=num_steps,
        start=FromPretrained(model, fresh=base.NEW_HEAD),
        evals={"val": Accuracy(split="val", batch_size=32)},
        checkpoints=Checkpoints(every=0, keep_last=1),
        log_every=20,
    )
