from functools import partial

import jax.numpy as jnp
import numpy as np
import pytest

from research.errors import UserError
from research.layers.cores import (
    CosFormer,
    DoubleSoftmax,
    Linear,
    Mask,
    elu_plus_one,
    exponential,
    relu,
    relu_plus,
    softmax_features,
    squared_relu,
    taylor,
)
from research.layers.cores.kernel_sums import attend, quadratic
from tests.layers import slow
from tests.layers.cores import contract


def softmax(x, axis=-1):
    exponentials = np.exp(x)
    return exponentials / exponentials.sum(axis, keepdims=True)


def elu(x):
    return np.where(x > 0, x + 1, np.exp(x))


def cosine(query, key):
    return 1 + query @ key / np.linalg.norm(query) / np.linalg.norm(key)


KERNELS = {
    elu_plus_one: lambda q, k: elu(q) @ elu(k),
    relu: lambda q, k: np.maximum(q, 0) @ np.maximum(k, 0),
    relu_plus: lambda q, k: (np.maximum(q, 0) + 1e-3) @ (np.maximum(k, 0) + 1e-3),
    squared_relu: lambda q, k: np.maximum(q, 0) ** 2 @ np.maximum(k, 0) ** 2,
    exponential: lambda q, k: np.exp(q) @ np.exp(k),
    softmax_features: lambda q, k: softmax(q) @ softmax(k),
    taylor: cosine,
}


def test_kernels():
    inputs = contract.arrays()
    mask = Mask(causal=True)

    def apply(inputs):
        return [
            Linear(kernel, epsilon=1e-12).apply({}, *inputs, mask=mask)
            for kernel in KERNELS
        ]

    outputs = slow.jit(apply)(inputs)
    for ours, (kernel, of_pair) in zip(outputs, KERNELS.items(), strict=True):
        weights = contract.pairs(of_pair, *inputs[:2])
        expected = contract.weighted(weights, inputs[2], mask)
        np.testing.assert_allclose(ours, expected, atol=1e-5, err_msg=kernel.__name__)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("kernel", [elu_plus_one, exponential])
def test_masks(kernel, causal):
    inputs = contract.arrays()
    weights = contract.pairs(KERNELS[kernel], *inputs[:2])
    core = Linear(kernel, epsilon=1e-12, chunk_size=4)
    contract.check_masks(core, weights, inputs, contract.masks(causal))


@pytest.mark.parametrize("kernel", [elu_plus_one, exponential])
def test_masks_of_other_keys(kernel):
    inputs = contract.arrays(num_queries=11)
    weights = contract.pairs(KERNELS[kernel], *inputs[:2])
    core = Linear(kernel, epsilon=1e-12, chunk_size=4)
    # Besides: the last queries of a causal sequence.
    masks = contract.crossed() | {"later": Mask(offset=6, causal=True)}
    contract.check_masks(core, weights, inputs, masks)


def test_as_many_keys_packed_differently():
    inputs = contract.arrays()
    segments = jnp.asarray(contract.SEGMENTS)
    masks = {"mixed": Mask(segments=(segments, jnp.flip(segments, 0)))}
    weights = contract.pairs(KERNELS[elu_plus_one], *inputs[:2])
    contract.check_masks(Linear(chunk_size=4), weights, inputs, masks)


@pytest.mark.parametrize("chunk_size", [1, 5, 17, 64])
def test_chunks_give_the_quadratic_form(chunk_size):
    query, key, value = contract.arrays()
    query, key = exponential(query).values, exponential(4 * key)
    mask = contract.masks(causal=True)["both"]
    chunked = slow.jit(partial(attend, chunk_size=chunk_size))
    for ours, expected in zip(
        chunked(query, key, value, mask),
        slow.jit(quadratic)(query, key, value, mask),
        strict=True,
    ):
        np.testing.assert_allclose(ours, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("core", "padded"),
    [
        (Linear(chunk_size=4), False),
        (Linear(exponential, chunk_size=4), True),
        (DoubleSoftmax(chunk_size=4), False),
        (CosFormer(17, chunk_size=4), True),
    ],
    ids=["elu", "exp", "double", "cos"],
)
def test_decodes_as_it_trains(core, padded):
    query, key, value = contract.arrays()
    cache = contract.check_decodes(core, inputs=[query, key - 2, value], padded=padded)
    sizes = {leaf.size for leaf in cache.values() if not isinstance(leaf, dict)}
    assert not any(size > 2 * 2 * 16 * 5 for size in sizes), "grows with the length"


@pytest.mark.parametrize(
    "core",
    [
        Linear(taylor, chunk_size=4),
        DoubleSoftmax(chunk_size=4),
        CosFormer(11, chunk_size=4),
    ],
    ids=["taylor", "double", "cos"],
)
def test_is_causal(core):
    contract.check_causal(core)


@pytest.mark.parametrize(
    ("core", "causal"),
    [
        (Linear(), True),
        (Linear(exponential), False),
        (Linear(exponential), True),
        (Linear(taylor), False),
        (DoubleSoftmax(), False),
        (CosFormer(17), True),
    ],
    ids=["elu", "exp both ways", "exp", "taylor", "double", "cos"],
)
def test_finite(core, causal):
    contract.check_finite(core, causal=causal)
    contract.check_bfloat16(core, causal=causal)


def test_exponentials_of_any_size():
    query, key, value = contract.arrays()
    key = key.at[:, 9].add(500.0)  # a float32 ends at e^88
    mask = Mask(causal=True)
    core = Linear(exponential, epsilon=0.0, chunk_size=4)
    ours = contract.run(core, [100 + query, key, value], mask)
    before = contract.pairs(KERNELS[exponential], query[:, :9], key[:, :9])
    expected = contract.weighted(before, value[:, :9], mask)
    np.testing.assert_allclose(ours[:, :9], expected, atol=1e-5)
    after = np.broadcast_to(value[:, 9:10].repeat(2, 2), ours[:, 9:].shape)
    np.testing.assert_allclose(ours[:, 9:], after, atol=1e-5)


def test_epsilon_is_of_the_denominator_as_it_is():
    query, key, value = contract.arrays()
    core = Linear(exponential, epsilon=0.5)
    ours = contract.run(core, [query - 2, key - 2, value], Mask())
    weights = contract.pairs(KERNELS[exponential], query - 2, key - 2)
    weights /= weights.sum(-1, keepdims=True) + 0.5
    expected = np.einsum(
        "bhqk,bkhd->bqhd", weights, np.float64(value).repeat(2, axis=2)
    )
    np.testing.assert_allclose(ours, expected, atol=1e-5)


def test_two_maps():
    query, key, value = contract.arrays()
    core = Linear(elu_plus_one, squared_relu)
    ours = contract.run(core, [query, key, value], Mask())
    weights = contract.pairs(lambda q, k: elu(q) @ np.maximum(k, 0) ** 2, query, key)
    expected = contract.weighted(weights, value, Mask())
    np.testing.assert_allclose(ours, expected, atol=1e-5)


@pytest.mark.parametrize("length", [11, 17])
def test_double_softmax(length):
    query, key, value = contract.arrays(num_queries=length)
    masks = contract.masks(causal=False) if length == 17 else contract.crossed()
    outputs = contract.run_all(DoubleSoftmax(chunk_size=4), [query, key, value], masks)
    for name, mask in masks.items():
        seen = np.broadcast_to(
            True if name == "all" else mask.dense(length, 17), (2, 1, length, 17)
        )
        expected = np.zeros((2, length, 4, 5))
        for row, position, head in np.ndindex(2, length, 4):
            keys = seen[row, 0, position]
            if not keys.any():
                continue
            over_positions = softmax(np.float64(key[row, keys, head // 2]), axis=0)
            context = over_positions.T @ np.float64(value[row, keys, head // 2])
            over_features = softmax(np.float64(query[row, position, head]))
            expected[row, position, head] = over_features @ context
        np.testing.assert_allclose(outputs[name], expected, atol=1e-5, err_msg=name)


def test_causal_double_softmax_is_the_exponential_kernel():
    inputs = contract.arrays()
    mask = contract.masks(causal=True)["both"]
    np.testing.assert_allclose(
        contract.run(DoubleSoftmax(), inputs, mask),
        contract.run(Linear(exponential), inputs, mask),
        atol=1e-5,
    )


@pytest.mark.parametrize("causal", [False, True])
def test_cosformer(causal):
    query, key, value = contract.arrays()
    far = np.cos(np.pi / 2 * (np.arange(17)[:, None] - np.arange(17)) / 20)
    weights = contract.pairs(KERNELS[relu], query, key) * far
    assert (weights >= 0).all()
    assert np.linalg.matrix_rank(weights[0, 0]) <= 2 * 8
    contract.check_masks(
        CosFormer(20, chunk_size=4),
        weights,
        [query, key, value],
        contract.masks(causal),
    )


def test_cosformer_is_of_a_length():
    with pytest.raises(UserError, match="max_length=16.* of 17"):
        contract.run(CosFormer(16), contract.arrays(), Mask())


@pytest.mark.parametrize("core", [Linear(), DoubleSoftmax(), CosFormer(17)])
def test_no_bias(core):
    with pytest.raises(UserError, match="no logits to add a bias to"):
        core.apply({}, *contract.arrays(), bias=lambda q, k: jnp.zeros((4, 17, 17)))
