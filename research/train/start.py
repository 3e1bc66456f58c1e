"""Where initial variables come from, if not from chance."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from research.errors import UserError
from research.train.checkpoints import read_variables, require
from research.train.sharding import path_name
from research.train.state import TrainState


@runtime_checkable
class Start(Protocol):
    """Some of the variables that a run begins with, instead of random ones."""

    def __call__(
        self, expected: Mapping[str, jax.ShapeDtypeStruct]
    ) -> Mapping[str, np.ndarray]:
        """Host arrays by path, any of `expected`, such as `params/conv_in/kernel`.

        Raises:
          UserError: what was to be read is not there, or does not fit.
        """
        ...


@dataclass(frozen=True)
class FromRun:
    """The variables of another run's task.

    Attributes:
      workdir: of that run; `~` is the home folder.
      under: the part of this task that they become: `model` for those under
        `params/model`. Empty: the whole task.
      step: the checkpoint; None is the newest.
      average: its averaged parameters, where it keeps them.
    """

    workdir: str
    under: str = ""
    step: int | None = None
    average: bool = True

    def __call__(
        self, expected: Mapping[str, jax.ShapeDtypeStruct]
    ) -> Mapping[str, np.ndarray]:
        folder = Path(self.workdir).expanduser() / "checkpoints"
        step = require(folder, self.step)
        found = read_variables(folder, step, self.average)
        given = {self._here(path): array for path, array in found.items()}
        wanted = {path for path in expected if self._is_here(path)}
        if not wanted:
            raise UserError(
                f"under={self.under!r}: this task has no such part; its paths are like "
                f"{next(iter(expected))!r}"
            )
        for path in sorted(given.keys() ^ wanted):
            lacks, has = (
                (folder, "this task") if path in wanted else ("this task", "it")
            )
            raise UserError(
                f"step {step} in {folder} is of another model: {lacks} lacks {path}, "
                f"which {has} has"
            )
        return given

    def _here(self, path: str) -> str:
        collection, _, rest = path.partition("/")
        return "/".join(part for part in (collection, self.under, rest) if part)

    def _is_here(self, path: str) -> bool:
        _, _, rest = path.partition("/")
        return not self.under or rest.startswith(f"{self.under}/")


Fit = Callable[
    [Mapping[str, np.ndarray], Mapping[str, jax.ShapeDtypeStruct]],
    Mapping[str, np.ndarray],
]
"""Host arrays by path, and the shapes that are expected, to arrays of these shapes."""


@dataclass(frozen=True)
class Fitted:
    """Another start's variables, for a task that is not quite the same.

    Attributes:
      start: gives all of them.
      fit: what else has other shapes in this task is brought to them, such as by
        `research.models.swin.resize`; None is for nothing.
      fresh: a pattern of paths, searched for, that are drawn anew: `^params/logits/` is
        a head of other classes. Empty: none is.
    """

    start: Start
    fit: Fit | None = None
    fresh: str = ""

    def __call__(
        self, expected: Mapping[str, jax.ShapeDtypeStruct]
    ) -> Mapping[str, np.ndarray]:
        """Raises UserError for a pattern that matches nothing; and as `start` does."""
        given = dict(self.start(expected))
        if self.fresh:
            drawn = {path for path in given if re.search(self.fresh, path)}
            if not drawn:
                raise UserError(
                    f"start.fresh={self.fresh!r} matches nothing that the start gives: "
                    f"its paths are like {next(iter(given), '')!r}"
                )
            given = {path: given[path] for path in given if path not in drawn}
        return given if self.fit is None else self.fit(given, expected)


@dataclass(frozen=True)
class Partly:
    """Another start's variables, for a task that has more than that knows.

    Attributes:
      start: gives all the others.
      fresh: a pattern of paths, searched for, that are drawn: `^params/mask_head/` is a
        head that is new.
    """

    start: Start
    fresh: str

    def __call__(
        self, expected: Mapping[str, jax.ShapeDtypeStruct]
    ) -> Mapping[str, np.ndarray]:
        """Raises UserError for a pattern that matches nothing; and as `start` does."""
        known = {p: s for p, s in expected.items() if not re.search(self.fresh, p)}
        if len(known) == len(expected):
            raise UserError(
                f"start.fresh={self.fresh!r} matches nothing of this task: its paths "
                f"are like {next(iter(expected))!r}"
            )
        return self.start(known)


def begin(state: TrainState, start: Start) -> TrainState:
    """A fresh state with the variables that `start` gives, each in its place's shards.

    The average begins at the parameters too.

    Raises:
      UserError: a path that the task does not have, or another shape.
    """
    variables = state.variables()
    leaves = jax.tree_util.tree_leaves_with_path(variables)
    places = {path_name(path): leaf for path, leaf in leaves}
    given = start(
        {
            path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
            for path, leaf in places.items()
        }
    )
    for path, array in given.items():
        if path not in places:
            raise UserError(f"the start gives {path}, which this task does not have")
        if array.shape != places[path].shape:
            raise UserError(
                f"the start gives {path} with shape {array.shape}, but it has "
                f"{places[path].shape} in this task: let Fitted of "
                f"research.train.start draw it anew (fresh='^{path}$') or resize it "
                "(fit)"
            )

    def place(path: Any, leaf: jax.Array) -> jax.Array:
        array = given.get(path_name(path))
        if array is None:
            return leaf
        array = np.asarray(array, leaf.dtype)
        return jax.make_array_from_callback(
            leaf.shape, leaf.sharding, lambda index: array[index]
        )

    placed = dict(jax.tree_util.tree_map_with_path(place, variables))
    params = placed.pop("params")
    # A copy: a donated buffer may not appear twice. What is frozen has no average.
    ema = jax.tree.map(
        lambda average, leaf: None if average is None else jnp.copy(leaf),
        state.ema,
        params,
        is_leaf=lambda node: node is None,
    )
    return state.replace(params=params, ema=ema, extra=placed)
