"""Weight tables at work: safetensors files of other code to our variables, and back.

A table is data: where each leaf of ours lies in a public layout. The modules beside
this one hold the tables, one layout each; reading and writing by a table is here.
"""

from collections.abc import Mapping
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from research.errors import UserError
from research.tasks.base import Variables

ImageShape = tuple[int, int, int]
"""Height, width, channels."""

Leaves = Mapping[str, jax.ShapeDtypeStruct]
"""Shapes by path, such as `params/conv_in/kernel`."""

Names = dict[str, tuple[str, tuple[int, ...]]]
"""`{our path: (their name, axes)}` with `ours = theirs.transpose(axes)`.

Leaves of ours with the same name and axes lie side by side in that tensor, along our
last axis and in the order of the table.
"""


def leaf_shapes(network: nn.Module, *inputs: Any, **options: Any) -> Leaves:
    """The shape of every leaf that `network.init(rng, *inputs, **options)` makes."""
    init = partial(network.init, **options)
    return _flat(jax.eval_shape(init, jax.random.key(0), *inputs))


def read(
    path: str, names: Names, expected: Leaves, source: str, ignored: str = ""
) -> Variables:
    """The variables (float32 host arrays) that a safetensors file holds.

    Args:
      path: of the file; `~` is the home folder.
      names: the weight table, with every path of `expected`.
      expected: the shape of each leaf of ours.
      source: how to come by the file, the last part of a sentence to the user.
      ignored: pattern (of `fnmatch`) of their names that are no leaves of ours.

    Raises:
      UserError: no such file, not a safetensors file, not a whole one, or a leaf that
        is missing, that nothing claims, or that has another shape.
    """
    path = str(Path(path).expanduser())
    if not Path(path).is_file():
        raise UserError(f"no weights at {path}: {source}")
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise UserError(
            f"{path} is not a safetensors file, or not all of one ({error}): {source}"
        ) from None
    parts, leaves = _parts(names), {}
    for name in sorted(tensors.keys() - parts.keys()):
        if not fnmatchcase(name, ignored):
            raise UserError(
                f"{path} holds {name} with shape {tensors[name].shape}, which no leaf "
                "of this network claims: expected the file of the very same network"
            )
    for name, (ours, axes) in parts.items():
        shapes = [expected[leaf].shape for leaf in ours]
        *ends, width = np.cumsum([shape[-1] for shape in shapes]).tolist()
        side_by_side = (*shapes[0][:-1], width)
        shape = tuple(side_by_side[axis] for axis in np.argsort(axes))
        becomes = "which becomes " + ", ".join(
            f"{leaf} with shape {expected[leaf].shape}" for leaf in ours
        )
        if name not in tensors:
            raise UserError(f"{path} lacks {name} with shape {shape}, {becomes} here")
        tensor = tensors[name]
        if tensor.shape != shape:
            raise UserError(
                f"{name} in {path} has shape {tensor.shape}, but {shape} is expected, "
                f"{becomes} here"
            )
        arrays = np.split(tensor.transpose(axes), ends, axis=-1)
        for leaf, array in zip(ours, arrays, strict=True):
            leaves[leaf] = np.ascontiguousarray(array, np.float32)
    return unflatten_dict(leaves, sep="/")


def write(
    path: str,
    names: Names,
    expected: Leaves,
    variables: Variables,
    others: Mapping[str, np.ndarray] | None = None,
) -> None:
    """Writes variables in the layout of a table; the inverse of `read`.

    Args:
      path: of the safetensors file; `~` is the home folder.
      names: the weight table, with every path of `expected`.
      expected: the shape of each leaf of ours.
      variables: the leaves.
      others: tensors of theirs, by name, that are no leaves of ours.

    Raises:
      UserError: no such folder, or a leaf that is missing, that nothing claims, or of
        another shape.
    """
    path = str(Path(path).expanduser())
    if not Path(path).parent.is_dir():
        raise UserError(f"{path} cannot be written: make its folder first")
    leaves = _flat(variables)
    shapes = {leaf: array.shape for leaf, array in expected.items()}
    given = {leaf: array.shape for leaf, array in leaves.items()}
    for leaf in sorted(shapes.keys() | given.keys()):
        if shapes.get(leaf) != given.get(leaf):
            raise UserError(
                f"{leaf} cannot be written: its shape is {given.get(leaf)}, expected "
                f"{shapes.get(leaf)}"
            )
    tensors = dict(others or {})
    for name, (ours, axes) in _parts(names).items():
        side_by_side = np.concatenate([leaves[leaf] for leaf in ours], axis=-1)
        tensors[name] = np.ascontiguousarray(side_by_side.transpose(np.argsort(axes)))
    save_file(tensors, path)


def _parts(names: Names) -> dict[str, tuple[list[str], tuple[int, ...]]]:
    """`{their name: (our paths side by side, axes)}`."""
    parts = {}
    for ours, (theirs, axes) in names.items():
        parts.setdefault(theirs, ([], axes))[0].append(ours)
    return parts


def _flat(variables: Variables) -> dict[str, Any]:
    """Leaves by path."""
    return dict(flatten_dict(dict(variables), sep="/"))
