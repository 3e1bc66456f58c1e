"""Devices that are not there: TPU slices to compile for, named as Google names them.

v5e:8x8   v5e-64   v5litepod-64      chips, in two dimensions
v5p:4x4x4   v5p-128                  the number counts cores: two to a chip
h100:8   a100:8   h200:8   cpu:8     GPUs and CPUs, compiled on this machine's CPU
"""

import math
import os
import re
from dataclasses import dataclass
from typing import Any

from research.errors import UserError

EXAMPLES = "v5e:8x8, v5e-64, v6e-256, v5p:4x4x4, v5p-128, v4-64, h100:8, cpu:8"


@dataclass(frozen=True)
class Generation:
    """A TPU generation.

    Attributes:
      kind: its `device_kind`.
      dimensions: of its torus.
      cores: of a chip, as the number after the dash counts.
      devices: of a chip, as JAX counts.
    """

    kind: str
    dimensions: int
    cores: int
    devices: int


TPUS = {
    "v3": Generation("TPU v3", dimensions=2, cores=2, devices=2),
    "v4": Generation("TPU v4", dimensions=3, cores=2, devices=1),
    "v5e": Generation("TPU v5 lite", dimensions=2, cores=1, devices=1),
    "v5p": Generation("TPU v5", dimensions=3, cores=2, devices=1),
    "v6e": Generation("TPU v6 lite", dimensions=2, cores=1, devices=1),
    "tpu7x": Generation("TPU7x", dimensions=3, cores=2, devices=2),
}
ALIASES = {"v5litepod": "v5e", "v7x": "tpu7x"}

HOSTED = {
    "cpu": "cpu",
    "a100": "NVIDIA A100-SXM4-80GB",
    "h100": "NVIDIA H100 80GB HBM3",
    "h200": "NVIDIA H200",
}
"""The `device_kind` of what this machine's CPU stands in for."""


@dataclass(frozen=True)
class Topology:
    """A set of like devices.

    Attributes:
      kind: the `device_kind` whose figures apply.
      num_devices: as JAX counts.
      slice: the compiler's name of a TPU slice, such as v5e:8x8.
    """

    kind: str
    num_devices: int
    slice: str | None = None


def parse(text: str) -> Topology:
    """The topology of a name such as those above.

    Raises:
      UserError: there is no such thing.
    """
    named = re.fullmatch(r"([a-z0-9]+)([:-])(\d+(?:x\d+)*)", text.strip().lower())
    name, mark, size = named.groups() if named else ("", "", "")
    name = ALIASES.get(name, name)
    if name in HOSTED and size.isdigit() and int(size):
        return Topology(HOSTED[name], int(size))
    if name not in TPUS:
        known = ", ".join([*TPUS, *HOSTED])
        raise _unknown(text, f"expected a size of one of {known}")
    tpu = TPUS[name]
    if mark == "-" and size.isdigit():
        cores = int(size)
        shape = _shape(cores // tpu.cores, tpu.dimensions)
        if cores % tpu.cores or not shape:
            unit = "chips" if tpu.cores == 1 else f"cores, {tpu.cores} to a chip"
            raise _unknown(text, f"{name} has slices of 2^n {unit}, from 4 chips on")
    else:
        shape = tuple(int(length) for length in size.split("x"))
        if len(shape) != tpu.dimensions or not all(shape):
            raise _unknown(text, f"{name} has {tpu.dimensions} dimensions")
    return Topology(
        kind=tpu.kind,
        num_devices=math.prod(shape) * tpu.devices,
        slice=f"{name}:{'x'.join(map(str, shape))}",
    )


def devices(topology: Topology) -> tuple[list[Any], str]:
    """Devices to compile for, and whose compiler that is.

    They cannot run anything. Call it before anything else uses JAX's devices: it
    settles which there are. Without `libtpu`, and for what is no TPU, they are devices
    of the CPU platform.

    Raises:
      UserError: the TPU compiler knows no such slice, or JAX has been used already.
    """
    import jax

    try:
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", topology.num_devices)
    except RuntimeError as error:
        raise UserError(f"this process uses its own devices already: {error}") from None
    if topology.slice and has_libtpu():
        # Its executables cannot be read back from the compilation cache.
        jax.config.update("jax_enable_compilation_cache", False)
        return _slice_devices(topology.slice), f"{topology.kind} compiler"
    return jax.devices(), "CPU compiler"


def has_libtpu() -> bool:
    """Whether the TPU compiler is installed."""
    from importlib.util import find_spec

    return find_spec("libtpu") is not None


def _slice_devices(name: str) -> list[Any]:
    from jax.experimental import topologies

    # Without these libtpu asks Google's metadata server where it runs, keeps a log in
    # /tmp, and lets in one process at a time.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-8")
    os.environ.setdefault("TPU_LOG_DIR", "disabled")
    os.environ.setdefault("TPU_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TPU_STDERR_LOG_LEVEL", "3")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    options: dict[str, Any] = {}
    if name.startswith("v4"):
        options["chip_config_name"] = "megacore"  # one device a chip, as on its hosts
    if name.endswith(":1x1"):
        options["chips_per_host_bounds"] = (1, 1, 1)
    try:
        return topologies.get_topology_desc(
            platform="tpu", topology_name=name, **options
        ).devices
    except (RuntimeError, NotImplementedError) as error:
        raise _unknown(name, f"the TPU compiler says: {error}") from None


def _shape(chips: int, dimensions: int) -> tuple[int, ...]:
    """The slice of so many chips, as near to a cube as powers of two allow."""
    if chips == 1 and dimensions == 2:
        return (1, 1)
    shape = [2, 2, 1][:dimensions]
    while math.prod(shape) < chips:
        smallest = max(range(dimensions), key=lambda d: (-shape[d], d))
        shape[smallest] *= 2
    return tuple(shape) if math.prod(shape) == chips else ()


def _unknown(text: str, why: str) -> UserError:
    return UserError(f"no topology {text}: {why}; examples: {EXAMPLES}")
