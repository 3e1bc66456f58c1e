import math
from dataclasses import replace
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.errors import UserError
from research.layers.attention import Attention
from research.layers.mlp import FeedForward
from research.layers.norms import LayerNorm
from research.layers.residual import PostNorm
from research.layers.stack import Stack, TransformerBlock
from research.models.detr import DETR, LearnedPositions, MaskHead, SinePositions
from tests.layers import slow
from tests.models.training import told_to_train

DIM = 16
rng = np.random.default_rng(0)
IMAGE = jnp.asarray(rng.normal(size=(2, 8, 12, 3)), jnp.float32)
VALID = np.ones((2, 8, 12), bool)


class Patches(nn.Module):
    """Maps of pixels that see nothing beyond their own square."""

    @nn.compact
    def __call__(self, image, train):
        maps = []
        for number in range(3):
            size = 2**number
            conv = nn.Conv(4, (size, size), size, name=f"map_{number}")
            maps.append(conv(image))
        return tuple(maps)


def stack(**settings):
    attention = partial(Attention, num_heads=2)
    block = partial(
        TransformerBlock,
        mixer=attention,
        mlp=partial(FeedForward, mlp_dim=8),
        residual=PostNorm,
        **settings,
    )
    return Stack(2, (block,), final_norm=LayerNorm)


MODEL = DETR(
    backbone=Patches(),
    encoder=stack(),
    decoder=stack(cross=partial(Attention, num_heads=2)),
    embed_dim=DIM,
    num_queries=5,
    num_classes=3,
    mask_head=MaskHead,
)


def run(model, image, valid, params=None):
    """What is found, and the parameters, which are random if none are given."""
    valid = jnp.asarray(valid)
    params = params or lively(slow.random_params(model, image, valid))
    return slow.apply(model, params, image, valid), params


def lively(params):
    """Small scales would leave nothing of what differs between queries and places."""

    def change(path, leaf):
        name = path[-1].key
        return 1 + leaf if name == "scale" else leaf * (3 if name == "queries" else 1)

    return jax.tree_util.tree_map_with_path(change, params)


@pytest.fixture(scope="module")
def found():
    return run(MODEL, IMAGE, VALID)


def assert_close(found, expected):
    assert found.keys() == expected.keys()
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], atol=1e-4, err_msg=name)


def test_what_is_found(found):
    shapes = {name: part.shape for name, part in found[0].items()}
    assert shapes == {
        "logits": (2, 2, 5, 4),
        "boxes": (2, 2, 5, 4),
        "masks": (2, 5, 8, 12),
    }
    logits = found[0]["logits"]
    assert abs(logits[0] - logits[1]).max() > 0.1
    for part in (logits, found[0]["boxes"], found[0]["masks"][None]):
        assert abs(part[:, :, 0] - part[:, :, 1]).max() > 1e-3


def test_padding_changes_nothing(found):
    """Neither what is found nor, but for what lies there, the masks."""
    image = jnp.pad(IMAGE, ((0, 0), (0, 4), (0, 8), (0, 0)), constant_values=7.0)
    valid = np.pad(VALID, ((0, 0), (0, 4), (0, 8)))
    more, _ = run(MODEL, image, valid, found[1])
    # The convolutions of the mask head see what is beyond the border.
    masks, expected = (f.pop("masks") for f in (more, dict(found[0])))
    assert masks.shape == (2, 5, 12, 20) and expected.shape == (2, 5, 8, 12)
    assert_close(more, {k: v for k, v in found[0].items() if k != "masks"})


def test_each_image_has_a_padding_of_its_own(found):
    image, valid = IMAGE.at[1, 4:].set(3.0), VALID.copy()
    valid[1, 4:] = False
    both, _ = run(MODEL, image, valid, found[1])
    np.testing.assert_allclose(both["boxes"][:, 0], found[0]["boxes"][:, 0], atol=1e-5)
    alone, _ = run(MODEL, IMAGE[1:, :4], VALID[1:, :4], found[1])
    for name in ("logits", "boxes"):
        np.testing.assert_allclose(both[name][:, 1:], alone[name], atol=1e-4)


def test_answers_go_with_their_queries(found):
    order = np.array([3, 1, 4, 0, 2])
    params = {**found[1], "queries": found[1]["queries"][order]}
    moved, _ = run(MODEL, IMAGE, VALID, params)
    expected = {
        "logits": found[0]["logits"][:, :, order],
        "boxes": found[0]["boxes"][:, :, order],
        "masks": found[0]["masks"][:, order],
    }
    assert_close(moved, expected)


@pytest.mark.parametrize(
    ("settings", "sees_places"),
    [
        (dict(positions=None), False),
        (dict(positions_at="input"), True),
        (dict(positions_at="input", encoder_positions=False), False),
        (dict(encoder_positions=False), True),
        (dict(positions=LearnedPositions(max_size=3), encoder=None), True),
    ],
)
def test_only_positions_tell_places(settings, sees_places):
    """The squares that the backbone sees change places."""
    columns = np.arange(12).reshape(3, 4)[::-1].reshape(-1)
    both = jnp.stack([IMAGE[0], IMAGE[0][:, columns]])
    found, _ = run(replace(MODEL, mask_head=None, **settings), both, VALID)
    changed = abs(found["logits"][:, 0] - found["logits"][:, 1]).max()
    assert changed > 1e-2 if sees_places else changed < 2e-6


def test_positions_at_the_input_are_a_tenth():
    """Of what they are where attention compares: as a bias of the projection."""
    code = jnp.asarray(10 * rng.normal(size=DIM), jnp.float32)
    model = replace(
        MODEL, encoder=None, mask_head=None, positions=None, positions_at="input"
    )
    without, params = run(model, IMAGE, VALID)
    project = params["project"]
    shifted = {**project, "bias": project["bias"] + 0.1 * code}
    expected, _ = run(model, IMAGE, VALID, {**params, "project": shifted})
    same = replace(
        model, positions=lambda valid, dim: jnp.tile(code, (1, *valid.shape[1:], 1))
    )
    found, _ = run(same, IMAGE, VALID, params)
    assert abs(found["logits"] - without["logits"]).max() > 1e-2
    assert_close(found, expected)


@pytest.mark.parametrize("train", [True, False])
def test_every_part_is_told_to_train(found, train):
    with told_to_train() as told:
        jax.eval_shape(
            partial(MODEL.apply, train=train), {"params": found[1]}, IMAGE, VALID
        )
    assert set(told.values()) == {train}, told
    parts = ("encoder", "decoder", "decoder/layers/block_0/cross", "backbone")
    assert set(parts) <= told.keys()


def test_sine_positions():
    valid = np.zeros((2, 3, 4), bool)
    valid[0], valid[1, :2, :3] = True, True
    codes = np.asarray(slow.jit(partial(SinePositions(), embed_dim=8))(valid))
    assert codes.shape == (2, 3, 4, 8)
    for example, (height, width) in enumerate([(3, 4), (2, 3)]):
        for row in range(height):
            for column in range(width):
                expected = []
                for place, last in ((row + 1, height), (column + 1, width)):
                    for period in (1.0, 100.0):
                        angle = 2 * math.pi * place / (last + 1e-6) / period
                        expected += [math.sin(angle), math.cos(angle)]
                np.testing.assert_allclose(
                    codes[example, row, column], expected, atol=1e-5
                )


def test_learned_positions():
    module, valid = LearnedPositions(max_size=5), jnp.ones((2, 3, 4), bool)
    tables = module.init(jax.random.key(0), valid, 6)
    codes = module.apply(tables, valid, 6)
    assert codes.shape == (1, 3, 4, 6)
    row, column = (tables["params"][name] for name in ("row", "column"))
    np.testing.assert_array_equal(codes[0, 2, 1], np.concatenate([column[1], row[2]]))
    with pytest.raises(UserError, match="3x6: expected at most max_size=5"):
        module.apply(tables, jnp.ones((1, 3, 6), bool), 6)


def test_mask_head_is_its_convolutions():
    """By the official code: features and looks side by side for every query."""
    head = MaskHead()
    answers, memory, features = (
        jnp.asarray(rng.normal(size=shape), jnp.float32)
        for shape in ((2, 3, DIM), (2, 2, 3, DIM), (2, 2, 3, DIM))
    )
    finer = tuple(
        jnp.asarray(rng.normal(size=(2, h, w, 5)), jnp.float32)
        for h, w in ((2, 3), (4, 5), (7, 10))
    )
    valid = np.ones((2, 2, 3), bool)
    valid[1, :, 2] = False
    args = (answers, memory, jnp.asarray(valid), features, finer)
    params = slow.random_params(head, *args)
    masks = slow.apply(head, params, *args)
    assert masks.shape == (2, 3, 7, 10)

    def norm(number, h):
        h = slow.group_norm(params[f"norm_{number}"], h, min(8, h.shape[-1]), 1e-5)
        return np.maximum(h, 0)

    query = slow.dense(params["query"], np.float64(answers)).reshape(2, 3, 8, 2)
    key = slow.dense(params["key"], np.float64(memory)).reshape(2, 6, 8, 2)
    for image in range(2):
        for number in range(3):
            logits = np.einsum("hd,khd->kh", query[image, number], key[image]) / 2**0.5
            looks = np.exp(logits) * valid[image].reshape(6, 1)
            looks = (looks / looks.sum()).reshape(2, 3, 8)
            h = np.concatenate([features[image], looks], axis=-1)[None]
            h = norm(0, slow.conv(params["conv_0"], h))
            h = norm(1, slow.conv(params["conv_1"], h))
            for level, fine in enumerate(finer):
                rows, columns = fine.shape[1:3]
                h = h[:, np.arange(rows) * h.shape[1] // rows]
                h = h[:, :, np.arange(columns) * h.shape[2] // columns]
                adapter = params[f"adapter_{level}"]
                h = h + slow.dense(adapter, np.float64(fine[image]))[None]
                h = norm(level + 2, slow.conv(params[f"conv_{level + 2}"], h))
            expected = slow.conv(params["logits"], h)[0, :, :, 0]
            np.testing.assert_allclose(masks[image, number], expected, atol=2e-3)


def test_one_stack_cannot_be_both_sides():
    with pytest.raises(UserError, match="one stack"):
        replace(MODEL, encoder=MODEL.decoder)
