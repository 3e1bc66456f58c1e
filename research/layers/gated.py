"""Gated attention units: attention and feed-forward in one layer."""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.nn.initializers import Initializer
from jaxtyping import Array, Float, Int

from research.layers.cores.base import SEES_ALL, Bias, Core, HasCore, Mask
from research.layers.cores.pointwise import Pointwise
from research.layers.linear import Dense
from research.layers.positions import Rotation


class GatedAttentionUnit(HasCore):
    """(U * A V) W_o: what one head of attention brings, gated.

    Hua et al. 2022, arXiv:2202.10447, section 2.2. U, V = silu(x W_u), silu(x W_v) are
    wide, Z = silu(x W_z) is narrow, and the queries and keys from which the core makes
    A are Z itself, each dimension of it scaled and shifted. Two units have about the
    parameters of attention and a feed-forward layer, which they stand for: a block has
    one as its mixer, and no mlp.

    FLASH-Quad has the core `Pointwise`, FLASH `MixedChunk`, and GAU-alpha (Su 2022,
    kexue.fm/archives/9052) `EntropyInvariant(Softmax(), least=16)` without biases and
    with scales that start at one. A core of two branches gets two queries and keys of
    `key_dim` each, side by side.

    Attributes:
      expansion: width of U and V in multiples of x's.
      key_dim: of Z.
      core: mixes the values, with its own dropout of weights.
      rotary: turns queries and keys by their positions.
      relative_bias: of this unit's own logits, such as `partial(RelativeBias, 1)`;
        built with `name`, called without arguments for the `Bias`.
      activation: of U, V and Z.
      use_bias: of the projections, and whether queries and keys are shifted.
      kernel_init: of the projections' kernels.
      scale_init: of the scales of queries and keys.
      dense: the linear layers, built with `features` and keywords as `nn.Dense`.
      dtype: of the computation; parameters and weights are float32.
    """

    expansion: float = 2.0
    key_dim: int = 128
    core: Core = Pointwise()
    rotary: Rotation | None = None
    relative_bias: Callable[..., Callable[[], Bias]] | None = None
    activation: Callable[[Array], Array] = jax.nn.silu
    use_bias: bool = True
    kernel_init: Initializer = nn.initializers.normal(0.02)
    scale_init: Initializer = nn.initializers.normal(0.02)
    dense: Callable[..., nn.Module] = Dense
    dtype: str = "float32"

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch length dim"],
        *,
        mask: Mask = SEES_ALL,
        bias: Bias | None = None,
        positions: Int[Array, "#batch length"] | None = None,
        train: bool = False,
        decode: bool = False,
    ) -> Float[Array, "batch length dim"]:
        """What is added to the stream; `x` is normalised already, if at all.

        With `decode`, x holds the positions that follow those of the calls before.

        Args:
          x: the stream.
          mask: who sees whom.
          bias: of the logits of one head, added to the unit's own.
          positions: of x, for `rotary`; None is for 0, 1, ...
          train: whether to drop out.
          decode: see above; the core's `cache` holds what was.
        """
        batch, length, dim = x.shape

        def project(h: Array, features: int, name: str) -> Array:
            layer = self.dense(
                features,
                use_bias=self.use_bias,
                kernel_init=self.kernel_init,
                dtype=self.dtype,
                name=name,
            )
            return layer(h)

        hidden_dim = int(self.expansion * dim)
        gate = self.activation(project(x, hidden_dim, "gate"))
        value = self.activation(project(x, hidden_dim, "value"))
        shared = self.activation(project(x, self.key_dim, "shared"))

        branches = getattr(self.core, "branches", 1)
        shape = (2 * branches, self.key_dim)  # all queries, then all keys
        scale = self.param("scale", self.scale_init, shape).astype(self.dtype)
        pairs = shared[:, :, None] * scale[None, None]
        if self.use_bias:
            shift = self.param("shift", nn.initializers.zeros, shape)
            pairs += shift.astype(self.dtype)[None, None]
        if self.rotary is not None:
            if positions is None:
                positions = jnp.arange(length)[None]
            pairs = self.rotary(pairs, positions)
        query, key = (
            half.reshape(batch, length, 1, branches * self.key_dim)
            for half in jnp.split(pairs, 2, axis=2)
        )
        if self.relative_bias is not None:
            own = self.relative_bias(name="relative_bias")()
            bias = own if bias is None else partial(_sum, own, bias)
        mixed = self.core(
            query,
            key,
            value[:, :, None],
            mask=mask,
            bias=bias,
            train=train,
            decode=decode,
        )
        return project(gate * mixed[:, :, 0], dim, "out")


def _sum(first: Bias, second: Bias, queries: Array, keys: Array) -> Array:
    return first(queries, keys) + second(queries, keys)
