"""Reformer draws ImageNet 64x64: Kitaev et al. 2020, arXiv:2001.04451.

    python -m launch.prepare experiments/attention/reformer_imagenet64.py
    python -m launch.train experiments/attention/reformer_imagenet64.py

Published: curves alone; Choromanski et al. 2021, arXiv:2009.14794, find 6 layers of
Performer as good as 12 of this (performer_imagenet64). Ours: ?
Official setting: google/trax, supervised/configs/reformer_imagenet64.gin: 6 layers of
width 1024 with 8 heads of 64, all by hashing, with 192 buckets, chunks of 128 and two
rounds; vectors of rows, columns and channels side by side.
Differs: one stream of ordinary branches that are computed again for the gradient, where
theirs has two that can be reversed. Its images are written from the last value to the
first. A batch of 8 is one image for each of 8 devices. Dropout of the weights draws for
each, theirs once for all rows.
"""

from functools import partial

import jax

from research.data.loader import Data
from research.data.sequences import ValueTokens
from research.data.sources import Tfds
from research.evals.loss import HeldOutLoss
from research.experiment import Experiment, Published
from research.layers.attention import Attention
from research.layers.cores import LSH, Core
from research.layers.embeddings import TokenEmbedding
from research.layers.initializers import Normal, xavier
from research.layers.mlp import FeedForward
from research.layers.norms import LayerNorm
from research.layers.positions import LearnedGrid
from research.layers.residual import PreNorm
from research.layers.stack import Stack, TransformerBlock
from research.models.transformer import LanguageModel
from research.tasks.language_modelling import LanguageModelling
from research.train.checkpoints import Checkpoints
from research.train.optimizers import Adam
from research.train.schedules import InverseSqrt, Schedule


def experiment(num_steps: int = 500_000, batch_size: int = 8) -> Experiment:
    """The official setting."""
    return of(
        LSH(192, chunk_size=128, num_rounds=2, dropout_rate=0.2),
        num_steps,
        batch_size,
        dims=(384, 384, 256),
        mlp_dim=4096,
        learning_rate=InverseSqrt(0.03125 * 8000**-0.5, warmup_steps=8000),
    )


def of(
    core: Core,
    num_steps: int,
    batch_size: int,
    *,
    dims: tuple[int, int, int],
    mlp_dim: int,
    learning_rate: Schedule,
    dropout_rate: float = 0.0,
    weight_decay: float = 0.0,
    clip_norm: float | None = None,
    bits: tuple[float, str] | None = None,
    num_params: int = 60_408_576,
) -> Experiment:
    """The setting that all siblings share; `dims` add up to the width."""
    length, dim, name = 3 * 64**2, sum(dims), "downsampled_imagenet/64x64"
    block = partial(
        TransformerBlock,
        mixer=partial(
            Attention,
            num_heads=8,
            head_dim=64,
            core=core,
            use_bias=False,
            kernel_init=xavier(),
        ),
        mlp=partial(
            FeedForward,
            mlp_dim=mlp_dim,
            activation=jax.nn.gelu,
            dropout_rate=dropout_rate,
            kernel_init=xavier(),
        ),
        residual=partial(PreNorm, dropout_rate=dropout_rate),
    )
    return Experiment(
        task=LanguageModelling(
            LanguageModel(
                TokenEmbedding(
                    4 + 256,
                    dim,
                    positions=LearnedGrid(
                        (64, 64, 3), dims=dims, embedding_init=Normal(1.0)
                    ),
                    embedding_init=Normal(1.0),
                ),
                Stack(6, (block,), final_norm=LayerNorm, remat=True),
                tie_embeddings=False,
                logits_init=xavier(),
            )
        ),
        data=Data(
            train=Tfds(name, "train"),
            eval={"validation": Tfds(name, "validation")},
            spec={"tokens": ((length,), "int32")},
            batch_size=batch_size,
            transforms=(ValueTokens(),),
            eval_transforms=(ValueTokens(),),
            num_workers=4,
        ),
        optimizer=Adam(
            learning_rate,
            b2=0.98,
            eps=1e-9,
            weight_decay=weight_decay,
            clip_norm=clip_norm,
        ),
        num_steps=num_steps,
        offline_evals={"validation": HeldOutLoss(split="validation", batch_size=8)},
        checkpoints=Checkpoints(every=5000, keep_last=2),
        num_params=num_params,
        published=() if bits is None else (Published("validation/bits", *bits),),
    )
