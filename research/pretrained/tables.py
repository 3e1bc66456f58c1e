"""Weight tables at work: safetensors files of other code to our variables, and back.

A table is data: where each leaf of ours lies in a public layout. The modules beside
this one hold the tables, one layout each; reading and writing by a table is here.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

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

Names = Mapping[str, tuple[str | tuple[str, ...], tuple[int, ...]]]
"""`{our path: (their name, axes)}` with `ours = theirs.transpose(axes)`.

Leaves of ours with the same name and axes lie side by side in that tensor, along our
last axis and in the order of the table. A leaf of ours with fewer axes lacks the first
ones, which have length 1 there: a dense layer is a 1x1 convolution of theirs.

Several names are of tensors that lie one after the other in a leaf of ours, along its
first axes, for which there is nothing in `axes`: the layers of a scanned stack, or each
layer's experts in turn.
"""

FLOATS = ("BF16", "F16", "F32", "F64")
"""Types of tensors that are read."""


def leaf_shapes(network: nn.Module, *inputs: Any, **options: Any) -> Leaves:
    """The shape of every leaf that `network.init(rng, *inputs, **options)` makes."""
    init = partial(network.init, **options)
    return _flat(jax.eval_shape(init, jax.random.key(0), *inputs))


KINDS = {
    "kernel": ("weight", (1, 0)),
    "bias": ("bias", (0,)),
    "scale": ("weight", (0,)),
    "embedding": ("weight", (0, 1)),
}
"""Leaves of dense layers, norms and tables of PyTorch, by our names."""


def module_names(leaves: Leaves, modules: Mapping[str, str], layout: str) -> Names:
    """The weight table of a model in a layout of PyTorch's modules.

    Args:
      leaves: of ours.
      modules: theirs by the path of ours, without `params/`; `{}` in it stands for the
        number of a layer, where ours are scanned.
      layout: its name.

    Raises:
      UserError: a leaf that is in none of the modules.
    """
    names = {}
    for path, leaf in leaves.items():
        module, _, kind = path.removeprefix("params/").rpartition("/")
        if module not in modules or kind not in KINDS:
            raise UserError(
                f"{path} with shape {leaf.shape} has no counterpart in {layout}"
            )
        name, axes = KINDS[kind]
        name = f"{modules[module]}.{name}"
        if "{}" in name:
            name = tuple(name.format(number) for number in range(leaf.shape[0]))
        names[path] = (name, axes)
    return names


def read(
    path: str,
    names: Names,
    expected: Leaves,
    source: str,
    ignored: str | tuple[str, ...] = "",
    today: Callable[[str], str] = str,
    repeats: Mapping[str, str] | None = None,
) -> Variables:
    """The variables (float32 host arrays) that a safetensors file holds.

    In place of the file there may be its parts, with the index that names them beside
    them, `<path>.index.json`.

    Args:
      path: of the file; `~` is the home folder.
      names: the weight table, with every path of `expected`.
      expected: the shape of each leaf of ours.
      source: how to come by the file, the last part of a sentence to the user.
      ignored: pattern (of `fnmatch`), or several, of names of theirs that are no
        leaves of ours.
      today: the name in the table of what an older file may call otherwise.
      repeats: names of theirs that may stand beside or instead of one in the table,
        with that name: tied weights, which are the same tensor.

    Raises:
      UserError: no such file, not a safetensors file, not a whole one, an index that
        is none, or a leaf that is missing, that nothing claims, that has another shape
        or is not of floating point, or a repeated one that differs.
    """
    path, repeats = str(Path(path).expanduser()), dict(repeats or {})
    ignored = (ignored,) if isinstance(ignored, str) else ignored
    parts, leaves = _parts(names, expected), {}
    with _opened(path, source) as tensors:
        there = {today(name): name for name in tensors}
        for copy, name in repeats.items():
            if copy in there and name not in there:
                there[name] = there.pop(copy)
        claimed = {there.get(name) for name in (*parts, *repeats)}
        for name in sorted(tensors.keys() - claimed):
            if not any(fnmatchcase(name, pattern) for pattern in ignored):
                shape = tuple(tensors[name].get_slice(name).get_shape())
                raise UserError(
                    f"{path} holds {name} with shape {shape}, which no leaf of this "
                    "network claims: expected the file of the very same network"
                )
        for name, (places, axes) in parts.items():
            *ends, width = np.cumsum([place.shape[-1] for place in places]).tolist()
            side_by_side = (*places[0].shape[:-1], width)
            shape = tuple(side_by_side[axis] for axis in np.argsort(axes))
            becomes = "which becomes " + ", ".join(
                f"{place} with shape {expected[place.leaf].shape}" for place in places
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
            if entry.get_dtype() not in FLOATS:
                raise UserError(
                    f"{name} in {path} is {entry.get_dtype()}: expected one of "
                    f"{', '.join(FLOATS)}"
                )
            tensor = tensors[name].get_tensor(name).transpose(axes)
            arrays = np.split(tensor, ends, axis=-1)
            for place, array in zip(places, arrays, strict=True):
                if place.leaf not in leaves:
                    shape = expected[place.leaf].shape
                    leaves[place.leaf] = np.empty(shape, np.float32)
                whole = leaves[place.leaf]
                whole[place.index] = array.reshape(whole[place.index].shape)
        for copy in sorted(repeats.keys() & there.keys()):
            both = (there[copy], there[repeats[copy]])
            one, other = (tensors[name].get_tensor(name) for name in both)
            if not np.array_equal(one, other):
                raise UserError(
                    f"{both[0]} in {path} differs from {both[1]}, which it is tied to "
                    f"in this network: {source}"
                )
    return unflatten_dict(leaves, sep="/")


def stored_names(path: str, source: str) -> frozenset[str]:
    """What a file, or all its parts, call their tensors; arguments as in `read`.

    Raises:
      UserError: no such file, not a safetensors file, or an index that is none.
    """
    with _opened(str(Path(path).expanduser()), source) as tensors:
        return frozenset(tensors)


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
    for name, (places, axes) in _parts(names, expected).items():
        arrays = [
            np.asarray(leaves[place.leaf])[place.index].reshape(place.shape)
            for place in places
        ]
        side_by_side = np.concatenate(arrays, axis=-1, dtype=np.float32)
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


@contextmanager
def _opened(path: str, source: str) -> Iterator[dict[str, Any]]:
    """The open file of each tensor at a path, by the tensor's name."""
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
        yield {name: file for file in files for name in file.keys()}


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


class _Place(NamedTuple):
    """Where in our leaves a tensor of theirs, or a part of it, lies.

    Attributes:
      leaf: its path.
      index: along its first axes, where several tensors lie one after the other.
      shape: there, with the axes of length 1 that our leaf lacks.
    """

    leaf: str
    index: tuple[int, ...]
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.leaf}{list(self.index) if self.index else ''}"


def _parts(
    names: Names, expected: Leaves
) -> dict[str, tuple[list[_Place], tuple[int, ...]]]:
    """`{their name: (our places side by side, axes)}`."""
    parts = {}
    for leaf, (theirs, axes) in names.items():
        shape, several = tuple(expected[leaf].shape), not isinstance(theirs, str)
        first = shape[: len(shape) - len(axes)] if several else ()
        shape = shape[len(first) :]
        shape = (1,) * (len(axes) - len(shape)) + shape
        each = theirs if several else (theirs,)
        for name, index in zip(each, np.ndindex(first), strict=True):
            place = _Place(leaf, index, shape)
            parts.setdefault(name, ([], axes))[0].append(place)
    return parts


def _flat(variables: Variables) -> dict[str, Any]:
    """Leaves by path."""
    return dict(flatten_dict(dict(variables), sep="/"))
