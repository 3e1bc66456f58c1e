"""A Transformer on images of the Long Range Arena: Tay et al. 2021, arXiv:2011.04006.

    python -m launch.prepare experiments/attention/softmax_lra_image.py
    python -m launch.train experiments/attention/softmax_lra_image.py

CIFAR-10 in grey, its 1024 pixels as a sequence of tokens.
Published: accuracy 42.44 %.
Official setting: google-research/long-range-arena,
lra_benchmarks/image/configs/cifar10: 200 epochs of 45,000 images, learnt positions,
dropout 0.3 and 0.2 of the weights.
Ours: ?
Differs: as softmax_lra_listops.
"""

from typing import Any

from experiments.attention import softmax_lra_listops as arena
from research.data.sequences import PixelTokens, Prepend
from research.data.sources import Tfds
from research.experiment import Experiment
from research.layers.cores import Core, Softmax
from research.layers.positions import Learned
from research.train.schedules import Cosine


def experiment(num_steps: int = 35_156, batch_size: int = 256) -> Experiment:
    """The published setting."""
    return of(Softmax(dropout_rate=0.2), 42.44, num_steps, batch_size)


def of(
    core: Core,
    accuracy: float,
    num_steps: int,
    batch_size: int,
    *,
    num_layers: int = 1,
    num_heads: int = 8,
    embed_dim: int = 128,
    attention_dim: int = 64,
    mlp_dim: int = 128,
    pooling: Any = "first",
    num_params: int | None = 248_842,
) -> Experiment:
    """The setting that all siblings share, with another core and what it published."""
    begins = pooling == "first"
    length = 1024 + begins
    return arena.classifier(
        core,
        train=Tfds("cifar10", split="train[:90%]"),
        evals={
            "validation": Tfds("cifar10", split="train[90%:]"),
            "test": Tfds("cifar10", split="test"),
        },
        transforms=(PixelTokens(), Prepend()) if begins else (PixelTokens(),),
        length=length,
        vocab_size=4 + 256,
        num_classes=10,
        num_layers=num_layers,
        num_heads=num_heads,
        embed_dim=embed_dim,
        attention_dim=attention_dim,
        mlp_dim=mlp_dim,
        schedule=Cosine(5e-4, num_steps=num_steps, warmup_steps=175),
        weight_decay=0.0,
        accuracy=accuracy,
        num_steps=num_steps,
        batch_size=batch_size,
        num_params=num_params,
        dropout_rate=0.3,
        pooling=pooling,
        positions=Learned(length),
    )
