"""Attention cores against the packages that follow their papers, on the same weights.

These are linformer and performer-pytorch of PyPI, and the Reformer of transformers. Of
others, reformer-pytorch divides the logits by sqrt(dim) once more than the official
code, and linear-attention-transformer's causal form puts the softmax's features of a
query against elu + 1 of a key, bucket by bucket; neither is any of the papers'.
"""

import importlib
import warnings

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import ReformerConfig
from transformers.models.reformer.modeling_reformer import LSHSelfAttention

from research.layers.cores import (
    LSH,
    DoubleSoftmax,
    Generalized,
    Linformer,
    Mask,
    Performer,
    Positive,
)
from tests.layers.cores import contract

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # performer-pytorch asks for old versions by name
    linformer = importlib.import_module("linformer")
    performer = importlib.import_module("performer_pytorch.performer_pytorch")

VALID = torch.arange(32)[None] < torch.tensor([[32], [21]])


def torch_arrays(**shape):
    """Of `contract.arrays`, (batch, heads, length, dim)."""
    arrays = [np.array(part) for part in contract.arrays(kv_heads=4, **shape)]
    return [torch.from_numpy(part).transpose(1, 2) for part in arrays]


def ours(core, inputs, mask, variables=None):
    """Of PyTorch's (batch, heads, length, dim), and as them."""
    inputs = [
        jnp.asarray(part.transpose(1, 2).detach().numpy(), jnp.float32)
        for part in inputs
    ]
    return np.array(contract.run(core, inputs, mask, variables)).swapaxes(1, 2)


@pytest.mark.parametrize("num_keys", [20, 17])
@pytest.mark.parametrize("one_kv_head", [False, True])
def test_linformer(one_kv_head, num_keys):
    theirs = linformer.LinformerSelfAttention(
        32, seq_len=20, k=6, heads=4, one_kv_head=one_kv_head
    ).eval()
    x, context = torch.randn(2, 11, 32), torch.randn(2, num_keys, 32)
    with torch.no_grad():
        expected = theirs(x, context)
        projected = (theirs.to_q(x), theirs.to_k(context), theirs.to_v(context))
        inputs = [part.reshape(*part.shape[:2], -1, 8) for part in projected]
        params = {
            "key_projection": jnp.asarray(theirs.proj_k.numpy()),
            "value_projection": jnp.asarray(theirs.proj_v.numpy()),
        }
        inputs = [part.transpose(1, 2) for part in inputs]
        out = ours(Linformer(20, 6), inputs, Mask(), {"params": params})
        out = theirs.to_out(torch.from_numpy(out).transpose(1, 2).reshape(2, 11, 32))
    np.testing.assert_allclose(out, expected, atol=1e-5)


def projections(theirs):
    return {"features": {"projection": jnp.asarray(theirs.projection_matrix.numpy())}}


def test_performer():
    query, key, value = torch_arrays()
    theirs = performer.FastAttention(8, nb_features=12)
    core = Performer(12, Positive(floor=1e-4))
    out = ours(core, (query, key, value), Mask(), projections(theirs))
    np.testing.assert_allclose(out, theirs(query, key, value), atol=1e-5)


def test_causal_performer():
    # Without a floor: theirs is relative to all keys, even those that are not seen.
    query, key, value = torch_arrays()
    theirs = performer.FastAttention(8, nb_features=12)
    options = {"projection_matrix": theirs.projection_matrix, "eps": 0.0}
    expected = performer.causal_linear_attention_noncuda(
        performer.softmax_kernel(query, is_query=True, **options),
        performer.softmax_kernel(key, is_query=False, **options),
        value,
        chunk_size=3,
        eps=0.0,
    )
    core = Performer(12, Positive(floor=0.0), chunk_size=4)
    out = ours(core, (query, key, value), Mask(causal=True), projections(theirs))
    np.testing.assert_allclose(out, expected, atol=1e-5)


def test_generalized_performer():
    # Theirs scales queries and keys as for the softmax, which a ReLU only sees by its
    # floor; the official code does not.
    query, key, value = torch_arrays()
    theirs = performer.FastAttention(8, nb_features=12, generalized_attention=True)
    scaled = (query / 8**0.25, key / 8**0.25, value)
    core = Performer(12, Generalized())
    out = ours(core, scaled, Mask(), projections(theirs))
    np.testing.assert_allclose(out, theirs(query, key, value), atol=1e-5)


def test_double_softmax():
    query, key, value = torch_arrays()
    theirs = performer.FastAttention(8, no_projection=True)
    out = ours(DoubleSoftmax(), (query, key, value), Mask())
    np.testing.assert_allclose(out, theirs(query, key, value), atol=1e-5)
    expected = performer.causal_linear_attention_noncuda(
        query.softmax(-1), key.exp(), value, chunk_size=3
    )
    core = DoubleSoftmax(chunk_size=4)
    out = ours(core, (query, key, value), Mask(causal=True))
    np.testing.assert_allclose(out, expected, atol=1e-5)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("num_buckets", "num_rounds"), [(6, 1), ([2, 4], 3)])
def test_reformer(num_buckets, num_rounds, causal):
    config = ReformerConfig(
        hidden_size=32,
        num_attention_heads=4,
        attention_head_size=8,
        lsh_attn_chunk_length=4,
        lsh_num_chunks_before=1,
        lsh_num_chunks_after=0,
        num_buckets=num_buckets,
        num_hashes=num_rounds,
        hash_seed=0,
        is_decoder=causal,
        max_position_embeddings=32,
    )
    # In float64: where a vector sees itself alone their -1e5 leaves float32 two digits
    # for the shares of the rounds.
    theirs = LSHSelfAttention(config).eval().double()
    x = torch.randn(2, 32, 32).double()
    factors = num_buckets if isinstance(num_buckets, list) else [num_buckets]
    torch.manual_seed(0)
    rotations = torch.randn(4, 8, num_rounds, sum(factors) // 2, dtype=x.dtype)
    with torch.no_grad():
        expected = theirs(x, attention_mask=VALID).hidden_states.numpy()
        query, value = (
            part.reshape(2, 32, 4, 8).transpose(1, 2)
            for part in (theirs.query_key(x), theirs.value(x))
        )
    buckets = tuple(num_buckets) if isinstance(num_buckets, list) else num_buckets
    core = LSH(buckets, chunk_size=4, num_rounds=num_rounds)
    mask = Mask(causal=causal, valid=jnp.asarray(VALID.numpy()))
    variables = {"features": {"rotations": jnp.asarray(rotations.numpy(), jnp.float32)}}
    out = ours(core, (query, query, value), mask, variables)
    out = out.swapaxes(1, 2).reshape(2, 32, 32)
    # What padding itself sees is of no use, and may differ.
    seen = VALID.numpy()
    np.testing.assert_allclose(out[seen], expected[seen], atol=1e-5)
