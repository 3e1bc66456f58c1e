"""NCSN on CelebA 32x32: Song & Ermon 2019, arXiv:1907.05600, section 5.

    python -m launch.prepare experiments/ncsn/ncsn_celeba32.py
    python -m launch.train experiments/ncsn/ncsn_celeba32.py

ncsn_cifar10 on faces: cropped to the middle 140 pixels and scaled down.
Published: samples, of the checkpoint with the least FID of 1000 samples. (The 26.89 of
arXiv:2006.09011, Table 1, is NCSN at 64 pixels.)
Official setting: ermongroup/ncsn, configs/anneal.yml with its lines for CelebA, at
commit 7f27f4a1. Every value below is theirs. Ours: ?
Parameters: 30,117,635, those of CIFAR-10.
"""

from dataclasses import replace

from experiments.ncsn import ncsn_cifar10
from research.data.loader import Data
from research.data.sources import Tfds
from research.data.transforms import CenterCrop, RandomFlip, Resize
from research.experiment import Experiment


def experiment(num_steps: int = 200_000, batch_size: int = 128) -> Experiment:
    """The published setting."""
    base = ncsn_cifar10.experiment(num_steps, batch_size)
    scaled = (CenterCrop(140), Resize(32, interpolation="bilinear"))
    return replace(
        base,
        data=Data(
            train=Tfds("celeb_a", split="train"),
            eval={"test": Tfds("celeb_a", split="test")},
            spec={"image": ((32, 32, 3), "uint8")},
            batch_size=batch_size,
            transforms=(*scaled, RandomFlip()),
            eval_transforms=scaled,
            num_workers=8,
        ),
        published=(),
    )
