"""Every experiment at its true size: text, parameter count, shards. No data is read."""

from pathlib import Path

import jax
import pytest

from research.experiment import describe, load
from research.train import sharding
from research.train.builder import build

ROOT = Path(__file__).parents[1]
GOLDEN = Path(__file__).parent / "golden"
FILES = sorted((ROOT / "experiments").rglob("*.py"))


def golden_of(path: Path) -> Path:
    return GOLDEN / path.relative_to(ROOT / "experiments").with_suffix(".txt")


def test_there_are_experiments_and_no_orphaned_goldens():
    assert FILES
    assert sorted(GOLDEN.rglob("*.txt")) == [golden_of(path) for path in FILES]


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_settings_are_the_golden_ones(path):
    """A changed default anywhere is a diff here, in each experiment that it touches.

    If the change is meant: python -m tests.golden, and commit the diff.
    """
    assert describe(load(str(path))) == golden_of(path).read_text()


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_true_size_builds_and_shards(path):
    experiment = load(str(path))
    mesh = sharding.make_mesh({"data": 2, "fsdp": 4})
    program = build(experiment, mesh)
    assert program.num_params() == experiment.num_params
    for leaf in jax.tree.leaves(program.state.params):
        if leaf.size >= sharding.LARGE:
            assert "fsdp" in leaf.sharding.spec


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_the_note_says_how_to_run_it(path):
    note = path.read_text().split('"""')[1]
    assert f"python -m launch.train experiments/{path.parent.name}/{path.name}" in note
    assert "Ours:" in note or "Measured:" in note
