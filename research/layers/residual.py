"""How a branch joins the stream that it read from: where norms go, and what is scaled.

Each is built `residual(name=...)` and called `residual(x, branch, train)`, where
`branch` is the function F of the layer: attention, or a feed-forward.
"""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from research.layers.dropout import Dropout, StochasticDepth
from research.layers.norms import LayerNorm

Branch = Callable[[Array], Array]
"""The stream, perhaps normalised, to what is added to it."""

Norm = Callable[..., nn.Module]
"""Built with `dtype` and `name`, called with the stream and `train`."""


class PreNorm(nn.Module):
    """x + branch_scale F(norm(x)): the stream itself is never normalised.

    Its variance grows with depth, so a stack ends with one more norm (Xiong et al.
    2020, arXiv:2002.04745).

    Attributes:
      norm: of the branch's input.
      dropout_rate: of the branch's output, in training.
      branch_scale: 1/sqrt(2 layers) keeps the variance (GPT-2 puts it into the
        initialisation).
      drop_path_rate: of whole examples of the branch, in training.
      dtype: of the computation.
    """

    norm: Norm = LayerNorm
    dropout_rate: float = 0.0
    branch_scale: float = 1.0
    drop_path_rate: float = 0.0
    dtype: str = "float32"

    @nn.compact
    def __call__(
        self, x: Float[Array, "*batch dim"], branch: Branch, train: bool = False
    ) -> Float[Array, "*batch dim"]:
        out = branch(self.norm(dtype=self.dtype, name="norm")(x, train))
        out = Dropout(self.dropout_rate, name="dropout")(out, train)
        out = StochasticDepth(self.drop_path_rate, name="drop_path")(out, train)
        return x + self.branch_scale * out if self.branch_scale != 1 else x + out


class ResPostNorm(nn.Module):
    """x + norm(F(x)): what a branch adds has one size, however deep the stack.

    Liu et al. 2022, arXiv:2111.09883, section 3.2, whose code starts the norm's scale
    and bias at zero, so that a stack starts as the identity.

    Attributes:
      norm: of the branch's output.
      dropout_rate: of the branch's output before the norm, in training.
      drop_path_rate: of whole examples of the branch, in training.
      dtype: of the computation.
    """

    norm: Norm = partial(LayerNorm, scale_init=nn.initializers.zeros)
    dropout_rate: float = 0.0
    drop_path_rate: float = 0.0
    dtype: str = "float32"

    @nn.compact
    def __call__(
        self, x: Float[Array, "*batch dim"], branch: Branch, train: bool = False
    ) -> Float[Array, "*batch dim"]:
        out = Dropout(self.dropout_rate, name="dropout")(branch(x), train)
        out = self.norm(dtype=self.dtype, name="norm")(out, train)
        return x + StochasticDepth(self.drop_path_rate, name="drop_path")(out, train)


class PostNorm(nn.Module):
    """norm(skip_scale x + F(x)): Vaswani et al. 2017, arXiv:1706.03762, section 3.1.

    With `skip_scale` alpha it is DeepNorm (Wang et al. 2022, arXiv:2203.00555), whose
    initial gains are the experiment's to give to the branches; see
    `research.layers.depth`.
    """

    norm: Norm = LayerNorm
    dropout_rate: float = 0.0
    skip_scale: float = 1.0
    dtype: str = "float32"

    @nn.compact
    def __call__(
        self, x: Float[Array, "*batch dim"], branch: Branch, train: bool = False
    ) -> Float[Array, "*batch dim"]:
        out = Dropout(self.dropout_rate, name="dropout")(branch(x), train)
        x = self.skip_scale * x if self.skip_scale != 1 else x
        return self.norm(dtype=self.dtype, name="norm")(x + out, train)


class Sandwich(nn.Module):
    """x + norm(F(norm(x))): the branch normalised on both sides.

    Ding et al. 2021, arXiv:2105.13290, section 2.4.
    """

    norm: Norm = LayerNorm
    dropout_rate: float = 0.0
    dtype: str = "float32"

    @nn.compact
    def __call__(
        self, x: Float[Array, "*batch dim"], branch: Branch, train: bool = False
    ) -> Float[Array, "*batch dim"]:
        out = branch(self.norm(dtype=self.dtype, name="norm")(x, train))
        out = self.norm(dtype=self.dtype, name="out_norm")(out, train)
        return x + Dropout(self.dropout_rate, name="dropout")(out, train)


class ReZero(nn.Module):
    """x + scale F(x), without a norm: one learnt scale, from zero.

    Bachlechner et al. 2020, arXiv:2003.04887.
    """

    dropout_rate: float = 0.0
    dtype: str = "float32"

    @nn.compact
    def __call__(
        self, x: Float[Array, "*batch dim"], branch: Branch, train: bool = False
    ) -> Float[Array, "*batch dim"]:
        scale = self.param("scale", nn.initializers.zeros, ())
        out = Dropout(self.dropout_rate, name="dropout")(branch(x), train)
        return x + scale.astype(out.dtype) * out


class Ramp(nn.Module):
    """norm(x + a F(x)), `a` climbing from 0 to 1 in equal steps.

    Su 2021, kexue.fm/archives/8620: a fixed climb in the place of a learnt scale, so
    that a deep stack starts as the identity and ends as any other. Without a norm it
    follows SkipInit (De & Smith 2020, arXiv:2002.10444), with one RoFormerV2. The
    training steps, or their microbatches, are counted in the collection `ramp`.

    Attributes:
      num_steps: until a = 1.
      norm: of the sum; None is for none.
      dropout_rate: of the branch's output, in training.
      dtype: of the computation.
    """

    num_steps: int
    norm: Norm | None = None
    dropout_rate: float = 0.0
    dtype: str = "float32"

    @nn.compact
    def __call__(
        self, x: Float[Array, "*batch dim"], branch: Branch, train: bool = False
    ) -> Float[Array, "*batch dim"]:
        step = self.variable("ramp", "step", jnp.zeros, (), jnp.int32)
        scale = jnp.minimum(step.value / self.num_steps, 1.0)
        if train and not self.is_initializing():
            step.value += 1
        out = Dropout(self.dropout_rate, name="dropout")(branch(x), train)
        x = x + scale.astype(out.dtype) * out
        if self.norm is None:
            return x
        return self.norm(dtype=self.dtype, name="norm")(x, train)


class LayerScale(nn.Module):
    """x + scale * F(norm(x)): a learnt scale of each channel, from `initial`.

    Touvron et al. 2021, arXiv:2103.17239: 1e-1 up to 18 layers, 1e-5 up to 24, 1e-6
    beyond.
    """

    norm: Norm = LayerNorm
    initial: float = 1e-5
    dropout_rate: float = 0.0
    dtype: str = "float32"

    @nn.compact
    def __call__(
        self, x: Float[Array, "*batch dim"], branch: Branch, train: bool = False
    ) -> Float[Array, "*batch dim"]:
        init = nn.initializers.constant(self.initial)
        scale = self.param("scale", init, (x.shape[-1],)).astype(self.dtype)
        out = branch(self.norm(dtype=self.dtype, name="norm")(x, train))
        out = Dropout(self.dropout_rate, name="dropout")(out, train)
        return x + out * scale.reshape((1,) * (x.ndim - 1) + scale.shape)


class Plain(nn.Module):
    """x + F(x): nothing keeps the variance but the branches' own initialisation.

    T-Fixup (Huang et al. 2020) trains so. With `fixup`, scalars before and after the
    branch are learnt (Zhang et al. 2019, arXiv:1901.09321): x + scale F(x + shift) +
    bias.
    """

    dropout_rate: float = 0.0
    fixup: bool = False
    dtype: str = "float32"

    @nn.compact
    def __call__(
        self, x: Float[Array, "*batch dim"], branch: Branch, train: bool = False
    ) -> Float[Array, "*batch dim"]:
        def scalar(name: str, value: float) -> Array:
            return self.param(name, nn.initializers.constant(value), ()).astype(x.dtype)

        out = branch(x + scalar("shift", 0.0) if self.fixup else x)
        if self.fixup:
            out = scalar("scale", 1.0) * out + scalar("bias", 0.0)
        return x + Dropout(self.dropout_rate, name="dropout")(jnp.asarray(out), train)
