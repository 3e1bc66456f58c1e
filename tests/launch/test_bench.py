import json
from pathlib import Path

import jax
import numpy as np
import pytest

from launch import bench as command
from launch.bench import Bench, bench, find_peer, our_step
from launch.cli import run
from launch.timing import Contender, Timing, race
from research.errors import UserError
from research.train.builder import build, synthetic_batch
from tests.launch import linear

FILE = str(Path(linear.__file__))


def contenders(experiment, batch, train):
    """A peer that checks what it is given, and does as good as nothing."""
    assert train
    assert isinstance(batch["x"], np.ndarray)
    assert batch["x"].shape == (experiment.data.batch_size, linear.INPUTS)
    return [Contender("nothing", lambda: None, 100, 1000, lambda: 2048)]


PEER = f"{__name__}:contenders"


def timing(name, median, flops=100, processor=1.0):
    return Timing(name, 1.0, median, median, median, processor, 1, 1, 1, flops, None)


@pytest.fixture
def ceiling(monkeypatch):
    """Two measurements of the matrix product, the second the better one."""
    rates = iter([1e9, 2e9])
    monkeypatch.setattr(command.hardware, "measure_matmul", lambda *_: next(rates))


def test_race_takes_turns():
    calls = []
    pair = [Contender(n, lambda n=n: calls.append(n), 1, 1) for n in "ab"]
    race(pair, batch_size=1, repeats=3, warm_up=2)
    assert "".join(calls) == "aabb" + "ababab"


def test_race_is_of_medians(monkeypatch):
    # Of the clock and the processor, at the beginning and the end of every step.
    walls = iter([0, 9, 10, 11, 20, 22, 30, 33])
    works = iter([0, 9, 10, 10.5, 20, 20.5, 30, 31])
    monkeypatch.setattr("time.perf_counter", lambda: next(walls))
    monkeypatch.setattr("time.process_time", lambda: next(works))
    (found,) = race(
        [Contender("a", lambda: None, 7, 60)], batch_size=8, repeats=3, warm_up=1
    )
    assert (found.first, found.median, found.processor) == (9, 2.0, 0.5)
    assert found.low == pytest.approx(1.2) and found.high == pytest.approx(2.8)
    assert found.examples_per_second == 4.0
    assert found.flops_per_second == 30.0
    assert (found.num_params, found.flops, found.peak_memory) == (7, 60, None)


def test_ratios_and_utilization():
    ours, theirs = timing("a", 2.0), timing("b", 3.0, processor=4.0)
    measured = Bench("", "", 1, 1, 0.0, 10.0, "", (ours, theirs))
    assert measured.ratios() == {"b": 1.5}
    assert measured.processor_ratios() == {"b": 4.0}
    assert measured.utilization(ours) == 0.1


def test_our_step_trains_and_gives_its_state_away():
    program = build(linear.experiment())
    step = our_step(program, synthetic_batch(program))
    shape = (linear.INPUTS, linear.OUTPUTS)
    before = [x for x in jax.live_arrays() if x.shape == shape]
    for _ in range(3):
        step.step()  # a donated state would raise if it were used again
    after = [x for x in jax.live_arrays() if x.shape == shape]
    assert len(after) == len(before) >= 4
    assert all(x.is_deleted() for x in before)
    assert step.flops == program.flops
    assert step.num_params == linear.INPUTS * linear.OUTPUTS


def test_our_step_waits_for_its_end(monkeypatch):
    program = build(linear.experiment())
    step = our_step(program, synthetic_batch(program))
    waited = []
    monkeypatch.setattr(jax, "block_until_ready", waited.append)
    step.step()
    ((state, metrics),) = waited
    assert int(state.step) == 1 and "loss" in metrics


def test_bench_beside_a_peer(ceiling):
    told = []
    measured = bench(linear.experiment(), 2, contenders, told.append)
    assert measured.devices == "8 x cpu"
    assert measured.ceiling == 2e9
    assert measured.loader is None
    assert measured.ceiling_rule == "2048x2048x2048 product of float32"
    assert [t.name for t in measured.timings] == ["this step", "nothing"]
    assert measured.ratios()["nothing"] < 1
    record = json.loads(json.dumps(measured.record()))
    assert record["timings"][1]["peak_memory"] == 2048
    assert record["timings"][0]["utilization"] > 0
    assert "this step: compiling ..." in told


def test_bench_on_the_first_batch_of_its_data(ceiling):
    experiment, seen = linear.experiment(), []

    def peer(experiment, batch, train):
        seen.append(batch)
        return contenders(experiment, batch, train)

    measured = bench(experiment, 2, peer, data=True)
    (batch,) = seen
    first = experiment.data.batch(0)
    assert batch.keys() == first.keys()
    for name, part in first.items():
        np.testing.assert_array_equal(batch[name], part)
    assert measured.loader > 0


def test_the_loss_alone_costs_less(ceiling):
    experiment, asked = linear.experiment(), []

    def peer(experiment, batch, train):
        asked.append(train)
        return []

    measured = bench(experiment, 2, peer, forward=True)
    assert asked == [False]
    (ours,) = measured.timings
    assert 0 < ours.flops < build(experiment).flops


def test_command_prints_the_comparison(capsys, ceiling):
    with pytest.raises(SystemExit) as exited:
        run(command.main, [FILE, "--repeats", "2", "--peer", PEER])
    out, err = capsys.readouterr()
    assert exited.value.code == 0
    assert "linear on 8 x cpu, batch 16, median of 2 steps" in out
    assert "x the examples/s of nothing" in " ".join(out.split())
    flops = build(linear.experiment()).flops
    assert f"{flops / 1000:.3f} x its FLOPs" in " ".join(out.split())
    assert "nothing: first step ..." in err


def test_command_prints_json(capsys, ceiling):
    with pytest.raises(SystemExit):
        run(command.main, [FILE, "--repeats", "1", "--json"])
    record = json.loads(capsys.readouterr().out)
    assert record["ratios"] == {}
    assert record["timings"][0]["name"] == "this step"


@pytest.mark.parametrize(
    "name, told",
    [
        ("launch.peers.nowhere", "there is no module launch.peers.nowhere"),
        ("nowhere:f", "there is no module nowhere"),
        (f"{__name__}:nobody", "defines no function nobody"),
        ("launch.text", "defines no function contenders"),
    ],
)
def test_peers_that_are_not_there(name, told):
    with pytest.raises(UserError, match=told):
        find_peer(name)


def test_a_peer_that_needs_what_is_missing(tmp_path, monkeypatch):
    (tmp_path / "needy_peer.py").write_text("import absent_framework\n")
    monkeypatch.syspath_prepend(tmp_path)
    told = r"needy_peer needs absent_framework: pip install 'twelvefold\[parity\]'"
    with pytest.raises(UserError, match=told):
        find_peer("needy_peer")


def test_torch_asks_for_the_family_of_the_file(capsys):
    with pytest.raises(SystemExit) as exited:
        run(command.main, [FILE, "--torch"])
    assert exited.value.code == 2
    # The folder of this experiment file is called launch.
    assert "no peer launch.peers.launch" in capsys.readouterr().err
