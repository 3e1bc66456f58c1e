from dataclasses import dataclass

import jax
import numpy as np
import pytest

from research.evals.accuracy import Accuracy
from tests.evals.fakes import make_context

IMAGES = np.random.default_rng(0).integers(0, 256, (11, 1, 8, 1), np.uint8)
LABELS = np.random.default_rng(1).integers(0, 8, 11)
SOURCE = [
    {"image": image, "label": label}
    for image, label in zip(IMAGES, LABELS, strict=True)
]


@dataclass(frozen=True)
class Levels:
    """Takes the pixels for logits."""

    def logits(self, variables, image):
        return variables["scale"] * image.reshape(len(image), -1)


def accuracy_of(tops, batch_size=8):
    data = make_context().data
    data.eval["test"] = SOURCE
    return Accuracy(tops=tops, batch_size=batch_size)(
        Levels(), {"scale": jax.numpy.ones(())}, make_context(data=data)
    )


@pytest.mark.parametrize("batch_size", [8, 16])
def test_is_exact_over_ragged_batches(batch_size):
    order = np.argsort(-IMAGES.reshape(11, 8).astype(int), axis=1, kind="stable")
    place = np.argmax(order == LABELS[:, None], axis=1)
    expected = {f"top{k}": np.mean(place < k) for k in (1, 3, 5)}
    assert len(set(expected.values())) == 3 and 0 < expected["top1"]
    assert accuracy_of((1, 3, 5), batch_size) == pytest.approx(expected, rel=1e-9)


def test_as_many_as_there_are_say_nothing():
    assert accuracy_of((1, 8, 9)).keys() == {"top1"}
