"""Where every array lives: meshes, the one rule table, and batches made global.

A mesh has the axes `AXES`, in this order, whatever its shape; an axis of size one
costs nothing. Batches are split over `BATCH_AXES`. Parameters follow the first rule
whose pattern matches their path; what no rule mentions is split by FSDP along its
largest divisible dimension, unless it is `SMALL`.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from research.errors import UserError

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")

Rules = tuple[tuple[str, tuple[str | None, ...]], ...]
"""`(path pattern, axis of each of the last dimensions)`, first match wins."""

RULES: Rules = (
    # Attention: heads are split, so query/key/value by output, the result by input.
    (r"(query|key|value)/kernel$", (None, "tensor")),
    (r"(attention.*|mixer|cross)/out/kernel$", ("tensor", None)),
    # Feed-forward layers likewise: by what lies in between.
    (r"(up|gate)/kernel$", (None, "tensor")),
    (r"down/kernel$", ("tensor", None)),
    # Tables of tokens, and the products with them, by token.
    (r"embedding/embedding$", ("tensor", None)),
    (r"logits/kernel$", (None, "tensor")),
)

SMALL = 2**14
"""Elements; FSDP leaves smaller leaves whole: splitting a bias saves no memory that
matters, and costs a collective of its own at every use."""

LARGE = 2**20
"""Elements; a replicated leaf of this size is a mistake, not a choice."""


def make_mesh(
    shape: Mapping[str, int] | None = None, devices: Sequence[Any] | None = None
) -> Mesh:
    """A mesh over `devices` (default: all) with the given axis sizes.

    One size may be -1: whatever is left. Axes that are not named have size one;
    without any shape, all devices go to `data`.

    Raises:
      UserError: an unknown axis, or sizes that do not multiply to the device count.
    """
    devices = list(jax.devices() if devices is None else devices)
    shape = dict(shape or {"data": -1})
    if unknown := set(shape) - set(AXES):
        raise UserError(
            f"unknown mesh axis {', '.join(sorted(unknown))}: the axes are "
            f"{', '.join(AXES)}"
        )
    free = [axis for axis, size in shape.items() if size == -1]
    if any(size < 1 and size != -1 for size in shape.values()) or len(free) > 1:
        raise UserError(
            f"mesh {_text(shape)} is not valid: sizes are positive, and at most one is "
            "-1 (the rest of the devices)"
        )
    named = math.prod(size for size in shape.values() if size != -1)
    if free:
        shape[free[0]] = max(1, len(devices) // named)
    if math.prod(shape.values()) != len(devices):
        raise UserError(
            f"mesh {_text(shape)} needs {math.prod(shape.values())} devices, but there "
            f"are {len(devices)}: change the sizes with --mesh, e.g. --mesh data=-1"
        )
    sizes = tuple(shape.get(axis, 1) for axis in AXES)
    if devices[0].platform == "tpu":
        from jax.experimental import mesh_utils

        grid = mesh_utils.create_device_mesh(
            sizes, devices=devices, allow_split_physical_axes=True
        )
    else:
        grid = np.array(devices).reshape(sizes)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def path_name(path: Sequence[Any]) -> str:
    """`params/down_0/conv/kernel` for a key path of `jax.tree_util`."""
    return jax.tree_util.keystr(tuple(path), simple=True, separator="/")


def leaf_spec(
    path: str, shape: Sequence[int], mesh: Mesh, rules: Rules = RULES
) -> PartitionSpec:
    """The axes of one leaf: its rule where the sizes divide, then FSDP.

    Raises:
      UserError: the mesh splits parameters, yet this large leaf would be whole on
        every device.
    """
    axes: list[str | None] = [None] * len(shape)
    for pattern, rule in rules:
        if re.search(pattern, path) and len(rule) <= len(shape):
            for dimension, axis in enumerate(rule, start=len(shape) - len(rule)):
                if axis and shape[dimension] % mesh.shape[axis] == 0:
                    axes[dimension] = axis
            break
    fsdp = mesh.shape["fsdp"]
    if fsdp > 1 and "fsdp" not in axes and math.prod(shape) >= SMALL:
        divisible = [d for d, n in enumerate(shape) if not axes[d] and n % fsdp == 0]
        if divisible:
            axes[max(divisible, key=lambda d: shape[d])] = "fsdp"
        elif math.prod(shape) >= LARGE:
            raise UserError(
                f"{path} with shape {tuple(shape)} is large, but no dimension divides "
                f"by fsdp={fsdp}: choose a size that divides one, or add a rule"
            )
    return PartitionSpec(*axes)


def tree_sharding(tree: Any, mesh: Mesh, rules: Rules = RULES) -> Any:
    """The sharding of each leaf of a tree of shaped leaves, by its path."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: NamedSharding(
            mesh, leaf_spec(path_name(path), leaf.shape, mesh, rules)
        ),
        tree,
    )


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The first dimension over all batch axes, the others whole."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """Whole on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_devices(mesh: Mesh) -> int:
    """How many ways a batch is split: global batch sizes are multiples of it."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def check_batch_size(batch_size: int, mesh: Mesh) -> None:
    """Raises UserError where `batch_size` rows cannot be split evenly over the mesh."""
    ways = batch_devices(mesh)
    if batch_size % ways:
        raise UserError(
            f"a batch of {batch_size} cannot be split over {ways} devices: choose a "
            f"multiple of {ways}, such as {max(1, batch_size // ways) * ways}"
        )


def local_rows(mesh: Mesh, batch_size: int) -> list[int]:
    """The rows of the global batch that this process feeds, in order.

    Derived from the sharding, not from the process index: where the devices of two
    processes share rows (a tensor axis across hosts), both feed the same ones.
    """
    check_batch_size(batch_size, mesh)
    indices = batch_sharding(mesh).addressable_devices_indices_map((batch_size,))
    rows: set[int] = set()
    for index in indices.values():
        if index is not None:
            rows.update(range(*index[0].indices(batch_size)))
    return sorted(rows)


def to_global(
    batch: Mapping[str, np.ndarray], mesh: Mesh, batch_size: int
) -> dict[str, jax.Array]:
    """Global arrays of `batch_size` rows from this process's `local_rows`."""
    rows = local_rows(mesh, batch_size)
    place = {row: position for position, row in enumerate(rows)}
    sharding = batch_sharding(mesh)

    def make(value: np.ndarray) -> jax.Array:
        value = np.asarray(value)
        if len(value) != len(rows):
            raise ValueError(f"got {len(value)} rows, expected this process's {rows}")

        def shard(index: Any) -> np.ndarray:
            first, last, _ = index[0].indices(batch_size)
            start = place[first]
            return value[start : start + last - first]

        shape = (batch_size, *value.shape[1:])
        return jax.make_array_from_callback(shape, sharding, shard)

    return {name: make(value) for name, value in batch.items()}


def _text(shape: Mapping[str, int]) -> str:
    return ",".join(f"{axis}={size}" for axis, size in shape.items())
