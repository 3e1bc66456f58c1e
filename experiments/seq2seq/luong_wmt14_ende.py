"""Local attention on WMT14 en-de: Luong et al. 2015, arXiv:1508.04025, Table 1.

    python -m launch.prepare experiments/seq2seq/luong_wmt14_ende.py
    python -m launch.train experiments/seq2seq/luong_wmt14_ende.py

Its rows, each a file, luong_wmt14_ende_... but for the last:

    base                                           perplexity 10.6  BLEU 11.3
    reverse: and the source in reverse                         9.9       12.6
    dropout: and dropout                                       8.1       14.0
    global: and attention to all, by the place alone           7.3       16.8
    feed: and the next step sees what came of it               6.4       18.1
    this file: and a window (local-p), general scores          5.9       19.0

Published: perplexity 5.9 a word and BLEU 19.0 (tokenized) on newstest2014. Ours: ?
Paper: section 4.1. Four layers of 1000 LSTM cells, everything uniform within 0.1 at
first; gradient descent at a rate of 1, halved each epoch after 8 of 12 (with dropout;
after 5 of 10 without), clipped to a norm of 5, 128 sentences of at most 50 words.
Differs: vocabularies of as many subwords (SentencePiece's BPE) in the place of 50,000
words, so that none is unknown and perplexities do not compare, and sentences of at most
63; a beam of 10, of which the paper does not tell the size.
Differs: the loss there is that of a sentence, here that of a token, a WORDS-th of it:
rates are multiplied by WORDS and the clipping norm is divided by it.
"""

from typing import Any

from experiments.seq2seq import bahdanau_wmt14_enfr as base
from research.decoding.scoring import PLAIN
from research.evals.loss import HeldOutLoss
from research.experiment import Experiment, Published
from research.layers.alignment import General, LocalP, Location
from research.layers.embeddings import TokenEmbedding
from research.layers.initializers import within
from research.layers.recurrent import LstmCell, RecurrentStack
from research.models.recurrent import AttentionalVector, Decoder, RecurrentSeq2Seq
from research.tasks.translation import Translation
from research.train.checkpoints import Checkpoints
from research.train.optimizers import Sgd
from research.train.schedules import Piecewise

SOURCE = "arXiv:1508.04025"
WORDS = 25
"""Of a German sentence, the end included: 110 million words in 4.5 million."""

EPOCH = 4_500_000 // 128
START = within(0.1)
PLACES = Location(64, query_init=START)
LOCAL = LocalP(General(1000, key_init=START), window=10, dim=1000, kernel_init=START)


def experiment(
    num_steps: int = 12 * EPOCH,
    batch_size: int = 128,
    reverse_source: bool = True,
    dropout_rate: float = 0.2,
    alignment: Any = LOCAL,
    input_feeding: bool = True,
) -> Experiment:
    """The last row; the others change its arguments."""
    size, dim = 50_000, 1000
    cell = LstmCell(0.0, kernel_init=START, recurrent_init=START, bias_init=START)
    layers = RecurrentStack(dim, 4, cell=cell, dropout_rate=dropout_rate)
    embedding = TokenEmbedding(
        size, dim, dropout_rate=dropout_rate, embedding_init=START
    )
    languages = base.Languages(
        "de", base.subwords("de", size, "source"), base.subwords("de", size, "target")
    )
    first = 8 if dropout_rate else 5
    halved = [(n, 2.0 ** (first - 1 - n)) for n in range(first, first + 5)]
    points = [(epoch, rate) for epoch, rate in halved if epoch * EPOCH < num_steps]
    return Experiment(
        task=Translation(
            network=RecurrentSeq2Seq(
                source_embedding=embedding.clone(),
                embedding=embedding,
                encoder=layers,
                decoder=Decoder(
                    layers.clone(),
                    alignment=alignment,
                    attentional=(
                        None
                        if alignment is None
                        else AttentionalVector(dim, kernel_init=START)
                    ),
                    input_feeding=input_feeding,
                ),
                reverse_source=reverse_source,
                dropout_rate=dropout_rate,
                logits_init=START,
            ),
            smoothing=0.0,
            beam_size=10,
            length_penalty=PLAIN,
        ),
        data=languages.data(batch_size),
        optimizer=Sgd(
            Piecewise(
                tuple((n * EPOCH, rate * WORDS) for n, rate in [(0, 1.0), *points])
            ),
            clip_norm=5 / WORDS,
        ),
        num_steps=num_steps,
        evals={"dev": HeldOutLoss(split="newstest2013", batch_size=64, every=5000)},
        offline_evals={"bleu": languages.bleu()},
        checkpoints=Checkpoints(every=5000),
        num_params=222_033_000,
        published=bleu(19.0),
    )


def bleu(value: float) -> tuple[Published, ...]:
    """A row of Table 1."""
    return (Published("bleu/bleu", value, f"{SOURCE}, Table 1"),)
