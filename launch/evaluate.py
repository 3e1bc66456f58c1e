"""Evaluate a checkpoint with the experiment's own evaluators.

python -m launch.evaluate runs/vp_ddpmpp_digits --split train
"""

import dataclasses
import json
from typing import Annotated

import tyro

from launch.cli import run, start
from launch.restored import Restored
from research.errors import UserError


def main(
    restored: Annotated[Restored, tyro.conf.arg(name="")],
    split: str | None = None,
    only: tuple[str, ...] = (),
) -> None:
    """Evaluate a checkpoint: one JSON line of numbers; pictures go to its samples/.

    Args:
      restored: Which checkpoint.
      split: Another split of the data, for the evaluators that read one.
      only: Names of the evaluators to run; default all.
    """
    start()
    import jax

    from research.evals.base import Context
    from research.train.reports import finite
    from research.train.workdir import Workdir

    experiment, variables, mesh, step = restored.load()
    evals = {**experiment.evals, **experiment.offline_evals}
    if unknown := set(only) - set(evals):
        raise UserError(
            f"no evaluator {', '.join(sorted(unknown))}: the experiment has "
            f"{', '.join(evals) or 'none'}"
        )
    seed = experiment.seed + 1
    values: dict[str, float] = {}
    for name in only or evals:
        evaluator = evals[name]
        if split and any(f.name == "split" for f in dataclasses.fields(evaluator)):
            evaluator = dataclasses.replace(evaluator, split=split)
        folder = Workdir(restored.workdir).pictures(name)
        context = Context(experiment.data, mesh, step, seed, folder)
        result = evaluator(experiment.task, variables, context)
        values.update({f"{name}/{n}": float(value) for n, value in result.items()})
    if jax.process_index() == 0:
        print(json.dumps(finite({"step": step, "split": split, **values})))


if __name__ == "__main__":
    run(main)
