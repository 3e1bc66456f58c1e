"""GNMT on WMT14 en-de, its first 60,000 steps: Wu et al. 2016, arXiv:1609.08144.

    python -m launch.prepare experiments/seq2seq/gnmt_wmt14_ende_adam.py
    python -m launch.train experiments/seq2seq/gnmt_wmt14_ende_adam.py

gnmt_wmt14_ende goes on from here. Published: nothing of these steps alone. Ours: ?
Paper: section 8.3. Adam at a rate of 2e-4, clipped to a norm of 5, everything uniform
within 0.04 at first, dropout 0.3 for German, 128 sentences a step; 8 layers of 1024
LSTM cells on either side, of which the first that reads runs both ways; from the third
on, layers add their input to their output.
Differs: SentencePiece's BPE for its word pieces, 32,000 for both languages; no 12
asynchronous replicas; sentences of at most 127; no coverage penalty (beta 0.2) in the
search; the decoder begins with the encoder's topmost states, of which the paper does
not tell; its additive attention has 1024 units, and its bottom layer, too, sees what
it looked at.
Differs: the loss there is that of a sentence, here that of a token, a WORDS-th of it:
the clipping norm is divided by WORDS, and so is Adam's epsilon.
Parameters: the paper does not count them.
"""

from typing import Any

from experiments.seq2seq import bahdanau_wmt14_enfr as base
from research.decoding.scoring import GNMT
from research.evals.loss import HeldOutLoss
from research.experiment import Experiment
from research.layers.alignment import Additive
from research.layers.embeddings import TokenEmbedding
from research.layers.initializers import within
from research.layers.recurrent import LstmCell, RecurrentStack
from research.models.recurrent import Decoder, RecurrentSeq2Seq
from research.tasks.translation import Translation
from research.train.checkpoints import Checkpoints
from research.train.optimizers import Adam
from research.train.schedules import Constant

SOURCE = "arXiv:1609.08144"


def experiment(
    num_steps: int = 60_000,
    batch_size: int = 128,
    dropout_rate: float = 0.3,
    language: str = "de",
    words: int = 25,
) -> Experiment:
    """The published setting; `words` is the mean length of a target sentence."""
    size, dim = 32_000, 1024
    start = within(0.04)
    cell = LstmCell(0.0, kernel_init=start, recurrent_init=start, bias_init=start)

    def stack(num_layers: int, **rest: Any) -> RecurrentStack:
        return RecurrentStack(
            dim, num_layers, cell=cell, dropout_rate=dropout_rate, **rest
        )

    embedding = TokenEmbedding(
        size, dim, dropout_rate=dropout_rate, embedding_init=start
    )
    tokenizer = base.subwords(language, size)
    languages = base.Languages(language, tokenizer, tokenizer)
    return Experiment(
        task=Translation(
            network=RecurrentSeq2Seq(
                source_embedding=embedding.clone(),
                embedding=embedding,
                encoder=stack(8, num_bidirectional=1, residual_from=2),
                decoder=Decoder(
                    stack(1),
                    alignment=Additive(
                        dim, query_init=start, key_init=start, score_init=start
                    ),
                    align_first=True,
                    upper=stack(7, residual_from=1),
                ),
                dropout_rate=dropout_rate,
                logits_init=start,
            ),
            smoothing=0.0,
            beam_size=3,
            length_penalty=GNMT(0.2),
        ),
        data=languages.data(batch_size, (16, 32, 48, 64, 96, 128)),
        optimizer=Adam(Constant(2e-4), eps=1e-8 / words, clip_norm=5 / words),
        num_steps=num_steps,
        evals={"dev": HeldOutLoss(split="newstest2013", batch_size=64, every=5000)},
        offline_evals={"bleu": languages.bleu()},
        checkpoints=Checkpoints(every=5000),
        num_params=280_826_880,
    )
