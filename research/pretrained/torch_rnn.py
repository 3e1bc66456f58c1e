"""PyTorch's `nn.RNN`, `nn.LSTM` and `nn.GRU` in safetensors files, both ways.

The leaves are those of the module's state dict, alone in a file:

    safetensors.torch.save_file(lstm.state_dict(), "lstm.safetensors")
"""

import jax.numpy as jnp

from research.errors import UserError
from research.layers.recurrent import GruCell, RecurrentStack
from research.pretrained.tables import Leaves, Names, leaf_shapes, read, write
from research.tasks.base import Variables

SOURCE = (
    "write the state dict of an nn.RNN, nn.LSTM or nn.GRU by "
    "safetensors.torch.save_file"
)

# Kernels are (out, in) there and (in, out) here; their gates stand in our order.
LEAVES = {
    "input/kernel": ("weight_ih", (1, 0)),
    "recurrent/kernel": ("weight_hh", (1, 0)),
    "input/bias": ("bias_ih", (0,)),
    "recurrent/bias": ("bias_hh", (0,)),
}


def leaf_names(stack: RecurrentStack) -> Names:
    """The weight table of a stack.

    Raises:
      UserError: no module of PyTorch computes what this stack does.
    """
    cell, num_layers = stack.cell, stack.num_layers
    if (
        not cell.recurrent_bias
        or (isinstance(cell, GruCell) and cell.reset_first)
        or stack.num_bidirectional not in (0, num_layers)
        or stack.residual_from is not None
    ):
        raise UserError(
            f"PyTorch has no module for {stack}: expected recurrent_bias=True, no "
            f"reset_first, no residual_from, and num_bidirectional=0 or {num_layers}"
        )
    names = {}
    for layer in range(num_layers):
        for direction in ("", "_reverse") if stack.num_bidirectional else ("",):
            for ours, (theirs, axes) in LEAVES.items():
                path = f"params/layer_{layer}{direction}/{ours}"
                names[path] = (f"{theirs}_l{layer}{direction}", axes)
    return names


def load(path: str, stack: RecurrentStack, input_dim: int) -> Variables:
    """The stack's variables (float32 host arrays) from a safetensors file.

    Raises:
      UserError: no such file, not a safetensors file, a stack that is none of
        PyTorch's, or a leaf that is missing, that nothing claims, or that has another
        shape.
    """
    return read(path, leaf_names(stack), expected_leaves(stack, input_dim), SOURCE)


def save(
    path: str, stack: RecurrentStack, input_dim: int, variables: Variables
) -> None:
    """Writes variables in PyTorch's layout; the inverse of `load`.

    Raises:
      UserError: no such folder, a stack that is none of PyTorch's, or a leaf that is
        missing, that nothing claims, or of another shape.
    """
    write(path, leaf_names(stack), expected_leaves(stack, input_dim), variables)


def expected_leaves(stack: RecurrentStack, input_dim: int) -> Leaves:
    """The shape of every leaf of the stack's variables, by path."""
    return leaf_shapes(stack, jnp.zeros((1, 1, input_dim)))
