"""Linear attention draws MNIST, pixel by pixel: Katharopoulos et al. 2020, Table 1.

    python -m launch.prepare experiments/attention/linear_mnist.py
    python -m launch.train experiments/attention/linear_mnist.py

Published (arXiv:2006.16236, Table 1): 0.644 bits a pixel, 142.8 images a second on a
GPU of 2017; softmax 0.621 and 0.45 (softmax_mnist), Reformer 0.745 with one hash and
0.676 with four (reformer_mnist, reformer_mnist_rounds4). Ours: ?
Official setting: idiap/linear-transformer-experiments, image-generation: 8 layers of 8
heads of 32, levels and positions side by side, a mixture of 10 logistic distributions
for each pixel, 250 epochs of 16 images a step (10 in the paper).
Differs: theirs begins with the first pixel, which it does not predict. Vectors of the
levels are the same as theirs, kernels have the same variance, biases begin at zero, and
only kernels and tables decay.
"""

from functools import partial

from research.data.loader import Data
from research.data.sequences import ValueTokens
from research.data.sources import Source, Tfds
from research.evals.loss import HeldOutLoss
from research.experiment import Experiment, Published
from research.layers.attention import Attention
from research.layers.cores import Core, Linear
from research.layers.embeddings import LevelEmbedding
from research.layers.initializers import VarianceScaling
from research.layers.mlp import FeedForward
from research.layers.norms import LayerNorm
from research.layers.residual import PostNorm
from research.layers.stack import Stack, TransformerBlock
from research.models.transformer import LanguageModel
from research.tasks.language_modelling import LanguageModelling
from research.train.checkpoints import Checkpoints
from research.train.optimizers import RAdam
from research.train.schedules import Constant

DROPOUT = 0.1


def experiment(num_steps: int = 937_500, batch_size: int = 16) -> Experiment:
    """The official setting."""
    return mnist(Linear(), 0.644, num_steps, batch_size)


def mnist(
    core: Core,
    bits: float,
    num_steps: int,
    batch_size: int,
    num_params: int = 6_359_582,
) -> Experiment:
    """With another core, and what it published."""
    return of(
        core,
        train=Tfds("mnist", "train"),
        test=Tfds("mnist", "test"),
        length=28 * 28,
        num_layers=8,
        learning_rate=1e-4,
        num_steps=num_steps,
        batch_size=batch_size,
        num_params=num_params,
        published=Published("test/bits", bits, "arXiv:2006.16236, Table 1"),
    )


def of(
    core: Core,
    *,
    train: Source,
    test: Source,
    length: int,
    num_layers: int,
    learning_rate: float,
    num_steps: int,
    batch_size: int,
    num_params: int,
    published: Published,
) -> Experiment:
    """The setting that all images and cores share."""
    kernel = VarianceScaling(1 / 3, "fan_in", "uniform")
    block = partial(
        TransformerBlock,
        mixer=partial(
            Attention, num_heads=8, head_dim=32, core=core, kernel_init=kernel
        ),
        mlp=partial(
            FeedForward, mlp_dim=1024, dropout_rate=DROPOUT, kernel_init=kernel
        ),
        residual=partial(PostNorm, dropout_rate=DROPOUT),
    )
    return Experiment(
        task=LanguageModelling(
            LanguageModel(
                LevelEmbedding(256, num_mixtures=10, mixture_init=kernel),
                Stack(num_layers, (block,), final_norm=LayerNorm),
            )
        ),
        data=Data(
            train=train,
            eval={"test": test},
            spec={"tokens": ((length,), "int32")},
            batch_size=batch_size,
            transforms=(ValueTokens(),),
            eval_transforms=(ValueTokens(),),
        ),
        optimizer=RAdam(Constant(learning_rate), weight_decay=0.01),
        num_steps=num_steps,
        evals={"test": HeldOutLoss(split="test", batch_size=16, every=50_000)},
        checkpoints=Checkpoints(every=10_000, keep_last=2),
        num_params=num_params,
        published=(published,),
    )
