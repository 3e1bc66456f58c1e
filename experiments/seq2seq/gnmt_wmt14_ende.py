"""GNMT on WMT14 en-de: Wu et al. 2016, arXiv:1609.08144.

    python -m launch.prepare experiments/seq2seq/gnmt_wmt14_ende.py
    python -m launch.train experiments/seq2seq/gnmt_wmt14_ende.py

It goes on from the run of gnmt_wmt14_ende_adam, whose model it is.
Published: BLEU 24.6 on newstest2014 by a single model, with a beam of 3. Ours: ?
Paper: section 8.3. After Adam gradient descent at a rate of 0.5, from step 1.2 million
on halved every 200,000, for 800,000 more.
Differs: as gnmt_wmt14_ende_adam; the refinement by reinforcement learning, with which
the published model has the same BLEU, is left out.
Differs: the loss there is that of a sentence, here that of a token: rates are
multiplied by the 25 words of a sentence and the clipping norm is divided by them.
"""

from dataclasses import replace

from experiments.seq2seq import gnmt_wmt14_ende_adam as base
from research.experiment import Experiment, Published
from research.train.optimizers import Sgd
from research.train.schedules import Piecewise
from research.train.start import FromRun

BEFORE = 60_000
"""Steps that Adam has made."""


def experiment(
    num_steps: int = 2_000_000 - BEFORE,
    batch_size: int = 128,
    model: str = "runs/gnmt_wmt14_ende_adam",
    dropout_rate: float = 0.3,
    language: str = "de",
    words: int = 25,
) -> Experiment:
    """The published setting; `model` is the workdir of the first steps."""
    halved = [(1_200_000 + 200_000 * n - BEFORE, 0.25 / 2**n) for n in range(4)]
    points = tuple((step, rate * words) for step, rate in [(0, 0.5), *halved])
    return replace(
        base.experiment(
            batch_size=batch_size,
            dropout_rate=dropout_rate,
            language=language,
            words=words,
        ),
        optimizer=Sgd(Piecewise(points), clip_norm=5 / words),
        num_steps=num_steps,
        start=FromRun(model),
        num_params=280_826_880,
        published=(Published("bleu/bleu", 24.6, base.SOURCE),),
    )
