"""Gated attention units against the PyTorch port that is on PyPI, on the same weights.

`FLASH-pytorch` (lucidrains, 0.1.9) with `rotary-embedding-torch`. Where it is not Hua
et al. 2022, arXiv:2202.10447 (P their text, C the pseudocode of their appendix), ours
has the port's way as a setting, which is what runs here:

- Products are divided by the number of keys before the ReLU^2, as in C: in P by
  sqrt(s), and the weights by the number of keys. `inside=per_key, outside=unchanged`.
- That number is the whole length (GAU) or the chunk's (FLASH), padding and, if causal,
  the future included, as in C. `count=all_keys`; ours is by default what is seen.
- GAU divides the relative bias, too, by the number of keys; FLASH does not. Both
  multiply it, by sqrt(d) and sqrt(s). It is T5's, in buckets; in C it is a learnt
  Toeplitz matrix, or made by rotary positions where sequences are long.
- Causal, the sum over the chunks before is divided by the size of one chunk, so it
  grows along the row: C takes the mean over those chunks. `MixedChunk(count=all_keys)`.
- Rotary positions turn only up to 32 dimensions, in neighbouring pairs, and are not in
  GAU at all; C turns every dimension of both, in halves.
- Not ours: `reduce_group_non_causal_attn=False` sums over the own chunk only, which
  makes the linear half local.
- Additions of the port: the Laplace function, and the token shift.
"""

from functools import partial

import flash_pytorch
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from rotary_embedding_torch import RotaryEmbedding

from research.layers.cores.base import Mask
from research.layers.cores.counts import all_keys
from research.layers.cores.mixed_chunk import MixedChunk
from research.layers.cores.pointwise import (
    Pointwise,
    laplace,
    per_key,
    squared_relu,
    unchanged,
)
from research.layers.gated import GatedAttentionUnit
from research.layers.norms import LayerNorm
from research.layers.positions import RelativeBias, Rotary
from research.layers.residual import PreNorm
from research.layers.shift import TokenShift
from research.layers.stack import TransformerBlock
from tests.layers import slow

TOLERANCE = 1e-5  # of the largest element of the output
DIM, KEY_DIM, LENGTH, SIZE = 12, 6, 17, 5
VALID = np.arange(LENGTH)[None] < np.array([[LENGTH], [9]])
X = np.random.default_rng(0).normal(size=(2, LENGTH, DIM)).astype(np.float32)


def drawn(port):
    """The port with weights that let the attention speak: its own start at 0.02."""
    draws = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in port.named_parameters():
            if not name.startswith("rotary"):
                parameter.copy_(torch.randn(parameter.shape, generator=draws))
    return port.eval()


def params_of(port):
    """Ours, of a block, from the port's."""
    state = {name: jnp.asarray(leaf) for name, leaf in port.state_dict().items()}
    (pairs,) = (name[:-6] for name in state if name.endswith(".gamma"))
    out = "to_out.0" if "to_out.0.weight" in state else "to_out"

    def dense(name, part=slice(None)):
        return {
            "kernel": state[f"{name}.weight"][part].T,
            "bias": state[f"{name}.bias"][part],
        }

    hidden = state[f"{out}.weight"].shape[1]
    return {
        "mixer_residual": {
            "norm": {"scale": state["norm.weight"], "bias": state["norm.bias"]}
        },
        "mixer": {
            "value": dense("to_hidden.0", slice(hidden)),
            "gate": dense("to_hidden.0", slice(hidden, None)),
            "shared": dense("to_qk.0"),
            "scale": state[f"{pairs}.gamma"],
            "shift": state[f"{pairs}.beta"],
            "out": dense(out),
        },
    }


def compare(port, unit, bias_scale, causal, masked, wrap=lambda params: params):
    with torch.no_grad():
        mask = torch.from_numpy(VALID) if masked else None
        theirs = port(torch.from_numpy(X), mask=mask).numpy()

    table = jnp.asarray(port.rel_pos_bias.relative_attention_bias.weight.detach())
    bias = RelativeBias(1, bidirectional=not causal).apply(
        {"params": {"embedding": bias_scale * table}}
    )
    norm = partial(LayerNorm, epsilon=1e-5)
    block = TransformerBlock(unit, mlp=None, residual=partial(PreNorm, norm=norm))
    valid = jnp.asarray(VALID) if masked else None

    @slow.jit
    def apply(params):
        params = params | {"mixer": wrap(params["mixer"])}
        mask = Mask(valid=valid, causal=causal)
        return block.apply({"params": params}, jnp.asarray(X), mask=mask, bias=bias)

    ours = apply(params_of(port))

    np.testing.assert_allclose(ours, theirs, rtol=0, atol=TOLERANCE * abs(theirs).max())
    # The comparison is of attention, not of what passes by it.
    silent = params_of(port)
    silent["mixer"]["value"] = jax.tree.map(jnp.zeros_like, silent["mixer"]["value"])
    rest = apply(silent)
    assert np.abs(np.asarray(rest) - theirs).max() > 0.1 * np.abs(theirs).max()


def pointwise(bounded):
    return Pointwise(
        laplace if bounded else squared_relu, per_key, unchanged, count=all_keys
    )


@pytest.mark.parametrize("masked", [False, True], ids=["all", "masked"])
@pytest.mark.parametrize("causal", [False, True], ids=["both", "causal"])
@pytest.mark.parametrize("bounded", [False, True], ids=["relu2", "laplace"])
def test_gau(causal, masked, bounded):
    port = flash_pytorch.GAU(
        dim=DIM, query_key_dim=KEY_DIM, causal=causal, laplace_attn_fn=bounded
    )
    unit = partial(GatedAttentionUnit, key_dim=KEY_DIM, core=pointwise(bounded))
    compare(drawn(port), unit, DIM**0.5 / LENGTH, causal, masked)


@pytest.mark.parametrize("masked", [False, True], ids=["all", "masked"])
@pytest.mark.parametrize("causal", [False, True], ids=["both", "causal"])
@pytest.mark.parametrize(
    ("bounded", "shifted"),
    [(False, False), (True, False), (False, True)],
    ids=["relu2", "laplace", "shifted"],
)
def test_flash(causal, masked, bounded, shifted):
    port = flash_pytorch.FLASH(
        dim=DIM,
        group_size=SIZE,
        query_key_dim=KEY_DIM,
        causal=causal,
        rotary_pos_emb=RotaryEmbedding(dim=4),
        laplace_attn_fn=bounded,
        shift_tokens=shifted,
    )
    unit = partial(
        GatedAttentionUnit,
        key_dim=KEY_DIM,
        core=MixedChunk(SIZE, core=pointwise(bounded), count=all_keys),
        rotary=Rotary(dim=4, interleaved=True),
    )
    bias_scale = KEY_DIM**0.5
    if not shifted:
        compare(drawn(port), unit, bias_scale, causal, masked)
        return
    unit = partial(TokenShift, mixer=unit)

    def wrap(params):
        return {"mixer": params}

    compare(drawn(port), unit, bias_scale, causal, masked, wrap)
