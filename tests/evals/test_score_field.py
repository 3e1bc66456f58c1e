import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from research.data.loader import Data
from research.data.synthetic import MixturePoints
from research.diffusion.densities import GaussianMixture
from research.evals.base import Context
from research.evals.score_field import FisherDivergence, ScoreField
from research.train.sharding import make_mesh

DENSITY = GaussianMixture()


class Scaled:
    """The true score, times `scale`."""

    def score(self, variables, x):
        return variables["scale"] * DENSITY.score(x)


@pytest.fixture
def context(tmp_path):
    data = Data(
        train=MixturePoints(64, seed=0),
        eval={"test": MixturePoints(3000, seed=1)},
        spec={"x": ((2,), "float32")},
        batch_size=64,
    )
    return Context(data, make_mesh(), step=7, seed=0, folder=tmp_path / "samples")


def test_divergence_is_the_square_of_what_is_missing(context):
    evaluate = FisherDivergence(DENSITY)
    exact = evaluate(Scaled(), {"scale": jnp.array(1.0)}, context)
    assert exact["fisher_divergence"] == 0
    # Modes far apart: the score of each has energy 1/2 * 2 dimensions.
    assert exact["score_energy"] == pytest.approx(1.0, rel=0.05)
    double = evaluate(Scaled(), {"scale": jnp.array(3.0)}, context)
    assert double["fisher_divergence"] == pytest.approx(
        4 * exact["score_energy"], rel=1e-5
    )


def test_picture_shows_both_fields(context):
    ScoreField(DENSITY)(Scaled(), {"scale": jnp.array(-1.0)}, context)
    path = context.folder / "00000007.png"
    image = np.asarray(Image.open(path).convert("RGB")).astype(int)
    assert image.shape == (400, 800, 3)
    dark = image.sum(axis=2) < 200
    assert dark[:, :400].sum() > 500 and dark[:, 400:].sum() > 500
    # The left field points the other way: another picture.
    assert (dark[:, :400] != dark[:, 400:]).sum() > 500
