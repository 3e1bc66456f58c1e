"""Which variables the commands that read a run are given."""

import json

import numpy as np
import pytest

from launch import cli, evaluate
from launch.restored import Restored
from research.errors import UserError
from tests.train.runs import leaves, run, saved


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Checkpoints of steps 5, 10 and 15, with an average of the parameters."""
    folder = tmp_path_factory.mktemp("trained")
    run(folder, "num_steps=15")
    return folder


@pytest.mark.parametrize("average, part", [(True, "ema/"), (False, "params/")])
def test_the_mean_of_the_last_checkpoints(trained, average, part):
    _, variables, _, step = Restored(trained, average=average, average_last=2).load()
    parts = [saved(trained, step) for step in (10, 15)]
    assert step == 15
    for name, leaf in leaves(variables["params"]).items():
        mean = np.mean([np.float64(p[part + name]) for p in parts], axis=0)
        np.testing.assert_allclose(leaf, mean, rtol=1e-6, atol=1e-8)
        assert np.any(leaf != parts[1][part + name])


def test_more_than_there_are_is_told(trained):
    with pytest.raises(UserError, match=r"has 3 up to step 15: \[5, 10, 15\]"):
        Restored(trained, average_last=4).load()


def test_from_the_command_line(trained, capsys):
    def loss(*arguments):
        with pytest.raises(SystemExit) as ended:
            cli.run(evaluate.main, [str(trained), *arguments])
        told = capsys.readouterr()
        assert ended.value.code == 0, told.err
        return json.loads(told.out)["test/loss"]

    assert loss("--average-last", "3") != loss()
