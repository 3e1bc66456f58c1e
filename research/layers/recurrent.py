"""Recurrent layers: cells, layers that run them over sequences, and stacks of layers.

A cell is a record that says how a state moves by one position. What it needs of the
input is a linear function of it, which a layer computes for all positions at once; the
scan over positions is left with the products with the state.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.nn.initializers import Initializer
from jaxtyping import Array, Bool, Float, Int

from research.errors import UserError
from research.layers.dropout import Dropout
from research.layers.initializers import Orthogonal, lecun

State = Any
"""Of one layer: a tree of arrays (batch, hidden dim)."""


class Product(NamedTuple):
    """A product with the state that a cell needs at every position.

    Attributes:
      num_blocks: the width of its kernel in units of the hidden dimension.
      added: it is only needed as a sum with as many blocks of the projected input.
    """

    num_blocks: int
    added: bool = True


Multiply = Callable[[Array], Any]
"""Makes a cell's next product, of the state or part of it: gives the sum with the
projected input, or both apart, the projected input first."""


@runtime_checkable
class Cell(Protocol):
    """How a state moves by one position.

    Attributes:
      products: in the order in which `step` makes them, which is that of their columns
        in the input and in the recurrent kernel.
      bias_offsets: added to the initial bias of each block of columns.
      kernel_init: of each block of the input kernel.
      recurrent_init: of each block of the recurrent kernel.
      bias_init: of the biases.
      recurrent_bias: whether products have a bias of their own, as they do in PyTorch
        and cuDNN; where they are only added to the projected input, it does nothing
        that the input's bias does not.
    """

    @property
    def products(self) -> tuple[Product, ...]: ...

    @property
    def bias_offsets(self) -> tuple[float, ...]: ...

    @property
    def kernel_init(self) -> Initializer: ...

    @property
    def recurrent_init(self) -> Initializer: ...

    @property
    def bias_init(self) -> Initializer: ...

    @property
    def recurrent_bias(self) -> bool: ...

    def start(self, batch: int, hidden_dim: int, dtype: str) -> State:
        """The state before the first position, zero."""
        ...

    def step(self, state: State, multiply: Multiply) -> State:
        """The next state."""
        ...

    def output(self, state: State) -> Float[Array, "*batch hidden_dim"]:
        """What the next layer sees of a state."""
        ...


@dataclass(frozen=True)
class RnnCell:
    """h' = activation(W x + b + U h) (Elman 1990).

    Attributes:
      activation: tanh, or relu with `recurrent_init` near the identity (Le et al. 2015,
        arXiv:1504.00941).
      kernel_init, recurrent_init, bias_init, recurrent_bias: see `Cell`.
    """

    activation: Callable[[Array], Array] = jnp.tanh
    kernel_init: Initializer = lecun()
    recurrent_init: Initializer = Orthogonal()
    bias_init: Initializer = nn.initializers.zeros
    recurrent_bias: bool = False

    products = (Product(1),)
    bias_offsets = (0.0,)

    def start(self, batch: int, hidden_dim: int, dtype: str) -> State:
        return jnp.zeros((batch, hidden_dim), dtype)

    def step(self, state: State, multiply: Multiply) -> State:
        return self.activation(multiply(state))

    def output(self, state: State) -> Array:
        return state


class LstmState(NamedTuple):
    """What an LSTM remembers, and what it shows of it."""

    cell: Float[Array, "*batch hidden_dim"]
    hidden: Float[Array, "*batch hidden_dim"]


@dataclass(frozen=True)
class LstmCell:
    """c' = f c + i tanh(g), h' = o tanh(c'), with [i, f, g, o] = W x + b + U h.

    i, f and o go through a sigmoid. Hochreiter & Schmidhuber 1997, with the forget gate
    of Gers et al. 2000 and without peepholes.

    Attributes:
      forget_bias: added to the initial bias of f: 1 remembers at first (Jozefowicz et
        al. 2015).
      kernel_init, recurrent_init, bias_init, recurrent_bias: see `Cell`.
    """

    forget_bias: float = 1.0
    kernel_init: Initializer = lecun()
    recurrent_init: Initializer = Orthogonal()
    bias_init: Initializer = nn.initializers.zeros
    recurrent_bias: bool = False

    products = (Product(4),)

    @property
    def bias_offsets(self) -> tuple[float, ...]:
        return 0.0, self.forget_bias, 0.0, 0.0

    def start(self, batch: int, hidden_dim: int, dtype: str) -> State:
        zeros = jnp.zeros((batch, hidden_dim), dtype)
        return LstmState(zeros, zeros)

    def step(self, state: State, multiply: Multiply) -> State:
        i, f, g, o = jnp.split(multiply(state.hidden), 4, axis=-1)
        cell = jax.nn.sigmoid(f) * state.cell + jax.nn.sigmoid(i) * jnp.tanh(g)
        return LstmState(cell, jax.nn.sigmoid(o) * jnp.tanh(cell))

    def output(self, state: State) -> Array:
        return state.hidden


@dataclass(frozen=True)
class GruCell:
    """h' = (1 - z) n + z h, with [r, z] = sigmoid(W x + b + U h).

    The candidate n is tanh(W_n x + b_n + r (U_n h)), as in cuDNN, PyTorch and Flax, or
    tanh(W_n x + b_n + U_n (r h)) with `reset_first`.

    Attributes:
      reset_first: r acts on the state before the product, as in Cho et al. 2014,
        arXiv:1406.1078, and Bahdanau et al. 2015, arXiv:1409.0473, which takes two
        products, one after the other, for each position.
      kernel_init, recurrent_init, bias_init, recurrent_bias: see `Cell`.
    """

    reset_first: bool = False
    kernel_init: Initializer = lecun()
    recurrent_init: Initializer = Orthogonal()
    bias_init: Initializer = nn.initializers.zeros
    recurrent_bias: bool = False

    bias_offsets = (0.0, 0.0, 0.0)

    @property
    def products(self) -> tuple[Product, ...]:
        return Product(2), Product(1, added=self.reset_first)

    def start(self, batch: int, hidden_dim: int, dtype: str) -> State:
        return jnp.zeros((batch, hidden_dim), dtype)

    def step(self, state: State, multiply: Multiply) -> State:
        reset, kept = jnp.split(jax.nn.sigmoid(multiply(state)), 2, axis=-1)
        if self.reset_first:
            candidate = multiply(reset * state)
        else:
            from_input, from_state = multiply(state)
            candidate = from_input + reset * from_state
        return (1 - kept) * jnp.tanh(candidate) + kept * state

    def output(self, state: State) -> Array:
        return state


class Recurrent(nn.Module):
    """A cell along the positions of sequences.

    Positions of padding leave the state as it is, and their outputs are zero. Reversed,
    the cell begins at the last position that is none. Gradients are of reverse mode
    only.

    Attributes:
      cell: moves the state.
      hidden_dim: of state and output.
      reverse: from the last position to the first.
      unroll: positions in one iteration of the scan.
      dtype: of the products and of the output; parameters are float32.
      state_dtype: of states and gates.
    """

    cell: Cell
    hidden_dim: int
    reverse: bool = False
    unroll: int = 1
    dtype: str = "float32"
    state_dtype: str = "float32"

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch length dim"],
        valid: Bool[Array, "batch length"] | None = None,
        state: State = None,
        segments: Int[Array, "batch length"] | None = None,
    ) -> tuple[Float[Array, "batch length hidden_dim"], State]:
        """The output at each position, and the state after the last one.

        Args:
          x: the inputs; a single position is one step of decoding.
          valid: False for padding; None is for none.
          state: before the first position; None is for the cell's start.
          segments: 1, 2, ... for sequences packed into a row, each of which begins at
            the cell's start, but for the first, which continues from `state`.
        """
        cell = self.cell
        if state is None:
            state = cell.start(x.shape[0], self.hidden_dim, self.state_dtype)
        state = jax.tree.map(lambda leaf: leaf.astype(self.state_dtype), state)
        weights = _InputWeights(cell, self.hidden_dim, name="input")
        kernels, biases = weights(x.shape[-1])
        recurrent, apart = _RecurrentWeights(cell, self.hidden_dim, name="recurrent")()
        for k, product in enumerate(cell.products):
            bias = apart[k]
            if product.added and bias is not None:
                biases[k], apart[k] = biases[k] + bias, None

        inputs = jnp.swapaxes(x, 0, 1).astype(self.dtype)

        def project(kernel: Array, bias: Array) -> Array:
            out = _project(inputs, kernel.astype(self.dtype))
            return out + bias.astype(self.dtype)[None, None]

        run = _make_scan(cell, self.reverse, self.unroll, self.dtype, self.state_dtype)
        flags = _Flags(
            None if valid is None else valid.T[..., None],
            None if segments is None else _begins(segments, self.reverse).T[..., None],
        )
        projected = [*map(project, kernels, biases)]
        outputs, state = run(recurrent, apart, state, projected, flags)
        outputs = jnp.swapaxes(outputs, 0, 1).astype(self.dtype)
        if valid is not None:
            outputs = jnp.where(valid[..., None], outputs, 0)
        return outputs, state


class RecurrentStack(nn.Module):
    """Recurrent layers, one above the other.

    States of all layers lie in one tuple, from the bottom up; of a layer that runs both
    ways, the one that runs forward comes first.

    Attributes:
      hidden_dim: of every layer, in each direction.
      num_layers: of the stack.
      cell: of every layer.
      num_bidirectional: so many layers, from the bottom, run both ways; their output is
        what both give, side by side.
      residual_from: the layer, counted from 0, from which on layers add their input to
        their output (GNMT, Wu et al. 2016, arXiv:1609.08144: 2); None is for none.
      dropout_rate: between layers, in training: of what goes up, not of what stays in a
        layer (Zaremba et al. 2014, arXiv:1409.2329).
      unroll: positions in one iteration of the scans.
      dtype: of the products and of the output; parameters are float32.
      state_dtype: of states and gates.
    """

    hidden_dim: int
    num_layers: int = 1
    cell: Cell = LstmCell()
    num_bidirectional: int = 0
    residual_from: int | None = None
    dropout_rate: float = 0.0
    unroll: int = 1
    dtype: str = "float32"
    state_dtype: str = "float32"

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch length dim"],
        valid: Bool[Array, "batch length"] | None = None,
        states: tuple[State, ...] | None = None,
        segments: Int[Array, "batch length"] | None = None,
        context: Float[Array, "batch length context_dim"] | None = None,
        train: bool = False,
    ) -> tuple[Float[Array, "batch length out_dim"], tuple[State, ...]]:
        """The top layer's output, and the state of each layer after the last position.

        Args:
          x: the inputs.
          valid, segments: see `Recurrent`.
          states: before the first position; None is for each cell's start.
          context: every layer sees it beside its input.
          train: draws from the `dropout` rng.

        Raises:
          UserError: a layer to add its input to an output of another width.
        """
        given, after = iter(states or ()), []

        def run(h: Array, name: str, reverse: bool) -> Array:
            layer = Recurrent(
                self.cell,
                self.hidden_dim,
                reverse,
                self.unroll,
                self.dtype,
                self.state_dtype,
                name=name,
            )
            out, state = layer(h, valid, next(given, None), segments)
            after.append(state)
            return out

        for index in range(self.num_layers):
            h = x
            if index:
                h = Dropout(self.dropout_rate, name=f"dropout_{index}")(h, train)
            if context is not None:
                h = jnp.concatenate([h, context.astype(h.dtype)], axis=-1)
            out = run(h, f"layer_{index}", False)
            if index < self.num_bidirectional:
                backward = run(h, f"layer_{index}_reverse", True)
                out = jnp.concatenate([out, backward], axis=-1)
            if self.residual_from is not None and index >= self.residual_from:
                if out.shape != x.shape:
                    raise UserError(
                        f"layer {index} cannot add its input of width {x.shape[-1]} to "
                        f"its output of width {out.shape[-1]}: raise residual_from or "
                        "change hidden_dim"
                    )
                out += x
            x = out
        return x, tuple(after)

    @nn.nowrap
    def start(self, batch: int) -> tuple[State, ...]:
        """The states before the first position."""
        count = self.num_layers + self.num_bidirectional
        return (self.cell.start(batch, self.hidden_dim, self.state_dtype),) * count


def reverse_valid(
    tokens: Int[Array, "batch length"], valid: Bool[Array, "batch length"]
) -> Int[Array, "batch length"]:
    """Each row's tokens from the last to the first; padding, which follows, stays."""
    positions = jnp.arange(tokens.shape[1])[None]
    from_end = valid.sum(1, keepdims=True) - 1 - positions
    return jnp.take_along_axis(
        tokens, jnp.where(from_end >= 0, from_end, positions), axis=1
    )


class _InputWeights(nn.Module):
    """Kernels and biases of the input, one for each of a cell's products.

    As parameters they lie side by side.
    """

    cell: Cell
    hidden_dim: int

    @nn.compact
    def __call__(self, dim: int) -> tuple[list[Array], list[Array]]:
        cell, (ends, width) = self.cell, _columns(self.cell, self.hidden_dim)
        offsets = np.repeat(np.array(cell.bias_offsets, np.float32), self.hidden_dim)
        kernel_init = _by_blocks(cell.kernel_init, len(cell.bias_offsets))
        kernel = self.param("kernel", kernel_init, (dim, width))

        def bias_init(*args: Any) -> Array:
            return cell.bias_init(*args) + offsets

        bias = self.param("bias", bias_init, (width,))
        return jnp.split(kernel, ends, axis=1), jnp.split(bias, ends)


class _RecurrentWeights(nn.Module):
    """Kernels of a cell's products, and their biases or None for each."""

    cell: Cell
    hidden_dim: int

    @nn.compact
    def __call__(self) -> tuple[list[Array], list[Array | None]]:
        cell, (ends, width) = self.cell, _columns(self.cell, self.hidden_dim)
        kernel_init = _by_blocks(cell.recurrent_init, len(cell.bias_offsets))
        kernel = self.param("kernel", kernel_init, (self.hidden_dim, width))
        kernels = jnp.split(kernel, ends, axis=1)
        if not cell.recurrent_bias:
            return kernels, [None] * len(kernels)
        bias = self.param("bias", cell.bias_init, (width,))
        return kernels, [*jnp.split(bias, ends)]


def _columns(cell: Cell, hidden_dim: int) -> tuple[list[int], int]:
    """Where the products' columns are cut apart, and the width of all of them."""
    *ends, width = np.cumsum([product.num_blocks for product in cell.products])
    return [int(end) * hidden_dim for end in ends], int(width) * hidden_dim


def _by_blocks(init: Initializer, num_blocks: int) -> Initializer:
    """Draws each of the blocks of columns on its own: orthogonal ones stay so."""

    def draw(
        key: Array, shape: Any, dtype: Any = jnp.float32, out_sharding: Any = None
    ) -> Array:
        *rows, width = shape
        block = (*rows, width // num_blocks)
        keys = jax.random.split(key, num_blocks)
        blocks = [init(key, block, dtype, out_sharding) for key in keys]
        return jnp.concatenate(blocks, axis=-1)

    return draw


class _Flags(NamedTuple):
    """Of positions: whether the state moves there, and whether from the start."""

    valid: Bool[Array, "*length batch 1"] | None
    begins: Bool[Array, "*length batch 1"] | None


def _begins(
    segments: Int[Array, "batch length"], reverse: bool
) -> Bool[Array, "batch length"]:
    """Where another segment begins than the one at the first position."""
    changes = segments[:, 1:] != segments[:, :-1]
    return jnp.pad(changes, ((0, 0), (0, 1) if reverse else (1, 0)))


def _make_scan(
    cell: Cell, reverse: bool, unroll: int, dtype: str, state_dtype: str
) -> Callable[..., tuple[Array, State]]:
    """`run(kernels, biases, state, projected, flags) -> (outputs, final state)`.

    Time comes first. `kernels`, `biases` and `projected` are lists over the cell's
    products, of which only those that are kept apart may have a bias.

    Its gradient is our own, for the sake of the kernels': a transposed scan would add
    one small product to them at every position (and on several devices reduce it
    there). Here the backward scan only gathers what those products are of.
    """
    added = [product.added for product in cell.products]

    def move(state: State, flags: _Flags, multiply: Multiply) -> tuple[State, Array]:
        """The next state and its output."""
        old = state
        if flags.begins is not None:
            state = _where(flags.begins, jax.tree.map(jnp.zeros_like, state), state)
        state = cell.step(state, multiply)
        if flags.valid is not None:
            state = _where(flags.valid, state, old)
        return state, cell.output(state)

    def matmul(x: Array, kernel: Array) -> Array:
        return jnp.matmul(x.astype(dtype), kernel, preferred_element_type=state_dtype)

    def forward(
        kernels: list[Array],
        biases: list[Array | None],
        first: State,
        projected: list[Array],
        flags: _Flags,
    ) -> Any:
        cast = [kernel.astype(dtype) for kernel in kernels]

        def body(state: State, step: tuple[list[Array], _Flags]) -> Any:
            (projected, flags), sums = step, []

            def multiply(x: Array) -> Any:
                k = len(sums)
                from_input, bias = projected[k].astype(state_dtype), biases[k]
                total = matmul(x, cast[k])
                if bias is not None:
                    total += bias.astype(state_dtype)[None]
                if added[k]:
                    total += from_input
                sums.append(total)
                return total if added[k] else (from_input, total)

            moved, output = move(state, flags, multiply)
            return moved, (output, state, sums)

        last, (outputs, states, sums) = jax.lax.scan(
            body, first, (projected, flags), reverse=reverse, unroll=unroll
        )
        apart = [x for k, x in enumerate(projected) if not added[k]]
        return (outputs, last), (kernels, biases, states, apart, flags, sums)

    def backward(residuals: Any, gradients: tuple[Array, State]) -> Any:
        kernels, biases, states, apart, flags, sums = residuals
        transposed = [kernel.astype(dtype).T for kernel in kernels]

        @jax.custom_vjp
        def replay(x: Array, total: Array, transposed: Array) -> Array:
            """The sum with a product of x, whose value is known."""
            return total

        replay.defvjp(
            lambda x, total, transposed: (total, transposed),
            lambda transposed, d: (matmul(d, transposed), d, None),
        )

        def body(d_state: State, step: Any) -> Any:
            d_output, state, apart, flags, sums = step

            def local(state: State, apart: list[Array], sums: list[Array]) -> Any:
                factors, left = [], iter(apart)

                def multiply(x: Array) -> Any:
                    k = len(factors)
                    factors.append(x)
                    total = replay(x, sums[k], transposed[k])
                    if added[k]:
                        return total
                    return next(left).astype(state_dtype), total

                return move(state, flags, multiply), factors

            _, pull, factors = jax.vjp(local, state, apart, sums, has_aux=True)
            d_state, d_apart, d_sums = pull((d_state, d_output))
            return d_state, (d_apart, d_sums, factors)

        d_outputs, d_last = gradients
        d_first, (d_apart, d_sums, factors) = jax.lax.scan(
            body,
            d_last,
            (d_outputs, states, apart, flags, sums),
            reverse=not reverse,
            unroll=unroll,
        )
        d_kernels, d_biases, d_projected, left = [], [], [], iter(d_apart)
        for k, d_sum in enumerate(d_sums):
            d = d_sum.astype(dtype)
            d_projected.append(d if added[k] else next(left))
            d_kernel = _kernel_gradient(factors[k].astype(dtype), d)
            d_kernels.append(d_kernel.astype(kernels[k].dtype))
            d_biases.append(None if biases[k] is None else d_sum.sum((0, 1)))
        return d_kernels, d_biases, d_first, d_projected, None

    run = jax.custom_vjp(lambda *args: forward(*args)[0])
    run.defvjp(forward, backward)
    return run


@jax.custom_vjp
def _project(
    x: Float[Array, "length batch dim"], kernel: Float[Array, "dim width"]
) -> Float[Array, "length batch width"]:
    return x @ kernel


def _project_backward(saved: tuple[Array, Array], d: Array) -> tuple[Array, Array]:
    x, kernel = saved
    return d @ kernel.T, _kernel_gradient(x, d).astype(kernel.dtype)


_project.defvjp(lambda x, kernel: (x @ kernel, (x, kernel)), _project_backward)


def _kernel_gradient(
    x: Float[Array, "length batch dim"], d: Float[Array, "length batch width"]
) -> Float[Array, "dim width"]:
    """That of x's product, in float32.

    In this order: as JAX has it, d times x, XLA's CPU transposes the wider of the two,
    which takes as long as the product.
    """
    return jnp.tensordot(x, d, ((0, 1), (0, 1)), preferred_element_type=jnp.float32)


def _where(flag: Array, state: State, other: State) -> State:
    return jax.tree.map(lambda a, b: jnp.where(flag, a, b), state, other)
