import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from research.diffusion.pixels import Pixels
from research.diffusion.processes import VP
from research.diffusion.samplers import PredictorCorrector
from research.evals import samples
from research.evals.samples import SampleGrid, draw_samples, full_range, save_grid
from research.tasks.score_matching import ScoreMatching
from research.train.sharding import make_mesh
from tests.evals.fakes import VARIABLES, KnownTask, make_context


class Network(nn.Module):
    @nn.compact
    def __call__(self, x, t, train):
        return nn.Conv(1, (3, 3), name="conv")(x) + t[:, None, None, None]


SCORE_TASK = ScoreMatching(
    network=Network(),
    process=VP(),
    pixels=Pixels(levels=17),
    sampler=PredictorCorrector(num_steps=20),
    image_shape=(4, 4, 1),
)


@pytest.fixture(scope="module")
def variables():
    image = jnp.zeros((1, 4, 4, 1), jnp.uint8)
    return SCORE_TASK.init(jax.random.key(0), {"image": image})


def draw(num, batch_size, seed=0, mesh=None):
    rng = jax.random.key(seed)
    return draw_samples(
        KnownTask(), VARIABLES, rng, num, batch_size, mesh or make_mesh()
    )


def test_more_samples_begin_with_the_same():
    few, many = draw(10, 8), draw(21, 8)
    assert few["image"].shape == (10, 4, 4, 1) and many["image"].shape == (21, 4, 4, 1)
    np.testing.assert_array_equal(few["image"], many["image"][:10])
    assert len(np.unique(many["image"], axis=0)) == 21
    assert few["nfe"] == 3 and few["finite"] == 1
    assert (draw(10, 8, seed=1)["image"] != few["image"]).any()


def test_any_number_of_devices(variables):
    """Also sizes that the devices do not divide."""

    def run(mesh):
        rng = jax.random.key(0)
        return draw_samples(SCORE_TASK, variables, rng, 6, 5, mesh)["image"]

    one = run(make_mesh(devices=jax.devices()[:1]))
    np.testing.assert_array_equal(run(make_mesh()), one)
    assert one.std() > 1


def test_each_device_draws_its_rows(variables):
    """The compiled program holds no array of all 16 rows but the gathered images."""
    lowered = samples._sample.lower(
        SCORE_TASK, variables, jax.random.key(0), 16, make_mesh()
    )
    text = lowered.compile().as_text()
    assert "f32[2,4,4,1]" in text
    assert not re.search(r"f32\[16,", text)


def test_grid_places_every_image(tmp_path):
    images = np.zeros((5, 2, 3, 3), np.uint8)
    images[..., 0] = np.arange(1, 6)[:, None, None] * 40
    images[4, 1, 2] = (0, 250, 0)
    save_grid(images, tmp_path / "grid.png", columns=3, scale=4)
    grid = np.asarray(Image.open(tmp_path / "grid.png"))
    assert grid.shape == (2 * (8 + 2) + 2, 3 * (12 + 2) + 2, 3)
    for index in range(4):
        top, left = 2 + 10 * (index // 3), 2 + 14 * (index % 3)
        tile = grid[top : top + 8, left : left + 12]
        assert (tile == ((index + 1) * 40, 0, 0)).all()
    assert (grid[12 + 4 : 12 + 8, 16 + 8 : 16 + 12] == (0, 250, 0)).all()
    assert (grid[:2] == 96).all() and (grid[12:, 30:] == 96).all()


def test_small_grey_images_grow(tmp_path):
    save_grid(np.full((4, 8, 8, 1), 255, np.uint8), tmp_path / "grid.png")
    with Image.open(tmp_path / "grid.png") as grid:
        assert grid.mode == "L" and grid.size == (2 * 66 + 2, 2 * 66 + 2)


def test_full_range():
    levels = np.array([0, 8, 16], np.uint8)
    np.testing.assert_array_equal(full_range(levels, 17), [0, 128, 255])
    every = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(full_range(every, 256), every)


def test_sample_grid(tmp_path):
    context = make_context(tmp_path / "new")
    values = SampleGrid(num=9, batch_size=8)(KnownTask(), VARIABLES, context)
    assert values == {"nfe": 3, "finite": 1}
    grid = np.asarray(Image.open(tmp_path / "new" / "00000070.png"))
    first = draw(1, 8, seed=context.seed)["image"][0, 0, 0]
    assert grid.shape == (3 * 66 + 2, 3 * 66 + 2)
    assert grid[2, 2] == full_range(first, 17)[0]
