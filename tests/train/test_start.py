"""Beginning with another run's variables."""

from dataclasses import dataclass, replace

import jax
import numpy as np
import pytest

from launch import tiny
from research.errors import UserError
from research.tasks.score_matching import ScoreMatching
from research.train.builder import build
from research.train.start import Fitted, FromRun, Partly, begin
from research.train.state import Ema
from tests.train.runs import assert_bitwise, leaves, run, saved

FROM_RUN = "start=research.train.start.FromRun"


@pytest.fixture(scope="module")
def parent(tmp_path_factory):
    """A run of ten steps."""
    folder = tmp_path_factory.mktemp("parent")
    run(folder, "num_steps=10")
    return folder


def part(tree, prefix):
    return {
        path.removeprefix(prefix): leaf
        for path, leaf in tree.items()
        if path.startswith(prefix)
    }


@pytest.mark.parametrize("average, theirs", [(True, "ema/"), (False, "params/")])
def test_a_run_starts_where_another_stood(parent, tmp_path, average, theirs):
    """Without a step's learning, the parameters and their average are the parent's."""
    still = "optimizer.learning_rate.peak=0.0"
    run(tmp_path, f"{FROM_RUN}({str(parent)!r}, average={average})", still)
    ours = saved(tmp_path, 20)
    expected = part(saved(parent, 10), theirs)
    assert_bitwise(part(ours, "params/"), expected)
    assert_bitwise(part(ours, "ema/"), expected)


@dataclass(frozen=True)
class Wrapped:
    """A task within another."""

    inner: ScoreMatching

    def init(self, rng, batch):
        return {"params": {"inner": self.inner.init(rng, batch)["params"]}}

    def loss(self, variables, batch, rng, train):
        return self.inner.loss(
            {"params": variables["params"]["inner"]}, batch, rng, train
        )


def wrapped(trainable="", ema=None, **changes):
    base = tiny.experiment()
    task = Wrapped(replace(base.task, **changes))
    mesh = {"data": 2, "fsdp": 4}
    return build(replace(base, task=task, mesh=mesh, trainable=trainable, ema=ema))


@pytest.mark.parametrize(
    "trainable, ema", [("", Ema(0.9)), ("^inner/out", Ema(0.9)), ("", None)]
)
def test_a_run_becomes_a_part(parent, trainable, ema):
    """In the shards of the new mesh; the average is of what moves."""
    program = wrapped(trainable, ema)
    state = begin(program.init(), FromRun(str(parent), under="inner", step=5))
    expected = part(saved(parent, 5), "ema/")
    assert_bitwise(part(leaves(state.params), "inner/"), expected)
    placed = jax.tree.map(lambda leaf: leaf.sharding, state.params)
    assert placed == jax.tree.map(lambda leaf: leaf.sharding, program.state.params)
    assert int(state.step) == 0
    moving = {path: leaf for path, leaf in expected.items() if "out" in path}
    averaged = {} if ema is None else moving if trainable else expected
    assert_bitwise(part(leaves(state.ema), "inner/"), averaged)
    same = jax.tree.map(
        lambda leaf, born: leaf.shape == born.shape, state, program.state
    )
    assert all(jax.tree.leaves(same))


@pytest.mark.parametrize(
    "start, told",
    [
        (FromRun("nowhere"), "no checkpoint in nowhere"),
        (FromRun("PARENT", under="other"), "no such part"),
        (FromRun("PARENT"), "lacks params/hidden"),
        (FromRun("PARENT", under="inner", step=3), "no checkpoint 3"),
        (lambda expected: {"params/nothing": np.zeros(3)}, "does not have"),
    ],
)
def test_what_does_not_fit_is_told(parent, start, told):
    if isinstance(start, FromRun):
        start = replace(start, workdir=start.workdir.replace("PARENT", str(parent)))
    with pytest.raises(UserError, match=told):
        begin(wrapped().init(), start)


def test_another_width_is_told(parent):
    program = wrapped(network=tiny.Network(width=32))
    with pytest.raises(UserError, match=r"hidden/bias with shape \(64,\).*\(32,\)"):
        begin(program.init(), FromRun(str(parent), under="inner"))


PARTS = {"params/head/kernel": np.ones((4, 3)), "params/table": np.arange(9.0)}


def given(expected):
    return PARTS


def doubled(leaves, expected):
    fits = {path: leaf.shape for path, leaf in expected.items()}
    return {
        path: np.resize(2 * leaf, fits.get(path, leaf.shape))
        for path, leaf in leaves.items()
    }


def test_a_start_is_made_to_fit_and_some_of_it_is_drawn():
    expected = {"params/table": jax.ShapeDtypeStruct((3, 2), np.float32)}
    fitted = Fitted(given, fit=doubled, fresh="^params/head/")(expected)
    assert fitted.keys() == {"params/table"}
    np.testing.assert_array_equal(fitted["params/table"], [[0, 2], [4, 6], [8, 10]])
    assert Fitted(given)(expected) == PARTS
    with pytest.raises(UserError, match="fresh='haed' matches nothing .*/head/kernel"):
        Fitted(given, fresh="haed")(expected)


def test_a_task_that_has_more_begins_with_what_is_known():
    expected = {
        path: jax.ShapeDtypeStruct(p.shape, p.dtype) for path, p in PARTS.items()
    }
    asked = []

    def start(expected):
        asked.append(expected.keys())
        return given(expected)

    more = {**expected, "params/masks/kernel": jax.ShapeDtypeStruct((2,), np.float32)}
    assert Partly(start, fresh="^params/masks/")(more) == PARTS
    assert asked == [expected.keys()]
    with pytest.raises(UserError, match="fresh='maks' matches nothing of this task"):
        Partly(start, fresh="maks")(more)
