"""Train an experiment, or go on with it.

    python -m launch.train experiments/score_sde/vp_ddpmpp_digits.py

A workdir that holds checkpoints of the same experiment is continued from the newest.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import tyro

from launch.cli import Choice, Cluster, run, start

ALONE = Cluster()


def main(
    choice: Annotated[Choice, tyro.conf.arg(name="")],
    workdir: Path | None = None,
    adopt: bool = False,
    stop_at: int | None = None,
    watchdog_seconds: float = 1800.0,
    wandb: str | None = None,
    cluster: Annotated[Cluster, tyro.conf.arg(name="")] = ALONE,
) -> None:
    """Train an experiment, or go on with it from its newest checkpoint.

    Args:
      choice: Which experiment.
      workdir: Where everything goes; default runs/NAME.
      adopt: Go on although settings that decide the numbers have changed.
      stop_at: Save and leave after this step; the same command goes on.
      watchdog_seconds: Dump all stacks and exit 124 without progress for so long, or
        ten times that while it starts or evaluates.
      wandb: Also report to this Weights & Biases project.
      cluster: Several processes as one run.
    """
    start()
    cluster.connect()
    import jax

    from research.experiment import describe
    from research.train.clock import Clock
    from research.train.loop import Options, train
    from research.train.reports import Report, WandB, console
    from research.train.workdir import Workdir

    clock = Clock()
    experiment = choice.load()
    folder = Workdir(workdir or Path("runs") / experiment.name)
    reports: list[Callable[[int], Report]] = [lambda _: console(experiment.num_steps)]
    if wandb:
        settings = describe(experiment)
        reports.append(lambda _: WandB(wandb, experiment.name, folder.path, settings))
    options = Options(
        adopt=adopt,
        stop_at=stop_at,
        watchdog_seconds=watchdog_seconds,
        reports=tuple(reports),
    )
    result = train(experiment, folder, choice.request(), options, clock)
    if jax.process_index() == 0:
        told = "  ".join(f"{name} {value:.4g}" for name, value in result.items())
        print(f"{folder.path}: {told}")


if __name__ == "__main__":
    run(main)
