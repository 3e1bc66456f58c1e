"""A Transformer on C4, from left to right: what other cores are compared with.

    python -m launch.prepare experiments/attention/softmax_c4.py
    python -m launch.train experiments/attention/softmax_c4.py

Published: no figure of this setting; the corpus is of Raffel et al. 2020,
arXiv:1910.10683. Ours: ?
12 layers of width 768 read rows of 2,048 subwords, 128 rows a step: 26 billion in all,
four passes over 4 % of the corpus, which launch.prepare cuts into rows and keeps in
files. Positions turn queries and keys. The siblings of this file have other cores.
TFDS has to have c4/en ready as array_record: it is made with Apache Beam.
"""

from functools import partial

import jax

from research.data.loader import Data
from research.data.packing import Chained, Windows
from research.data.sources import Source, Tfds
from research.data.stored import Stored
from research.data.subwords import SentencePiece, Training
from research.evals.loss import HeldOutLoss
from research.experiment import Experiment
from research.layers.attention import Attention
from research.layers.cores import Core, Softmax
from research.layers.embeddings import TokenEmbedding
from research.layers.initializers import Normal
from research.layers.mlp import FeedForward
from research.layers.norms import LayerNorm
from research.layers.positions import Rotary
from research.layers.stack import Stack, TransformerBlock
from research.models.transformer import LanguageModel
from research.tasks.language_modelling import LanguageModelling
from research.train.checkpoints import Checkpoints
from research.train.optimizers import Adam
from research.train.schedules import Cosine

FOLDER = "~/data/twelvefold/c4_en"


def experiment(
    num_steps: int = 100_000, batch_size: int = 128, length: int = 2048
) -> Experiment:
    """The base size."""
    return of(Softmax(), num_steps, batch_size, length)


def subwords(vocab_size: int) -> SentencePiece:
    """Made from a thousandth of the corpus's validation part, 364 thousand texts."""
    return SentencePiece(
        f"{FOLDER}_unigram{vocab_size}.model",
        Training(Tfds("c4/en", "validation"), vocab_size),
    )


def rows(tokenizer: SentencePiece, length: int) -> tuple[Source, Source]:
    """To learn from, a percent of the corpus in each file, and to judge by."""
    stem = f"{FOLDER}_unigram{tokenizer.vocab_size}_rows{length}"

    def part(split: str, name: str) -> Source:
        return Stored(Windows(Tfds("c4/en", split), tokenizer, length), name)

    train = [part(f"train[{n}%:{n + 1}%]", f"{stem}_{n}") for n in range(4)]
    return Chained(tuple(train)), part("validation[:5%]", f"{stem}_validation")


def of(
    core: Core,
    num_steps: int,
    batch_size: int,
    length: int,
    num_params: int = 109_549_056,
) -> Experiment:
    """The setting that all siblings share, with another core."""
    vocab_size, dim, num_layers = 32_000, 768, 12
    train, validation = rows(subwords(vocab_size), length)
    start = Normal(0.02)
    block = partial(
        TransformerBlock,
        mixer=partial(
            Attention,
            num_heads=12,
            core=core,
            rotary=Rotary(),
            use_bias=False,
            kernel_init=start,
        ),
        mlp=partial(
            FeedForward,
            mlp_dim=4 * dim,
            activation=jax.nn.gelu,
            use_bias=False,
            kernel_init=start,
        ),
    )
    return Experiment(
        task=LanguageModelling(
            LanguageModel(
                TokenEmbedding(vocab_size, dim),
                Stack(num_layers, (block,), final_norm=LayerNorm, remat=True),
            )
        ),
        data=Data(
            train=train,
            eval={"validation": validation},
            spec={"tokens": ((length,), "int32")},
            batch_size=batch_size,
        ),
        optimizer=Adam(
            Cosine(6e-4, num_steps=num_steps, warmup_steps=2000, end=6e-5),
            b2=0.95,
            weight_decay=0.1,
            clip_norm=1.0,
        ),
        num_steps=num_steps,
        evals={
            "validation": HeldOutLoss(split="validation", batch_size=32, every=5000)
        },
        checkpoints=Checkpoints(every=5000, keep_last=2),
        num_params=num_params,
    )
