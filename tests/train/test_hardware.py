from types import SimpleNamespace

import jax
import pytest

from research.train import hardware


def test_published_peak_counts_every_device():
    chips = [SimpleNamespace(device_kind="TPU v5 lite", platform="tpu")] * 4
    peak, rule = hardware.peak_flops(chips)
    assert peak == 4 * 197e12
    assert rule == "TPU v5 lite peak, bfloat16"


@pytest.mark.parametrize("platform, number", [("cpu", 1), ("gpu", 8)])
def test_unknown_devices_are_measured(monkeypatch, platform, number):
    monkeypatch.setattr(hardware, "measure_matmul", lambda: 1e9)
    devices = [SimpleNamespace(device_kind="?", platform=platform)] * 8
    peak, rule = hardware.peak_flops(devices)
    # All devices of the CPU platform are the one machine that was measured.
    assert peak == number * 1e9
    assert rule == "measured float32 matmul"


def test_matmul_rate_is_work_over_time(monkeypatch):
    clock = iter([0.0, 2.0, 10.0, 14.0])
    monkeypatch.setattr(hardware.time, "perf_counter", lambda: next(clock))
    assert hardware.measure_matmul(64, repeats=2) == 2 * 64**3 / 2.0


@pytest.mark.parametrize("kind", hardware.CHIPS)
def test_figures_are_of_a_chip(kind):
    chip = hardware.CHIPS[kind]
    # All of them do some hundred products in the time of one access to their memory.
    assert 100 < chip.flops / chip.memory_bandwidth < 700
    assert chip.link_bandwidth < chip.memory_bandwidth
    assert 16 * hardware.GIB <= chip.memory <= 192 * hardware.GIB
    assert chip.source


def test_this_machine_is_no_known_chip():
    assert jax.devices()[0].device_kind not in hardware.CHIPS
