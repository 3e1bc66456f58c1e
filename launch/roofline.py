"""How fast a step could be on given chips: three resources, each of which bounds it."""

from dataclasses import dataclass

from research.train.hardware import Chip

ASSUMPTIONS = (
    "products run at the chip's dense bfloat16 peak, whatever their type and sizes",
    "memory traffic is every operand and result of the compiled program's instructions",
    "collectives are rings that keep all links of a device busy, without latency",
    "the host, the input and everything else cost nothing",
)
"""What an `Estimate` takes for granted; each makes it hopeful."""


@dataclass(frozen=True)
class Estimate:
    """Seconds of one step that each resource needs by itself.

    The step lies between `overlapped`, where all three work at once, and `serial`,
    where one waits for the other, as far as the `ASSUMPTIONS` hold.

    Attributes:
      compute: model FLOPs at the peak.
      memory: traffic at the bandwidth of the device's memory.
      network: what a device sends at the bandwidth of its links.
    """

    compute: float
    memory: float
    network: float

    @property
    def overlapped(self) -> float:
        """The shortest step, bound by the slowest resource."""
        return max(self.compute, self.memory, self.network)

    @property
    def serial(self) -> float:
        """The step without any overlap."""
        return self.compute + self.memory + self.network

    @property
    def bound(self) -> str:
        """The slowest resource."""
        times = {
            "compute": self.compute,
            "memory": self.memory,
            "network": self.network,
        }
        return max(times, key=lambda name: times[name])

    def utilization(self) -> tuple[float, float]:
        """Model FLOP/s over peak: without overlap, and with all of it."""
        return self.compute / self.serial, self.compute / self.overlapped


def estimate(
    chip: Chip, num_devices: int, flops: int, traffic: int, sent: int
) -> Estimate:
    """The times of one step.

    Args:
      chip: what one device can do.
      num_devices: how many share `flops` evenly.
      flops: of the step, all devices together.
      traffic: bytes that one device's memory moves.
      sent: bytes that one device sends.
    """
    return Estimate(
        compute=flops / (num_devices * chip.flops),
        memory=traffic / chip.memory_bandwidth,
        network=sent / chip.link_bandwidth,
    )
