"""A Sparse Transformer draws CIFAR-10: Child et al. 2019, arXiv:1904.10509, Table 1.

    python -m launch.prepare experiments/attention/sparse_cifar10.py
    python -m launch.train experiments/attention/sparse_cifar10.py

Published: 2.80 bits a dimension on the test set (2.798 +- 0.004 over three seeds), and
59 million parameters; dense attention has 2.82, the fixed pattern 2.85. Ours: ?
Section 7.1: 128 layers of width 256 with two heads, queries and keys of half the width
and feed-forward layers of twice; 120 epochs of 48,000 images, dropout 0.25. A head sees
the last 128 values, which are a row and a third, and every 128th.
Differs: how many values the stride has is not told, nor the batch: 16 images, of which
360,000 steps make 120 epochs. Computed in float32, theirs in float16. There are 260
tokens, with padding and the like.
"""

from functools import partial

import jax

from experiments.attention.sparse_enwik8 import sigmoid_gelu
from research.data.loader import Data
from research.data.sequences import ValueTokens
from research.data.sources import Source, Tfds
from research.evals.loss import HeldOutLoss
from research.experiment import Experiment, Published
from research.layers.attention import Attention
from research.layers.cores import Core, Sparse, strided
from research.layers.embeddings import TokenEmbedding
from research.layers.initializers import Normal, VarianceScaling, depth_scaled
from research.layers.mlp import FeedForward
from research.layers.norms import LayerNorm
from research.layers.positions import LearnedGrid
from research.layers.residual import PreNorm
from research.layers.stack import Stack, TransformerBlock
from research.models.transformer import LanguageModel
from research.tasks.language_modelling import LanguageModelling
from research.train.checkpoints import Checkpoints
from research.train.optimizers import Adam
from research.train.schedules import Cosine


def experiment(num_steps: int = 360_000, batch_size: int = 16) -> Experiment:
    """The published setting."""
    return of(
        Sparse(strided(128)),
        train=Tfds("cifar10", "train[:96%]"),
        evals={
            "validation": Tfds("cifar10", "train[96%:]"),
            "test": Tfds("cifar10", "test"),
        },
        size=32,
        dim=256,
        num_layers=128,
        num_heads=2,
        key_dim=64,
        mlp_dim=512,
        dropout_rate=0.25,
        num_steps=num_steps,
        batch_size=batch_size,
        num_params=59_198_720,
        published=Published("test/bits", 2.80, "arXiv:1904.10509, Table 1"),
    )


def of(
    core: Core,
    *,
    train: Source,
    evals: dict[str, Source],
    size: int,
    dim: int,
    num_layers: int,
    num_heads: int,
    key_dim: int,
    mlp_dim: int,
    dropout_rate: float,
    num_steps: int,
    batch_size: int,
    num_params: int,
    published: Published,
) -> Experiment:
    """The setting that images of all sizes share.

    Args:
      core: of all heads.
      train, evals: with `image`, in colour; the last of `evals` is what is published.
      size: of the images' sides.
      dim: of the stream.
      num_layers, num_heads: of attention.
      key_dim: of a head's queries and keys.
      mlp_dim: of the feed-forward layers.
      dropout_rate: at the end of each branch.
      num_steps, batch_size: of training.
      num_params: what there are.
      published: to be reproduced.
    """
    normal = VarianceScaling(0.125**2, distribution="normal")
    out = depth_scaled(normal, num_layers)
    block = partial(
        TransformerBlock,
        mixer=partial(
            Attention,
            num_heads=num_heads,
            head_dim=key_dim,
            value_dim=dim // num_heads,
            core=core,
            kernel_init=normal,
            out_init=out,
        ),
        mlp=partial(
            FeedForward,
            mlp_dim=mlp_dim,
            activation=sigmoid_gelu,
            kernel_init=normal,
            out_init=out,
        ),
        residual=partial(PreNorm, dropout_rate=dropout_rate),
    )
    embedding = TokenEmbedding(
        4 + 256,
        dim,
        positions=LearnedGrid(
            (size, size, 3), embedding_init=Normal(0.125 * (3 * dim) ** -0.5)
        ),
        embedding_init=Normal(0.125 * dim**-0.5),
    )
    *_, last = evals
    return Experiment(
        task=LanguageModelling(
            LanguageModel(
                embedding,
                Stack(num_layers, (block,), final_norm=LayerNorm, remat=True),
                tie_embeddings=False,
                logits_init=jax.nn.initializers.zeros,
            )
        ),
        data=Data(
            train=train,
            eval=evals,
            spec={"tokens": ((3 * size**2,), "int32")},
            batch_size=batch_size,
            transforms=(ValueTokens(),),
            eval_transforms=(ValueTokens(),),
            num_workers=4,
        ),
        optimizer=Adam(
            Cosine(3.5e-4, num_steps=num_steps, warmup_steps=5000),
            weight_decay=0.01,
            clip_norm=1.0,
        ),
        num_steps=num_steps,
        evals={
            "validation": HeldOutLoss(split="validation", batch_size=16, every=5000)
        },
        offline_evals={last: HeldOutLoss(split=last, batch_size=16)},
        checkpoints=Checkpoints(every=5000, keep_last=2),
        num_params=num_params,
        published=(published,),
    )
