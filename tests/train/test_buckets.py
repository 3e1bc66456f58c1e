"""Runs whose batches have several shapes: one executable each, and no other."""

import dataclasses
import math

import jax
import numpy as np
import pytest

from launch.bench import our_step
from research.errors import UserError
from research.experiment import load
from research.train.builder import build, synthetic_batch
from research.train.checkpoints import CheckpointStore
from tests.train.runs import assert_bitwise, leaves, records, run
from tests.train.test_loop import Compilations, numbers

REFERENCE = "tests.train.lengths"


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """Twenty steps without a break, and what was compiled until when."""
    folder, compilations = tmp_path_factory.mktemp("straight"), Compilations()
    result = run(folder, reference=REFERENCE, reports=(lambda _: compilations,))
    return folder, result, compilations.at


@pytest.fixture(scope="module")
def program():
    return build(load(REFERENCE))


def saved(folder, step):
    program = build(load(REFERENCE))
    policy = program.experiment.checkpoints
    with CheckpointStore(folder / "checkpoints", policy, read_only=True) as store:
        return leaves(store.restore(step, program.state))


def test_a_run_cut_in_two_is_the_straight_run(straight, tmp_path):
    folder, result, _ = straight
    assert run(tmp_path, reference=REFERENCE, stop_at=7)
    assert run(tmp_path, reference=REFERENCE) == result
    assert_bitwise(saved(tmp_path, 20), saved(folder, 20))
    parts, whole = dict(numbers(tmp_path)), dict(numbers(folder))
    assert {step: parts[step] for step in (5, 15, 20)} == {
        step: whole[step] for step in (5, 15, 20)
    }
    assert result["test/loss"] < math.log(12)


def test_the_number_of_executables_is_told(straight):
    (note,) = records(straight[0], "note")
    assert note == {
        "step": 0,
        "kind": "note",
        "note": "compiled 3 steps, for 32 rows of tokens 4; 16 rows of tokens 8; "
        "8 rows of tokens 16",
    }


def test_nothing_else_is_compiled(straight):
    """Not after the first report and evaluation, though a shape comes later first."""
    data, at = load(REFERENCE).data, straight[2]
    shapes = [data.batch(step)["tokens"].shape for step in range(20)]
    assert set(shapes[10:]) - set(shapes[:10]) and len(set(shapes)) == 3
    assert at["train", 5] > 0
    assert at["eval", 20] == at["goodput", 20] == at["train", 10]


def test_rates_count_what_each_batch_holds(straight, program):
    """Batches of 32, 16 and 8 rows: examples and FLOPs are those that were there."""
    data = program.experiment.data
    for line in records(straight[0], "train"):
        steps = range(line["step"] - 5, line["step"])
        batches = [data.batch(step) for step in steps]
        examples = sum(len(batch["tokens"]) for batch in batches)
        work = sum(program.flops_of(batch) for batch in batches)
        ratio = line["flops_per_second"] / line["examples_per_second"]
        assert ratio == pytest.approx(work / examples, rel=1e-9)


def test_a_program_has_a_step_for_each_bucket_and_is_sized_by_the_largest(program):
    assert [b["tokens"].shape for b in program.batches] == [(32, 4), (16, 8), (8, 16)]
    assert program.batch["tokens"].shape == (8, 16)
    assert synthetic_batch(program)["tokens"].shape == (8, 16)
    assert program.flops == program.flops_of(program.batch)
    # One product for each token but the first, and two for its gradients.
    assert program.flops == 3 * 2 * 16 * 12 * 8 * 15
    batch = program.experiment.data.batch(0)
    assert program.batch_size_of({"tokens": batch["tokens"][:1]}) == len(
        batch["tokens"]
    )
    with pytest.raises(ValueError):
        program.batch_size_of({"tokens": np.zeros((4, 5))})


def test_only_the_steps_that_are_asked_for_are_compiled(program):
    """Bench takes the largest; shapes of no bucket are refused."""
    compilations = Compilations()
    contender = our_step(program, synthetic_batch(program))
    largest = compilations.number
    contender.step()
    executables = program.compile()
    assert len(executables) == 3
    state, seen = program.init(), compilations.number
    batch = {"tokens": jax.numpy.zeros((8, 12), np.int32)}
    with pytest.raises(TypeError, match=r"int32\[8,16\].*int32\[8,12\]"):
        executables(state, batch)
    compilations.close()
    assert largest and compilations.number <= seen + 1  # the zeros


def test_every_bucket_has_to_fit_the_devices():
    experiment = load(REFERENCE)
    first, second = experiment.data.smaller
    odd = dataclasses.replace(second, batch_size=12)
    data = dataclasses.replace(experiment.data, smaller=(first, odd))
    with pytest.raises(UserError, match="a batch of 12 cannot be split over 8 devices"):
        build(dataclasses.replace(experiment, data=data))
