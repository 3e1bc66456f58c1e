"""A Transformer on ListOps of the Long Range Arena: Tay et al. 2021, arXiv:2011.04006.

    python -m launch.train experiments/attention/softmax_lra_listops.py

Published: accuracy 36.37 %; what sees the first operator alone reaches 17 to 18 %.
Official setting: google-research/long-range-arena, lra_benchmarks/listops, whose
trainer takes the schedule's own warm-up of 1000 steps, whatever the configuration says.
Ours: ?
Differs: the trees are drawn anew from the official generator's distribution, a token
that begins every sequence stands for the vector that theirs learns, and dropout follows
each branch once.
"""

from functools import partial
from typing import Any

import jax

from research.data.generated import ListOps
from research.data.loader import Data
from research.data.sequences import PadTo, Prepend
from research.data.sources import Source
from research.data.transforms import Transform
from research.evals.loss import HeldOutLoss
from research.experiment import Experiment, Published
from research.layers.attention import Attention
from research.layers.cores import Core, Softmax
from research.layers.embeddings import TokenEmbedding
from research.layers.initializers import Normal, xavier
from research.layers.mlp import FeedForward
from research.layers.norms import LayerNorm
from research.layers.positions import Sinusoidal
from research.layers.residual import PreNorm
from research.layers.stack import Stack, TransformerBlock
from research.models.transformer import Encoder, SequenceClassifier
from research.tasks.sequence_classification import SequenceClassification
from research.train.checkpoints import Checkpoints
from research.train.optimizers import Adam
from research.train.schedules import InverseSqrt, Schedule

SOURCE = "arXiv:2011.04006, Table 1"


def experiment(num_steps: int = 5000, batch_size: int = 32) -> Experiment:
    """The published setting."""
    return of(Softmax(dropout_rate=0.1), 36.37, num_steps, batch_size)


def of(
    core: Core,
    accuracy: float,
    num_steps: int,
    batch_size: int,
    num_params: int | None = 8_949_258,
) -> Experiment:
    """The setting that all siblings share, with another core and what it published."""
    length = 2000
    return classifier(
        core,
        train=ListOps(num=96_000),
        evals={
            "validation": ListOps(num=2000, split="validation"),
            "test": ListOps(num=2000, split="test"),
        },
        transforms=(Prepend(), PadTo(1 + length)),
        length=1 + length,
        vocab_size=ListOps(num=1).vocab_size,
        num_classes=10,
        num_layers=4,
        num_heads=8,
        embed_dim=512,
        attention_dim=512,
        mlp_dim=1024,
        schedule=InverseSqrt(0.05 / 1000**0.5, warmup_steps=1000),
        weight_decay=0.1,
        accuracy=accuracy,
        num_steps=num_steps,
        batch_size=batch_size,
        num_params=num_params,
    )


def classifier(
    core: Core,
    *,
    train: Source,
    evals: dict[str, Source],
    transforms: tuple[Transform, ...],
    length: int,
    vocab_size: int,
    num_classes: int,
    num_layers: int,
    num_heads: int,
    embed_dim: int,
    attention_dim: int,
    mlp_dim: int,
    schedule: Schedule,
    weight_decay: float,
    accuracy: float,
    num_steps: int,
    batch_size: int,
    num_params: int | None,
    dropout_rate: float = 0.1,
    pooling: Any = "first",
    pairs: bool = False,
    positions: Any = Sinusoidal(),  # noqa: B008, it is frozen
) -> Experiment:
    """The arena's encoder and its training, for all of its tasks."""
    block = partial(
        TransformerBlock,
        mixer=partial(
            Attention,
            num_heads=num_heads,
            head_dim=attention_dim // num_heads,
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
        task=SequenceClassification(
            SequenceClassifier(
                Encoder(
                    TokenEmbedding(
                        vocab_size,
                        embed_dim,
                        positions=positions,
                        dropout_rate=dropout_rate,
                        embedding_init=Normal(1.0),
                    ),
                    Stack(num_layers, (block,), final_norm=LayerNorm),
                ),
                num_classes,
                pooling=pooling,
                hidden_dim=mlp_dim,
                pairs=pairs,
            )
        ),
        data=Data(
            train=train,
            eval=evals,
            spec={"tokens": ((length,), "int32"), "label": ((), "int32")},
            batch_size=batch_size,
            transforms=transforms,
            eval_transforms=transforms,
            num_workers=4,
        ),
        optimizer=Adam(schedule, b2=0.98, eps=1e-9, weight_decay=weight_decay),
        num_steps=num_steps,
        evals={"validation": HeldOutLoss(split="validation", batch_size=32, every=500)},
        offline_evals={"test": HeldOutLoss(split="test", batch_size=32)},
        checkpoints=Checkpoints(every=500, keep_last=2),
        num_params=num_params,
        published=(Published("test/accuracy", accuracy / 100, SOURCE),),
    )
