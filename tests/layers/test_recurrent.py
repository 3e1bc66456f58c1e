import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from research.errors import UserError
from research.layers.initializers import within
from research.layers.recurrent import (
    GruCell,
    LstmCell,
    LstmState,
    Recurrent,
    RecurrentStack,
    RnnCell,
    reverse_valid,
)
from tests.layers import slow, slow_recurrent

BATCH, LENGTH, DIM, HIDDEN = 3, 6, 4, 5
LENGTHS = np.array([6, 4, 1])
BODY = re.compile(r"body=%([\w.\-]+)")
VALID = jnp.arange(LENGTH)[None] < LENGTHS[:, None]
X = jnp.asarray(np.random.default_rng(0).normal(size=(BATCH, LENGTH, DIM)), jnp.float32)

CELLS = {
    "rnn": RnnCell(),
    "lstm": LstmCell(recurrent_bias=True),
    "gru": GruCell(recurrent_bias=True),
    "gru_reset_first": GruCell(reset_first=True),
}
all_cells = pytest.mark.parametrize("cell", CELLS.values(), ids=CELLS)
both_ways = pytest.mark.parametrize("reverse", [False, True])


def some_state(cell, seed=0):
    draws = np.random.default_rng(seed).normal(size=(2, BATCH, HIDDEN)) / 2
    draws = jnp.asarray(draws, jnp.float32)
    return LstmState(*draws) if isinstance(cell, LstmCell) else draws[0]


def rows(state):
    """The state of each row, in float64."""
    states = jax.tree.map(np.float64, state)
    return [jax.tree.map(lambda leaf, b=b: leaf[b], states) for b in range(BATCH)]


@both_ways
@all_cells
def test_slow_formula(cell, reverse):
    layer, first = Recurrent(cell, HIDDEN, reverse), some_state(cell)
    params = slow.random_params(layer, X)
    y, last = slow.apply(layer, params, X, VALID, first)
    for b, state in enumerate(rows(first)):
        expected, state = slow_recurrent.layer(
            cell, params, np.float64(X[b]), LENGTHS[b], state, reverse
        )
        np.testing.assert_allclose(y[b], expected, atol=1e-5)
        for ours, theirs in zip(
            jax.tree.leaves(rows(last)[b]), jax.tree.leaves(state), strict=True
        ):
            np.testing.assert_allclose(ours, theirs, atol=1e-5)


@both_ways
@all_cells
def test_gradients_are_those_of_a_plain_loop(cell, reverse):
    """Of every argument, with padding and with packed sequences."""
    layer, first = Recurrent(cell, HIDDEN, reverse, unroll=4), some_state(cell)
    params = slow.random_params(layer, X)
    segments = jnp.array([[1, 1, 2, 2, 2, 3], [1, 2, 2, 2, 0, 0], [1, 0, 0, 0, 0, 0]])
    weights = jnp.asarray(np.random.default_rng(1).normal(size=(BATCH, LENGTH, HIDDEN)))

    def plain(params, x, state):
        """The cell along the positions, differentiated by JAX."""
        ends = np.cumsum([product.num_blocks for product in cell.products])[:-1]
        weights = jax.tree.map(
            lambda leaf: jnp.split(leaf, ends * HIDDEN, axis=-1), params
        )
        inputs, recurrent = weights["input"], weights["recurrent"]
        order = range(LENGTH)[:: -1 if reverse else 1]
        outputs, before = [None] * LENGTH, None
        for t in order:
            count = iter(range(len(cell.products)))

            def multiply(h, t=t, count=count):
                k = next(count)
                projected = x[:, t] @ inputs["kernel"][k] + inputs["bias"][k][None]
                product = h @ recurrent["kernel"][k]
                if "bias" in recurrent:
                    product += recurrent["bias"][k][None]
                apart = projected, product
                return sum(apart) if cell.products[k].added else apart

            old = state
            if before is not None:
                same = (segments[:, before] == segments[:, t])[:, None]
                state = jax.tree.map(lambda s, k=same: jnp.where(k, s, 0), state)
            new, keep, before = cell.step(state, multiply), VALID[:, t, None], t
            state = jax.tree.map(lambda n, o, k=keep: jnp.where(k, n, o), new, old)
            outputs[t] = jnp.where(keep, cell.output(state), 0)
        return jnp.stack(outputs, axis=1), state

    def ours(params, x, state):
        return layer.apply({"params": params}, x, VALID, state, segments)

    def loss(run, *args):
        y, last = run(*args)
        squares = jax.tree.map(lambda leaf: jnp.square(leaf).sum(), last)
        return (weights * y).sum() + sum(jax.tree.leaves(squares)), (y, last)

    grad = jax.grad(loss, argnums=(1, 2, 3), has_aux=True)
    found, expected = slow.jit(lambda *args: (grad(ours, *args), grad(plain, *args)))(
        params, X, first
    )
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-5), found, expected)


@both_ways
def test_padding_plays_no_part(reverse):
    layer = Recurrent(LstmCell(), HIDDEN, reverse)
    params = slow.random_params(layer, X)
    noisy = jnp.where(VALID[..., None], X, 100.0)

    @slow.jit
    def run(x):
        def loss(x):
            y, last = layer.apply({"params": params}, x, VALID)
            return jnp.square(y).sum() + jnp.square(last.cell).sum(), (y, last)

        return jax.grad(loss, has_aux=True)(x)

    (d_x, found), (_, expected) = run(noisy), run(X)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert (d_x[~VALID] == 0).all() and (abs(d_x[VALID]).sum(-1) > 0).all()
    assert (found[0][~VALID] == 0).all()


def test_reverse_is_forward_over_reversed_tokens():
    forward, backward = (Recurrent(GruCell(), HIDDEN, way) for way in (False, True))
    params = slow.random_params(forward, X)

    def flip(x):
        pairs = zip(x, LENGTHS, strict=True)
        return jnp.stack([jnp.concatenate([r[:n][::-1], r[n:]]) for r, n in pairs])

    y, last = slow.apply(backward, params, X, VALID)
    expected, end = slow.apply(forward, params, flip(X), VALID)
    np.testing.assert_allclose(y, flip(expected), atol=1e-6)
    np.testing.assert_allclose(last, end, atol=1e-6)


@all_cells
def test_one_step_at_a_time(cell):
    layer = Recurrent(cell, HIDDEN)
    params = slow.random_params(layer, X)
    expected, last = slow.apply(layer, params, X)
    step = slow.jit(
        lambda state, x: layer.apply({"params": params}, x[:, None], state=state)
    )
    state = cell.start(BATCH, HIDDEN, "float32")
    for t in range(LENGTH):
        y, state = step(state, X[:, t])
        np.testing.assert_allclose(y[:, 0], expected[:, t], atol=1e-6)
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-6), state, last)


@both_ways
def test_packed_sequences_are_apart(reverse):
    layer = Recurrent(LstmCell(), HIDDEN, reverse)
    params = slow.random_params(layer, X)
    segments = jnp.array([[1, 1, 2, 2, 2, 3]] * BATCH)
    y, _ = slow.apply(layer, params, X, None, None, segments)
    alone = [slow.apply(layer, params, X[:, i:j])[0] for i, j in ((0, 2), (2, 5))]
    np.testing.assert_allclose(y[:, :5], jnp.concatenate(alone, axis=1), atol=1e-6)


def test_each_device_has_its_rows_and_sums_gradients_once():
    """Nothing of a batch is gathered, and no loop waits for other devices."""
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    whole = NamedSharding(mesh, PartitionSpec())
    rows = NamedSharding(mesh, PartitionSpec("data"))
    stack, x = RecurrentStack(HIDDEN, 2, GruCell()), jnp.ones((8, LENGTH, DIM))
    params = slow.random_params(stack, x)

    def gradient(params, x):
        def loss(params):
            return jnp.square(stack.apply({"params": params}, x)[0]).sum()

        return jax.grad(loss)(params)

    grad = slow.jit(gradient, in_shardings=(whole, rows), out_shardings=whole)
    text = grad.lower(params, x).compile().as_text()
    loops = [
        text.split(f"\n%{name} ")[1].split("\n}")[0] for name in BODY.findall(text)
    ]
    assert len(loops) == 4 and not any("all-reduce" in loop for loop in loops)
    assert (
        "all-reduce" in text and "all-gather" not in text and "all-to-all" not in text
    )
    jax.tree.map(
        partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5),
        grad(params, x),
        slow.jit(gradient)(params, x),
    )


def test_where_the_reset_gate_acts():
    """Before or after the product is the same only where it lets all through."""
    layers = [Recurrent(GruCell(first), HIDDEN) for first in (False, True)]
    params = slow.random_params(layers[0], X)
    inside, outside = (slow.apply(layer, params, X)[0] for layer in layers)
    assert abs(inside - outside).max() > 1e-3
    np.testing.assert_array_equal(inside[:, 0], outside[:, 0])  # of no state

    bias = params["input"]["bias"].at[:HIDDEN].set(100.0)
    params["input"] = {**params["input"], "bias": bias}
    inside, outside = (slow.apply(layer, params, X)[0] for layer in layers)
    np.testing.assert_allclose(inside, outside, atol=1e-6)


def test_states_are_float32_in_bfloat16():
    # Adds 2^-9 at each of 512 positions, which bfloat16 stops doing at 1/2.
    layer = Recurrent(LstmCell(), 1, dtype="bfloat16")
    x = jnp.full((1, 512, 1), np.arctanh(2**-9), jnp.float32)
    params = {
        "input": {
            "kernel": jnp.array([[0.0, 0.0, 1.0, 0.0]]),
            "bias": jnp.array([50.0, 50.0, 0.0, 0.0]),
        },
        "recurrent": {"kernel": jnp.zeros((1, 4))},
    }
    y, state = slow.apply(layer, params, x)
    assert y.dtype == jnp.bfloat16 and state.cell.dtype == jnp.float32
    assert float(state.cell[0, 0]) == pytest.approx(1, rel=1e-2)
    shapes = jax.eval_shape(layer.init, jax.random.key(0), x)
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}
    text = str(jax.make_jaxpr(layer.apply)({"params": params}, x))
    assert text.count("f32[1,4] = dot_general") == 1


def test_initial_distributions():
    cell = LstmCell(bias_init=within(0.1), kernel_init=within(0.5))
    init = slow.jit(partial(Recurrent(cell, 16).init, x=jnp.zeros((1, 1, 64))))
    params = init(slow.key(0))["params"]
    blocks = jnp.split(params["recurrent"]["kernel"], 4, axis=1)
    for index, block in enumerate(blocks):
        np.testing.assert_allclose(block @ block.T, np.eye(16), atol=1e-5)
        assert abs(block - blocks[index - 1]).max() > 0.1
    i, f, g, o = jnp.split(params["input"]["bias"], 4)
    assert (abs(f - 1) <= 0.1).all() and len(set(f.tolist())) == 16
    assert (abs(jnp.stack([i, g, o])) <= 0.1).all()
    assert 0.45 < abs(params["input"]["kernel"]).max() <= 0.5
    assert set(params["recurrent"]) == {"kernel"}


def test_stack_is_its_layers():
    """Both ways at the bottom, adding from the third on, with a context."""
    cell, context = LstmCell(), X[..., :2]
    stack = RecurrentStack(HIDDEN, 4, cell, num_bidirectional=1, residual_from=2)
    first = tuple(some_state(cell, seed) for seed in range(5))
    params = slow.random_params(stack, X, None, None, None, context)
    found, states = slow.apply(stack, params, X, VALID, first, None, context)

    names = ["layer_0", "layer_0_reverse", "layer_1", "layer_2", "layer_3"]
    assert set(params) == set(names) and len(states) == 5

    @slow.jit
    def expected():
        def run(index, x):
            layer = Recurrent(cell, HIDDEN, "reverse" in names[index])
            x = jnp.concatenate([x, context], axis=-1)
            variables = {"params": params[names[index]]}
            return layer.apply(variables, x, VALID, first[index])

        (forward, s0), (backward, s1) = run(0, X), run(1, X)
        h, s2 = run(2, jnp.concatenate([forward, backward], axis=-1))
        up, s3 = run(3, h)
        h += up
        up, s4 = run(4, h)
        return h + up, (s0, s1, s2, s3, s4)

    jax.tree.map(
        partial(np.testing.assert_allclose, atol=1e-6), (found, states), expected()
    )


def test_dropout_is_between_layers():
    for num_layers in (1, 2):
        stack = RecurrentStack(64, num_layers, dropout_rate=0.5)
        params = slow.random_params(stack, X)
        rng = {"dropout": jax.random.key(0)}
        plain, states = slow.apply(stack, params, X)
        dropped, after = slow.apply(
            stack, params, X, None, None, None, None, True, **rng
        )
        # The bottom layer is as it was; what goes up to the next one is not.
        np.testing.assert_allclose(after[0].cell, states[0].cell, atol=1e-6)
        assert (abs(plain - dropped).max() > 0.01) == (num_layers == 2)


def test_a_layer_cannot_add_what_has_another_width():
    with pytest.raises(UserError, match="layer 0 .* width 4 .* width 5"):
        jax.eval_shape(
            RecurrentStack(HIDDEN, residual_from=0).init, jax.random.key(0), X
        )


def test_reversing_twice_changes_nothing():
    tokens = jnp.arange(18).reshape(BATCH, LENGTH)
    once = reverse_valid(tokens, VALID)
    assert once.tolist()[1] == [9, 8, 7, 6, 10, 11]
    assert (reverse_valid(once, VALID) == tokens).all()
