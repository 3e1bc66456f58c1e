"""Softmax attention models text byte by byte: what other cores are compared with.

    python -m launch.train experiments/attention/softmax_text.py

The source files of Python's standard library, which are on every machine, one in ten of
them held out; `--with path=FILE` takes another text, whose last tenth is held out. Four
causal layers of width 128 with 4 heads read windows of 256 bytes. The siblings of this
file, and those of the family flash, have other cores at the same number of parameters,
data and steps. A model of pairs of bytes, counted on the same files, has 3.56 bits a
byte, one of triples 2.70 (of single bytes 4.62).
Required beforehand: below 3.0 bits a byte on the files held out.
Ours: 2.946
"""

from functools import partial
from typing import Literal

import jax

from research.data.loader import Data
from research.data.packing import Windows
from research.data.sources import Source
from research.data.text import StandardLibrary, TextFile
from research.data.tokenizers import Bytes
from research.evals.loss import HeldOutLoss
from research.experiment import Experiment, Required
from research.layers.attention import Attention
from research.layers.cores import Core, Softmax
from research.layers.embeddings import TokenEmbedding
from research.layers.mlp import FeedForward
from research.layers.norms import LayerNorm
from research.layers.positions import Learned
from research.layers.stack import Slot, Stack, TransformerBlock
from research.models.transformer import LanguageModel
from research.tasks.language_modelling import LanguageModelling
from research.train.checkpoints import Checkpoints
from research.train.optimizers import Adam
from research.train.schedules import Cosine

LENGTH, DIM = 256, 128


def experiment(
    num_steps: int = 600, batch_size: int = 16, path: str = ""
) -> Experiment:
    """About five minutes on two CPU cores."""
    return of(Softmax(), num_steps, batch_size, path)


def of(
    core: Core,
    num_steps: int,
    batch_size: int,
    path: str,
    *,
    block: Slot | None = None,
    num_layers: int = 4,
    num_params: int = 859_392,
) -> Experiment:
    """The setting that all siblings share, with another core or other blocks."""
    if block is None:
        block = partial(
            TransformerBlock,
            mixer=partial(Attention, num_heads=4, core=core),
            mlp=partial(FeedForward, mlp_dim=4 * DIM, activation=jax.nn.gelu),
        )

    def windows(
        split: Literal["train", "test"], between: tuple[float, float]
    ) -> Source:
        text = TextFile(path, between) if path else StandardLibrary(split)
        return Windows(text, Bytes(), LENGTH)

    return Experiment(
        task=LanguageModelling(
            LanguageModel(
                embedding=TokenEmbedding(
                    Bytes().vocab_size, DIM, positions=Learned(LENGTH)
                ),
                body=Stack(num_layers, (block,), final_norm=LayerNorm),
            )
        ),
        data=Data(
            train=windows("train", (0.0, 0.9)),
            eval={"test": windows("test", (0.9, 1.0))},
            spec={"tokens": ((LENGTH,), "int32")},
            batch_size=batch_size,
        ),
        optimizer=Adam(
            Cosine(2e-3, num_steps=num_steps, warmup_steps=100, end=2e-4),
            b2=0.98,
            clip_norm=1.0,
        ),
        num_steps=num_steps,
        offline_evals={"test": HeldOutLoss(split="test", batch_size=32)},
        checkpoints=Checkpoints(every=0, keep_last=1),
        log_every=50,
        num_params=num_params,
        required=(Required("test/bits", below=3.0),),
    )
