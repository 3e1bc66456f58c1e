"""NCSN on MNIST: Song & Ermon 2019, arXiv:1907.05600, section 5.

    python -m launch.prepare experiments/ncsn/ncsn_mnist.py
    python -m launch.train experiments/ncsn/ncsn_mnist.py

ncsn_cifar10 with half as many channels, on digits, which are not mirrored.
Published: samples, of the last checkpoint.
Official setting: ermongroup/ncsn, configs/anneal.yml, at commit 7f27f4a1. Every value
below is theirs. Ours: ?
Parameters: 7,638,657; none is published.
"""

from dataclasses import replace

from experiments.ncsn import ncsn_cifar10
from research.data.loader import Data
from research.data.sources import Tfds
from research.experiment import Experiment
from research.models.refinenet import ncsn


def experiment(num_steps: int = 200_000, batch_size: int = 128) -> Experiment:
    """The published setting."""
    base = ncsn_cifar10.experiment(num_steps, batch_size)
    return replace(
        base,
        task=replace(
            base.task,
            network=ncsn(channels=64, num_levels=10),
            image_shape=(28, 28, 1),
        ),
        data=Data(
            train=Tfds("mnist", split="train"),
            eval={"test": Tfds("mnist", split="test")},
            spec={"image": ((28, 28, 1), "uint8"), "label": ((), "int32")},
            batch_size=batch_size,
        ),
        offline_evals={},
        num_params=7_638_657,
        published=(),
    )
