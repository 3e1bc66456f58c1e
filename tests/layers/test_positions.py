import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.errors import UserError
from research.layers.positions import (
    Alibi,
    Learned,
    LearnedGrid,
    RelativeBias,
    Rotary,
    RotaryBias,
    Sinusoidal,
    ToeplitzBias,
    relative_bucket,
)


def test_sinusoidal_is_the_papers():
    table = Sinusoidal()(jnp.arange(7)[None], 6)[0]
    for position in range(7):
        for i in range(3):
            angle = position / 10_000 ** (2 * i / 6)
            expected = [np.sin(angle), np.cos(angle)]
            np.testing.assert_allclose(
                table[position, 2 * i : 2 * i + 2], expected, atol=1e-6
            )


def test_sinusoidal_in_halves_up_to_the_last_frequency():
    """As the official code has it."""
    code = Sinusoidal(interleaved=False, endpoint=True)(jnp.array([[3]]), 6)[0, 0]
    angles = 3 / 10_000 ** (np.arange(3) / 2)
    expected = np.concatenate([np.sin(angles), np.cos(angles)])
    np.testing.assert_allclose(code, expected, atol=1e-6)


def test_learned_positions_have_an_end():
    learned = Learned(max_length=4, offset=2)
    variables = learned.init(jax.random.key(0), jnp.array([[0]]), 5)
    table = variables["params"]["embedding"]
    assert table.shape == (6, 5)
    codes = learned.apply(variables, jnp.array([[1, 3, 4]]), 5)[0]
    np.testing.assert_array_equal(codes[:2], table[jnp.array([3, 5])])
    assert np.isnan(codes[2]).all()


def test_a_grid_adds_up_or_joins_the_vectors_of_rows_and_columns():
    positions = jnp.array([[0, 4, 5, 6]])
    for dims, combine in ((None, np.add), ((2, 3), lambda *x: np.concatenate(x, -1))):
        grid = LearnedGrid((2, 3), dims)
        variables = grid.init(jax.random.key(0), positions, 5)
        tables = variables["params"]
        row, column = (np.asarray(tables[name]) for name in ("row", "column"))
        codes = grid.apply(variables, positions, 5)[0]
        expected = combine(row[[0, 1, 1]], column[[0, 1, 2]])
        np.testing.assert_array_equal(codes[:3], expected)
        assert np.isnan(codes[3]).any()
    for shape, dims in (((2, 3), (2, 2)), ((2, 3, 4), (2, 3))):
        with pytest.raises(UserError, match=f"expected {len(shape)} numbers with"):
            LearnedGrid(shape, dims).init(jax.random.key(0), positions, 5)


def test_a_grid_may_have_channels():
    positions = jnp.arange(2 * 3 * 4 + 1)[None]
    for dims, combine in ((None, sum), ((2, 1, 3), lambda x: np.concatenate(x, -1))):
        grid = LearnedGrid((2, 3, 4), dims)
        variables = grid.init(jax.random.key(0), positions, 6)
        tables = [variables["params"][name] for name in ("row", "column", "channel")]
        codes = grid.apply(variables, positions, 6)[0]
        for i, place in enumerate(np.ndindex(2, 3, 4)):
            parts = [np.asarray(t[p]) for t, p in zip(tables, place, strict=True)]
            np.testing.assert_allclose(codes[i], combine(parts), atol=1e-7)
        assert np.isnan(codes[-1]).any()


@pytest.mark.parametrize("interleaved", [False, True])
def test_rotary_is_a_rotation_of_each_pair(interleaved):
    x = np.random.default_rng(0).normal(size=(1, 5, 1, 6)).astype(np.float32)
    rotary = Rotary(theta=100.0, dim=4, interleaved=interleaved)
    turned = np.asarray(rotary(jnp.asarray(x), jnp.arange(5)[None]))[0, :, 0]
    for position in range(5):
        for i in range(2):
            pair = [2 * i, 2 * i + 1] if interleaved else [i, i + 2]
            number = complex(*x[0, position, 0, pair])
            number *= np.exp(1j * position / 100.0 ** (2 * i / 4))
            np.testing.assert_allclose(
                turned[position, pair], [number.real, number.imag], atol=1e-5
            )
    np.testing.assert_array_equal(turned[:, 4:], x[0, :, 0, 4:])


def test_rotary_products_depend_on_the_distance_alone():
    query, key = jax.random.normal(jax.random.key(0), (2, 1, 1, 1, 8))
    rotary = Rotary()

    def product(i, j):
        turned = (rotary(query, jnp.array([[i]])), rotary(key, jnp.array([[j]])))
        return jnp.sum(turned[0] * turned[1])

    np.testing.assert_allclose(product(3, 1), product(103, 101), atol=1e-4)
    assert abs(product(3, 1) - product(1, 3)) > 1e-2


@pytest.mark.parametrize("dim", [3, 10])
def test_rotary_needs_pairs_that_there_are(dim):
    with pytest.raises(UserError, match=f"dim={dim}"):
        Rotary(dim=dim)(jnp.zeros((1, 1, 1, 8)), jnp.zeros((1, 1), jnp.int32))


def slow_bucket(distance, bidirectional, buckets=8, furthest=16):
    """Exact ones, then equal steps of the logarithm, one side at a time."""
    first = 0
    if bidirectional:
        buckets //= 2
        first = buckets if distance > 0 else 0
        distance = abs(distance)
    else:
        distance = max(-distance, 0)
    exact = buckets // 2
    if distance < exact:
        return first + distance
    steps = (buckets - exact) * np.log(distance / exact) / np.log(furthest / exact)
    return first + min(exact + int(steps + 1e-6), buckets - 1)


@pytest.mark.parametrize("bidirectional", [False, True])
def test_relative_buckets(bidirectional):
    distances = np.arange(-40, 41)
    ours = relative_bucket(jnp.asarray(distances)[None], 8, 16, bidirectional)[0]
    expected = [slow_bucket(int(d), bidirectional) for d in distances]
    np.testing.assert_array_equal(ours, expected)
    # Distance zero is never ahead: bidirectional tables have a bucket unused.
    assert set(expected) == set(range(8)) - ({4} if bidirectional else set())


def test_relative_bias_is_its_table_by_bucket():
    module = RelativeBias(num_heads=2, num_buckets=4, max_distance=8)
    variables = module.init(jax.random.key(0))
    table = variables["params"]["embedding"]
    assert table.shape == (4, 2)
    bias = jax.jit(module.apply)(variables)
    square = bias(jnp.array([5, 6]), jnp.arange(8))
    assert square.shape == (2, 2, 8)
    bucket = relative_bucket(jnp.array([[2 - 6]]), 4, 8, True)[0, 0]
    np.testing.assert_array_equal(square[:, 1, 2], table[bucket])


def test_alibi_slopes():
    """Those of the paper for 8 heads; for 6 those of 4, then every second of 8."""

    def slopes(num_heads):
        return -Alibi(num_heads)()(jnp.array([1]), jnp.array([0]))[:, 0, 0]

    np.testing.assert_allclose(slopes(8), [2.0**-i for i in range(1, 9)])
    powers = [2, 4, 6, 8, 1, 3]
    np.testing.assert_allclose(slopes(6), [2.0**-i for i in powers])
    far = Alibi(2)()(jnp.array([7]), jnp.array([3, 7]))
    np.testing.assert_allclose(far[1, 0], [-4 * 2.0**-8, 0])


def test_toeplitz_bias_has_a_number_for_each_distance():
    table = jnp.arange(14.0).reshape(7, 2)
    bias = ToeplitzBias(2, max_length=4).apply({"params": {"embedding": table}})
    ours = np.asarray(bias(jnp.arange(2, 7), jnp.arange(6)))
    table = np.asarray(table)
    for head, query, key in np.ndindex(2, 5, 6):
        distance = min(max(key - (2 + query), -3), 3)
        assert ours[head, query, key] == table[3 + distance, head]


def test_rotary_bias_is_a_sum_of_waves_of_the_distance():
    module = RotaryBias(
        2,
        dim=4,
        rotary=Rotary(theta=100.0),
        vectors_init=jax.nn.initializers.normal(1.0),
    )
    variables = module.init(jax.random.key(0))
    query, key = (np.asarray(variables["params"][name]) for name in ("query", "key"))
    ours = np.asarray(module.apply(variables)(jnp.arange(2, 7), jnp.arange(6)))
    for head, position, other in np.ndindex(2, 5, 6):
        expected = 0.0
        for i in range(2):
            first = complex(query[head, i], query[head, i + 2])
            second = complex(key[head, i], key[head, i + 2])
            angle = (other - 2 - position) / 100.0 ** (i / 2)
            expected += (first.conjugate() * second * np.exp(1j * angle)).real
        np.testing.assert_allclose(ours[head, position, other], expected, atol=1e-5)
