"""What is made of the times; the timing itself is the machine's."""

import json
import math

import pytest

from launch.bench_cores import BASELINE, Point, crossover, draw, main, slope
from research.errors import UserError


def points(name, seconds):
    return [Point(name, 2**i, s, 100 * 4**i) for i, s in enumerate(seconds, start=3)]


def test_slopes_are_of_the_longest_lengths():
    quadratic = points("x", [5.0, 1.0, 4.0])
    assert slope(quadratic, lambda p: p.seconds) == pytest.approx(2.0)
    assert slope(quadratic[::-1], lambda p: p.memory) == pytest.approx(2.0)
    assert math.isnan(slope(quadratic[:1], lambda p: p.seconds))


def test_a_crossover_stays():
    baseline = points(BASELINE, [1.0, 2.0, 4.0, 8.0])
    assert crossover(points("x", [0.5, 3.0, 3.0, 3.0]), baseline) == 32
    assert crossover(points("x", [0.5, 0.5, 0.5, 9.0]), baseline) is None
    assert crossover(points("x", [0.5, 0.5, 0.5, 0.5]), baseline) == 8


def test_points_are_drawn(tmp_path):
    found = {BASELINE: points(BASELINE, [1.0, 4.0]), "x": points("x", [1.0, 2.0])}
    draw(found, tmp_path / "cores.png")
    assert (tmp_path / "cores.png").read_bytes().startswith(b"\x89PNG")


def test_the_command_measures_every_core(capsys, monkeypatch):
    import launch.bench_cores as module

    everyone = module.contenders
    few = (BASELINE, "linear elu+1")
    monkeypatch.setattr(
        module, "contenders", lambda n, c: {k: everyone(n, c)[k] for k in few}
    )
    small = {"heads": 2, "dim": 4, "repeats": 1, "most_memory": 100_000}
    main(lengths=(32, 16), as_json=True, **small)
    record = json.loads(capsys.readouterr().out)
    assert [(p["core"], p["length"]) for p in record["points"]] == [
        (BASELINE, 16),
        (BASELINE, 32),
        ("linear elu+1", 16),
        ("linear elu+1", 32),
    ]
    assert all(p["seconds"] > 0 and p["memory"] > 0 for p in record["points"])
    main(lengths=(16, 64), **small)
    table = capsys.readouterr().out
    # 64 positions take more than that.
    assert [line for line in table.splitlines() if BASELINE in line][0].count(",") == 2


def test_lengths_have_to_be_lengths():
    with pytest.raises(UserError, match="at least 2"):
        main(lengths=(1,))
