"""Linear attention draws CIFAR-10, value by value: Katharopoulos et al. 2020, Table 2.

    python -m launch.prepare experiments/attention/linear_cifar10.py
    python -m launch.train experiments/attention/linear_cifar10.py

linear_mnist with 16 layers and 3,072 values an image.
Published (arXiv:2006.16236, Table 2): 3.40 bits a dimension after seven days on one
P40, 17.85 images a second; softmax 3.47 and 0.004 (softmax_cifar10), Reformer 3.39 with
one hash, 3.51 with four (reformer_cifar10, reformer_cifar10_rounds4). Ours: ?
Official setting: idiap/linear-transformer-experiments, image-generation: 500,000 steps
of 10 images (4 in the paper) at twice the rate.
Differs: 16 images a step, which eight devices can share, for as many images in all.
"""

from experiments.attention import linear_mnist as base
from research.data.sources import Tfds
from research.experiment import Experiment, Published
from research.layers.cores import Core, Linear


def experiment(num_steps: int = 312_500, batch_size: int = 16) -> Experiment:
    """As many images as in the official setting."""
    return of(Linear(), 3.40, num_steps, batch_size)


def of(
    core: Core,
    bits: float,
    num_steps: int,
    batch_size: int,
    num_params: int = 12_677_662,
) -> Experiment:
    """With another core, and what it published."""
    return base.of(
        core,
        train=Tfds("cifar10", "train"),
        test=Tfds("cifar10", "test"),
        length=3 * 32 * 32,
        num_layers=16,
        learning_rate=2e-4,
        num_steps=num_steps,
        batch_size=batch_size,
        num_params=num_params,
        published=Published("test/bits", bits, "arXiv:2006.16236, Table 2"),
    )
