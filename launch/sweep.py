"""Train experiments at several values of an argument, and show them side by side.

    python -m launch.sweep experiments/parametrization/*_modsum.py \\
        --over num_layers=12,48

Every file is trained at every value in a workdir of its own; what is there is gone on
with, and what is done is only read. The table has a row for each experiment, and a
column for each value: the last loss on data held out, or where the run ended for a
number that was not finite. The curves of the training loss go into a picture. Several
arguments go hand in hand: the third column of

    --over num_layers=12,48,200 --over embed_dim=32,32,16

has 200 layers of width 16.
"""

import json
import math
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro

from launch.cli import Settings, run
from launch.text import console
from research.errors import NonFiniteError, UserError
from research.experiment import arguments_of, load


@dataclass(frozen=True)
class Curve:
    """One run.

    Attributes:
      experiment: its name.
      setting: the values of the arguments, as `num_layers=12`.
      steps, losses: as reported in training, each the mean since the one before.
      final: numbers of the last evaluation.
      ended: why it stopped before its end; "" if it did not.
    """

    experiment: str
    setting: str
    steps: tuple[int, ...] = ()
    losses: tuple[float, ...] = ()
    final: Mapping[str, float] = field(default_factory=dict)
    ended: str = ""

    def told(self, metric: str) -> str:
        """What stands in the table: the final number, or why there is none."""
        if self.ended:
            return self.ended
        value = self.final.get(metric, math.nan)
        return f"{value:.4g}" if abs(value) < 1e4 else f"{value:.0e}"


def settings_of(over: Sequence[str]) -> list[tuple[str, ...]]:
    """`("a=1,2", "b=3,4")` as `[("a=1", "b=3"), ("a=2", "b=4")]`.

    Raises:
      UserError: something else, or lists of different lengths.
    """
    columns = []
    for text in over:
        name, _, listed = text.partition("=")
        values = [value for value in listed.split(",") if value]
        if not (name and values):
            raise UserError(f"--over {text}: expected NAME=VALUE,VALUE,...")
        columns.append([f"{name}={value}" for value in values])
    if not columns or len(set(map(len, columns))) > 1:
        raise UserError(
            f"--over {' --over '.join(over) or 'is missing'}: expected one or more "
            "lists of values, all of the same length"
        )
    return list(zip(*columns, strict=True))


def files_of(targets: Sequence[Path], arguments: Sequence[str]) -> list[Path]:
    """The experiment files among the targets, which all take the arguments.

    Raises:
      UserError: a target that does not exist, or a file without an argument.
    """
    files: list[Path] = []
    for target in targets:
        if not target.exists():
            raise UserError(
                f"{target} does not exist: expected an experiment file or a folder of "
                "them"
            )
        files += sorted(target.glob("*.py")) if target.is_dir() else [target]
    files = [path for path in files if path.name != "__init__.py"]
    if not files:
        raise UserError(f"no experiment files in {' or '.join(map(str, targets))}")
    for path in files:
        known = arguments_of(str(path))
        for argument in arguments:
            if argument not in known:
                raise UserError(
                    f"{path} has no argument {argument}: it has {', '.join(known)}"
                )
    return files


def train(
    path: Path, setting: Sequence[str], others: Sequence[str], workdir: Path
) -> Curve:
    """One run in a process of its own, or what is there of it.

    Raises:
      UserError: it could not be started, or broke off for another cause than its
        numbers.
    """
    given = [*setting, *others]
    experiment = load(str(path), dict(text.split("=", 1) for text in given))
    name = ",".join(setting)
    folder = workdir / f"{experiment.name}-{name}"
    metrics = folder / "metrics.jsonl"
    failed = (folder / "nonfinite").exists()
    if not failed and not _evaluated(metrics, experiment.num_steps):
        command = [sys.executable, "-m", "launch.train", str(path)]
        command += ["--workdir", str(folder)]
        for text in given:
            command += ["--with", text]
        code = subprocess.run(command).returncode
        if code not in (0, NonFiniteError.exit_code):
            raise UserError(
                f"{' '.join(command[1:])} ended with exit code {code}: see above for "
                "the cause; the same command goes on"
            )
    return read(experiment.name, name, metrics, experiment.num_steps)


def read(experiment: str, setting: str, metrics: Path, num_steps: int) -> Curve:
    """The curve that a run reported."""
    records = _records(metrics)
    trained = [r for r in records if r["kind"] == "train"]
    final: dict[str, float] = {}
    for record in records:
        if record["kind"] == "eval" and record["step"] == num_steps:
            final |= {n: v for n, v in record.items() if isinstance(v, float)}
    last = trained[-1]["step"] if trained else 0
    return Curve(
        experiment,
        setting,
        tuple(r["step"] for r in trained),
        tuple(math.nan if r["loss"] is None else r["loss"] for r in trained),
        final,
        "" if final else f"not finite after {last}",
    )


def _evaluated(metrics: Path, step: int) -> bool:
    return any(r["kind"] == "eval" and r["step"] == step for r in _records(metrics))


def _records(metrics: Path) -> list[dict[str, Any]]:
    if not metrics.exists():
        return []
    return [json.loads(line) for line in metrics.read_text().splitlines()]


def draw(curves: Sequence[Curve], path: Path) -> None:
    """Training losses as a PNG: a panel for each setting, a line for each experiment.

    The scale is that of runs which work: what explodes leaves at the top.
    """
    # Not pyplot, whose figures are global and whose backend may want a screen.
    from matplotlib import colormaps
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    settings = list(dict.fromkeys(curve.setting for curve in curves))
    names = list(dict.fromkeys(curve.experiment for curve in curves))
    colours = colormaps["tab10"].colors  # pyright: ignore[reportAttributeAccessIssue]
    figure = Figure(figsize=(4.2 * len(settings), 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    shared = None
    for index, setting in enumerate(settings):
        shared = axes = figure.add_subplot(1, len(settings), index + 1, sharey=shared)
        axes.set_title(setting, fontsize=9)
        axes.set_xlabel("step")
        for curve in (curve for curve in curves if curve.setting == setting):
            colour = colours[names.index(curve.experiment) % len(colours)]
            axes.plot(curve.steps, curve.losses, color=colour, label=curve.experiment)
        axes.legend(fontsize=6)
    starts = [c.losses[0] for c in curves if c.losses and math.isfinite(c.losses[0])]
    if shared is not None and starts:
        lowest = min(min(c.losses) for c in curves if c.losses)
        shared.set_ylim(0.95 * lowest, 1.1 * sorted(starts)[len(starts) // 2])
        shared.set_ylabel("training loss")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=80)


def main(
    targets: Annotated[tuple[Path, ...], tyro.conf.Positional],
    over: Annotated[Settings, tyro.conf.arg(metavar="NAME=VALUE,...")] = (),
    workdir: Path = Path("runs/sweep"),
    metric: str = "test/loss",
    arguments: Annotated[
        Settings, tyro.conf.arg(name="with", metavar="NAME=VALUE")
    ] = (),
) -> None:
    """Train every experiment at every value of an argument, and tabulate the results.

    Args:
      targets: Experiment files, or folders of them.
      over: An argument and its values; others go with it, one value each.
      workdir: Holds a workdir for each run, and the picture.
      metric: What the table shows of the last evaluation.
      arguments: Another argument of all experiments; may be given again.
    """
    from rich.table import Table

    settings = settings_of(over)
    for text in arguments:
        if "=" not in text:
            raise UserError(f"--with {text}: expected NAME=VALUE")
    taken = [text.partition("=")[0] for text in (*over, *arguments)]
    files = files_of(targets, taken)
    curves = [
        train(path, setting, arguments, workdir)
        for setting in settings
        for path in files
    ]
    table = Table("", *map("\n".join, settings), box=None)
    for name in dict.fromkeys(curve.experiment for curve in curves):
        row = [curve for curve in curves if curve.experiment == name]
        table.add_row(name, *(curve.told(metric) for curve in row))
    picture = workdir / "curves.png"
    draw(curves, picture)
    out = console()
    out.print(f"\n{metric} after training\n", highlight=False)
    out.print(table, highlight=False)
    print(f"\ncurves: {picture}")


if __name__ == "__main__":
    run(main)
