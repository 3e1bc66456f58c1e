"""Weight tables at work: safetensors files of other code to our variables, and back.

A table is data: where each leaf of ours lies in a public layout. The modules beside
this one hold the tables, one layout each; reading and writing by a table is here.
"""

import json
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from research.errors import UserError
from research.tasks.base import Variables

ImageShape = tuple[int, int, int]
"""Height, width, channels."""

Leaves = Mapping[str, jax.ShapeDtypeStruct]
"""Shapes by path, such as `params/conv_in/kernel`."""

Names = dict[str, tuple[str, tuple[int, ...]]]
"""`{our path: (their name, axes)}` with `ours = theirs.transpose(axes)`.

Leaves of ours with the same name and axes lie side by side in that tensor, along our
last axis and in the order of the table. A leaf of ours with fewer axes lacks the first
ones, which have length 1 there: a dense layer is a 1x1 convolution of theirs.
"""


def leaf_shapes(network: nn.Module, *inputs: Any, **options: Any) -> Leaves:
    """The shape of every leaf that `network.init(rng, *inputs, **options)` makes."""
    init = partial(network.init, **options)
    return _flat(jax.eval_shape(init, jax.random.key(0), *inputs))


def read(
    path: str,
    names: Names,
    expected: Leaves,
    source: str,
    ignored: str = "",
    today: Callable[[str], str] = str,
) -> Variables:
    """The variables (float32 host arrays) that a safetensors file holds.

    In place of the file there may be its parts, with the index that names them beside
    them, `<path>.index.json`.

    Args:
      path: of the file; `~` is the home folder.
      names: the weight table, with every path of `expected`.
      expected: the shape of each leaf of ours.
      source: how to come by the file, the last part of a sentence to the user.
      ignored: pattern (of `fnmatch`) of their names that are no leaves of ours.
      today: the name in the table of what an older file may call otherwise.

    Raises:
      UserError: no such file, not a safetensors file, not a whole one, an index that
        is none, or a leaf that is missing, that nothing claims, that has another shape
        or is not of floating point.
    """
    path = str(Path(path).expanduser())
    parts, leaves = _parts(names), {}
    with ExitStack() as stack:
        files = []
        for file in _files(path, source):
            try:
                files.append(stack.enter_context(safe_open(file, framework="numpy")))
            except SafetensorError as error:
                raise UserError(
                    f"{file} is not a safetensors file, or not all of one ({error}): "
                    f"{source}"
                ) from None
        tensors = {name: file for file in files for name in file.keys()}
        there = {today(name): name for name in tensors}
        claimed = {there.get(name) for name in parts}
        for name in sorted(tensors.keys() - claimed):
            if not fnmatchcase(name, ignored):
                shape = tuple(tensors[name].get_slice(name).get_shape())
                raise UserError(
                    f"{path} holds {name} with shape {shape}, which no leaf of this "
                    "network claims: expected the file of the very same network"
                )
        for name, (ours, axes) in parts.items():
            shapes = [_padded(expected[leaf].shape, axes) for leaf in ours]
            *ends, width = np.cumsum([shape[-1] for shape in shapes]).tolist()
            side_by_side = (*shapes[0][:-1], width)
            shape = tuple(side_by_side[axis] for axis in np.argsort(axes))
            becomes = "which becomes " + ", ".join(
                f"{leaf} with shape {expected[leaf].shape}" for leaf in ours
            )
            if name not in there:
                raise UserError(
                    f"{path} lacks {name} with shape {shape}, {becomes} here"
                )
            name = there[name]
            entry = tensors[name].get_slice(name)
            if tuple(entry.get_shape()) != shape:
                raise UserError(
                    f"{name} in {path} has shape {tuple(entry.get_shape())}, but "
                    f"{shape} is expected, {becomes} here"
                )
            if entry.get_dtype() not in ("F16", "F32", "F64"):
                raise UserError(
                    f"{name} in {path} is {entry.get_dtype()}: expected F16, F32 or F64"
                )
            tensor = tensors[name].get_tensor(name).transpose(axes)
            arrays = np.split(tensor, ends, axis=-1)
            for leaf, array in zip(ours, arrays, strict=True):
                array = array.reshape(expected[leaf].shape)
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
    require_leaves(expected, variables)
    leaves, tensors = _flat(variables), dict(others or {})
    for name, (ours, axes) in _parts(names).items():
        arrays = [np.asarray(leaves[leaf], np.float32) for leaf in ours]
        arrays = [array.reshape(_padded(array.shape, axes)) for array in arrays]
        side_by_side = np.concatenate(arrays, axis=-1)
        tensors[name] = np.ascontiguousarray(side_by_side.transpose(np.argsort(axes)))
    # diffusers asks which library wrote the file, and reads those of PyTorch.
    save_file(tensors, path, metadata={"format": "pt"})


def require_leaves(expected: Leaves, variables: Variables) -> None:
    """Raises `UserError` if a leaf is missing, not expected or of another shape."""
    shapes = {leaf: array.shape for leaf, array in expected.items()}
    given = {leaf: array.shape for leaf, array in _flat(variables).items()}
    for leaf in sorted(shapes.keys() | given.keys()):
        if shapes.get(leaf) != given.get(leaf):
            raise UserError(
                f"{leaf} cannot be written: its shape is {given.get(leaf)}, expected "
                f"{shapes.get(leaf)}"
            )


def _files(path: str, source: str) -> list[Path]:
    """The file at a path, or those that its index names."""
    if Path(path).is_file():
        return [Path(path)]
    index = Path(f"{path}.index.json")
    if not index.is_file():
        raise UserError(f"no weights at {path}: {source}")
    try:
        files = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
        inside = all(Path(file).name == file for file in files)
    except (ValueError, KeyError, TypeError, AttributeError):
        inside, files = False, []
    if not inside:
        raise UserError(f"{index} does not name files beside it by leaf: {source}")
    for file in files:
        if not (index.parent / file).is_file():
            raise UserError(f"no {file} beside {index}, which names it: {source}")
    return [index.parent / file for file in files]


def _padded(shape: tuple[int, ...], axes: tuple[int, ...]) -> tuple[int, ...]:
    """A shape of ours with the axes of length 1 that it lacks."""
    return (1,) * (len(axes) - len(shape)) + tuple(shape)


def _parts(names: Names) -> dict[str, tuple[list[str], tuple[int, ...]]]:
    """`{their name: (our paths side by side, axes)}`."""
    parts = {}
    for ours, (theirs, axes) in names.items():
        parts.setdefault(theirs, ([], axes))[0].append(ours)
    return parts


def _flat(variables: Variables) -> dict[str, Any]:
    """Leaves by path."""
    return dict(flatten_dict(dict(variables), sep="/"))
