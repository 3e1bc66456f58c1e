"""Sources that generate their examples, each a pure function of seed and index."""

from dataclasses import dataclass

import numpy as np

from research.data.sources import Arrays, Example


@dataclass(frozen=True)
class MixturePoints(Arrays):
    """`num` draws from a mixture of round Gaussians: `x`, float32 (dim,).

    The defaults are those of `research.diffusion.densities.GaussianMixture`.
    """

    num: int
    seed: int
    means: tuple[tuple[float, ...], ...] = ((5.0, 5.0), (-5.0, -5.0))
    weights: tuple[float, ...] = (0.8, 0.2)
    std: float = 1.0

    def _load(self) -> Example:
        # RandomState's stream is frozen; a Generator's may change with NumPy (NEP 19).
        random = np.random.RandomState(self.seed)
        modes = random.choice(len(self.weights), self.num, p=self.weights)
        means = np.asarray(self.means)[modes]
        return {"x": np.float32(means + self.std * random.randn(*means.shape))}
