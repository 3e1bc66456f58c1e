"""Optimizers against their formulas, written out in NumPy, leaf by leaf."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.errors import UserError
from research.train.optimizers import (
    Adadelta,
    Adafactor,
    Adam,
    AdamW,
    Lamb,
    RAdam,
    Sgd,
    everything,
    layer_decay,
    scale_by_path,
)
from research.train.schedules import Constant, Piecewise
from tests.layers.slow import jit

RATES = (0.5, 0.25, 0.125, 0.1, 0.05, 0.04, 0.03, 0.02)
RATE = Piecewise(tuple(enumerate(RATES)))


def draw(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


PARAMS = {
    "table": draw(0, 3, 4),
    "bias": draw(1, 4),
    "layers": {"kernel": draw(2, 5, 4, 3), "bias": draw(3, 5, 3)},
}
"""The last two of five layers."""


def gradients(step):
    leaves, tree = jax.tree.flatten(PARAMS)
    shapes = [leaf.shape for leaf in leaves]
    drawn = [3 * draw((step, i), *shape) for i, shape in enumerate(shapes)]
    return jax.tree.unflatten(tree, drawn)


def run(optimizer, num_steps):
    """The parameters after so many updates with `gradients`."""
    transform = optimizer()

    @jit
    def step(params, state, grads):
        updates, state = transform.update(grads, state, params)
        return jax.tree.map(jnp.add, params, updates), state

    params = jax.tree.map(jnp.float32, PARAMS)
    state = transform.init(params)
    for index in range(num_steps):
        params, state = step(params, state, jax.tree.map(jnp.float32, gradients(index)))
    return params


def slow(rule, num_steps):
    """The same, each layer of a stack alone: `rule(x, is_kernel)` makes x's update.

    It returns a function of the step and the gradient.
    """

    def leaf_after(leaf, grads, is_kernel):
        x = leaf.copy()
        update = rule(x, is_kernel)
        for step, grad in enumerate(grads):
            x += update(step, grad)
        return x

    after = {}
    for name in ("table", "bias"):
        grads = [gradients(step)[name] for step in range(num_steps)]
        after[name] = leaf_after(PARAMS[name], grads, name == "table")
    after["layers"] = {
        name: np.stack(
            [
                leaf_after(
                    leaf[layer],
                    [gradients(s)["layers"][name][layer] for s in range(num_steps)],
                    name == "kernel",
                )
                for layer in range(5)
            ]
        )
        for name, leaf in PARAMS["layers"].items()
    }
    return after


def check(optimizer, rule, num_steps=3, rtol=1e-5):
    jax.tree.map(
        lambda ours, theirs: np.testing.assert_allclose(ours, theirs, rtol, 1e-6),
        run(optimizer, num_steps),
        slow(rule, num_steps),
    )


def adam_direction(b1, b2, eps):
    m = v = 0.0

    def direction(step, g):
        nonlocal m, v
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        t = step + 1
        return m / (1 - b1**t) / (np.sqrt(v / (1 - b2**t)) + eps)

    return direction


def test_adam_with_decay_of_kernels_alone():
    def rule(x, is_kernel):
        direction = adam_direction(0.9, 0.98, 1e-9)
        decay = 0.1 * is_kernel
        return lambda step, g: -RATES[step] * (direction(step, g) + decay * x)

    check(Adam(RATE, b2=0.98, eps=1e-9, weight_decay=0.1), rule)


def test_multipliers_scale_the_rate_of_what_matches_but_not_its_decay():
    base = run(Adam(RATE, weight_decay=0.1), 1)
    plain = run(Adam(RATE), 1)
    multipliers = (("layers/kernel", 0.25), ("bias$", 3.0), ("layers", 7.0))
    with pytest.raises(UserError, match="'layers' matches no parameter that moves"):
        run(Adam(RATE, multipliers=multipliers), 1)
    scaled = run(Adam(RATE, weight_decay=0.1, multipliers=multipliers[:2]), 1)
    factors = {"table": 1.0, "bias": 3.0, "layers": {"kernel": 0.25, "bias": 3.0}}

    def compare(factor, before, after, with_decay, without):
        decay = with_decay - without
        expected = before + factor * (without - before) + decay
        np.testing.assert_allclose(after, expected, rtol=1e-4, atol=1e-5)

    jax.tree.map(compare, factors, PARAMS, scaled, base, plain)


def test_adamw_is_adam_where_nothing_is_asked_of_it():
    jax.tree.map(
        np.testing.assert_array_equal,
        run(AdamW(RATE, b2=0.98, weight_decay=0.1), 3),
        run(Adam(RATE, b2=0.98, weight_decay=0.1), 3),
    )


def test_rates_of_groups_are_of_their_decay_too():
    decayed, plain = run(AdamW(RATE, weight_decay=0.1), 1), run(Adam(RATE), 1)
    rates = (("layers/kernel", 0.25), ("bias$", 3.0))
    scaled = run(AdamW(RATE, weight_decay=0.1, no_decay=("abl",), rates=rates), 1)
    factors = {"table": 1.0, "bias": 3.0, "layers": {"kernel": 0.25, "bias": 3.0}}
    decayed["table"] = plain["table"]

    def compare(factor, before, after, whole):
        expected = before + factor * (whole - before)
        np.testing.assert_allclose(after, expected, rtol=1e-4, atol=1e-5)

    jax.tree.map(compare, factors, PARAMS, scaled, decayed)
    all_of_them = run(AdamW(RATE, weight_decay=0.1, decays=everything), 1)
    expected = jax.tree.map(lambda x, p: p - 0.5 * 0.1 * x, PARAMS, plain)
    jax.tree.map(
        lambda ours, theirs: np.testing.assert_allclose(ours, theirs, 1e-5, 1e-6),
        all_of_them,
        expected,
    )


def test_a_pattern_without_decay_that_matches_nothing_is_refused():
    with pytest.raises(UserError, match="no_decay: 'tabel' matches no .* as 'bias'"):
        AdamW(RATE, no_decay=("tabel",))().init(PARAMS)


def test_rates_fall_from_layer_to_layer():
    depths = (("embed", 0), ("block_0/", 1), ("block_1/", 2), ("norm", 3))
    rates = layer_decay(depths, 0.5)
    assert [rate for _, rate in rates] == [0.125, 0.25, 0.5, 1.0]
    assert [pattern for pattern, _ in rates] == [pattern for pattern, _ in depths]
    params = {"embed": 1.0, "block_1": {"norm": 1.0}, "norm": 1.0, "head": 1.0}
    transform = scale_by_path((rates[0], *rates[2:]))
    scaled, _ = transform.update(params, transform.init(params))
    assert scaled == {"embed": 0.125, "block_1": {"norm": 0.5}, "norm": 1, "head": 1}


def test_a_multiplier_that_matches_nothing_is_refused():
    with pytest.raises(UserError, match="'tabel' matches no .* such as 'bias'"):
        scale_by_path((("tabel", 0.5),)).init(PARAMS)


def test_multipliers_see_only_what_moves():
    moving = {**PARAMS, "table": None}
    transform = scale_by_path((("bias", 2.0),))
    updates, _ = transform.update(moving, transform.init(moving))
    assert updates["table"] is None
    np.testing.assert_array_equal(updates["bias"], 2 * PARAMS["bias"])
    with pytest.raises(UserError):
        scale_by_path((("table", 2.0),)).init(moving)


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_with_momentum_and_decay(nesterov):
    def rule(x, is_kernel):
        trace = 0.0

        def update(step, g):
            nonlocal trace
            g = g + 0.1 * is_kernel * x
            trace = g + 0.9 * trace
            return -RATES[step] * (g + 0.9 * trace if nesterov else trace)

        return update

    check(Sgd(RATE, momentum=0.9, nesterov=nesterov, weight_decay=0.1), rule)


def test_sgd_clips_by_the_norm_of_all():
    leaves = jax.tree.leaves(gradients(0))
    norm = np.sqrt(sum(np.sum(leaf**2) for leaf in leaves))
    assert norm > 5
    check(Sgd(RATE, clip_norm=5.0), lambda *_: lambda s, g: -0.5 * g * 5 / norm, 1)


def test_radam_is_algorithm_2():
    b1, b2 = 0.9, 0.98

    def rule(x, is_kernel):
        m = v = 0.0
        decay = 0.1 * is_kernel

        def update(step, g):
            nonlocal m, v
            t = step + 1
            m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
            longest = 2 / (1 - b2) - 1
            length = longest - 2 * t * b2**t / (1 - b2**t)
            mean = m / (1 - b1**t)
            if length < 5:
                return -RATES[step] * (mean + decay * x)
            rectified = np.sqrt(
                (length - 4)
                * (length - 2)
                * longest
                / ((longest - 4) * (longest - 2) * length)
            )
            root = np.sqrt(v / (1 - b2**t))
            direction = rectified * mean / (root + 1e-8)
            return -RATES[step] * (direction + decay * x)

        return update

    check(RAdam(RATE, b1, b2, weight_decay=0.1), rule, num_steps=8)


def test_adadelta_is_algorithm_1():
    def rule(x, is_kernel):
        squares = steps = 0.0

        def update(step, g):
            nonlocal squares, steps
            squares = 0.9 * squares + 0.1 * g * g
            move = g * np.sqrt(steps + 1e-6) / np.sqrt(squares + 1e-6)
            steps = 0.9 * steps + 0.1 * move * move
            return -RATES[step] * move

        return update

    check(Adadelta(RATE, rho=0.9), rule)


def rms(x):
    return np.sqrt(np.mean(x * x))


def test_adafactor_is_algorithm_4_layer_by_layer():
    def rule(x, is_kernel):
        rows = columns = full = 0.0

        def update(step, g):
            nonlocal rows, columns, full
            b2 = 1 - (step + 1) ** -0.8
            square = g * g + 1e-30
            if is_kernel:
                rows = b2 * rows + (1 - b2) * square.mean(1)
                columns = b2 * columns + (1 - b2) * square.mean(0)
                second = rows[:, None] * columns[None] / rows.mean()
            else:
                second = full = b2 * full + (1 - b2) * square
            move = g / np.sqrt(second)
            move = move / max(1.0, rms(move))
            move *= max(rms(x), 1e-3)
            return -RATES[step] * move - 0.01 * is_kernel * x

        return update

    check(Adafactor(RATE, min_dim_size=2, weight_decay=0.01), rule)


def test_adafactor_with_momentum_at_its_own_scale():
    def rule(x, is_kernel):
        mean = full = 0.0

        def update(step, g):
            nonlocal mean, full
            b2 = 1 - (step + 1) ** -0.8
            full = b2 * full + (1 - b2) * g * g
            mean = 0.9 * mean - 0.1 * RATES[step] * g / np.sqrt(full)
            return mean

        return update

    optimizer = Adafactor(RATE, relative=False, clip_rms=None, momentum=0.9)
    check(optimizer, rule)


def test_lamb_is_algorithm_2_layer_by_layer():
    def rule(x, is_kernel):
        direction = adam_direction(0.9, 0.98, 1e-6)

        def update(step, g):
            move = direction(step, g)
            if is_kernel:
                move = move + 0.01 * x
                move *= np.linalg.norm(x) / np.linalg.norm(move)
            return -RATES[step] * move

        return update

    check(Lamb(RATE, b2=0.98), rule)


@pytest.mark.parametrize("make", [Lamb, Adafactor], ids=lambda make: make.__name__)
def test_frozen_leaves_have_no_state(make):
    transform = make(Constant(0.1))()
    moving = jax.tree.map(jnp.float32, {**PARAMS, "table": None})
    state = transform.init(moving)
    updates, _ = transform.update(moving, state, moving)
    assert updates["table"] is None
    assert jax.tree.structure(updates) == jax.tree.structure(moving)
    sizes = [leaf.size for leaf in jax.tree.leaves(state)]
    assert PARAMS["table"].size not in sizes
