"""A small Swin Transformer on CIFAR-10, at a laptop's size.

    python -m launch.train experiments/swin/swin_cifar10.py

The path of swin_t_imagenet1k.py on colour images of 32x32 pixels: 16x16 patches of 2x2,
three stages of two blocks with windows of 4, crops and flips as of He et al. 2016,
arXiv:1512.03385, and a tenth of the paths dropped. The images are TFDS's or, with
`--with images=FOLDER`, those of a folder with train/CLASS/ and test/CLASS/.
Required beforehand: more than 0.50 of the held-out images right, after training on as
few as 10,000 images; chance is 0.1.
Parameters: 1,268,356. Ours: ?
"""

from dataclasses import replace

from experiments.swin import swin_fashion_mnist
from research.data.augment import RandomCrop
from research.data.loader import Data
from research.data.sources import ImageFolder, Source, Tfds
from research.data.transforms import RandomFlip
from research.experiment import Experiment, Required
from research.models.image_classifier import ImageClassifier
from research.train.optimizers import AdamW
from research.train.schedules import Cosine


def experiment(
    num_steps: int = 1600, batch_size: int = 64, images: str = ""
) -> Experiment:
    """The setting above."""
    base = swin_fashion_mnist.experiment(num_steps)

    def source(split: str) -> Source:
        if images:
            return ImageFolder(f"{images}/{split}")
        return Tfds("cifar10", split=split)

    backbone = swin_fashion_mnist.small(
        embed_dim=48,
        depths=(2, 2, 2),
        num_heads=(3, 6, 12),
        patch_size=2,
        window_size=4,
        image_size=32,
        drop_path_rate=0.1,
    )
    return replace(
        base,
        task=replace(
            base.task,
            network=ImageClassifier(backbone, num_classes=10),
            mean=(0.4914, 0.4822, 0.4465),
            std=(0.2470, 0.2435, 0.2616),
        ),
        data=Data(
            train=source("train"),
            eval={"test": source("test")},
            spec={"image": ((32, 32, 3), "uint8"), "label": ((), "int32")},
            batch_size=batch_size,
            transforms=(RandomCrop(32, padding=4), RandomFlip()),
        ),
        optimizer=AdamW(
            Cosine(1e-3, num_steps=num_steps, warmup_steps=100),
            weight_decay=0.05,
            no_decay=("/position/",),
            clip_norm=5.0,
        ),
        num_params=1_268_356,
        required=(Required("test/top1", above=0.50),),
    )
