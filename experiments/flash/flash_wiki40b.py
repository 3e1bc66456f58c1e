"""FLASH on English Wiki-40B: Hua et al. 2022, arXiv:2202.10447.

    python -m launch.prepare experiments/flash/flash_wiki40b.py
    python -m launch.train experiments/flash/flash_wiki40b.py

Published: the quality of an improved Transformer in up to 4.9 times less training time
on Wiki-40B, 12.1 times on PG-19 (flash_pg19), at lengths up to 8,192 (abstract); of
perplexities there is no figure here, for want of the paper's own tables. Ours: ?
Base size: 24 gated attention units of width 768, for the 12 layers of a Transformer;
values of twice the width, queries and keys of 128 dimensions, chunks of 256 (Su 2022,
kexue.fm/archives/8934); all kernels start from N(0, 0.02^2), and norms are of a single
scale (lucidrains/FLASH-pytorch).
Differs: positions only turn queries and keys, which Su finds enough; the paper has
added codes and biases of the logits besides. Vocabulary, batch and schedule are our
own, and so are tied logits.
"""

from functools import partial

import jax

from research.data.loader import Data
from research.data.packing import Windows
from research.data.sources import Tfds
from research.data.stored import Stored
from research.data.subwords import SentencePiece, Training
from research.evals.loss import HeldOutLoss
from research.experiment import Experiment
from research.layers.attention import Attention
from research.layers.cores import Core
from research.layers.cores.mixed_chunk import MixedChunk
from research.layers.embeddings import TokenEmbedding
from research.layers.gated import GatedAttentionUnit
from research.layers.initializers import Normal
from research.layers.mlp import FeedForward
from research.layers.norms import LayerNorm, ScaleNorm
from research.layers.positions import Rotary
from research.layers.residual import PreNorm
from research.layers.stack import Slot, Stack, TransformerBlock
from research.models.transformer import LanguageModel
from research.tasks.language_modelling import LanguageModelling
from research.train.checkpoints import Checkpoints
from research.train.optimizers import Adam
from research.train.schedules import Cosine


def experiment(
    num_steps: int = 100_000, batch_size: int = 32, length: int = 8192
) -> Experiment:
    """The base size."""
    return of(
        MixedChunk(chunk_size=256),
        num_steps,
        batch_size,
        length,
        num_params=111_991_320,
    )


def of(
    core: Core,
    num_steps: int,
    batch_size: int,
    length: int,
    num_params: int,
    corpus: str = "wiki40b/en",
    part: str = "text",
    sample: str = "train[:5%]",
    block: Slot | None = None,
    num_layers: int = 24,
) -> Experiment:
    """The setting that all siblings share, with another core, corpus or block.

    Args:
      core: of the units.
      num_steps: of training.
      batch_size: in rows.
      length: of a row, in subwords.
      num_params: what there are.
      corpus: as TFDS names it.
      part: of its examples, which holds the text.
      sample: the part of the corpus that the subwords are made from.
      block: of the stack; None is for units.
      num_layers: of such blocks.
    """
    vocab_size, dim = 32_000, 768
    stem = f"{corpus.replace('/', '_')}_unigram{vocab_size}"
    tokenizer = SentencePiece(
        f"~/data/twelvefold/{stem}.model",
        Training(Tfds(corpus, sample), vocab_size, (part,)),
    )

    def rows(split: str) -> Windows:
        return Windows(Tfds(corpus, split), tokenizer, length, part=part)

    return Experiment(
        task=LanguageModelling(
            LanguageModel(
                TokenEmbedding(vocab_size, dim),
                Stack(
                    num_layers,
                    (block or units(core),),
                    final_norm=LayerNorm,
                    remat=True,
                ),
            )
        ),
        data=Data(
            train=Stored(rows("train"), f"~/data/twelvefold/{stem}_rows{length}"),
            eval={name: rows(name) for name in ("validation", "test")},
            spec={"tokens": ((length,), "int32")},
            batch_size=batch_size,
        ),
        optimizer=Adam(
            Cosine(5e-4, num_steps=num_steps, warmup_steps=5000),
            b2=0.98,
            weight_decay=0.01,
            clip_norm=1.0,
        ),
        num_steps=num_steps,
        evals={"validation": HeldOutLoss(split="validation", batch_size=8, every=5000)},
        offline_evals={"test": HeldOutLoss(split="test", batch_size=8)},
        checkpoints=Checkpoints(every=5000, keep_last=2),
        num_params=num_params,
    )


def units(core: Core) -> Slot:
    """A gated attention unit with a norm of a single scale before it."""
    return partial(
        TransformerBlock,
        mixer=partial(GatedAttentionUnit, core=core, rotary=Rotary()),
        mlp=None,
        residual=partial(PreNorm, norm=partial(ScaleNorm, unit=True)),
    )


def improved(core: Core) -> Slot:
    """The blocks that units are compared with: rotated, with gated feed-forward."""
    kernel = Normal(0.02)
    return partial(
        TransformerBlock,
        mixer=partial(
            Attention, num_heads=12, core=core, rotary=Rotary(), kernel_init=kernel
        ),
        mlp=partial(
            FeedForward,
            mlp_dim=2048,
            activation=jax.nn.silu,
            gated=True,
            kernel_init=kernel,
        ),
    )
