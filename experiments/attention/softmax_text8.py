"""A Transformer on text8, 12 layers: Al-Rfou et al. 2018, arXiv:1808.04444.

    python -m launch.train experiments/attention/softmax_text8.py

Needs the file text8 (mattmahoney.net/dc/text8.zip) at ~/data/twelvefold/text8.
Published: 1.18 bits a character on the test set with 12 layers and 44 million
parameters, 1.13 with 64 layers and 235 million. Ours: ?
Rows of 512 characters, layers of width 512 and 2048. The siblings of this file have
other cores.
Differs: theirs also learns from the layers in between and from characters further on,
has positions in every layer, and trains with momentum; here Adam makes 36 passes over
the text, and norms come before the branches. Dropout and heads are our own. There are
260 tokens, where the text has 27 characters.
"""

from functools import partial

import jax

from experiments.attention.sparse_enwik8 import enwik8
from research.data.tokenizers import Bytes
from research.evals.loss import HeldOutLoss
from research.experiment import Experiment, Published
from research.layers.attention import Attention
from research.layers.cores import Core, Softmax
from research.layers.embeddings import TokenEmbedding
from research.layers.mlp import FeedForward
from research.layers.norms import LayerNorm
from research.layers.positions import Learned
from research.layers.residual import PreNorm
from research.layers.stack import Slot, Stack, TransformerBlock
from research.models.transformer import LanguageModel
from research.tasks.language_modelling import LanguageModelling
from research.train.checkpoints import Checkpoints
from research.train.optimizers import Adam
from research.train.schedules import Cosine


def experiment(num_steps: int = 100_000, batch_size: int = 64) -> Experiment:
    """The published size."""
    return of(Softmax(dropout_rate=0.1), num_steps, batch_size, bits=1.18)


def of(
    core: Core,
    num_steps: int,
    batch_size: int,
    bits: float | None = None,
    *,
    block: Slot | None = None,
    num_layers: int = 12,
    num_params: int = 38_224_896,
) -> Experiment:
    """The setting that all siblings share, with another core or other blocks."""
    length, dim, dropout_rate = 512, 512, 0.2
    if block is None:
        block = partial(
            TransformerBlock,
            mixer=partial(Attention, num_heads=8, core=core),
            mlp=partial(FeedForward, mlp_dim=4 * dim, activation=jax.nn.gelu),
            residual=partial(PreNorm, dropout_rate=dropout_rate),
        )
    embedding = TokenEmbedding(
        Bytes().vocab_size,
        dim,
        positions=Learned(length),
        dropout_rate=dropout_rate,
    )
    source = "arXiv:1808.04444"
    return Experiment(
        task=LanguageModelling(
            LanguageModel(embedding, Stack(num_layers, (block,), final_norm=LayerNorm))
        ),
        data=enwik8(length, batch_size, "text8"),
        optimizer=Adam(
            Cosine(5e-4, num_steps=num_steps, warmup_steps=4000),
            b2=0.98,
            weight_decay=0.01,
            clip_norm=1.0,
        ),
        num_steps=num_steps,
        evals={
            "validation": HeldOutLoss(split="validation", batch_size=64, every=5000)
        },
        offline_evals={"test": HeldOutLoss(split="test", batch_size=64)},
        checkpoints=Checkpoints(every=5000, keep_last=2),
        num_params=num_params,
        published=() if bits is None else (Published("test/bits", bits, source),),
    )
