"""Classification of images: targets, mixing, and what is counted."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

from research.errors import UserError
from research.tasks.image_classification import (
    ImageClassification,
    MixupCutMix,
    rank,
    symmetric_beta,
)
from research.train.sharding import batch_sharding, make_mesh
from tests.layers import slow

SIZE, CLASSES, BATCH = 12, 4, 16
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)


class Small(nn.Module):
    """The mean of the pixels, BatchNorm, dropout, a linear layer."""

    rate: float = 0.0

    @nn.compact
    def __call__(self, image, train):
        x = nn.BatchNorm(use_running_average=not train, name="norm")(
            image.reshape(len(image), -1, 6).mean(1)
        )
        x = nn.Dropout(self.rate, deterministic=not train, name="dropout")(x)
        return nn.Dense(CLASSES, name="head")(x)


def task_of(**settings):
    return ImageClassification(Small(), CLASSES, MEAN, STD, **settings)


def draw_batch(seed=0):
    draws = np.random.default_rng(seed)
    return {
        "image": jnp.asarray(draws.integers(0, 256, (BATCH, SIZE, SIZE, 3), np.uint8)),
        "label": jnp.asarray(draws.integers(0, CLASSES, BATCH, np.int32)),
    }


BATCHES = draw_batch()
RNG = jax.random.key(1)
VARIABLES = slow.jit(task_of().init)(RNG, BATCHES)


def pixels_of(batch):
    return (np.float64(batch["image"]) / 255 - MEAN) / STD


# Mixing


@pytest.fixture(scope="module")
def mixed():
    """Many draws, of images whose pixels say which image they are of."""
    image = jnp.broadcast_to(jnp.arange(8.0).reshape(8, 1, 1, 1), (8, 11, 13, 1))
    mix = MixupCutMix(prob=0.8, rows=4)
    function = slow.jit(
        jax.vmap(lambda rng: mix(rng, image, jnp.eye(8)), out_axes=(0, 0))
    )
    images, targets = function(jax.random.split(jax.random.key(0), 2000))
    return np.float64(images[..., 0]), np.float64(targets)


def test_a_target_mixes_in_the_proportion_of_the_pixels(mixed):
    images, targets = mixed
    for row in range(8):
        own = targets[:, row, row]
        # Neighbours differ by one: so much of the pixels is the neighbour's.
        foreign = np.abs(images[:, row] - row).mean((1, 2))
        np.testing.assert_allclose(own, 1 - foreign, atol=2e-6)
        partner = targets[:, row, row ^ 1]
        np.testing.assert_allclose(own + partner, 1, atol=1e-6)
    others = targets.copy()
    for row in range(8):
        others[:, row, [row, row ^ 1]] = 0
    assert not others.any()


def kinds_of(images):
    """Of the first image of a group: untouched, a box pasted in, or blended."""
    first = images[:, 0].reshape(len(images), -1)
    even = np.ptp(first, axis=1) == 0
    cut = np.isin(first, (0, 1)).all(1) & ~even
    return even & (first[:, 0] == 0), cut, even & (first[:, 0] > 0)


def test_the_kinds_of_mixing_are_as_frequent_as_asked(mixed):
    untouched, cut, blended = kinds_of(mixed[0])
    assert np.all(untouched | cut | blended)
    # A box of no pixel leaves an image untouched too: u < (2 / 13)^2 of CutMix's.
    empty = (2 / 13) ** 2 * 0.4
    for kind, expected in ((untouched, 0.2 + empty), (cut, 0.4 - empty)):
        assert abs(kind.mean() - expected) < 4 * np.sqrt(0.24 / 2000)
    assert abs(blended.mean() - 0.4) < 4 * np.sqrt(0.24 / 2000)


def test_a_group_shares_one_draw_and_groups_do_not(mixed):
    targets = mixed[1]
    own = targets[:, np.arange(8), np.arange(8)]
    np.testing.assert_allclose(own, np.repeat(own[:, [0, 4]], 4, axis=1), atol=1e-6)
    assert abs(np.corrcoef(own[:, 0], own[:, 4])[0, 1]) < 4 / np.sqrt(2000)


def test_shares_of_mixup_have_the_moments_of_their_beta(mixed):
    _, _, blended = kinds_of(mixed[0])
    own = mixed[1][blended, 0, 0]
    error = 4 / np.sqrt(len(own))
    assert abs(own.mean() - 0.5) < error * 0.31
    # Var Beta(a, a) = 1 / (4 (2 a + 1)).
    assert abs(own.var() - 1 / (4 * 2.6)) < error * 0.09


@pytest.mark.parametrize("alpha", [0.4, 0.8, 1.0, 4.0])
def test_draws_of_the_beta_distribution(alpha):
    draws = slow.jit(lambda: symmetric_beta(RNG, alpha, (20_000,)))()
    assert stats.kstest(draws, stats.beta(alpha, alpha).cdf).pvalue > 0.01


def test_boxes_are_those_of_timm(mixed):
    """Rectangles about a pixel of the image, of its proportions, clipped by it."""
    _, cut, _ = kinds_of(mixed[0])
    heights, widths = [], []
    for image in mixed[0][cut, 0]:
        inside = image == 1
        rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
        assert inside[np.ix_(rows, columns)].all()
        assert len(rows) == np.ptp(rows) + 1 and len(columns) == np.ptp(columns) + 1
        heights.append(len(rows)), widths.append(len(columns))
        if 0 < rows[0] and rows[-1] < 10 and 0 < columns[0] and columns[-1] < 12:
            halves = {
                (int(11 * side) // 2, int(13 * side) // 2)
                for side in np.linspace(0, 1, 500)
            }
            assert (len(rows) / 2, len(columns) / 2) in halves
    # Halves of 5 and 6 pixels about any place reach out of 11 and 13 for most of them.
    assert max(heights) == 10 and max(widths) == 12
    assert min(heights) == 1 or min(widths) == 1


def test_boxes_lie_off_the_diagonal():
    """Rows and columns of a square are drawn each on its own."""
    image = jnp.broadcast_to(jnp.arange(2.0).reshape(2, 1, 1, 1), (2, 9, 9, 1))
    mix = MixupCutMix(switch_prob=1.0)
    function = slow.jit(jax.vmap(lambda rng: mix(rng, image, jnp.eye(2))[0][0, ..., 0]))
    inside = np.asarray(function(jax.random.split(RNG, 40))) == 1
    boxes = inside[inside.any((1, 2))]
    assert len(boxes) > 20
    same = (boxes.any(1) == boxes.any(2)).all(1)
    assert same.mean() < 0.5


def test_without_mixing_images_stay_as_they_are():
    image = jnp.asarray(pixels_of(BATCHES), jnp.float32)
    target = jnp.eye(BATCH)
    same, as_well = slow.jit(MixupCutMix(prob=0.0))(RNG, image, target)
    np.testing.assert_array_equal(same, image)
    np.testing.assert_array_equal(as_well, target)


@pytest.mark.parametrize(("rows", "batch"), [(5, 10), (4, 6), (64, 7)])
def test_groups_without_pairs_are_refused(rows, batch):
    with pytest.raises(UserError, match=rf"a batch of {batch} cannot be cut"):
        MixupCutMix(rows=rows)(RNG, jnp.zeros((batch, 2, 2, 1)), jnp.eye(batch))


def test_mixing_over_devices_moves_no_image():
    """Groups of 32 over devices with 8 rows each: no collective at all."""
    mesh = make_mesh({"data": 4, "fsdp": 2})
    image = jax.random.normal(RNG, (64, 6, 6, 3))
    target = jnp.eye(64)
    mix = MixupCutMix(rows=32)
    expected = slow.jit(mix)(RNG, image, target)
    with jax.set_mesh(mesh):
        sharding = batch_sharding(mesh)
        sharded = jax.jit(
            mix, in_shardings=(None, sharding, sharding), out_shardings=sharding
        )
        compiled = sharded.lower(RNG, image, target).compile()
        results = compiled(RNG, *jax.device_put((image, target), sharding))
    text = compiled.as_text()
    for collective in ("all-gather", "all-reduce", "permute", "all-to-all"):
        assert collective not in text
    for result, wanted in zip(results, expected, strict=True):
        np.testing.assert_allclose(result, wanted, atol=1e-6)


# The loss


def loss_of(task, batch, train, rng=RNG):
    return slow.jit(partial(task.loss, train=train))(VARIABLES, batch, rng)


def log_softmax(logits):
    logits = np.float64(logits)
    return logits - np.log(np.exp(logits).sum(1, keepdims=True))


def test_evaluation_is_the_plain_cross_entropy_of_normalised_pixels():
    task = task_of(smoothing=0.1, mix=MixupCutMix())
    total, (metrics, changed) = loss_of(task, BATCHES, False)
    logits = Small().apply(
        VARIABLES, jnp.asarray(pixels_of(BATCHES), jnp.float32), train=False
    )
    np.testing.assert_allclose(
        task.logits(VARIABLES, BATCHES["image"]), logits, atol=1e-5
    )
    label = np.asarray(BATCHES["label"])
    expected = -log_softmax(logits)[np.arange(BATCH), label].mean()
    np.testing.assert_allclose(total, expected, rtol=1e-5)
    assert metrics["loss"][1] == BATCH and not changed
    right = (np.argmax(logits, 1) == label).sum()
    assert metrics["accuracy"] == (right, BATCH)


def test_training_smooths_and_updates_batch_statistics():
    total, (_, changed) = loss_of(task_of(smoothing=0.2), BATCHES, True)
    logits, expected = Small().apply(
        VARIABLES,
        jnp.asarray(pixels_of(BATCHES), jnp.float32),
        train=True,
        mutable=["batch_stats"],
    )
    target = 0.2 / CLASSES + 0.8 * np.eye(CLASSES)[np.asarray(BATCHES["label"])]
    np.testing.assert_allclose(
        total, -(target * log_softmax(logits)).sum(1).mean(), rtol=1e-5
    )
    jax.tree.map(
        lambda ours, theirs: np.testing.assert_allclose(ours, theirs, atol=1e-5),
        dict(changed),
        dict(expected),
    )


def test_training_mixes_images_and_targets_alike():
    seen = {}

    def flipped(rng, image, target):
        seen["rng"] = rng
        return image[::-1], target[::-1]

    flipped_batch = {name: value[::-1] for name, value in BATCHES.items()}
    total, _ = loss_of(task_of(mix=flipped), BATCHES, True)
    expected, _ = loss_of(task_of(), flipped_batch, True)
    assert "rng" in seen
    np.testing.assert_allclose(total, expected, rtol=1e-6)


def test_dropout_and_mixing_draw_from_the_step():
    task = ImageClassification(Small(0.5), CLASSES, MEAN, STD, mix=MixupCutMix())
    losses = [
        float(loss_of(task, BATCHES, True, jax.random.key(seed))[0])
        for seed in (0, 0, 1)
    ]
    assert losses[0] == losses[1] != losses[2]


def test_rows_that_stand_for_no_example_do_not_count():
    one = {name: value[:8] for name, value in BATCHES.items()}
    mask = jnp.repeat(jnp.array([1.0, 0.0]), 8)
    _, (expected, _) = loss_of(task_of(), one, False)
    _, (metrics, _) = loss_of(task_of(), {**BATCHES, "mask": mask}, False)
    np.testing.assert_allclose(metrics["loss"], expected["loss"], rtol=1e-5)
    assert metrics["accuracy"] == expected["accuracy"]


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("label", [-1, CLASSES])
def test_a_label_that_is_no_class_makes_the_loss_nan(train, label):
    batch = {**BATCHES, "label": BATCHES["label"].at[3].set(label)}
    assert np.isnan(loss_of(task_of(smoothing=0.1), batch, train)[0])


def test_channels_without_a_mean_are_refused():
    grey = {**BATCHES, "image": BATCHES["image"][..., :1]}
    with pytest.raises(UserError, match="images of 1 channels, but a mean of 3"):
        task_of().init(RNG, grey)


def test_one_batch_is_learnt():
    task = ImageClassification(Small(), CLASSES, MEAN, STD)
    batch = {name: value[:4] for name, value in BATCHES.items()}
    batch["label"] = jnp.arange(4)
    optimizer = optax.adam(0.1)

    @jax.jit
    def run(params):
        def step(carry, rng):
            params, state = carry
            variables = {**VARIABLES, "params": params}
            (loss, _), grads = jax.value_and_grad(
                lambda p: task.loss({**variables, "params": p}, batch, rng, True),
                has_aux=True,
            )(params)
            updates, state = optimizer.update(grads, state)
            return (optax.apply_updates(params, updates), state), loss

        carry = (params, optimizer.init(params))
        return jax.lax.scan(step, carry, jax.random.split(RNG, 60))[1]

    losses = run(VARIABLES["params"])
    assert losses[0] > 0.8 and losses[-1] < 0.05


def test_rank_counts_those_before():
    logits = jnp.array([[1.0, 3.0, 2.0, 3.0], [0.0, 0.0, 0.0, 0.0]])
    ranks = [rank(logits, jnp.full(2, label)) for label in range(4)]
    np.testing.assert_array_equal(ranks, [[3, 0], [0, 1], [2, 2], [1, 3]])
    broken = jnp.full((1, 4), jnp.nan)
    assert [int(rank(broken, jnp.array([label]))[0]) for label in (0, 3)] == [4, 4]
