import json
from functools import partial
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from launch import bench_samplers as command
from launch import tiny
from launch.bench_samplers import Row, bench, our_contender, our_likelihood, samplers
from launch.cli import run
from launch.timing import Contender, Timing
from research.diffusion.processes import VE, VP, SubVP
from research.errors import UserError
from tests.launch import linear

TASK = tiny.experiment().task
BATCH = {"image": jnp.zeros((1, 8, 8, 1), jnp.uint8)}


def timing(name, median):
    return Timing(name, 1.0, median, median, median, 1.0, 8 / median, 1, 1, 1, None)


def test_ratios_are_of_evaluations_a_second():
    row = Row("ODE", (timing("ours", 2.0), timing("theirs", 3.0)), (80, 60))
    assert row.ratios() == {"theirs": (80 / 2) / (60 / 3)}


@pytest.mark.parametrize("process", [VE(), TASK.process, SubVP()], ids=str)
def test_every_sampler_takes_what_it_is_given(process):
    """The last evaluations of Heun and of annealed Langevin lead to the data."""
    found = samplers(50, process)
    assert ("annealed Langevin" in found) == isinstance(process, VE)
    assert ("ancestral" in found) == (not isinstance(process, SubVP))
    del found["ODE"]
    for name, sampler in found.items():
        draw = partial(sampler, score=lambda x, t: -x, process=process, shape=(2, 3))
        taken = jax.jit(lambda rng, draw=draw: draw(rng)[1])(jax.random.key(0))
        assert taken == {"Heun": 49, "annealed Langevin": 51}.get(name, 50), name


def test_ours_are_whole_draws():
    variables = TASK.init(jax.random.key(0), BATCH)
    contender, taken = our_contender(TASK, variables, batch_size=4)
    assert taken == 10
    assert contender.num_params == sum(x.size for x in jax.tree.leaves(variables))
    per_image = 2 * (65 * 64 + 64 * 64)
    assert contender.flops == 10 * 4 * per_image
    contender.step()
    contender, taken = our_likelihood(TASK, variables, batch_size=4)
    assert taken > 10
    contender.step()


def peer(task, variables, batch_size, evaluations):
    """Does as good as nothing, and checks what it is given."""
    assert batch_size == 8 and evaluations == 50
    np.testing.assert_array_equal(
        task.init(jax.random.key(0), BATCH)["params"]["out"]["kernel"].shape,
        variables["params"]["out"]["kernel"].shape,
    )
    return {"DDIM": [(Contender("nothing", lambda: None, 100, 1000), 25)]}


@pytest.fixture(scope="module")
def rows():
    few = {name: samplers(50, VP())[name] for name in ("Euler-Maruyama", "DDIM")}
    with (
        mock.patch.object(command, "samplers", lambda *_: few),
        mock.patch.object(
            command, "our_likelihood", lambda *_: (Contender("ours", int, 1, 1), 7)
        ),
    ):
        return bench(TASK, batch_size=8, evaluations=50, repeats=1, peer=peer)


def test_all_are_timed_and_peers_stand_beside_theirs(rows):
    names = [row.sampler for row in rows]
    assert names == ["Euler-Maruyama", "DDIM", "likelihood"]
    for row in rows:
        own, *others = row.timings
        assert own.name == "ours"
        assert own.examples_per_second == 8 / own.median
        assert len(row.evaluations) == len(row.timings)
        assert [o.name for o in others] == ["nothing"] * (row.sampler == "DDIM")
    (ddim,) = [row for row in rows if row.sampler == "DDIM"]
    assert ddim.evaluations == (50, 25)


def test_the_table(rows, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    command._print("a title", rows)
    out = capsys.readouterr().out
    (line,) = [line for line in out.splitlines() if line.strip().startswith("DDIM")]
    (ddim,) = [row for row in rows if row.sampler == "DDIM"]
    assert f"{ddim.ratios()['nothing']:.3f}x" in line and " 25 " in line
    assert "a title" in out


def test_command(monkeypatch, capsys):
    args = ["launch.tiny", "--evaluations", "60", "--batch-size", "3", "--json"]
    seen = []

    def instead(*args):
        seen.append(args)
        return [Row("ODE", (timing("ours", 2.0),), (80,))]

    monkeypatch.setattr(command, "bench", instead)
    with pytest.raises(SystemExit) as exited:
        run(command.main, args)
    assert exited.value.code == 0
    assert seen[0][1:5] == (3, 60, 5, None)
    (row,) = json.loads(capsys.readouterr().out)
    assert row["sampler"] == "ODE" and row["evaluations"] == [80]


def test_what_cannot_be_timed_is_told(capsys):
    for evaluations in (20, 55):
        with pytest.raises(UserError, match="multiple of 10"):
            bench(TASK, 8, evaluations, 1)
    with pytest.raises(SystemExit) as exited:
        run(command.main, [str(linear.__file__)])
    assert exited.value.code == 2
    assert "expected ScoreMatching" in capsys.readouterr().err
