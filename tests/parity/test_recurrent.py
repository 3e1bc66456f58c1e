"""Recurrent layers against PyTorch's, on the same weights: outputs and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.torch
import torch
from flax.traverse_util import flatten_dict
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from research.layers.recurrent import GruCell, LstmCell, LstmState, RecurrentStack
from research.layers.recurrent import RnnCell as Rnn
from research.pretrained import torch_rnn
from tests.layers import slow

LENGTHS = (9, 4, 1)
INPUT, HIDDEN = 5, 8

CASES = {
    "tanh": (Rnn(recurrent_bias=True), torch.nn.RNN, "tanh"),
    "relu": (Rnn(jax.nn.relu, recurrent_bias=True), torch.nn.RNN, "relu"),
    "lstm": (LstmCell(recurrent_bias=True), torch.nn.LSTM, None),
    "gru": (GruCell(recurrent_bias=True), torch.nn.GRU, None),
}


@pytest.fixture(params=CASES)
def case(request, tmp_path):
    """Our stack, their module, and our variables read from its file."""
    cell, kind, nonlinearity = CASES[request.param]
    torch.manual_seed(0)
    theirs = kind(
        INPUT,
        HIDDEN,
        num_layers=2,
        bidirectional=True,
        batch_first=True,
        **({"nonlinearity": nonlinearity} if nonlinearity else {}),
    )
    stack = RecurrentStack(HIDDEN, 2, cell, num_bidirectional=2)
    path = str(tmp_path / "theirs.safetensors")
    safetensors.torch.save_file(theirs.state_dict(), path)
    return stack, theirs, torch_rnn.load(path, stack, INPUT)


def close(ours, theirs):
    error = np.abs(np.asarray(ours) - theirs.detach().numpy()).max()
    assert error <= 1e-5, error


def test_packed_sequences(case):
    """Two layers, both ways, unequal lengths, initial states."""
    stack, theirs, variables = case
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3, 9, INPUT)).astype(np.float32)
    states = rng.normal(size=(2, 4, 3, HIDDEN)).astype(np.float32)
    weights = rng.normal(size=(3, 9, 2 * HIDDEN)).astype(np.float32)
    valid = np.arange(9)[None] < np.array(LENGTHS)[:, None]
    is_lstm = isinstance(theirs, torch.nn.LSTM)

    def run(variables, x, states):
        if is_lstm:
            # The hidden state comes first there.
            given = tuple(map(LstmState, states[1], states[0]))
        else:
            given = tuple(states[0])
        y, after = stack.apply(variables, x, jnp.asarray(valid), given)
        if is_lstm:
            pairs = [jnp.stack([s.hidden, s.cell]) for s in after]
            return y, jnp.stack(pairs, axis=1)
        return y, jnp.stack(after)[None]

    def loss(variables, x, states):
        y, after = run(variables, x, states)
        return (weights * y).sum() + jnp.square(after).sum(), (y, after)

    grad = slow.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))
    (d_variables, d_x, d_states), (y, after) = grad(variables, x, states)

    x_, states_ = torch.tensor(x, requires_grad=True), torch.tensor(states)
    states_.requires_grad_(True)
    packed = pack_padded_sequence(x_, list(LENGTHS), batch_first=True)
    first = (states_[0], states_[1]) if is_lstm else states_[0]
    y_, last = theirs(packed, first)
    y_, _ = pad_packed_sequence(y_, batch_first=True)
    last = torch.stack(last) if is_lstm else last[None]
    ((torch.tensor(weights) * y_).sum() + (last**2).sum()).backward()

    close(y, y_)
    close(after, last)
    close(d_x, x_.grad)
    # What was not given to them has no gradient there: the cells of those without.
    close(d_states[: 2 if is_lstm else 1], states_.grad[: 2 if is_lstm else 1])
    ours = flatten_dict(d_variables, sep="/")
    for path, (name, axes) in torch_rnn.leaf_names(stack).items():
        close(ours[path].transpose(np.argsort(axes)), getattr(theirs, name).grad)


def test_way_back(case, tmp_path):
    stack, theirs, variables = case
    path = str(tmp_path / "ours.safetensors")
    torch_rnn.save(path, stack, INPUT, variables)
    ours = safetensors.torch.load_file(path)
    expected = theirs.state_dict()
    assert ours.keys() == expected.keys()
    assert all(torch.equal(ours[name], leaf) for name, leaf in expected.items())
