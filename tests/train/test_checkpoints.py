"""Checkpoints: exact on any devices, never half, never silently wrong."""

import errno
import json
import math
import shutil
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from research.errors import SaveError, UserError
from research.train import checkpoints, sharding
from research.train.checkpoints import (
    Checkpoints,
    CheckpointStore,
    complete_steps,
    damage,
    read_meta,
    require,
    select,
)
from research.train.state import TrainState
from tests.train.runs import assert_bitwise, leaves

META = {"identity": "x", "next_batch": 0, "metrics": {"loss": 1.5}}


def make_state(step: int, mesh) -> TrainState:
    """A state in its shards, whose values follow from the step."""
    rng = np.random.default_rng(step)
    params = {
        "dense": {"kernel": rng.standard_normal((16, 64)).astype(np.float32)},
        "bias": rng.standard_normal(3).astype(np.float32),
    }
    state = TrainState(
        step=jnp.int32(step),
        skipped=jnp.int32(0),
        params=params,
        opt_state=optax.adam(1e-3).init(params),
        ema=jax.tree.map(lambda p: p / 2, params),
        extra={"batch_stats": {"mean": np.full(5, step, np.float32)}},
    )
    return jax.device_put(state, sharding.tree_sharding(state, mesh))


def like(state: TrainState) -> TrainState:
    """The target of a restore into the same shards."""
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )


def mesh_of(**shape: int):
    return sharding.make_mesh(shape, jax.devices()[: math.prod(shape.values())])


@pytest.fixture
def one():
    return mesh_of(data=1)


def fill(folder, steps, mesh, policy=Checkpoints(keep_last=10)):  # noqa: B008
    with CheckpointStore(folder, policy) as store:
        for step in steps:
            store.save(make_state(step, mesh), META)


@pytest.fixture
def two_saved(tmp_path, one):
    folder = tmp_path / "checkpoints"
    fill(folder, [5, 10], one)
    return folder


def read(folder, step, mesh):
    with CheckpointStore(folder, Checkpoints(), read_only=True) as store:
        return store.restore(step, like(make_state(0, mesh)))


@pytest.mark.parametrize(
    "before, after",
    [
        ({"data": 8}, {"data": 1}),
        ({"data": 1}, {"data": 8}),
        ({"fsdp": 8}, {"data": 1}),
        ({"data": 1}, {"data": 2, "fsdp": 4}),
    ],
    ids=str,
)
def test_any_devices_restore_what_any_devices_saved(tmp_path, before, after):
    before, after = mesh_of(**before), mesh_of(**after)
    fill(tmp_path, [3], before)
    state = read(tmp_path, 3, after)
    assert_bitwise(leaves(state), leaves(make_state(3, before)))
    for found, wanted in zip(
        jax.tree.leaves(state), jax.tree.leaves(make_state(3, after)), strict=True
    ):
        assert found.sharding.is_equivalent_to(wanted.sharding, found.ndim)
    assert read_meta(tmp_path, 3) == {"format": 1, "step": 3, **META}


def test_the_newest_stay_and_every_so_many(tmp_path, one):
    fill(tmp_path, [10, 20, 25, 30, 35, 40], one, Checkpoints(5, 2, keep_every=20))
    assert complete_steps(tmp_path) == [20, 35, 40]


def test_a_state_may_be_donated_while_it_is_written(tmp_path, one):
    state = make_state(1, one)
    overwrite = jax.jit(
        lambda s: jax.tree.map(lambda x: x * 0 - 1, s), donate_argnums=0
    )
    with CheckpointStore(tmp_path, Checkpoints()) as store:
        store.save(state, META)
        for _ in range(3):
            state = overwrite(state)
    assert_bitwise(leaves(read(tmp_path, 1, one)), leaves(make_state(1, one)))


def test_saving_a_step_again_changes_nothing(two_saved, one):
    with CheckpointStore(two_saved, Checkpoints(keep_last=10)) as store:
        store.save(make_state(7, one).replace(step=jnp.int32(10)), META)
    assert_bitwise(leaves(read(two_saved, 10, one)), leaves(make_state(10, one)))


class Disk:
    """Stands where digests are written, the last thing before the final name."""

    def __init__(self, monkeypatch):
        self.full = False
        self.reached, self.go_on = threading.Event(), threading.Event()
        self.go_on.set()
        self._write = checkpoints._write_digests
        monkeypatch.setattr(checkpoints, "_write_digests", self)

    def __call__(self, folder):
        self.reached.set()
        self.go_on.wait()
        if self.full:
            raise OSError(errno.ENOSPC, "No space left on device")
        self._write(folder)


def test_a_failed_save_is_told_with_its_cause_and_costs_no_other(
    tmp_path, one, monkeypatch
):
    disk = Disk(monkeypatch)
    with CheckpointStore(tmp_path, Checkpoints(keep_last=1)) as store:
        store.save(make_state(1, one), META)
        store.wait()
        disk.full = True
        store.save(make_state(2, one), META)
        with pytest.raises(SaveError, match=r"No space left.*whole: \[1\]") as raised:
            for _ in range(6000):  # as the loop does after every step
                store.check()
                time.sleep(0.01)
        assert isinstance(raised.value.__cause__, OSError)
        assert raised.value.__cause__.errno == errno.ENOSPC
    assert complete_steps(tmp_path) == [1]
    assert damage(tmp_path, 1) is None


@pytest.mark.parametrize("ask", ["save", "wait"])
def test_a_failed_save_is_told_at_the_latest_at_the_next(
    tmp_path, one, monkeypatch, ask
):
    Disk(monkeypatch).full = True
    with CheckpointStore(tmp_path, Checkpoints()) as store:
        store.save(make_state(1, one), META)
        with pytest.raises(SaveError, match="No space left"):
            store.save(make_state(2, one), META) if ask == "save" else store.wait()


def test_a_failed_save_does_not_hide_another_error(tmp_path, one, monkeypatch):
    Disk(monkeypatch).full = True
    with pytest.raises(ZeroDivisionError):
        with CheckpointStore(tmp_path, Checkpoints()) as store:
            store.save(make_state(1, one), META)
            raise ZeroDivisionError


def test_a_save_is_not_there_before_it_is_whole(two_saved, one, monkeypatch):
    """What a kill at its last moment would leave is named, removed and saved again."""
    disk = Disk(monkeypatch)
    with CheckpointStore(two_saved, Checkpoints(keep_last=10)) as store:
        disk.go_on.clear()
        disk.reached.clear()
        store.save(make_state(15, one), META)
        assert disk.reached.wait(60)
        copy = two_saved.parent / "killed" / "checkpoints"
        shutil.copytree(two_saved, copy)
        disk.go_on.set()
    assert complete_steps(two_saved) == [5, 10, 15]
    step, notes = select(copy)
    assert step == 10
    assert notes == ["ignored the unfinished save 15.orbax-checkpoint-tmp"]
    assert [path.name for path in sorted(copy.iterdir())] == ["10", "5"]
    fill(copy, [15], one)
    assert_bitwise(leaves(read(copy, 15, one)), leaves(make_state(15, one)))


def files_of(folder, step):
    return [p for p in sorted((folder / str(step)).rglob("*")) if p.is_file()]


def flip(content, rng):
    changed = bytearray(content)
    changed[rng.integers(len(content))] ^= 1 << rng.integers(8)
    return bytes(changed)


@pytest.mark.parametrize(
    "change",
    [flip, lambda content, rng: content[: rng.integers(len(content))], None],
    ids=["flipped", "cut", "missing"],
)
def test_damage_anywhere_is_detected_or_harmless(two_saved, one, change):
    """Orbax's markers carry no state and are read by nothing: all else is guarded."""
    rng = np.random.default_rng(0)
    truth, harmless = leaves(make_state(10, one)), []
    for path in files_of(two_saved, 10):
        whole = path.read_bytes()
        if not whole:
            continue
        path.unlink() if change is None else path.write_bytes(change(whole, rng))
        if damage(two_saved, 10) is None:
            harmless.append(path.name)
            assert_bitwise(leaves(read(two_saved, 10, one)), truth)
        path.write_bytes(whole)
    assert set(harmless) == {"commit_success.txt", "_CHECKPOINT_METADATA"}
    assert damage(two_saved, 10) is None


def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_it_taken(two_saved, one):
    victim = next(p for p in files_of(two_saved, 10) if p.parent.name == "d")
    victim.write_bytes(flip(victim.read_bytes(), np.random.default_rng(0)))
    step, notes = select(two_saved)
    name = victim.relative_to(two_saved / "10")
    place = two_saved.parent / "rejected" / "10-0"
    assert step == 5 and notes == [
        f"rejected checkpoint 10 ({name} does not match its digest), moved to {place}"
    ]
    assert (place / name).exists() and complete_steps(two_saved) == [5]
    assert select(two_saved) == (5, [])
    with CheckpointStore(two_saved, Checkpoints()) as store:
        store.reload()
        store.save(make_state(10, one), META)
    assert_bitwise(leaves(read(two_saved, 10, one)), leaves(make_state(10, one)))


def test_nothing_is_begun_anew_where_all_is_damaged(two_saved):
    for step in (5, 10):
        (two_saved / str(step) / "meta" / "metadata").write_text("{}")
    with pytest.raises(UserError, match="all checkpoints in .* are damaged"):
        select(two_saved)


def test_an_empty_folder_is_a_beginning(tmp_path):
    assert select(tmp_path / "checkpoints") == (None, [])


def test_reading_asks_for_a_step_that_is_there_and_whole(two_saved, tmp_path):
    assert require(two_saved, None) == 10
    assert require(two_saved, 5) == 5
    with pytest.raises(UserError, match=r"no checkpoint 7 .*: there are \[5, 10\]"):
        require(two_saved, 7)
    with pytest.raises(UserError, match="no checkpoint in .*: expected the workdir"):
        require(tmp_path / "nothing", None)
    digests = two_saved / "10" / "state" / "digests.json"
    digests.write_text(json.dumps({**json.loads(digests.read_text()), "more": [1, ""]}))
    with pytest.raises(UserError, match=r"damaged: state/more is missing.*\[5\]"):
        require(two_saved, None)


def test_a_state_that_does_not_fit_names_the_leaf(two_saved, one):
    right = make_state(0, one)
    wrong = {
        "params/more is absent there and float32 (2,) here": {"more": jnp.zeros(2)},
        "params/bias is float32 (3,) there and float32 (4,) here": {
            "bias": jnp.zeros(4)
        },
        "params/bias is float32 (3,) there and bfloat16 (3,) here": {
            "bias": jnp.zeros(3, jnp.bfloat16)
        },
    }
    with CheckpointStore(two_saved, Checkpoints(), read_only=True) as store:
        for words, change in wrong.items():
            target = right.replace(params={**right.params, **change})
            with pytest.raises(UserError) as raised:
                store.restore(10, target)
            assert words in str(raised.value)
        less = right.replace(params={"bias": right.params["bias"]})
        with pytest.raises(UserError, match="params/dense/kernel is .* absent here"):
            store.restore(10, less)
