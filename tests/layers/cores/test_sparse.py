import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.errors import UserError
from research.layers.cores import Mask, Softmax, Sparse, fixed, local, strided
from research.layers.positions import Alibi
from tests.layers import slow
from tests.layers.cores import contract


def squares(length, rule, of_heads):
    """`rule(query, key, head)` of all positions: (1, heads, queries, keys)."""
    return np.array(
        [
            [[rule(q, k, head) for k in range(length)] for q in range(length)]
            for head in range(of_heads)
        ]
    )[None]


def near(query, key, head):
    return abs(query - key) < 4


def column(query, key, head):
    return (query - key) % 4 == 0


def block(query, key, head):
    return query // 4 == key // 4


def summary(query, key, head):
    return key % 4 >= 2


def last(query, key, head):
    return key % 4 == 3


def either(one, other):
    return lambda *pair: one(*pair) or other(*pair)


def in_turn(one, other):
    return lambda *pair: (one, other)[pair[2] % 2](*pair)


PATTERNS = {
    "local": (local(4), near),
    "all": (local(40), lambda *pair: True),
    "strided": (strided(4), either(near, column)),
    "strided in turn": (strided(4, merged=False), in_turn(near, column)),
    "fixed": (fixed(4, 2), either(block, summary)),
    "fixed in turn": (fixed(4, 1, merged=False), in_turn(block, last)),
    "fixed, distinct": (
        fixed(4, 1, num_columns=2),
        either(block, lambda query, key, head: key % 4 == 3 - head % 2),
    ),
}


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("name", PATTERNS)
def test_slow_formula(name, causal):
    patterns, rule = PATTERNS[name]
    inputs = contract.arrays()
    logits = contract.pairs(np.dot, *inputs[:2]) / 8**0.5
    weights = np.exp(logits) * squares(17, rule, 4)
    masks = contract.masks(causal)
    del masks["padded"], masks["packed"]
    contract.check_masks(Sparse(patterns), weights, inputs, masks)


@pytest.mark.parametrize("name", ["local", "strided in turn", "fixed, distinct"])
def test_decodes_as_it_trains(name):
    contract.check_decodes(Sparse(PATTERNS[name][0]), padded=name != "local")


@pytest.mark.parametrize("name", ["strided", "fixed in turn"])
def test_is_causal(name):
    contract.check_causal(Sparse(PATTERNS[name][0]))


def test_finite():
    core = Sparse(strided(4))
    contract.check_finite(core)
    contract.check_bfloat16(core)
    contract.check_finite(Sparse(fixed(4, 1)), causal=False)


@pytest.mark.parametrize(
    ("first", "second"), [(near, column), (block, last)], ids=["strided", "fixed"]
)
def test_two_hops_reach_every_earlier_position(first, second):
    # What the slow formulas that the patterns are held to above allow.
    earlier = np.tri(16, dtype=int)
    one, other = (squares(16, rule, 1)[0, 0] * earlier for rule in (first, second))
    both = ((one | other) @ (one | other)) > 0
    np.testing.assert_array_equal(both, earlier > 0)
    assert ((one | other) < earlier).any()


def test_work_is_that_of_the_pattern():
    def flops(core, length):
        shapes = [jax.ShapeDtypeStruct((1, length, 1, 8), jnp.float32)] * 3
        apply = jax.jit(lambda *x: core.apply({}, *x, mask=Mask(causal=True)))
        return apply.lower(*shapes).compile().cost_analysis()["flops"]

    def growth(core_of, lengths=(256, 4096)):
        return flops(core_of(lengths[1]), lengths[1]) / flops(
            core_of(lengths[0]), lengths[0]
        )

    assert growth(lambda length: Sparse(local(16))) < 1.1 * 16
    root = {256: 16, 4096: 64}
    for of_size in (strided, lambda size: fixed(size, 1)):
        assert growth(lambda length, f=of_size: Sparse(f(root[length]))) < 1.2 * 64
    assert growth(lambda length: Softmax()) > 0.9 * 256


def test_bias():
    inputs = contract.arrays()
    bias = Alibi(4)()
    logits = contract.pairs(np.dot, *inputs[:2]) / 8**0.5
    logits = logits + np.asarray(bias(jnp.arange(17), jnp.arange(17)))
    for name in ("strided", "fixed in turn"):
        patterns, rule = PATTERNS[name]
        weights = np.exp(logits) * squares(17, rule, 4)
        masks = {"all": Mask(causal=True)}
        contract.check_masks(Sparse(patterns), weights, inputs, masks, bias=bias)


def test_dropout():
    query, key, value = contract.arrays(16, 16)
    core = Sparse(strided(4), dropout_rate=0.5)

    def run(rng, train=True):
        options = {"train": train, "rngs": {"dropout": rng}}
        return core.apply({}, query, key, value, **options)

    draws = slow.jit(jax.vmap(run))(jax.random.split(slow.key(0), 2000))
    assert np.abs(draws[0] - draws[1]).max() > 0.1
    kept = run(slow.key(0), train=False)
    np.testing.assert_allclose(draws.mean(0), kept, atol=0.15)
    np.testing.assert_array_equal(kept, Sparse(strided(4)).apply({}, query, key, value))


def test_refusals():
    core = Sparse(strided(4, merged=False))
    with pytest.raises(UserError, match="11 queries and 17 keys"):
        core.apply({}, *contract.arrays(num_queries=11))
    with pytest.raises(UserError, match="3 heads cannot take turns at 2"):
        core.apply({}, *contract.arrays(heads=3, kv_heads=1))
    with pytest.raises(UserError, match="3 times 2 positions"):
        fixed(4, 2, num_columns=3)
