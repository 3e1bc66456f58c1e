"""An unconditional model that draws by class, steered by a classifier."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from research.diffusion.guidance import guided
from research.diffusion.pixels import Pixels
from research.tasks.base import Batch, Metrics, Variables
from research.tasks.noisy_classification import NoisyClassification
from research.tasks.score_matching import ScoreMatching


@dataclass(frozen=True)
class ClassGuidance:
    """Trains the classifier alone, and samples from p(x | y) with both.

    The variables are those of the parts, under `model` and `classifier`. The model's
    come from a run of its own: `start=FromRun(..., under="model")`, and
    `trainable="^classifier/"` keeps them.

    Attributes:
      model: the unconditional model, trained before.
      classifier: of the same process.
      num_classes: sample i is drawn to be of class i modulo this.
      weight: of the classifier's gradient; above 1 it sharpens.
    """

    model: ScoreMatching
    classifier: NoisyClassification
    num_classes: int = 10
    weight: float = 1.0

    @property
    def pixels(self) -> Pixels:
        return self.model.pixels

    def init(self, rng: Key[Array, ""], batch: Batch) -> Variables:
        model_rng, classifier_rng = jax.random.split(rng)
        model = self.model.init(model_rng, batch)
        classifier = self.classifier.init(classifier_rng, batch)
        return _join(model=model, classifier=classifier)

    def loss(
        self, variables: Variables, batch: Batch, rng: Key[Array, ""], train: bool
    ) -> tuple[Float[Array, ""], tuple[Metrics, Variables]]:
        """The classifier's."""
        loss, (metrics, changed) = self.classifier.loss(
            _part(variables, "classifier"), batch, rng, train
        )
        kept = {name: dict(parts) for name, parts in variables.items()}
        changed = {
            name: kept[name] | {"classifier": part} for name, part in changed.items()
        }
        return loss, (metrics, changed)

    def score(
        self,
        variables: Variables,
        label: Int[Array, "batch"],
        x: Float[Array, "batch height width channels"],
        t: Float[Array, "batch"],
    ) -> Float[Array, "batch height width channels"]:
        """The gradient of log p(x(t) | label)."""
        log_likelihood = partial(
            self.classifier.log_likelihood, _part(variables, "classifier"), label
        )
        score = partial(self.model.score, _part(variables, "model"))
        return guided(score, log_likelihood, self.weight)(x, t)

    def sample(
        self, variables: Variables, rng: Key[Array, ""], num: int
    ) -> dict[str, Array]:
        """What `ScoreMatching.sample` returns, and `label`, the class of each image.

        `nfe` counts the model's evaluations; the classifier has as many, each with its
        gradient.
        """
        label = jnp.arange(num) % self.num_classes
        score = partial(self.score, variables, label)
        return self.model.sample_from(score, rng, num) | {"label": label}


def _join(**parts: Variables) -> Variables:
    """Collections by name, each of the parts by theirs."""
    names = sorted({name for part in parts.values() for name in part})
    return {
        name: {key: part[name] for key, part in parts.items() if name in part}
        for name in names
    }


def _part(variables: Variables, key: str) -> Mapping[str, Any]:
    return {name: parts[key] for name, parts in variables.items() if key in parts}
