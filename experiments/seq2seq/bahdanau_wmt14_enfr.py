"""RNNsearch-50 on WMT14 en-fr: Bahdanau et al. 2015, arXiv:1409.0473, Table 1.

    python -m launch.prepare experiments/seq2seq/bahdanau_wmt14_enfr.py
    python -m launch.train experiments/seq2seq/bahdanau_wmt14_enfr.py

Published: BLEU 26.75 on newstest2014, 34.16 on its sentences without unknown words; in
288,000 steps, 111 hours on a Quadro K6000 (Appendix B). Ours: ?
Paper: Appendices A and B. GRUs whose reset gate acts before the product, orthogonal
recurrent kernels, others normal with deviation 0.01, 0.001 in the alignment, whose last
vector begins at zero; Adadelta, no dropout, 80 sentences a step, at most 50 words long.
Differs: vocabularies of as many subwords (SentencePiece's BPE) in the place of 30,000
words, so that none is unknown, and sentences of at most 63; all of the corpus, not the
348 million words that a selection left of it; the paper does not say how many
hypotheses its search keeps, here 12.
Differs: the loss there is that of a sentence, here that of a token, a WORDS-th of it:
Adadelta's rate is WORDS, its epsilon is divided by WORDS^2 and the clipping norm by
WORDS, which gives the same steps.
Parameters: the paper does not count them.
"""

from dataclasses import dataclass
from pathlib import Path

import flax.linen as nn

from experiments.seq2seq import transformer_base_wmt14_ende as base
from research.data.buckets import BucketedData
from research.data.loader import Bucket, Data
from research.data.packing import NoLonger, Transformed
from research.data.sequences import AppendEos, Tokenize
from research.data.sources import Source
from research.data.stored import Stored
from research.data.subwords import SentencePiece, Training
from research.decoding.scoring import PLAIN
from research.evals.bleu import Bleu
from research.evals.loss import HeldOutLoss
from research.experiment import Experiment, Published
from research.layers.alignment import Additive
from research.layers.embeddings import TokenEmbedding
from research.layers.initializers import Normal
from research.layers.recurrent import GruCell, RecurrentStack
from research.models.recurrent import (
    Decoder,
    MaxoutReadout,
    RecurrentSeq2Seq,
    TanhBridge,
)
from research.tasks.translation import Translation
from research.train.checkpoints import Checkpoints
from research.train.optimizers import Adadelta
from research.train.schedules import Constant

SOURCE = "arXiv:1409.0473"
WORDS = 29
"""Of a French sentence, the end included: 348 million words in 12 million."""

SMALL = Normal(0.01)
CELL = GruCell(reset_first=True, kernel_init=SMALL)
READOUT = MaxoutReadout(500, kernel_init=SMALL)
BRIDGE = TanhBridge(kernel_init=SMALL)
ENCODER = RecurrentStack(1000, cell=CELL, num_bidirectional=1)
DECODER = Decoder(
    RecurrentStack(1000, cell=CELL),
    alignment=Additive(
        1000,
        query_init=Normal(0.001),
        key_init=Normal(0.001),
        score_init=nn.initializers.zeros,
    ),
    align_first=True,
    readout=READOUT,
    bridge=BRIDGE,
)


def experiment(
    num_steps: int = 288_000,
    batch_size: int = 80,
    encoder: RecurrentStack = ENCODER,
    decoder: Decoder = DECODER,
) -> Experiment:
    """The published setting."""
    size = 30_000
    languages = Languages(
        "fr", subwords("fr", size, "source"), subwords("fr", size, "target")
    )
    return Experiment(
        task=Translation(
            network=RecurrentSeq2Seq(
                source_embedding=TokenEmbedding(size, 620, embedding_init=SMALL),
                embedding=TokenEmbedding(size, 620, embedding_init=SMALL),
                encoder=encoder,
                decoder=decoder,
                logit_bias=True,
                logits_init=SMALL,
            ),
            smoothing=0.0,
            beam_size=12,
            length_penalty=PLAIN,
        ),
        data=languages.data(batch_size),
        optimizer=Adadelta(
            Constant(float(WORDS)),
            rho=0.95,
            eps=1e-6 / WORDS**2,
            clip_norm=1 / WORDS,
        ),
        num_steps=num_steps,
        evals={"dev": HeldOutLoss(split="newstest2013", batch_size=64, every=5000)},
        offline_evals={"bleu": languages.bleu()},
        checkpoints=Checkpoints(every=5000),
        num_params=80_442_000,
        published=(Published("bleu/bleu", 26.75, f"{SOURCE}, Table 1, RNNsearch-50"),),
    )


def subwords(language: str, vocab_size: int, part: str = "") -> SentencePiece:
    """Those of one side of the corpus, or of both."""
    name = f"wmt14_{language}_en_{part}_bpe" if part else f"wmt14_{language}_en_bpe"
    corpus, parts = base.wmt14("train", language), (part,) if part else base.PARTS
    return SentencePiece(
        f"~/data/twelvefold/{name}{vocab_size}.model",
        Training(corpus, vocab_size, parts, kind="bpe"),
    )


@dataclass(frozen=True)
class Languages:
    """English and another, in subwords."""

    language: str
    source: SentencePiece
    target: SentencePiece

    def pairs(self, split: str, length: int) -> Source:
        """Whatever is no longer than `length`, the ends included."""
        encode = (
            Tokenize(self.source, "source", "source"),
            Tokenize(self.target, "target", "target"),
            AppendEos(base.PARTS),
        )
        encoded = Transformed(base.wmt14(split, self.language), encode)
        return NoLonger(encoded, length, base.PARTS)

    def data(
        self, batch_size: int, lengths: tuple[int, ...] = (16, 32, 48, 64)
    ) -> Data:
        """Batches of as many sentences, of about equal length; longer ones to test."""
        longest, most = 192, lengths[-1]
        names = (Path(side.path).stem for side in (self.source, self.target))
        folder = f"~/data/twelvefold/{'_'.join(dict.fromkeys(names))}_at_most_{most}"
        buckets = [
            Bucket(batch_size, {part: ((length,), "int32") for part in base.PARTS})
            for length in (*lengths, longest)
        ]
        return BucketedData(
            train=Stored(self.pairs("train", most), folder),
            eval={
                "newstest2013": self.pairs("validation", longest),
                "newstest2014": self.pairs("test", longest),
            },
            spec=buckets[-1].spec,
            batch_size=batch_size,
            smaller=tuple(buckets[:-1]),
            num_workers=4,
        )

    def bleu(self) -> Bleu:
        """Of newstest2014."""
        return Bleu(self.target, "newstest2014", source_tokenizer=self.source)
