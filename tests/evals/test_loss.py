import numpy as np
import pytest

from research.evals.loss import HeldOutLoss
from tests.evals.fakes import VARIABLES, KnownTask, make_context, make_images

EXACT = make_images(11).mean() + 0.5


@pytest.mark.parametrize("batch_size", [8, 16])
def test_is_exact_over_ragged_batches(batch_size):
    values = HeldOutLoss(batch_size=batch_size)(KnownTask(), VARIABLES, make_context())
    assert values == pytest.approx({"loss": EXACT, "double": 2 * EXACT}, rel=1e-6)


def test_noise_depends_on_seed_and_round_only():
    def run(rounds, seed, step):
        evaluator = HeldOutLoss(batch_size=8, num_rounds=rounds)
        context = make_context(seed=seed, step=step)
        return evaluator(KnownTask(noise=1.0), VARIABLES, context)["loss"]

    assert run(1, 3, 10) == run(1, 3, 20)
    assert run(1, 3, 10) != run(1, 4, 10)
    assert run(2, 3, 10) != run(1, 3, 10)
    # 330 draws of variance 1: three standard errors.
    assert abs(run(30, 3, 10) - EXACT) < 3 / np.sqrt(330)


def test_compiles_once():
    traces = []
    task = KnownTask(noise=0.1, traces=(traces,))
    context = make_context()
    for _ in range(3):
        HeldOutLoss(batch_size=8)(task, VARIABLES, context)
    assert traces == [False]
