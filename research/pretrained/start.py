"""Fine-tuning: a run that begins with a public checkpoint's variables."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from research.errors import UserError
from research.pretrained import load
from research.tasks.base import Variables

Load = Callable[[str], tuple[Any, Variables]]
"""A folder to the model that it describes, and its variables."""


@dataclass(frozen=True)
class FromPretrained:
    """The variables of a public checkpoint, for `Experiment.start`.

    Every leaf of this task has to be in the folder, and every leaf of the folder in
    this task, but for those whose path `fresh` matches: they are drawn anew, or left
    aside. A leaf of another shape is for `research.train.start.Fitted` to resize, such
    as Swin's tables for larger images: `Fitted(FromPretrained(folder), fit=resize)`,
    where `resize` is of `research.models.swin`. What no leaf tells (heads, activations,
    epsilons) is for the experiment's network to have as the folder's config has it.

    Attributes:
      folder: in a layout that `load` reads; `~` is the home folder.
      under: the part of this task that the checkpoint becomes: `encoder` for what is
        under `params/encoder`. Empty: the whole task.
      fresh: a regular expression, searched for in paths of this task: `^params/logits/`
        for a head of other classes. Empty: nothing is.
      load: reads the folder; `partial(bert.load, architecture="BertModel")` leaves the
        heads of BERT's pretraining aside.
    """

    folder: str
    under: str = ""
    fresh: str = ""
    load: Load = load

    def __call__(
        self, expected: Mapping[str, jax.ShapeDtypeStruct]
    ) -> Mapping[str, np.ndarray]:
        """Host arrays by path; see `research.train.start.Start`.

        Raises:
          UserError: a folder that `load` refuses, or a leaf that is not in both, by its
            path.
        """
        _, variables = self.load(self.folder)
        leaves = flatten_dict(dict(variables), sep="/")
        found = {self._here(path): np.asarray(leaf) for path, leaf in leaves.items()}
        wanted = {p: leaf for p, leaf in expected.items() if self._is_here(p)}
        if not wanted:
            raise UserError(
                f"start.under={self.under!r}: this task has no such part; its paths "
                f"are like {next(iter(expected))!r}"
            )
        drawn = self._drawn([*wanted, *found])
        for path in sorted((wanted.keys() ^ found.keys()) - drawn):
            one, other = (
                f"has shape {side[path].shape}" if path in side else "is not there"
                for side in (found, wanted)
            )
            raise UserError(
                f"{path} {one} in {self.folder}, and {other} in this task: if it is to "
                f"be drawn anew, or left aside, let start.fresh match it: "
                f"fresh='^{path}$'"
            )
        return {path: array for path, array in found.items() if path not in drawn}

    def _drawn(self, paths: list[str]) -> set[str]:
        """Those that `fresh` matches."""
        if not self.fresh:
            return set()
        try:
            drawn = {path for path in paths if re.search(self.fresh, path)}
        except re.error as error:
            raise UserError(f"start.fresh={self.fresh!r}: {error}") from None
        if not drawn:
            raise UserError(
                f"start.fresh={self.fresh!r} matches no path of this task; they are "
                f"like {paths[-1]!r}"
            )
        return drawn

    def _here(self, path: str) -> str:
        collection, _, rest = path.partition("/")
        return "/".join(part for part in (collection, self.under, rest) if part)

    def _is_here(self, path: str) -> bool:
        _, _, rest = path.partition("/")
        return not self.under or rest.startswith(f"{self.under}/")
