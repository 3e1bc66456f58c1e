from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.layers.cores import (
    LSH,
    DoubleSoftmax,
    Linear,
    Performer,
    Softmax,
    Sparse,
    strided,
    unscaled,
)
from research.layers.cores.pointwise import Pointwise
from research.layers.windows import (
    ContinuousPosition,
    Cosine,
    PositionAlone,
    RelativePosition,
    WindowAttention,
    partition,
    regions,
    relative_index,
    reverse,
)
from tests.layers import slow

DIM, HEADS = 8, 2


def draw(height, width):
    return np.random.default_rng(0).normal(size=(2, height, width, DIM))


def test_windows_row_by_row_and_back():
    x = np.arange(2 * 4 * 6, dtype=np.float32).reshape(2, 4, 6, 1)
    windows = partition(jnp.asarray(x), 2)
    assert windows.shape == (2 * 2 * 3, 4, 1)
    np.testing.assert_array_equal(windows[1, :, 0], [2, 3, 8, 9])
    np.testing.assert_array_equal(windows[3, :, 0], [12, 13, 18, 19])
    np.testing.assert_array_equal(windows[6, :, 0], [24, 25, 30, 31])
    np.testing.assert_array_equal(reverse(windows, 4, 6, 2), x)


@pytest.mark.parametrize("window", [1, 3, 4])
def test_each_distance_has_a_row_of_its_own(window):
    index = relative_index(window, window)
    rows, numbers = np.unique(index, return_counts=True)
    np.testing.assert_array_equal(rows, np.arange((2 * window - 1) ** 2))
    lengths = window - np.abs(np.arange(1 - window, window))
    np.testing.assert_array_equal(numbers, np.outer(lengths, lengths).ravel())
    # There and back.
    np.testing.assert_array_equal(index + index.T, (2 * window - 1) ** 2 - 1)
    # One row down of the table is one row up for the key.
    if window > 1:
        assert index[window, 0] - index[0, 0] == 2 * window - 1
        assert index[1, 0] - index[0, 0] == 1


def test_smaller_windows_have_the_same_distances():
    """The middle of the table of larger ones."""
    table = np.arange(49).reshape(7, 7)
    np.testing.assert_array_equal(
        table.ravel()[relative_index(2, 4)],
        table[2:5, 2:5].ravel()[relative_index(2, 2)],
    )


def attend(params, x, window, shift, logits=None):
    """Each place looks at those of its own cell, found without rolling.

    Cells begin at `shift` and follow each other; what is before the first one, of a row
    or a column, is a cell of its own.
    """
    _, height, width, _ = x.shape
    rows, columns = (size + -size % window for size in (height, width))
    padded = np.zeros((2, rows, columns, DIM))
    padded[:, :height, :width] = x
    query, key, value = (
        slow.dense(params["attention"][name], padded)
        for name in ("query", "key", "value")
    )
    table = np.float64(params["position"]["table"])
    extent = (round(len(table) ** 0.5) + 1) // 2
    size, mixed = DIM // HEADS, np.empty_like(padded)
    places = list(np.ndindex(rows, columns))

    def cell(place):
        return tuple((at - shift) // window for at in place)

    for example, head, place in np.ndindex(2, HEADS, len(places)):
        here, part = places[place], slice(head * size, head * size + size)
        seen = [there for there in places if cell(there) == cell(here)]
        near = tuple(np.transpose(seen))
        scores = key[example][near][:, part] @ query[example][here][part] / size**0.5
        for i, there in enumerate(seen):
            down, right = here[0] - there[0], here[1] - there[1]
            row = (down + extent - 1) * (2 * extent - 1) + right + extent - 1
            scores[i] += table[row, head]
        weights = np.exp(scores)
        weights /= weights.sum()
        mixed[example][here][part] = weights @ value[example][near][:, part]
    return slow.dense(params["attention"]["out"], mixed)[:, :height, :width]


@pytest.mark.parametrize(
    ("height", "width", "window", "shift"),
    [(6, 9, 3, 1), (6, 6, 3, 0), (5, 7, 3, 1), (6, 8, 4, 2), (5, 4, 2, 1)],
)
def test_slow_formula(height, width, window, shift):
    layer = WindowAttention(HEADS, window, shift)
    x = draw(height, width)
    params = slow.random_params(layer, jnp.asarray(x))
    ours = slow.apply(layer, params, jnp.asarray(x))
    expected = attend(params, x, window, shift)
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [(3, 3), (2, 2), (2, 4)])
def test_a_map_no_larger_than_a_window(size):
    """Windows of its shorter side, and no shift."""
    layer = WindowAttention(HEADS, 3, 1)
    x = draw(*size)
    params = slow.random_params(layer, jnp.asarray(x))
    assert params["position"]["table"].shape == (25, HEADS)
    ours = slow.apply(layer, params, jnp.asarray(x))
    np.testing.assert_allclose(ours, attend(params, x, min(size), 0), atol=1e-5)
    # Or padded to a window.
    layer = WindowAttention(HEADS, 3, 1, shrinks=False)
    ours = slow.apply(layer, params, jnp.asarray(x))
    np.testing.assert_allclose(ours, attend(params, x, 3, 1), atol=1e-5)


@pytest.mark.parametrize(
    "core",
    [
        Softmax(),
        Sparse(strided(2)),
        Pointwise(),
        Performer(4),
        Linear(chunk_size=4),
        DoubleSoftmax(),
        LSH(num_buckets=2, chunk_size=4),
    ],
    ids=lambda core: type(core).__name__,
)
def test_every_core_stays_in_its_region(core):
    """By gradient: who sees the first place, and whom the last one sees."""
    layer = WindowAttention(HEADS, 4, 2, core=core, position=None)
    x = jnp.asarray(draw(8, 8)[:1], jnp.float32)
    variables = slow.jit(layer.init)(slow.key(0), x)

    @slow.jit
    def looks(x):
        def place(x):
            return layer.apply(variables, x)[0, [0, 3, 5, 7], [0, 3, 1, 7]].sum(-1)

        gradients = jax.jacrev(place)(x)[:, 0]
        return (jnp.abs(gradients).max(-1) > 0).astype(jnp.int32)

    seen = np.asarray(looks(x))
    cells = (np.arange(8) + 2) // 4
    for (row, column), there in zip(
        [(0, 0), (3, 3), (5, 1), (7, 7)], seen, strict=True
    ):
        own = (cells == cells[row])[:, None] & (cells == cells[column])[None]
        assert (there <= own).all()
        # Some leave out what does not match.
        if not isinstance(core, Sparse | LSH | Pointwise):
            np.testing.assert_array_equal(there, own)
        assert there[row, column]


def test_order_of_regions_changes_nothing():
    """Without positions tokens are sorted by region, which a softmax cannot see."""
    x = jnp.asarray(draw(8, 6), jnp.float32)
    plain = WindowAttention(HEADS, 2, 1, position=None)
    params = slow.random_params(plain, x)
    zeros = {"position": {"table": jnp.zeros((9, HEADS))}}
    np.testing.assert_allclose(
        slow.apply(plain, params, x),
        slow.apply(WindowAttention(HEADS, 2, 1), params | zeros, x),
        atol=1e-6,
    )


def test_regions_are_nine_at_most():
    areas = regions(6, 9, 3, 1)
    assert areas.shape == (6, 9) and len(np.unique(areas)) == 9
    assert [len(np.unique(window)) for window in areas] == [1, 1, 2, 2, 2, 4]


def test_cosine():
    query, key = np.random.default_rng(0).normal(size=(2, 3, 4, HEADS, 5))
    key[0, 0] = 0.0  # of padding
    params = {"logit_scale": jnp.log(jnp.asarray([7.0, 1000.0]))}
    module = Cosine(HEADS)
    q, k = slow.apply(module, params, jnp.asarray(query), jnp.asarray(key))
    for head, scale in enumerate([7.0, 100.0]):
        norm = np.linalg.norm(query[:, :, head], axis=-1)
        expected = scale * query[:, :, head] / norm[..., None]
        np.testing.assert_allclose(q[:, :, head], expected, rtol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(k, axis=-1)[1:], 1.0, rtol=1e-5)
    assert (k[0, 0] == 0).all()
    gradient = jax.grad(lambda k: module.apply({"params": params}, k, k)[1].sum())
    assert np.isfinite(gradient(jnp.asarray(key))).all()
    variables = module.init(slow.key(0), q, k)
    np.testing.assert_allclose(variables["params"]["logit_scale"], np.log(10.0))


def test_cosine_has_its_norms_in_float32():
    """Whatever the compute dtype: only the result is rounded."""
    query = np.random.default_rng(0).normal(size=(3, 4, HEADS, 64))
    query = jnp.asarray(query, jnp.bfloat16)
    params = {"logit_scale": jnp.zeros(HEADS)}
    found, _ = slow.apply(Cosine(HEADS), params, query, query)
    assert found.dtype == jnp.bfloat16
    exact = np.float64(query)
    exact /= np.linalg.norm(exact, axis=-1, keepdims=True)
    np.testing.assert_allclose(np.float64(found), exact, rtol=2**-8)


@pytest.mark.parametrize("trained", [None, 5])
def test_continuous_position(trained):
    window = 3
    module = ContinuousPosition(HEADS, window, trained, hidden_dim=6)
    params = slow.random_params(module, window)
    places = jnp.arange(window**2)
    bias = slow.jit(
        lambda params: module.apply({"params": params}, window)(places, places)
    )(params)
    unit = (trained or window) - 1
    for query, key in [(0, 8), (4, 4), (7, 2), (3, 5)]:
        steps = np.array(divmod(query, window)) - np.array(divmod(key, window))
        scaled = 8 * steps / unit
        spaced = np.sign(scaled) * np.log2(1 + np.abs(scaled)) / np.log2(8)
        hidden = np.maximum(slow.dense(params["up"], spaced), 0)
        expected = 16 / (1 + np.exp(-hidden @ np.float64(params["down"]["kernel"])))
        np.testing.assert_allclose(bias[:, query, key], expected, rtol=1e-5)


def test_continuous_position_of_single_tokens():
    """A window of one token has no distances to divide by."""
    module = ContinuousPosition(HEADS, 1)
    params = slow.random_params(module, 1)
    place = jnp.zeros(1, jnp.int32)
    bias = module.apply({"params": params}, 1)(place, place)
    assert bias.shape == (HEADS, 1, 1) and np.isfinite(bias).all()


def test_position_alone_compares_nothing():
    x = jnp.asarray(draw(4, 4), jnp.float32)
    layer = WindowAttention(HEADS, 2, match=PositionAlone)
    params = slow.random_params(layer, x)
    changed = {**params["attention"]}
    for name in ("query", "key"):
        changed[name] = jax.tree.map(lambda leaf: 2 * leaf, changed[name])
    there = slow.apply(layer, params, x)
    again = slow.apply(layer, params | {"attention": changed}, x)
    np.testing.assert_array_equal(there, again)
    table = {"position": {"table": params["position"]["table"][::-1]}}
    assert np.abs(slow.apply(layer, params | table, x) - there).max() > 1e-2


def test_parameters_without_biases_or_positions():
    x = jnp.zeros((1, 4, 4, DIM))
    layer = WindowAttention(
        HEADS, 2, use_key_bias=False, position=None, core=Softmax(scale=unscaled)
    )
    attention = slow.random_params(layer, x)["attention"]
    assert [name for name in attention if "bias" not in attention[name]] == ["key"]
    layer = partial(layer.clone, use_bias=False, use_key_bias=None)()
    attention = slow.random_params(layer, x)["attention"]
    assert [name for name in attention if "bias" in attention[name]] == ["out"]


def test_table_starts_small():
    layer = RelativePosition(HEADS, 20)
    table = slow.jit(layer.init, static_argnums=1)(slow.key(0), 20)
    assert abs(table["params"]["table"].std() - 0.02) < 0.001
