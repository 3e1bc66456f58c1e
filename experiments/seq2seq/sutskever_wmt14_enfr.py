"""A deep LSTM on WMT14 en-fr: Sutskever et al. 2014, arXiv:1409.3215, Table 1.

    python -m launch.prepare experiments/seq2seq/sutskever_wmt14_enfr.py
    python -m launch.train experiments/seq2seq/sutskever_wmt14_enfr.py

Published: BLEU 30.59 on newstest2014 by a single model that reads the source in
reverse, with a beam of 12. Ours: ?
Paper: section 3.4. Everything is uniform within 0.08 at first; gradient descent without
momentum at a rate of 0.7, halved every half epoch after 5 of 7.5, clipped to a norm of
5, no dropout, 128 sentences a step, batched by length.
Differs: vocabularies of as many subwords (SentencePiece's BPE) in the place of 160,000
English and 80,000 French words, so that none is unknown; all of the corpus, not 12
million selected sentences of it, for as many steps; sentences of at most 95 subwords.
Differs: the loss there is that of a sentence, here that of a token, a WORDS-th of it:
rates are multiplied by WORDS and the clipping norm is divided by it.
Parameters: 384 million in the paper.
"""

from experiments.seq2seq import bahdanau_wmt14_enfr as base
from research.decoding.scoring import PLAIN
from research.evals.loss import HeldOutLoss
from research.experiment import Experiment, Published
from research.layers.embeddings import TokenEmbedding
from research.layers.initializers import within
from research.layers.recurrent import LstmCell, RecurrentStack
from research.models.recurrent import Decoder, RecurrentSeq2Seq
from research.tasks.translation import Translation
from research.train.checkpoints import Checkpoints
from research.train.optimizers import Sgd
from research.train.schedules import Piecewise

HALF_EPOCH = 12_000_000 // 128 // 2


def experiment(num_steps: int = 15 * HALF_EPOCH, batch_size: int = 128) -> Experiment:
    """The published setting."""
    source_size, target_size, dim = 160_000, 80_000, 1000
    start = within(0.08)
    cell = LstmCell(0.0, kernel_init=start, recurrent_init=start, bias_init=start)
    layers = RecurrentStack(dim, 4, cell=cell)
    languages = base.Languages(
        "fr",
        base.subwords("fr", source_size, "source"),
        base.subwords("fr", target_size, "target"),
    )
    rates = [0.7, 0.35, 0.175, 0.0875, 0.04375, 0.021875]
    return Experiment(
        task=Translation(
            network=RecurrentSeq2Seq(
                source_embedding=TokenEmbedding(source_size, dim, embedding_init=start),
                embedding=TokenEmbedding(target_size, dim, embedding_init=start),
                encoder=layers,
                decoder=Decoder(layers.clone()),
                reverse_source=True,
                logits_init=start,
            ),
            smoothing=0.0,
            beam_size=12,
            length_penalty=PLAIN,
        ),
        data=languages.data(batch_size, (16, 32, 48, 64, 96)),
        optimizer=Sgd(
            Piecewise(
                tuple(
                    ((9 + n) * HALF_EPOCH if n else 0, rate * base.WORDS)
                    for n, rate in enumerate(rates)
                )
            ),
            clip_norm=5 / base.WORDS,
        ),
        num_steps=num_steps,
        evals={"dev": HeldOutLoss(split="newstest2013", batch_size=64, every=5000)},
        offline_evals={"bleu": languages.bleu()},
        checkpoints=Checkpoints(every=5000),
        num_params=384_032_000,
        published=(Published("bleu/bleu", 30.59, "arXiv:1409.3215, Table 1"),),
    )
