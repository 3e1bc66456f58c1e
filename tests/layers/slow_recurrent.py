"""Recurrent layers one position and one row at a time, in NumPy and float64."""

import numpy as np

from research.layers.recurrent import GruCell, LstmCell, LstmState


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def dense(params, x):
    return x @ np.float64(params["kernel"]) + np.float64(params.get("bias", 0))


def output(state):
    return state.hidden if isinstance(state, LstmState) else state


def zero(cell, dim):
    state = np.zeros(dim)
    return LstmState(state, state) if isinstance(cell, LstmCell) else state


def step(cell, params, x, state):
    """The next state of one row."""
    inputs, recurrent = dense(params["input"], x), params["recurrent"]
    dim = len(output(state))
    if isinstance(cell, LstmCell):
        i, f, g, o = np.split(inputs + dense(recurrent, state.hidden), 4)
        c = sigmoid(f) * state.cell + sigmoid(i) * np.tanh(g)
        return LstmState(c, sigmoid(o) * np.tanh(c))
    if not isinstance(cell, GruCell):
        return np.asarray(cell.activation(inputs + dense(recurrent, state)))
    r, z, n = np.split(inputs + dense(recurrent, state), 3)
    r, z = sigmoid(r), sigmoid(z)
    from_input = inputs[2 * dim :]
    if cell.reset_first:
        n = from_input + dense(recurrent, r * state)[2 * dim :]
    else:
        n = from_input + r * dense(recurrent, state)[2 * dim :]
    return (1 - z) * np.tanh(n) + z * state


def layer(cell, params, x, length, state, reverse=False):
    """Outputs (padding zero) and the last state of one row."""
    outputs = np.zeros((len(x), len(output(state))))
    for position in range(length)[:: -1 if reverse else 1]:
        state = step(cell, params, x[position], state)
        outputs[position] = output(state)
    return outputs, state
