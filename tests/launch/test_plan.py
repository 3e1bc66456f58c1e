import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from launch import plan as command
from launch import roofline, topology
from launch.cli import run
from launch.plan import plan
from research.errors import UserError
from research.train import hardware, sharding
from tests.launch import linear

FILE = str(Path(linear.__file__))
MATRIX = 4 * linear.INPUTS * linear.OUTPUTS
KIND = "TPU v5 lite"


def on(mesh, experiment=None, **options):
    experiment = experiment or linear.experiment()
    experiment = dataclasses.replace(experiment, mesh=mesh)
    return plan(experiment, jax.devices(), **options)


def test_data_parallel_bytes_flops_and_collectives():
    found = on({"data": 8})
    memory = found.memory
    # Adam keeps two moments and counts its steps, as the schedule does.
    assert memory.params == memory.ema == MATRIX
    assert memory.optimizer == 2 * MATRIX + 2 * 4
    assert memory.other == 2 * 4  # step and skipped
    assert memory.batch == 4 * linear.ROWS * linear.INPUTS // 8
    assert memory.temporaries > 0
    assert memory.total == sum(dataclasses.astuple(memory))
    assert found.num_params == linear.INPUTS * linear.OUTPUTS
    # Forward, and backward to the matrix; the batch needs no gradient.
    assert found.flops == 2 * 2 * linear.ROWS * linear.INPUTS * linear.OUTPUTS
    (reduced,) = found.collectives
    assert reduced.kind == "all-reduce"
    # The gradient, and the scalar loss.
    assert MATRIX < reduced.bytes <= MATRIX + 16
    assert reduced.sent == pytest.approx(2 * 7 / 8 * reduced.bytes, abs=8)
    assert found.fits is None and found.limit is None and found.estimate is None
    assert found.init_bytes >= 4 * MATRIX


def test_fsdp_splits_the_state_and_gathers_it():
    found = on({"fsdp": 8})
    assert found.memory.params == found.memory.ema == MATRIX // 8
    assert found.memory.optimizer == 2 * MATRIX // 8 + 2 * 4
    gathered = {c.kind: c for c in found.collectives}["all-gather"]
    # Each device puts in its eighth, which goes to the seven others.
    assert gathered.bytes % (MATRIX // 8) == 0
    assert gathered.sent == 7 * gathered.bytes


def test_collectives_of_scanned_layers_count_each_layer():
    layers = 6
    found = on({"fsdp": 8}, linear.experiment(num_layers=layers))
    gathered = {c.kind: c for c in found.collectives}["all-gather"]
    layer = 4 * linear.INPUTS**2
    # Each layer is gathered in the forward pass, at least.
    assert gathered.count >= layers
    assert gathered.bytes >= layers * layer // 8
    assert found.unknown_loops == 0


def test_estimate_is_the_figures_of_the_chip():
    found = on({"data": 8}, kind=KIND)
    chip, bounds = hardware.CHIPS[KIND], found.estimate
    assert found.fits is True and found.limit == chip.memory
    assert bounds.compute == found.flops / (8 * chip.flops)
    assert bounds.memory == found.traffic / chip.memory_bandwidth
    assert bounds.network == found.collectives[0].sent / chip.link_bandwidth


def test_too_little_memory_does_not_fit(monkeypatch):
    small = dataclasses.replace(hardware.CHIPS[KIND], memory=3.0 * MATRIX)
    monkeypatch.setitem(hardware.CHIPS, KIND, small)
    found = on({"data": 8}, kind=KIND)
    assert found.fits is False
    assert on({"fsdp": 8}, kind=KIND).memory.total < found.memory.total


class Refused:
    """What a lowered program does whose memory does not suffice."""

    def __init__(self, message):
        self._message = message

    def compile(self):
        raise jax.errors.JaxRuntimeError(self._message)


def test_a_refusal_for_memory_is_no_error():
    message = "RESOURCE_EXHAUSTED: Used 20.50G of 15.75G hbm. Exceeded by 4.75G."
    compiled, needed = command._compile(lambda: Refused(message))
    assert compiled is None
    assert needed == int(20.5 * 2**30)


def test_another_refusal_is_an_error():
    with pytest.raises(jax.errors.JaxRuntimeError, match="UNIMPLEMENTED"):
        command._compile(lambda: Refused("UNIMPLEMENTED: such a product"))


def test_what_was_refused_is_planned_as_not_fitting(monkeypatch):
    real = command._compile

    def refuse_the_step(lower):
        compiled, needed = real(lower)
        return (compiled, needed) if needed < 5 * MATRIX else (None, 2**40)

    monkeypatch.setattr(command, "_compile", refuse_the_step)
    found = on({"data": 8}, linear.experiment(batch_size=4096), kind=KIND)
    assert found.fits is False
    assert found.memory.total == 2**40
    assert found.collectives == () and found.estimate is None
    command._print(found)


def test_bounds_of_the_roofline():
    chip = hardware.Chip(100.0, 1.0, 10.0, 5.0, "")
    bounds = roofline.estimate(chip, num_devices=2, flops=400, traffic=30, sent=5)
    assert (bounds.compute, bounds.memory, bounds.network) == (2.0, 3.0, 1.0)
    assert (bounds.overlapped, bounds.serial, bounds.bound) == (3.0, 6.0, "memory")
    assert bounds.utilization() == (2 / 6, 2 / 3)


@pytest.mark.parametrize(
    "text, kind, number, slice",
    [
        ("v5e:8x8", "TPU v5 lite", 64, "v5e:8x8"),
        ("v5e-64", "TPU v5 lite", 64, "v5e:8x8"),
        ("v5e-4x8", "TPU v5 lite", 32, "v5e:4x8"),
        ("v5litepod-8", "TPU v5 lite", 8, "v5e:2x4"),
        ("v5e-4", "TPU v5 lite", 4, "v5e:2x2"),
        ("v5e-1", "TPU v5 lite", 1, "v5e:1x1"),
        ("v6e-256", "TPU v6 lite", 256, "v6e:16x16"),
        # The number counts cores, of which JAX shows a pair as one device ...
        ("v5p-128", "TPU v5", 64, "v5p:4x4x4"),
        ("v5p-8", "TPU v5", 4, "v5p:2x2x1"),
        ("v4-64", "TPU v4", 32, "v4:2x4x4"),
        # ... or as two.
        ("v3-8", "TPU v3", 8, "v3:2x2"),
        ("tpu7x:2x2x1", "TPU7x", 8, "tpu7x:2x2x1"),
        ("tpu7x-256", "TPU7x", 256, "tpu7x:4x4x8"),
        ("h100:8", "NVIDIA H100 80GB HBM3", 8, None),
        ("CPU:8", "cpu", 8, None),
    ],
)
def test_names_of_topologies(text, kind, number, slice):
    assert topology.parse(text) == topology.Topology(kind, number, slice)


@pytest.mark.parametrize("kind", [tpu.kind for tpu in topology.TPUS.values()])
def test_every_tpu_has_figures(kind):
    assert kind in hardware.CHIPS


@pytest.mark.parametrize("kind", ["a100", "h100", "h200"])
def test_every_gpu_has_figures(kind):
    assert topology.parse(f"{kind}:8").kind in hardware.CHIPS


@pytest.mark.parametrize(
    "text, why",
    [
        ("banana", "expected a size of one of v3"),
        ("v9:2x2", "expected a size of one of v3"),
        ("v5e:4x4x4", "v5e has 2 dimensions"),
        ("v5e:0x4", "v5e has 2 dimensions"),
        ("v5e-48", r"slices of 2\^n chips"),
        ("v5p-7", r"slices of 2\^n cores, 2 to a chip"),
        ("cpu:0", "expected a size"),
        ("h100:2x4", "expected a size"),
    ],
)
def test_topologies_that_are_none(text, why):
    with pytest.raises(UserError, match=f"no topology {text}: .*{why}.*v5e:8x8, "):
        topology.parse(text)


def test_topology_comes_too_late_for_a_used_process():
    jax.devices()
    with pytest.raises(UserError, match="uses its own devices already"):
        topology.devices(topology.parse("cpu:4"))


def test_command_stands_in_for_devices_that_are_not_there():
    command = [sys.executable, "-m", "launch.plan", FILE, "--topology", "h100:4"]
    command += ["--mesh", "data=2,fsdp=2", "--json"]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root)
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert record["kind"] == "NVIDIA H100 80GB HBM3"
    assert record["compiler"] == "CPU compiler"
    assert record["mesh"] == {"data": 2, "fsdp": 2, "tensor": 1}
    assert record["num_devices"] == 4
    assert record["fits"] is True
    assert record["memory"]["params"] == MATRIX // 2
    assert record["estimate"]["overlapped"] > 0
    assert "compile step: " in done.stderr
    assert "the CPU's compiler stands in for that of NVIDIA H100" in done.stderr


def ask(capsys, *arguments):
    with pytest.raises(SystemExit) as exited:
        run(command.main, [FILE, *arguments])
    return exited.value.code, *capsys.readouterr()


def test_command_prints_all_of_it(capsys, monkeypatch):
    monkeypatch.setitem(hardware.CHIPS, "cpu", hardware.CHIPS[KIND])
    code, out, _ = ask(capsys, "--mesh", "fsdp=8")
    assert code == 0
    assert out.lstrip().startswith("fits: ")
    for part in ("optimizer", "all-gather", "one after the other", "bfloat16 peak"):
        assert part in out


def test_command_exits_1_where_it_does_not_fit(capsys, monkeypatch):
    tiny = dataclasses.replace(hardware.CHIPS[KIND], memory=1.0)
    monkeypatch.setitem(hardware.CHIPS, "cpu", tiny)
    code, out, _ = ask(capsys)
    assert code == 1
    assert "does NOT fit" in out


@pytest.mark.parametrize(
    "arguments, told",
    [
        (["--mesh", "data=3"], "needs 3 devices, but there are 8"),
        (["--topology", "v5e-9"], "no topology v5e-9"),
        (["--with", "batch_size=12"], "cannot be split over 8 devices"),
    ],
)
def test_command_refuses_in_one_sentence(capsys, arguments, told):
    code, out, err = ask(capsys, *arguments)
    assert code == 2
    (line,) = [line for line in err.splitlines() if line.startswith("UserError")]
    assert told in line
    assert "Traceback" not in err


def test_mesh_of_the_plan_is_that_of_the_experiment():
    found = on({"data": 2, "fsdp": 2, "tensor": 2})
    assert found.mesh == dict(zip(sharding.AXES, (2, 2, 2), strict=True))
    assert found.num_devices == 8
