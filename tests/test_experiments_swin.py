"""Swin's experiments: published costs, decay, rates by depth, images to batches."""

from dataclasses import replace
from functools import cache
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from PIL.Image import Resampling

from experiments.swin.swin_b_imagenet22k_imagenet1k import by_depth
from research.experiment import load
from research.train import flops
from research.train.optimizers import scale_by_path
from research.train.sharding import path_name

FOLDER = Path(__file__).parents[1] / "experiments" / "swin"


def experiment_of(name, **arguments):
    return load(str(FOLDER / f"{name}.py"), arguments)


@cache
def traced(name, **arguments):
    """The shapes of an experiment's parameters, and the multiply-adds of an image."""
    experiment = experiment_of(name, **arguments)
    network = experiment.task.network
    shape, _ = experiment.data.spec["image"]
    # What is traced once serves twice: to initialise is to run, and to draw besides.
    init = jax.jit(lambda rng, image: network.init(rng, image, train=False))
    inputs = (jax.random.key(0), jax.ShapeDtypeStruct((1, *shape), "float32"))
    params = jax.eval_shape(init, *inputs)["params"]
    return params, flops.count(init, *inputs) / 2e9


@pytest.mark.parametrize(
    ("name", "arguments", "published"),
    [
        ("swin_t_imagenet1k", {}, 4.5),
        ("swin_s_imagenet1k", {}, 8.7),
        ("swin_b_imagenet1k", {}, 15.4),
        ("swin_b_imagenet1k_384", {}, 47.1),
        ("swin_l_imagenet22k_imagenet1k", {}, 34.5),
        ("swin_l_imagenet22k_imagenet1k", {"resolution": "384"}, 103.9),
        ("swinv2_t_imagenet1k", {}, 5.9),
        ("swinv2_t_imagenet1k", {"window_size": "16"}, 6.6),
        ("swinv2_s_imagenet1k", {"window_size": "16"}, 12.6),
        ("swinv2_b_imagenet1k", {"window_size": "16"}, 21.8),
        ("swinv2_b_imagenet22k_imagenet1k", {"resolution": "384"}, 54.7),
        ("swinv2_l_imagenet22k_imagenet1k", {"resolution": "384"}, 115.4),
    ],
)
def test_multiply_adds_are_the_published_ones(name, arguments, published):
    _, found = traced(name, **arguments)
    if name.startswith("swinv2"):
        found -= positions_of(experiment_of(name, **arguments).task.network.backbone)
    assert round(found, 1) == published


def positions_of(backbone):
    """Of Swin v2's networks of positions, which theirs leaves out of the count.

    They run once for a batch: 2 numbers to 512, and these to one for each head.
    """
    total = 0
    for stage, heads in enumerate(backbone.num_heads):
        window = min(backbone.window_size, backbone.image_size // 4 // 2**stage)
        distances = (2 * window - 1) ** 2
        total += backbone.depths[stage] * distances * 512 * (2 + heads)
    return total / 1e9


def by_path(tree):
    return {path_name(p): x for p, x in jax.tree_util.tree_leaves_with_path(tree)}


@pytest.mark.parametrize(
    ("name", "arguments", "tables"),
    [
        ("swin_t_imagenet1k", {}, ("mixer/position/table",)),
        (
            "swinv2_t_imagenet1k",
            {},
            ("mixer/position/up/kernel", "mixer/position/down/kernel"),
        ),
    ],
)
def test_kernels_decay_and_tables_do_not(name, arguments, tables):
    """The lists of the official code: set_weight_decay and no_weight_decay_keywords."""
    params, _ = traced(name, **arguments)
    decaying = by_path(experiment_of(name).optimizer._decaying(params))
    for path, leaf in by_path(params).items():
        is_table = path.endswith(tables)
        assert decaying[path] == (leaf.ndim >= 2 and not is_table), path
    assert sum(path.endswith(tables) for path in decaying) == 12 * len(tables)
    assert sum(decaying.values()) > 70


def test_rates_by_depth_are_those_of_timm():
    """Its groups of swin_tiny: 12 blocks between the patches, a norm and the head."""
    experiment = experiment_of("swin_t_imagenet1k")
    params, _ = traced("swin_t_imagenet1k")
    rates = by_depth(experiment.task.network.backbone, 0.5)
    transform = scale_by_path(rates)
    ones = jax.tree.map(lambda leaf: np.float32(1), params)
    factors, _ = transform.update(ones, transform.init(params))
    depths = {path: 14 + np.log2(factor) for path, factor in by_path(factors).items()}
    expected = {
        "backbone/patch_embedding/kernel": 0,
        "backbone/patch_norm/scale": 0,
        "backbone/stage_0_block_1/mixer/position/table": 2,
        "backbone/merge_0/reduction/kernel": 3,
        "backbone/stage_1_block_0/mlp/up/bias": 3,
        "backbone/merge_2/norm/scale": 11,
        "backbone/stage_2_block_5/mlp/down/kernel": 10,
        "backbone/stage_3_block_1/mlp_residual/norm/scale": 12,
        "norm/bias": 13,
        "logits/kernel": 14,
    }
    assert {path: depths[path] for path in expected} == expected
    assert set(depths.values()) == set(range(15))
    assert by_depth(experiment.task.network.backbone, 1.0) == ()


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A folder with one image of 300x260 pixels."""
    folder = tmp_path_factory.mktemp("images")
    draws = np.random.default_rng(0)
    image = Image.fromarray(draws.integers(0, 256, (260, 300, 3), np.uint8))
    for split in ("train", "val"):
        (folder / split / "class").mkdir(parents=True)
        image.save(folder / split / "class" / "0.png")
    return folder, image


def bicubic(image, width, height):
    return image.resize((width, height), Resampling.BICUBIC)


@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [
        (
            "swin_t_imagenet1k",
            {},
            lambda image: bicubic(image, 295, 256).crop((35, 16, 259, 240)),
        ),
        (
            "swinv2_b_imagenet22k_imagenet1k",
            {},
            lambda image: bicubic(image, 336, 292).crop((40, 18, 296, 274)),
        ),
        (
            "swin_l_imagenet22k_imagenet1k",
            {"resolution": "384"},
            lambda image: bicubic(image, 384, 384),
        ),
    ],
)
def test_images_become_batches(name, arguments, expected, images):
    folder, image = images
    experiment = experiment_of(name, images=str(folder), **arguments)
    data = replace(experiment.data, batch_size=4, num_workers=0)
    (batch,) = data.eval_batches("val", 1)
    np.testing.assert_array_equal(batch["image"][0], np.asarray(expected(image)))
    batch = data.batch(0)
    assert batch["image"].shape[1:] == data.spec["image"][0]
    assert len({row.tobytes() for row in batch["image"]}) == 4


def test_rates_are_in_proportion_to_the_batch():
    for name, peak, end in (
        ("swin_t_imagenet1k", 1e-3, 1e-5),
        ("swin_b_imagenet22k", 1e-3, 1e-5),
        ("swin_t_imagenet22k_imagenet1k", 4e-5, 4e-7),
    ):
        whole = experiment_of(name)
        half = experiment_of(name, batch_size=str(whole.data.batch_size // 2))
        schedule, steps = whole.optimizer.learning_rate, whole.num_steps
        warm = schedule.num_steps
        np.testing.assert_allclose(
            [schedule(0), schedule(warm), schedule(steps)],
            [peak / 1000, peak, end],
            rtol=1e-5,
        )
        np.testing.assert_allclose(
            half.optimizer.learning_rate(warm), peak / 2, rtol=1e-6
        )
