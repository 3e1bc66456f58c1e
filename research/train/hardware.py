"""What a device can do at best: published figures, or a measured one."""

import time
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp


@dataclass(frozen=True)
class Chip:
    """One device as JAX counts them; bytes and seconds.

    Attributes:
      flops: dense bfloat16 FLOP/s.
      memory: bytes of device memory.
      memory_bandwidth: bytes/s.
      link_bandwidth: bytes/s that one device sends to the others, all links together.
      source: where the figures stand.
    """

    flops: float
    memory: float
    memory_bandwidth: float
    link_bandwidth: float
    source: str


GIB = 2.0**30

# Google gives the interconnect of a chip in both directions together: half is sent.
# A chip of v3 and of tpu7x is two devices to JAX: each has half of it.
_TPU = "docs.cloud.google.com/tpu/docs/"
_ISCA = "arXiv:2304.01433 for the links"
_NVIDIA = "NVIDIA data sheet, SXM, without sparsity"

CHIPS: dict[str, Chip] = {
    "TPU v3": Chip(61.5e12, 16 * GIB, 450e9, 140e9, f"{_TPU}v3, {_ISCA}"),
    "TPU v4": Chip(275e12, 32 * GIB, 1200e9, 300e9, f"{_TPU}v4, {_ISCA}"),
    "TPU v5 lite": Chip(197e12, 16 * GIB, 819e9, 200e9, f"{_TPU}v5e"),
    "TPU v5": Chip(459e12, 95 * GIB, 2765e9, 600e9, f"{_TPU}v5p"),
    "TPU v6 lite": Chip(918e12, 32 * GIB, 1638e9, 400e9, f"{_TPU}v6e"),
    "TPU7x": Chip(1153.5e12, 96 * GIB, 3690e9, 300e9, f"{_TPU}tpu7x"),
    "NVIDIA A100-SXM4-40GB": Chip(312e12, 40 * GIB, 1555e9, 300e9, _NVIDIA),
    "NVIDIA A100-SXM4-80GB": Chip(312e12, 80 * GIB, 2039e9, 300e9, _NVIDIA),
    "NVIDIA H100 80GB HBM3": Chip(989e12, 80 * GIB, 3350e9, 450e9, _NVIDIA),
    "NVIDIA H200": Chip(989e12, 141e9, 4800e9, 450e9, _NVIDIA),
}
"""By `device_kind`."""


def peak_flops(devices: Any) -> tuple[float, str]:
    """FLOP/s of all `devices` together, and how that is known.

    A chip in `CHIPS` has its published bfloat16 peak. For any other the peak is what a
    float32 matrix product of 2048 reaches here, all local devices taken as one machine
    on the CPU platform.
    """
    kind = devices[0].device_kind
    if chip := CHIPS.get(kind):
        return chip.flops * len(devices), f"{kind} peak, bfloat16"
    measured = measure_matmul()
    number = 1 if devices[0].platform == "cpu" else len(devices)
    return measured * number, "measured float32 matmul"


def measure_matmul(
    size: int = 2048, dtype: Any = jnp.float32, repeats: int = 3
) -> float:
    """The best FLOP/s of `size`-cubed products on the first local device."""
    x = jax.random.normal(jax.random.key(0), (size, size)).astype(dtype)
    product = jax.jit(jnp.matmul)
    product(x, x).block_until_ready()
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        product(x, x).block_until_ready()
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best
