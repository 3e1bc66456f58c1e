"""Two modes in the plane by sliced score matching: Song & Ermon 2019, Fig. 2.

    python -m launch.train experiments/ncsn/mixture_ssm_vr.py

arXiv:1907.05600, section 3.2.1 and appendix B.1: away from the data, where nothing is
drawn, the learnt field is wrong; `samples/field/` shows both over the
density.
Official setting: ermongroup/ncsn, runners/toy_runner.py, at commit 7f27f4a1. Every
value below is theirs; the paper gives no number.
Differs: the official code draws a fresh batch at every step, this file from 100,000
points.
Required beforehand: a Fisher divergence below 0.05 on 10,000 held-out points, where a
field of zeros has 0.995. Ours: 0.0101, by `python -m launch.prove ncsn`.
"""

from research.data.loader import Data
from research.data.synthetic import MixturePoints
from research.diffusion.densities import GaussianMixture
from research.evals.score_field import FisherDivergence, ScoreField
from research.experiment import Experiment, Required
from research.layers.mlp import Mlp
from research.tasks.vector_score import Sliced, VectorScore
from research.train.checkpoints import Checkpoints
from research.train.optimizers import Adam
from research.train.schedules import Constant

DENSITY = GaussianMixture()


def experiment(num_steps: int = 10_000, batch_size: int = 128) -> Experiment:
    """The published setting; some seconds on a CPU."""
    return Experiment(
        task=VectorScore(
            network=Mlp(widths=(128, 128)),
            objective=Sliced(num_probes=1, variance_reduced=True, probes="normal"),
        ),
        data=Data(
            train=MixturePoints(num=100_000, seed=0),
            eval={"test": MixturePoints(num=10_000, seed=1)},
            spec={"x": ((2,), "float32")},
            batch_size=batch_size,
        ),
        optimizer=Adam(learning_rate=Constant(1e-3)),
        num_steps=num_steps,
        evals={
            "test": FisherDivergence(DENSITY),
            "field": ScoreField(DENSITY),
        },
        checkpoints=Checkpoints(every=5000, keep_last=1),
        log_every=1000,
        num_params=17_154,
        required=(Required("test/fisher_divergence", below=0.05),),
    )
