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

Product = Callable[[Array], Array]
"""The state, or part of it, times the next recurrent kernel, plus its bias."""


@runtime_checkable
class Cell(Protocol):
    """How a state moves by one position.

    Attributes:
      products: the widths of the recurrent kernels, in units of the hidden dimension,
        in the order in which `step` multiplies by them. Input and recurrent kernels
        alike have one block of columns for each unit.
      bias_offsets: added to the initial bias of each block.
      kernel_init: of each block of the input kernel.
      recurrent_init: of each block of the recurrent kernel.
      bias_init: of the biases.
      recurrent_bias: whether the products have a bias of their own, as they do in
        PyTorch and cuDNN; where a product is only added to the projected input, it does
        nothing that the input's bias does not.
    """

    @property
    def products(self) -> tuple[int, ...]: ...

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

    def step(
        self, state: State, projected: Float[Array, "batch width"], product: Product
    ) -> State:
        """The next state, from the input times its kernel, plus the bias."""
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

    products = (1,)
    bias_offsets = (0.0,)

    def start(self, batch: int, hidden_dim: int, dtype: str) -> State:
        return jnp.zeros((batch, hidden_dim), dtype)

    def step(self, state: State, projected: Array, product: Product) -> State:
        return self.activation(projected + product(state))

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

    products = (4,)

    @property
    def bias_offsets(self) -> tuple[float, ...]:
        return 0.0, self.forget_bias, 0.0, 0.0

    def start(self, batch: int, hidden_dim: int, dtype: str) -> State:
        zeros = jnp.zeros((batch, hidden_dim), dtype)
        return LstmState(zeros, zeros)

    def step(self, state: State, projected: Array, product: Product) -> State:
        gates = projected + product(state.hidden)
        i, f, g, o = jnp.split(gates, 4, axis=-1)
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
    def products(self) -> tuple[int, ...]:
        return (2, 1) if self.reset_first else (3,)

    def start(self, batch: int, hidden_dim: int, dtype: str) -> State:
        return jnp.zeros((batch, hidden_dim), dtype)

    def step(self, state: State, projected: Array, product: Product) -> State:
        ends = [2 * state.shape[-1]]
        gates, candidate = jnp.split(projected, ends, axis=-1)
        if self.reset_first:
            gates = jax.nn.sigmoid(gates + product(state))
            reset, kept = jnp.split(gates, 2, axis=-1)
            candidate += product(reset * state)
        else:
            to_gates, to_candidate = jnp.split(product(state), ends, axis=-1)
            gates = jax.nn.sigmoid(gates + to_gates)
            reset, kept = jnp.split(gates, 2, axis=-1)
            candidate += reset * to_candidate
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
        cell, num_blocks = self.cell, sum(self.cell.products)
        offsets = np.repeat(np.array(cell.bias_offsets, np.float32), self.hidden_dim)
        projected = nn.Dense(
            num_blocks * self.hidden_dim,
            kernel_init=_by_blocks(cell.kernel_init, num_blocks),
            bias_init=lambda *args: cell.bias_init(*args) + offsets,
            dtype=self.dtype,
            name="input",
        )(jnp.swapaxes(x, 0, 1))
        kernel, bias = _RecurrentWeights(cell, self.hidden_dim, name="recurrent")()
        if state is None:
            state = cell.start(x.shape[0], self.hidden_dim, self.state_dtype)
        state = jax.tree.map(lambda leaf: leaf.astype(self.state_dtype), state)
        inputs = _Inputs(
            projected,
            None if valid is None else valid.T[..., None],
            None if segments is None else _begins(segments, self.reverse).T[..., None],
        )
        run = _make_scan(cell, self.reverse, self.unroll, self.dtype, self.state_dtype)
        outputs, state = run(kernel, bias, state, inputs)
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


class _RecurrentWeights(nn.Module):
    """The kernels of a cell's products side by side, and their biases."""

    cell: Cell
    hidden_dim: int

    @nn.compact
    def __call__(self) -> tuple[Array, Array | None]:
        num_blocks = sum(self.cell.products)
        init = _by_blocks(self.cell.recurrent_init, num_blocks)
        shape = (self.hidden_dim, num_blocks * self.hidden_dim)
        kernel = self.param("kernel", init, shape)
        if not self.cell.recurrent_bias:
            return kernel, None
        return kernel, self.param("bias", self.cell.bias_init, shape[1:])


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


class _Inputs(NamedTuple):
    """What a scan goes along: of every position, or of one.

    Attributes:
      projected: the input times its kernel.
      valid: whether the state moves.
      begins: whether it moves from the cell's start.
    """

    projected: Float[Array, "*length batch width"]
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
    """`run(kernel, bias, state, inputs) -> (outputs, final state)`, time first.

    Its gradient is our own, for the sake of the kernel's: a transposed scan would add
    one small product to it at every position (and on several devices reduce it there).
    Here the backward scan only gathers what those products are of.
    """

    def move(state: State, inputs: _Inputs, product: Product) -> tuple[State, Array]:
        """The next state and its output."""
        old, projected = state, inputs.projected.astype(state_dtype)
        if inputs.begins is not None:
            state = _where(inputs.begins, jax.tree.map(jnp.zeros_like, state), state)
        state = cell.step(state, projected, product)
        if inputs.valid is not None:
            state = _where(inputs.valid, state, old)
        return state, cell.output(state)

    def matmul(x: Array, kernel: Array) -> Array:
        return jnp.matmul(x.astype(dtype), kernel, preferred_element_type=state_dtype)

    def split(weights: Array) -> list[Array]:
        """One part for each product."""
        ends = np.cumsum(cell.products) * weights.shape[-1] // sum(cell.products)
        return jnp.split(weights, ends[:-1], axis=-1)

    def forward(kernel: Array, bias: Array | None, first: State, inputs: _Inputs):
        kernels = split(kernel.astype(dtype))
        biases = [None] * len(kernels) if bias is None else split(bias[None])

        def body(state: State, inputs: _Inputs):
            sums = []

            def product(x: Array) -> Array:
                out = matmul(x, kernels[len(sums)])
                bias = biases[len(sums)]
                sums.append(out if bias is None else out + bias.astype(state_dtype))
                return sums[-1]

            state, output = move(state, inputs, product)
            return state, (output, state, sums)

        last, (outputs, states, sums) = jax.lax.scan(
            body, first, inputs, reverse=reverse, unroll=unroll
        )
        return (outputs, last), (kernel, bias, first, inputs, states, sums)

    def backward(residuals: Any, gradients: tuple[Array, State]):
        kernel, bias, first, inputs, states, sums = residuals
        transposed = [part.T for part in split(kernel.astype(dtype))]

        def body(d_state: State, step: Any):
            d_output, state, inputs, sums = step
            factors = []

            def local(state: State, projected: Array, sums: list[Array]):
                factors.clear()

                def product(x: Array) -> Array:
                    k = len(factors)
                    factors.append(x)
                    return replay(x, sums[k], transposed[k])

                moved = move(state, inputs._replace(projected=projected), product)
                return moved, list(factors)

            _, pull, factors = jax.vjp(
                local, state, inputs.projected, sums, has_aux=True
            )
            d_state, d_projected, d_sums = pull((d_state, d_output))
            return d_state, (d_projected, d_sums, factors)

        @jax.custom_vjp
        def replay(x: Array, out: Array, transposed: Array) -> Array:
            """The product, whose value is known."""
            return out

        replay.defvjp(
            lambda x, out, transposed: (out, (x, transposed)),
            lambda saved, d: (matmul(d, saved[1]).astype(saved[0].dtype), d, None),
        )
        d_outputs, d_last = gradients
        before = jax.tree.map(lambda a, b: _shifted(a, b, reverse), first, states)
        d_first, (d_projected, d_sums, factors) = jax.lax.scan(
            body,
            d_last,
            (d_outputs, before, inputs, sums),
            reverse=not reverse,
            unroll=unroll,
        )
        d_kernel = [
            jnp.einsum(
                "lbh,lbf->hf",
                x.astype(dtype),
                d.astype(dtype),
                preferred_element_type=jnp.float32,
            )
            for x, d in zip(factors, d_sums, strict=True)
        ]
        d_kernel = jnp.concatenate(d_kernel, axis=-1).astype(kernel.dtype)
        d_bias = None
        if bias is not None:
            d_bias = jnp.concatenate([d.sum((0, 1)) for d in d_sums]).astype(bias.dtype)
        return d_kernel, d_bias, d_first, _Inputs(d_projected, None, None)

    run = jax.custom_vjp(lambda *args: forward(*args)[0])
    run.defvjp(forward, backward)
    return run


def _where(flag: Array, state: State, other: State) -> State:
    return jax.tree.map(lambda a, b: jnp.where(flag, a, b), state, other)


def _shifted(first: Array, states: Array, reverse: bool) -> Array:
    """The state before each position, given that after each."""
    if reverse:
        return jnp.concatenate([states[1:], first[None]])
    return jnp.concatenate([first[None], states[:-1]])
