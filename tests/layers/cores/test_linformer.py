import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.errors import UserError
from research.layers.attention import Attention
from research.layers.cores import Linformer, Mask, Softmax
from tests.layers import slow
from tests.layers.cores import contract


@pytest.mark.parametrize("num_queries", [17, 11])
@pytest.mark.parametrize("share_heads", [True, False])
def test_slow_formula(share_heads, num_queries):
    query, key, value = contract.arrays(num_queries)
    core = Linformer(20, 6, share_heads=share_heads)
    params = slow.random_params(core, query, key, value)
    first, second = (
        np.broadcast_to(np.float64(params[name]), (2, 20, 6))
        for name in ("key_projection", "value_projection")
    )
    assert params["key_projection"].shape == ((20, 6) if share_heads else (2, 20, 6))
    for valid in (None, contract.VALID):
        mask = Mask(valid=None if valid is None else jnp.asarray(valid))
        ours = contract.run(core, [query, key, value], mask, {"params": params})
        expected = np.zeros((2, num_queries, 4, 5))
        for row, position, head in np.ndindex(2, num_queries, 4):
            of = np.ones(17, bool) if valid is None else valid[row]
            keys = first[head // 2, :17][of].T @ np.float64(key[row, of, head // 2])
            values = second[head // 2, :17][of].T @ np.float64(
                value[row, of, head // 2]
            )
            weights = np.exp(keys @ np.float64(query[row, position, head]) / 8**0.5)
            expected[row, position, head] = weights @ values / weights.sum()
        np.testing.assert_allclose(ours, expected, atol=1e-5)


def test_with_identities_is_softmax():
    inputs = contract.arrays()
    params = {name: jnp.eye(17) for name in ("key_projection", "value_projection")}
    ours = contract.run(Linformer(17, 17), inputs, Mask(), {"params": params})
    expected = contract.run(Softmax(), inputs, Mask())
    np.testing.assert_allclose(ours, expected, atol=1e-6)


def test_one_projection():
    inputs = contract.arrays()
    core = Linformer(17, 6, share_key_value=True)
    params = slow.random_params(core, *inputs)
    assert set(params) == {"key_projection"}
    both = {**params, "value_projection": params["key_projection"]}
    np.testing.assert_array_equal(
        contract.run(core, inputs, Mask(), {"params": params}),
        contract.run(Linformer(17, 6), inputs, Mask(), {"params": both}),
    )


def test_one_projection_for_all_layers():
    class Layers(nn.Module):
        shared: bool

        @nn.compact
        def __call__(self, x):
            core = Linformer(9, 4, share_key_value=True, name="core")
            for number in range(2):
                own = core if self.shared else Linformer(9, 4, share_key_value=True)
                x = Attention(2, core=own, name=f"attention_{number}")(x)
            return x

    def projections(shared):
        shapes = jax.eval_shape(
            Layers(shared).init, jax.random.key(0), jnp.zeros((1, 9, 4))
        )
        paths = jax.tree_util.tree_leaves_with_path(shapes)
        return sum("projection" in jax.tree_util.keystr(path) for path, _ in paths)

    assert projections(shared=True) == 1
    assert projections(shared=False) == 2


def test_leaks_the_future():
    # What the refusal to be causal is for: every output depends on every position.
    inputs = contract.arrays(11, 11)
    core = Linformer(11, 6)
    variables = {"params": slow.random_params(core, *inputs)}

    def out(value):
        return core.apply(variables, *inputs[:2], value).sum((0, 2, 3))

    reach = np.abs(slow.jit(jax.jacrev(out))(inputs[2])).sum((1, 3, 4))
    assert (reach > 0).all()


def test_finite():
    core = Linformer(17, 6)
    variables = {"params": slow.random_params(core, *contract.arrays())}
    contract.check_finite(core, variables, causal=False, segments=False)
    contract.check_bfloat16(core, variables, causal=False)


def test_starts_as_a_projection_that_keeps_distances():
    shapes = [jnp.zeros((1, 500, heads, 4)) for heads in (3, 3, 3)]
    params = Linformer(500, 64, share_heads=False).init(slow.key(0), *shapes)["params"]
    np.testing.assert_allclose(params["key_projection"].std(), 64**-0.5, rtol=0.05)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"mask": Mask(causal=True)}, "cannot be causal"),
        ({"decode": True}, "cannot be causal"),
        ({"mask": contract.masks(False)["packed"]}, "cannot be packed"),
        ({"bias": lambda queries, keys: jnp.zeros((4, 17, 17))}, "no logits"),
    ],
)
def test_refusals(options, match):
    with pytest.raises(UserError, match=match):
        Linformer(17, 6).apply({}, *contract.arrays(), **options)


def test_is_of_a_length():
    with pytest.raises(UserError, match="max_length=16.* 17 keys"):
        Linformer(16, 6).apply({}, *contract.arrays())
