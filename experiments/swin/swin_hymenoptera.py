"""A small Swin Transformer on photographs of ants and bees, from scratch.

    python -m launch.train experiments/swin/swin_hymenoptera.py --with images=FOLDER

The path of swin_t_imagenet1k.py, JPEGs and their augmentation included: crops of any
size, flips and colours, 28x28 patches of 4x4 pixels, three stages of two blocks with
windows of 7. FOLDER has train/CLASS/ and val/CLASS/, such as the 244 and 153 images of
PyTorch's tutorial on transfer learning; swin_t_hymenoptera.py is such a transfer.
Required beforehand: more than 0.60 of the held-out images right, where always to say
"bees" is right for 0.54.
Parameters: 570,526. Ours: 0.719
"""

from dataclasses import replace

from experiments.swin import swin_fashion_mnist
from research.data.augment import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    ColorJitter,
    RandomResizedCrop,
)
from research.data.loader import Data
from research.data.sources import ImageFolder
from research.data.transforms import CenterCrop, RandomFlip, Resize
from research.evals.accuracy import Accuracy
from research.experiment import Experiment, Required
from research.models.image_classifier import ImageClassifier
from research.models.swin import Swin
from research.train.optimizers import AdamW
from research.train.schedules import Cosine


def experiment(
    num_steps: int = 800,
    batch_size: int = 32,
    images: str = "~/data/twelvefold/hymenoptera",
) -> Experiment:
    """The setting above."""
    base = swin_fashion_mnist.experiment(num_steps)
    backbone = Swin(
        embed_dim=32,
        depths=(2, 2, 2),
        num_heads=(2, 4, 8),
        window_size=7,
        image_size=112,
        drop_path_rate=0.1,
    )
    return replace(
        base,
        task=replace(
            base.task,
            network=ImageClassifier(backbone, num_classes=2),
            num_classes=2,
            mean=IMAGENET_MEAN,
            std=IMAGENET_STD,
        ),
        data=Data(
            train=ImageFolder(f"{images}/train"),
            eval={"val": ImageFolder(f"{images}/val")},
            spec={"image": ((112, 112, 3), "uint8"), "label": ((), "int32")},
            batch_size=batch_size,
            transforms=(
                RandomResizedCrop(112, scale=(0.35, 1.0)),
                RandomFlip(),
                ColorJitter(),
            ),
            eval_transforms=(Resize(128), CenterCrop(112)),
            num_workers=2,
        ),
        optimizer=AdamW(
            Cosine(1e-3, num_steps=num_steps, warmup_steps=50),
            weight_decay=0.05,
            no_decay=("/position/",),
            clip_norm=5.0,
        ),
        evals={"val": Accuracy(split="val", batch_size=32)},
        num_params=570_526,
        required=(Required("val/top1", above=0.60),),
    )
