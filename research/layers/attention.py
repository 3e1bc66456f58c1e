"""Attention."""

import math
from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp
from jax.nn.initializers import Initializer
from jaxtyping import Array, Float, Int

from research.errors import UserError
from research.layers.cores import SEES_ALL, Bias, Core, Mask, Softmax
from research.layers.cores.base import HasCore
from research.layers.initializers import uniform_fan_avg, xavier
from research.layers.linear import Dense
from research.layers.norms import GroupNorm
from research.layers.positions import Rotation


def _shares_keys(core: Core) -> bool:
    """Whether queries are a core's keys, so that it needs no projection to others."""
    return getattr(core, "shares_keys", False)


class PixelAttention(HasCore):
    """Residual self-attention over all pixels of an image.

    Ho et al. 2020, arXiv:2006.11239, App. B, with the rescaled sum of Song et al. 2021,
    arXiv:2011.13456, App. H.

    Attributes:
      num_heads: divides the channels.
      head_dim: of as many heads as the channels make, whatever `num_heads` is; None is
        for `num_heads` of them.
      core: mixes the values; by default softmax(q k / sqrt(head dim)) v, the softmax
        in float32.
      skip_scale: of the sum of input and output; 1/sqrt(2) keeps the variance.
      norm: of the input, built with `dtype` and `name`.
      dtype: of the computation; parameters, norm and softmax are float32.
    """

    num_heads: int = 1
    head_dim: int | None = None
    core: Core = Softmax()
    skip_scale: float = math.sqrt(0.5)
    norm: Callable[..., nn.Module] = GroupNorm
    dtype: str = "float32"

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch height width channels"]:
        """Raises `UserError` if the heads do not divide the channels."""
        batch, height, width, channels = x.shape
        head_dim = self.head_dim or channels // self.num_heads
        num_heads = channels // head_dim if self.head_dim else self.num_heads
        if num_heads * head_dim != channels:
            raise UserError(
                f"{channels} channels cannot be split over {num_heads} heads of"
                f" {head_dim}: choose num_heads, or head_dim, that divides them."
            )

        def project(h: Array, name: str, init_scale: float) -> Array:
            return Dense(
                channels,
                dtype=self.dtype,
                kernel_init=uniform_fan_avg(init_scale),
                name=name,
            )(h)

        h = self.norm(dtype=self.dtype, name="norm")(x)
        h = h.reshape(batch, height * width, channels)

        def heads(name: str) -> Array:
            # The official code starts these at a tenth of the variance.
            return project(h, name, 0.1).reshape(batch, -1, num_heads, head_dim)

        query = heads("query")
        key = query if _shares_keys(self.core) else heads("key")
        value = heads("value")
        h = self.core(query, key, value).reshape(batch, height, width, channels)
        h = project(h, "out", 0.0)
        return ((x + h) * self.skip_scale).astype(self.dtype)


class Attention(HasCore):
    """Multi-head attention of a sequence to itself or to another one.

    Vaswani et al. 2017, arXiv:1706.03762, section 3.2.2; grouped key and value heads
    are of Ainslie et al. 2023, arXiv:2305.13245. Shapes: every head of a projection
    side by side in its last axis.

    Attributes:
      num_heads: of the queries.
      head_dim: of queries and keys; None is for embed dim / heads.
      value_dim: of values; None is for `head_dim`.
      num_kv_heads: of keys and values, divides `num_heads`; None is for as many.
      core: mixes the values.
      rotary: turns queries and keys by their positions.
      match: changes queries and keys before the core compares them, such as `Cosine`;
        built with `num_heads` and `name`. None is for what they are.
      use_bias: of the projections to queries, keys and values.
      use_key_bias: of the projection to keys; None is for `use_bias`.
      use_out_bias: of the projection of the output; None is for `use_bias`.
      kernel_init: of the projections' kernels.
      query_init, value_init, out_init: of these; None is for `kernel_init`.
      out_norm: of what goes into the projection of the output (sub-LN); None is for
        none.
      dense: the linear layers, built with `features` and keywords as `nn.Dense`.
      dtype: of the computation; parameters and softmax are float32.
    """

    num_heads: int
    head_dim: int | None = None
    value_dim: int | None = None
    num_kv_heads: int | None = None
    core: Core = Softmax()
    rotary: Rotation | None = None
    match: Callable[..., nn.Module] | None = None
    use_bias: bool = True
    use_key_bias: bool | None = None
    use_out_bias: bool | None = None
    kernel_init: Initializer = xavier()
    query_init: Initializer | None = None
    value_init: Initializer | None = None
    out_init: Initializer | None = None
    out_norm: Callable[..., nn.Module] | None = None
    dense: Callable[..., nn.Module] = Dense
    dtype: str = "float32"

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch queries dim"],
        context: Float[Array, "batch keys context_dim"] | None = None,
        *,
        mask: Mask = SEES_ALL,
        bias: Bias | None = None,
        positions: Int[Array, "#batch queries"] | None = None,
        code: Float[Array, "#batch queries dim"] | None = None,
        context_code: Float[Array, "#batch keys context_dim"] | None = None,
        train: bool = False,
        decode: bool = False,
    ) -> Float[Array, "batch queries dim"]:
        """What x attends to in `context`, or in itself.

        With `decode`, x holds the positions that follow those of the calls before, and
        a context need only be given at the first call.

        Args:
          x: asks.
          context: is asked; None is for x.
          mask: who sees whom.
          bias: of the logits.
          positions: of x, for `rotary`; None is for 0, 1, ...
          code: added to x where it asks, and where it is asked itself, but not to what
            it answers, the values (Carion et al. 2020, arXiv:2005.12872, App. A.3).
          context_code: added to the context alike.
          train: whether to drop out.
          decode: see above; collections `cache` hold what was.

        Raises:
          UserError: numbers of heads or dimensions that do not go together.
        """
        embed_dim = x.shape[-1]
        num_kv_heads = self.num_kv_heads or self.num_heads
        if self.num_heads % num_kv_heads:
            raise UserError(
                f"{self.num_heads} heads cannot share {num_kv_heads} heads of keys: "
                "choose num_kv_heads that divides num_heads"
            )
        if self.head_dim is None and embed_dim % self.num_heads:
            raise UserError(
                f"{embed_dim} dimensions cannot be split over {self.num_heads} heads: "
                "choose num_heads that divides them, or give head_dim"
            )
        head_dim = self.head_dim or embed_dim // self.num_heads
        value_dim = self.value_dim or head_dim

        def project(h: Array, name: str, heads: int, dim: int) -> Array:
            init = {"query": self.query_init, "value": self.value_init}.get(name)
            use_bias = self.use_bias
            if name == "key" and self.use_key_bias is not None:
                use_bias = self.use_key_bias
            layer = self.dense(
                heads * dim,
                use_bias=use_bias,
                kernel_init=init or self.kernel_init,
                dtype=self.dtype,
                name=name,
            )
            return layer(h).reshape(*h.shape[:-1], heads, dim)

        def coded(h: Array, code: Array | None) -> Array:
            return h if code is None else h + code.astype(h.dtype)

        query = project(coded(x, code), "query", self.num_heads, head_dim)
        shared = _shares_keys(self.core)
        if shared and context is not None:
            raise UserError(
                f"{type(self.core).__name__} takes queries for keys, which those of "
                "another sequence are not: give Softmax for attention to one"
            )

        def keys_and_values(h: Array, code: Array | None) -> tuple[Array, Array]:
            if shared:
                key = query
            else:
                key = project(coded(h, code), "key", num_kv_heads, head_dim)
            return key, project(h, "value", num_kv_heads, value_dim)

        known = decode and self.has_variable("cache", "context_key")
        if context is not None or not known:
            asked = (x, code) if context is None else (context, context_code)
            key, value = keys_and_values(*asked)
        else:
            key = self.get_variable("cache", "context_key")
            value = self.get_variable("cache", "context_value")
        crosses = context is not None or known
        if crosses and decode:
            self.put_variable("cache", "context_key", key)
            self.put_variable("cache", "context_value", value)
        if self.rotary is not None and not crosses:
            if positions is None:
                positions = jnp.arange(x.shape[1])[None]
            query, key = self.rotary(query, positions), self.rotary(key, positions)
        if self.match is not None:
            query, key = self.match(num_heads=self.num_heads, name="match")(query, key)
        out = self.core(
            query,
            key,
            value,
            mask=mask,
            bias=bias,
            train=train,
            decode=decode and not crosses,  # a context grows no further
        )
        out = out.reshape(*x.shape[:-1], -1)
        if self.out_norm is not None:
            out = self.out_norm(dtype=self.dtype, name="out_norm")(out, train)
        use_bias = self.use_bias if self.use_out_bias is None else self.use_out_bias
        return self.dense(
            embed_dim,
            use_bias=use_bias,
            kernel_init=self.out_init or self.kernel_init,
            dtype=self.dtype,
            name="out",
        )(out)
