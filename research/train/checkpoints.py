"""Checkpoints: orbax for the writing, digests so that no flipped bit is ever loaded.

`checkpoints/<step>/` holds `state/` (the `TrainState`) and `meta/` (a JSON record: the
step, which is also the position in the data, the experiment's identity, the metrics).
Each has a `digests.json` with the size and BLAKE2 digest of every file beside it,
written before the step's folder gets its final name: a folder with that name is
complete, and what does not match its digests is damaged.
"""

import contextlib
import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from orbax.checkpoint.checkpoint_managers import preservation_policy

from research.errors import SaveError, UserError
from research.train.sharding import path_name
from research.train.state import TrainState

FORMAT = 1
DIGESTS = "digests.json"


@dataclass(frozen=True)
class Checkpoints:
    """When to save, and what to keep.

    Saves every `every` steps and at the end. The `keep_last` newest stay, and for ever
    those whose step is a multiple of `keep_every` (0: none).
    """

    every: int = 1000
    keep_last: int = 3
    keep_every: int = 0


class CheckpointStore:
    """The checkpoints of one workdir. Use as a context manager, on every process."""

    def __init__(self, folder: Path, policy: Checkpoints, *, read_only: bool = False):
        self.folder = folder
        rules: list[Any] = [preservation_policy.LatestN(policy.keep_last)]
        if policy.keep_every:
            rules.append(preservation_policy.EveryNSteps(policy.keep_every))
        self._manager = ocp.CheckpointManager(
            folder.absolute(),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=preservation_policy.AnyPreservationPolicy(rules),
                read_only=read_only,
                create=not read_only,
                lightweight_initialize=True,
            ),
            handler_registry=_handlers(),
        )
        self._saving = False

    def __enter__(self) -> "CheckpointStore":
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        if kind is None:
            self.wait()
        elif self._saving and jax.process_count() > 1:
            return  # the processes that would have to finish the save may be gone
        with contextlib.suppress(Exception):  # `wait` told it, or a worse one is told
            self._manager.close()

    def save(self, state: TrainState, meta: Mapping[str, Any]) -> None:
        """Starts an asynchronous save of `state` under its own step.

        Returns once the state is copied to the host: it may be donated at once.

        Raises:
          SaveError: this save could not start, or an earlier one failed.
        """
        step = int(state.step)
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(state),
            meta=ocp.args.JsonSave({"format": FORMAT, "step": step, **meta}),
        )
        try:
            if step not in self._manager.all_steps():
                if not self._manager.save(step, args=args, force=True):
                    raise RuntimeError(f"step {step} was refused")
                self._saving = True
        except Exception as error:
            self._fail(error)

    def check(self) -> None:
        """Raises SaveError, from its cause, if a save has failed meanwhile."""
        # The manager's own `check_for_errors` would take the error from the thread that
        # goes on to delete older checkpoints unless it sees that error itself.
        if self._saving and not self._manager.is_saving_in_progress():
            self.wait()

    def wait(self) -> None:
        """Returns when nothing is being written; raises SaveError if a save failed."""
        self._saving = False
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            self._fail(error)

    def _fail(self, error: Exception) -> NoReturn:
        if isinstance(error, jax.errors.JaxRuntimeError):
            raise error  # not of the disk: a process is gone that should have saved too
        raise SaveError(
            f"saving to {self.folder} failed: {error}; the checkpoints before it are "
            f"whole: {self.steps()}"
        ) from error

    def reload(self) -> None:
        """Reads the folder anew, after `select` has cleared it up."""
        self._manager.reload()

    def steps(self) -> list[int]:
        """The steps of all complete checkpoints, sorted."""
        return complete_steps(self.folder)

    def restore(self, step: int, target: Any) -> TrainState:
        """The state of `step`, placed as `target` (shapes with shardings) says.

        Any number of devices may have saved it.

        Raises:
          UserError: a leaf is missing, is not expected, or has another shape or type.
        """
        found = _shapes(self._manager.item_metadata(step)["state"].tree)
        wanted = _shapes(target)
        for name in sorted(found.keys() | wanted.keys()):
            if found.get(name) != wanted.get(name):
                raise UserError(
                    f"checkpoint {step} in {self.folder} does not fit this experiment: "
                    f"{name} is {found.get(name, 'absent')} there and "
                    f"{wanted.get(name, 'absent')} here"
                )
        restored = self._manager.restore(
            step, args=ocp.args.Composite(state=ocp.args.StandardRestore(target))
        )
        return restored["state"]


def complete_steps(folder: Path) -> list[int]:
    """The steps whose folder has its final name, sorted."""
    if not folder.is_dir():
        return []
    return sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit())


def read_meta(folder: Path, step: int) -> dict[str, Any]:
    """The JSON record of one checkpoint."""
    return json.loads((folder / str(step) / "meta" / "metadata").read_text())


def read_variables(folder: Path, step: int, average: bool) -> dict[str, np.ndarray]:
    """The task's variables in a checkpoint by path, whatever experiment saved it.

    Args:
      folder: of the checkpoints.
      step: one of them, undamaged.
      average: the averaged parameters in the place of those that have one.
    """
    place = folder.absolute() / str(step) / "state"
    reader = ocp.PyTreeCheckpointer()
    metadata = reader.metadata(place).item_metadata
    assert metadata is not None  # StandardSave writes it
    saved = metadata.tree
    wanted = {name: saved[name] for name in ("params", "extra")}
    if average and saved["ema"] is not None:
        wanted["ema"] = saved["ema"]
    arguments = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), wanted)
    shapes = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), wanted
    )
    state = reader.restore(
        place,
        args=ocp.args.PyTreeRestore(
            item=shapes, restore_args=arguments, partial_restore=True
        ),
    )
    found = _leaves({"params": state["params"], **(state["extra"] or {})})
    return found | _leaves({"params": state.get("ema", {})})


def damage(folder: Path, step: int) -> str | None:
    """What is wrong with a checkpoint's files, or None if every digest matches."""
    for item in ("state", "meta"):
        root = folder / str(step) / item
        try:
            expected = json.loads((root / DIGESTS).read_text())
        except (OSError, ValueError):
            return f"{item}/{DIGESTS} is missing or unreadable"
        for name, recorded in expected.items():
            if not (root / name).is_file():
                return f"{item}/{name} is missing"
            if _digest(root / name) != recorded:
                return f"{item}/{name} does not match its digest"
    return None


def select(folder: Path) -> tuple[int | None, list[str]]:
    """The newest undamaged step, and a sentence for everything that was set aside.

    Half-written saves are removed; damaged checkpoints are moved to `rejected/` beside
    the folder, so that their step can be saved again and nothing is lost. Process 0
    decides for all.

    Raises:
      UserError: there are checkpoints, but all are damaged.
    """
    notes: list[str] = []
    chosen = -1
    if jax.process_index() == 0 and folder.is_dir():
        for path in sorted(folder.iterdir()):
            if path.is_dir() and "orbax-checkpoint-tmp" in path.name:
                notes.append(f"ignored the unfinished save {path.name}")
                shutil.rmtree(path, ignore_errors=True)
        found = complete_steps(folder)
        for step in reversed(found):
            problem = damage(folder, step)
            if problem is None:
                chosen = step
                break
            place = _set_aside(folder / str(step), folder.parent / "rejected")
            notes.append(f"rejected checkpoint {step} ({problem}), moved to {place}")
        if found and chosen < 0:
            chosen = -2
    if jax.process_count() > 1:
        chosen = int(multihost_utils.broadcast_one_to_all(jax.numpy.int32(chosen)))
    if chosen == -2:
        raise UserError(
            f"all checkpoints in {folder} are damaged: {'; '.join(notes)}; start in "
            "another workdir, or bring back a copy"
        )
    return (None if chosen < 0 else chosen), notes


def require(folder: Path, step: int | None) -> int:
    """An existing, undamaged step for reading: the newest, or the one asked for.

    Raises:
      UserError: it is not there, or it is damaged.
    """
    steps = complete_steps(folder)
    if not steps:
        raise UserError(f"no checkpoint in {folder}: expected the workdir of a run")
    if step is None:
        step = steps[-1]
    if step not in steps:
        raise UserError(f"no checkpoint {step} in {folder}: there are {steps}")
    if problem := damage(folder, step):
        others = [other for other in steps if other != step]
        raise UserError(
            f"checkpoint {step} in {folder} is damaged: {problem}; choose another with "
            f"--step: there are {others}"
        )
    return step


def _leaves(tree: Any) -> dict[str, Any]:
    """The leaves by path."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {path_name(path): leaf for path, leaf in leaves}


def _shapes(tree: Any) -> dict[str, str]:
    """`float32 (3, 64)` of each leaf by its path."""
    return {name: f"{leaf.dtype} {leaf.shape}" for name, leaf in _leaves(tree).items()}


def _set_aside(path: Path, parent: Path) -> Path:
    parent.mkdir(exist_ok=True)
    number = 0
    while (place := parent / f"{path.name}-{number}").exists():
        number += 1
    return path.rename(place)


def _digest(path: Path) -> list[Any]:
    with path.open("rb") as file:
        return [path.stat().st_size, hashlib.file_digest(file, "blake2b").hexdigest()]


def _write_digests(folder: Path) -> None:
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != DIGESTS)
    digests = {str(path.relative_to(folder)): _digest(path) for path in files}
    (folder / DIGESTS).write_text(json.dumps(digests))


class _StateHandler(ocp.StandardCheckpointHandler):
    def finalize(self, directory: Any) -> None:
        super().finalize(directory)
        _write_digests(Path(directory))


class _MetaHandler(ocp.JsonCheckpointHandler):
    def finalize(self, directory: Any) -> None:
        _write_digests(Path(directory))


def _handlers() -> Any:
    registry = ocp.handlers.DefaultCheckpointHandlerRegistry()
    state, meta = _StateHandler(), _MetaHandler()
    registry.add("state", ocp.args.StandardSave, state)
    registry.add("state", ocp.args.StandardRestore, state)
    registry.add("meta", ocp.args.JsonSave, meta)
    return registry
