"""A Sparse Transformer draws ImageNet 64x64: Child et al. 2019, arXiv:1904.10509.

    python -m launch.prepare experiments/attention/sparse_imagenet64.py
    python -m launch.train experiments/attention/sparse_imagenet64.py

sparse_cifar10 on larger images, of 12,288 values.
Published (section 7.3): 3.44 bits a dimension, 152 million parameters, 70 epochs in
seven days on 64 V100. Ours: ?
48 layers of width 512 with 16 heads, dropout 0.01, the strided pattern with 128.
Differs: the batch is one image for each of their 64 GPUs, of which 1,400,000 steps make
70 epochs; the learning rate is CIFAR-10's.
"""

from experiments.attention import sparse_cifar10 as base
from research.data.sources import Tfds
from research.experiment import Experiment, Published
from research.layers.cores import Sparse, strided


def experiment(num_steps: int = 1_400_000, batch_size: int = 64) -> Experiment:
    """The published setting."""
    name = "downsampled_imagenet/64x64"
    return base.of(
        Sparse(strided(128)),
        train=Tfds(name, "train"),
        evals={"validation": Tfds(name, "validation")},
        size=64,
        dim=512,
        num_layers=48,
        num_heads=16,
        key_dim=32,
        mlp_dim=2048,
        dropout_rate=0.01,
        num_steps=num_steps,
        batch_size=batch_size,
        num_params=151_648_768,
        published=Published("validation/bits", 3.44, "arXiv:1904.10509, section 7.3"),
    )
