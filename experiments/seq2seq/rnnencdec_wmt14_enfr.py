"""RNNencdec-50 on WMT14 en-fr: Bahdanau et al. 2015, arXiv:1409.0473, Table 1.

    python -m launch.prepare experiments/seq2seq/rnnencdec_wmt14_enfr.py
    python -m launch.train experiments/seq2seq/rnnencdec_wmt14_enfr.py

bahdanau_wmt14_enfr without attention, as Cho et al. 2014, arXiv:1406.1078: the encoder
runs forward, and its last state is all that the decoder sees of it, at every step.
Published: BLEU 17.82 on newstest2014, 26.71 on its sentences without unknown words; in
600,000 steps, 108 hours on a Quadro K6000 (Appendix B). Ours: ?
Paper: as bahdanau_wmt14_enfr.
Differs: as bahdanau_wmt14_enfr.
"""

from dataclasses import replace

from experiments.seq2seq import bahdanau_wmt14_enfr as base
from research.experiment import Experiment, Published
from research.layers.alignment import LastState
from research.layers.recurrent import RecurrentStack


def experiment(num_steps: int = 600_000, batch_size: int = 80) -> Experiment:
    """The published setting."""
    return replace(
        base.experiment(
            num_steps,
            batch_size,
            encoder=RecurrentStack(1000, cell=base.CELL),
            decoder=base.DECODER.clone(alignment=LastState()),
        ),
        num_params=68_578_000,
        published=(
            Published("bleu/bleu", 17.82, f"{base.SOURCE}, Table 1, RNNencdec-50"),
        ),
    )
