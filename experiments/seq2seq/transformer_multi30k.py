"""A small Transformer translates Multi30k from English to German.

    python -m launch.prepare experiments/seq2seq/transformer_multi30k.py
    python -m launch.train experiments/seq2seq/transformer_multi30k.py

29,000 captions of photographs (Elliott et al. 2016, arXiv:1605.00459, task 1), read
from `folder` as train.en[.gz], train.de[.gz], val.*, test_2016_flickr.*;
`launch.prepare` makes a subword vocabulary of both languages beside them. The
Transformer of Vaswani et al. 2017, arXiv:1706.03762, at two CPU cores' size, with norms
before the branches, sentences packed into rows of 64 tokens, and averaged parameters.
Required beforehand: BLEU (sacrebleu, cased, detokenized) of at least 30 on
test_2016_flickr, with a beam of 4.
Ours: BLEU 35.9, chrF 59.5, at step 1487 of 3000 (six epochs; about 40 minutes on two
cores). The curve, 200 sentences of val by the likeliest words: 24.5 at step 500, 32.6
at 1000.
"""

from functools import partial
from typing import Any

from research.data.loader import Data
from research.data.packing import NoLonger, Packed, Transformed
from research.data.sequences import AppendEos, Tokenize
from research.data.sources import Source
from research.data.subwords import SentencePiece, Training
from research.data.text import ParallelText
from research.evals.bleu import Bleu
from research.evals.loss import HeldOutLoss
from research.experiment import Experiment, Required
from research.layers.attention import Attention
from research.layers.embeddings import TokenEmbedding
from research.layers.initializers import Normal
from research.layers.mlp import FeedForward
from research.layers.norms import LayerNorm
from research.layers.positions import Sinusoidal
from research.layers.residual import PreNorm
from research.layers.stack import Stack, TransformerBlock
from research.models.transformer import EncoderDecoder
from research.tasks.translation import Translation
from research.train.checkpoints import Checkpoints
from research.train.optimizers import Adam
from research.train.schedules import Cosine
from research.train.state import Ema

PARTS = ("source", "target")


def data(tokenizer: SentencePiece, folder: str, batch_size: int, length: int) -> Data:
    """Packed rows to learn from, single sentences to judge by."""

    def pairs(split: str) -> Source:
        ends = [Tokenize(tokenizer, part, part) for part in PARTS]
        text = ParallelText(folder, split, ("en", "de"))
        return NoLonger(Transformed(text, (*ends, AppendEos(PARTS))), length, PARTS)

    return Data(
        train=Packed(pairs("train"), length, PARTS),
        eval={
            "val": Packed(pairs("val"), length, PARTS, most=1),
            "test": Packed(pairs("test_2016_flickr"), length, PARTS, most=1),
        },
        spec={
            f"{part}{kind}": ((length,), "int32")
            for part in PARTS
            for kind in ("", "_segments", "_positions")
        },
        batch_size=batch_size,
    )


def evaluators(tokenizer: SentencePiece, folder: str, every: int) -> dict[str, Any]:
    """The curve: the loss, and BLEU of the likeliest words of 200 sentences."""
    return {
        "val": HeldOutLoss(split="val", batch_size=64, every=every),
        "val_bleu": Bleu(
            tokenizer,
            split="val",
            text=ParallelText(folder, "val"),
            num_examples=200,
            batch_size=50,
            beam_size=1,
            every=every,
        ),
    }


def experiment(
    num_steps: int = 3000,
    batch_size: int = 32,
    embed_dim: int = 192,
    num_layers: int = 3,
    vocab_size: int = 6000,
    dropout_rate: float = 0.15,
    folder: str = "~/data/twelvefold/multi30k",
) -> Experiment:
    """About an hour on two CPU cores."""
    length = 64
    corpus = ParallelText(folder, "train", ("en", "de"))
    tokenizer = SentencePiece(
        f"{folder}/en-de-{vocab_size}.model",
        Training(corpus, vocab_size, PARTS, kind="bpe"),
    )
    attention = partial(Attention, num_heads=4, use_bias=False)
    block = partial(
        TransformerBlock,
        mixer=attention,
        mlp=partial(FeedForward, mlp_dim=8 * embed_dim // 3, dropout_rate=dropout_rate),
        residual=partial(PreNorm, dropout_rate=dropout_rate),
    )
    return Experiment(
        task=Translation(
            network=EncoderDecoder(
                embedding=TokenEmbedding(
                    vocab_size,
                    embed_dim,
                    scale=embed_dim**0.5,
                    positions=Sinusoidal(),
                    dropout_rate=dropout_rate,
                    embedding_init=Normal(embed_dim**-0.5),
                ),
                encoder=Stack(num_layers, (block,), final_norm=LayerNorm),
                decoder=Stack(
                    num_layers,
                    (partial(block, cross=attention),),
                    final_norm=LayerNorm,
                ),
            ),
            smoothing=0.1,
            beam_size=4,
        ),
        data=data(tokenizer, folder, batch_size, length),
        optimizer=Adam(
            Cosine(2e-3, num_steps=num_steps, warmup_steps=300),
            b2=0.98,
            eps=1e-9,
            clip_norm=1.0,
        ),
        num_steps=num_steps,
        ema=Ema(0.998, warmup=True),
        evals=evaluators(tokenizer, folder, every=500),
        offline_evals={
            "bleu": Bleu(
                tokenizer,
                split="test",
                text=ParallelText(folder, "test_2016_flickr"),
                batch_size=50,
            ),
        },
        checkpoints=Checkpoints(every=500, keep_last=20),
        log_every=100,
        num_params=3_669_504,
        required=(Required("bleu/bleu", above=30.0),),
    )
