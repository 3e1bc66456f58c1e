import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from research.diffusion.guidance import left_half
from research.diffusion.pixels import Pixels
from research.evals.restoration import Restoration
from tests.evals.fakes import make_context


class Faithful:
    """Returns the images; with `shift`, another image everywhere."""

    pixels = Pixels(levels=17)

    def restore(self, variables, images, rng, measure):
        assert measure(self.pixels.to_data(images)).mask.shape == images.shape[1:]
        return {
            "image": jnp.roll(images, variables["shift"], axis=0),
            "nfe": jnp.array(7),
            "finite": jnp.array(True),
        }


def test_draws_stand_beside_their_image(tmp_path):
    context = make_context(folder=tmp_path, step=3)
    evaluate = Restoration(left_half, num=2, num_draws=3)
    values = evaluate(Faithful(), {"shift": jnp.array(0)}, context)
    assert values["rmse"] == 0 and values["other_rmse"] > 0.05
    assert values["nfe"] == 7 and values["finite"] == 1
    picture = np.asarray(Image.open(tmp_path / "00000003.png"))
    height, width = picture.shape[:2]
    # Two rows of four alike.
    tile = (width - 2) // 4
    first, *others = (picture[:, i * tile : (i + 1) * tile] for i in range(4))
    for other in others:
        np.testing.assert_array_equal(first[:, 2:], other[:, 2:])
    other = evaluate(Faithful(), {"shift": jnp.array(3)}, context)
    assert other["rmse"] == pytest.approx(values["other_rmse"])
