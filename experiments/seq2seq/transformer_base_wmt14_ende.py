"""Transformer base on WMT14 en-de: Vaswani et al. 2017, arXiv:1706.03762, Table 2.

    python -m launch.prepare experiments/seq2seq/transformer_base_wmt14_ende.py
    python -m launch.train experiments/seq2seq/transformer_base_wmt14_ende.py
    python -m launch.evaluate runs/transformer_base_wmt14_ende --average-last 5

Published: BLEU 27.3 on newstest2014 (tokenized, cased, compounds split), from the mean
of the last 5 checkpoints, 10 minutes apart, by a beam of 4 with alpha 0.6; on the dev
set newstest2013 perplexity 4.92 a word piece and BLEU 25.8, without that mean (Table
3). sacrebleu's cased score is 0.6 to 0.7 lower on the same text (Kitaev et al. 2020,
arXiv:2001.04451, Table 4). 0.4 s a step, 12 hours on 8 P100.
Official setting: tensorflow/tensor2tensor, models/transformer.py, transformer_base_v1:
norms after the branches, a warm-up of 4000 steps, no clipping, no weight decay, and
uniform kernels of unit scale. Ours: ?
Differs: subwords are SentencePiece's BPE; sentences are packed into rows of 256 tokens,
96 rows a step for the paper's about 25,000 tokens of each language, where theirs are
batched by length.
Parameters: 63 million; 65 in the paper, whose vocabulary has about 37,000 subwords.
"""

import math
from functools import partial
from typing import Any

from research.data.loader import Data
from research.data.packing import NoLonger, Packed, Transformed
from research.data.sequences import AppendEos, Tokenize
from research.data.sources import Source, Tfds
from research.data.stored import Stored
from research.data.subwords import SentencePiece, Training
from research.data.transforms import Rename
from research.evals.bleu import Bleu
from research.evals.loss import HeldOutLoss
from research.experiment import Experiment, Published
from research.layers.attention import Attention
from research.layers.embeddings import TokenEmbedding
from research.layers.initializers import Normal, VarianceScaling
from research.layers.mlp import FeedForward
from research.layers.positions import Sinusoidal
from research.layers.residual import PostNorm
from research.layers.stack import Stack, TransformerBlock
from research.models.transformer import EncoderDecoder
from research.tasks.translation import Translation
from research.train.checkpoints import Checkpoints
from research.train.optimizers import Adam
from research.train.schedules import Noam

PARTS = ("source", "target")
SOURCE = "arXiv:1706.03762"


def experiment(
    num_steps: int = 100_000,
    batch_size: int = 96,
    embed_dim: int = 512,
    mlp_dim: int = 2048,
    num_layers: int = 6,
    num_heads: int = 8,
    head_dim: int = 64,
    value_dim: int = 64,
    dropout_rate: float = 0.1,
    smoothing: float = 0.1,
    vocab_size: int = 37_000,
    language: str = "de",
    positions: Any = Sinusoidal(),  # noqa: B008, it is frozen
) -> Experiment:
    """The published setting of the base model; rows of Table 3 change its arguments."""
    length = 256
    uniform = VarianceScaling(distribution="uniform")
    attention = partial(
        Attention,
        num_heads=num_heads,
        head_dim=head_dim,
        value_dim=value_dim,
        use_bias=False,
        kernel_init=uniform,
    )
    block = partial(
        TransformerBlock,
        mixer=attention,
        mlp=partial(FeedForward, mlp_dim=mlp_dim, kernel_init=uniform),
        residual=partial(PostNorm, dropout_rate=dropout_rate),
    )
    tokenizer = SentencePiece(
        f"~/data/twelvefold/wmt14_{language}_en_bpe{vocab_size}.model",
        Training(wmt14("train", language), vocab_size, PARTS, kind="bpe"),
    )

    def pairs(split: str) -> Source:
        encode = [Tokenize(tokenizer, part, part) for part in PARTS]
        encoded = Transformed(wmt14(split, language), (*encode, AppendEos(PARTS)))
        return NoLonger(encoded, length, PARTS)

    return Experiment(
        task=Translation(
            network=EncoderDecoder(
                embedding=TokenEmbedding(
                    vocab_size,
                    embed_dim,
                    scale=embed_dim**0.5,
                    positions=positions,
                    dropout_rate=dropout_rate,
                    embedding_init=Normal(embed_dim**-0.5),
                ),
                encoder=Stack(num_layers, (block,)),
                decoder=Stack(num_layers, (partial(block, cross=attention),)),
            ),
            smoothing=smoothing,
        ),
        data=Data(
            train=Stored(
                Packed(pairs("train"), length, PARTS),
                f"~/data/twelvefold/wmt14_{language}_en_bpe{vocab_size}_rows{length}",
            ),
            eval={
                "newstest2013": Packed(pairs("validation"), length, PARTS, most=1),
                "newstest2014": Packed(pairs("test"), length, PARTS, most=1),
            },
            spec={
                f"{part}{kind}": ((length,), "int32")
                for part in PARTS
                for kind in ("", "_segments", "_positions")
            },
            batch_size=batch_size,
            num_workers=4,
        ),
        optimizer=Adam(Noam(embed_dim, warmup_steps=4000), b2=0.98, eps=1e-9),
        num_steps=num_steps,
        evals={"dev": HeldOutLoss(split="newstest2013", batch_size=64, every=5000)},
        offline_evals={
            "dev_bleu": Bleu(tokenizer, split="newstest2013"),
            "bleu": Bleu(tokenizer, split="newstest2014"),
        },
        checkpoints=Checkpoints(every=1500, keep_last=20),
        num_params=63_045_632,
        published=(
            Published("bleu/bleu", 27.3, f"{SOURCE}, Table 2"),
            *dev(4.92, 25.8),
        ),
    )


def wmt14(split: str, language: str) -> Source:
    """English lines and their translations."""
    text = Tfds(f"wmt14_translate/{language}-en", split=split)
    return Transformed(text, (Rename((("en", "source"), (language, "target"))),))


def dev(perplexity: float, bleu: float) -> tuple[Published, ...]:
    """A row of Table 3; of its perplexity a word piece the logarithm is evaluated."""
    return (
        Published("dev/bits", math.log2(perplexity), f"{SOURCE}, Table 3"),
        Published("dev_bleu/bleu", bleu, f"{SOURCE}, Table 3"),
    )
