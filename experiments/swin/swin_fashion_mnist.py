"""A Swin Transformer of two stages on Fashion-MNIST, at a laptop's size.

    python -m launch.prepare experiments/swin/swin_fashion_mnist.py
    python -m launch.train experiments/swin/swin_fashion_mnist.py

The path of swin_t_imagenet1k.py at a laptop's size: 14x14 patches of 2x2 pixels, two
blocks with windows of 7, the second one's shifted by 3, and two more on the 7x7 map.
Less than one pass over the images, which are as they are: no augmentation, no mixing.
Kernels begin with a variance of one over their inputs, not with the published standard
deviation of 0.02, which so narrow a network has no time to outgrow (0.743 right).
The four original IDX files (Xiao et al. 2017, arXiv:1708.07747) are read from `folder`.
Required beforehand: more than 0.79 of the held-out images right.
Parameters: 136,854. Ours: 0.822
"""

from functools import partial

from research.data.loader import Data
from research.data.sources import FASHION_MNIST_MD5, IdxImages
from research.evals.accuracy import Accuracy
from research.experiment import Experiment, Required
from research.layers.initializers import lecun
from research.layers.mlp import FeedForward, gelu
from research.layers.windows import WindowAttention
from research.models.image_classifier import ImageClassifier
from research.models.swin import PatchMerging, Swin
from research.tasks.image_classification import ImageClassification
from research.train.checkpoints import Checkpoints
from research.train.optimizers import AdamW
from research.train.schedules import Cosine

small = partial(
    Swin,
    attention=partial(WindowAttention, kernel_init=lecun()),
    mlp=partial(FeedForward, activation=gelu),
    merge=partial(PatchMerging, kernel_init=lecun()),
)
"""A narrow Swin."""


def experiment(
    num_steps: int = 470,
    batch_size: int = 128,
    folder: str = "~/data/twelvefold/fashion_mnist",
) -> Experiment:
    """The setting above."""
    train = IdxImages(folder, split="train", md5=FASHION_MNIST_MD5["train"])
    test = IdxImages(folder, split="test", md5=FASHION_MNIST_MD5["test"])
    backbone = small(
        embed_dim=32,
        depths=(2, 2),
        num_heads=(2, 4),
        patch_size=2,
        window_size=7,
        image_size=28,
        drop_path_rate=0.0,
    )
    return Experiment(
        task=ImageClassification(
            ImageClassifier(backbone, num_classes=10),
            num_classes=10,
            mean=(0.286,),
            std=(0.353,),
            smoothing=0.1,
        ),
        data=Data(
            train=train,
            eval={"test": test},
            spec={"image": ((28, 28, 1), "uint8"), "label": ((), "int32")},
            batch_size=batch_size,
        ),
        optimizer=AdamW(
            Cosine(1e-3, num_steps=num_steps, warmup_steps=50),
            weight_decay=0.05,
            no_decay=("/position/",),
            clip_norm=5.0,
        ),
        num_steps=num_steps,
        evals={"test": Accuracy(split="test", batch_size=200)},
        checkpoints=Checkpoints(every=0, keep_last=1),
        log_every=50,
        num_params=136_854,
        required=(Required("test/top1", above=0.79),),
    )
