"""DETR's experiments: published costs, and what of a network is trained."""

import re
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from experiments.detection import detr_r50_coco, detr_scenes
from research.experiment import load
from research.models.resnet import FrozenBatchNorm, ResNet
from research.pretrained import resnet
from research.train import flops
from research.train.builder import build
from research.train.sharding import make_mesh, path_name, to_global
from research.train.start import begin
from tests.layers import slow

FOLDER = Path(__file__).parents[1] / "experiments" / "detection"


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("detr_r50_coco", 86),
        ("detr_r50_coco_dc5", 187),
        ("detr_r101_coco", 152),
        ("detr_r101_coco_dc5", 253),
        ("detr_r50_coco_encoder0", 76),
        ("detr_r50_coco_encoder3", 81),
        ("detr_r50_coco_encoder12", 95),
    ],
)
def test_published_costs(name, published):
    """Multiply-adds in billions: Tables 1 and 2, whose mean is over 100 images.

    Most are three quarters or two thirds as high as wide, and one size between these
    is that of all rows.
    """
    network = load(str(FOLDER / f"{name}.py")).task.network

    def init(rng, image):
        return network.init(rng, image, jnp.ones(image.shape[:3], bool))

    image = jax.ShapeDtypeStruct((1, 800, 1136, 3), "float32")
    cost = flops.count(init, jax.random.key(0), image) / 2e9
    assert cost == pytest.approx(published, rel=0.01)


def pretrained_backbone(folder):
    """Writes a classifier whose norms have learnt something, and returns its leaves."""
    base = resnet.model_of(
        {
            "model_type": "resnet",
            "architectures": ["ResNetForImageClassification"],
            "embedding_size": 4,
            "hidden_sizes": [16, 32],
            "depths": [1, 1],
        }
    )
    image = jnp.zeros((1, 32, 32, 3))
    leaves = flatten_dict(slow.jit(base.init)(slow.key(1), image), sep="/")
    rng = np.random.default_rng(0)
    for path, leaf in leaves.items():
        leaf = np.asarray(leaf)
        learns = leaf.ndim == 1
        leaves[path] = leaf + learns * rng.uniform(0, 0.5, leaf.shape).astype("f4")
    resnet.save(folder, base, unflatten_dict(leaves, sep="/"))
    return leaves


def drawn(state):
    """Random parameters, without compiling what initialises them."""
    rng = np.random.default_rng(1)

    def draw(path, leaf):
        values = np.zeros(leaf.shape, leaf.dtype)
        if path_name(path).startswith("params"):
            values = rng.normal(size=leaf.shape).astype(leaf.dtype) / 4
        return jax.device_put(values, leaf.sharding)

    return jax.tree_util.tree_map_with_path(draw, state)


def test_what_of_a_row_is_trained(tmp_path):
    """Neither the backbone's first layers nor its norms, decay or not; all else."""
    given = pretrained_backbone(str(tmp_path))
    row = detr_r50_coco.of(
        detr_r50_coco.network(
            ResNet((1, 1), channels=4, norm=FrozenBatchNorm),
            encoder_layers=1,
            mlp_dim=8,
            embed_dim=16,
            num_queries=8,
        ),
        epochs=1,
        batch_size=4,
        data=detr_scenes.data(4),
        start=detr_r50_coco.from_resnet(str(tmp_path)),
        num_params=0,
    )
    program = build(replace(row, num_params=None), make_mesh({}, jax.devices()[:1]))
    state = begin(drawn(program.state), row.start)
    there = flatten_dict(jax.device_get(state.variables()), sep="/")
    step = program.step.lower(program.state, program.batch).compile(
        {"xla_backend_optimization_level": 0}
    )
    for number in range(2):
        batch = to_global(row.data.batch(number), program.mesh, 4)
        state, metrics = step(state, batch)
    assert np.isfinite(metrics["loss"][0])

    here = flatten_dict(jax.device_get(state.variables()), sep="/")
    for path, leaf in there.items():
        still = re.match("frozen/|params/backbone/(stem|stage_0)", path)
        assert (here[path] == leaf).all() == bool(still), path
    for path, leaf in here.items():
        if path.startswith("frozen/"):
            learnt = "params" if path.endswith(("scale", "bias")) else "batch_stats"
            np.testing.assert_array_equal(leaf, given[path.replace("frozen", learnt)])

    slots = jax.tree_util.tree_leaves_with_path(program.state.opt_state)
    names = [path_name(path) for path, _ in slots]
    assert any("stage_1" in name for name in names)
    assert not any("stem" in name or "stage_0" in name for name in names)
