"""Hold experiments to what their files require of them.

    python -m launch.prove ncsn

Every experiment of the family that states `required` numbers is trained, or gone on
with, in its own workdir, evaluated, and shown beside its requirements; so is all else
that the same evaluators found, such as their controls. One that starts from another's
run comes after it: files are taken by name.
"""

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from launch.cli import Settings, run
from launch.text import console
from research.errors import UserError
from research.experiment import Experiment, Required, arguments_of, load

FAMILIES = Path("experiments")


@dataclass(frozen=True)
class Finding:
    """One requirement, and what came out; NaN where nothing did.

    Without bounds it is a number of which nothing was required.
    """

    experiment: str
    required: Required
    measured: float

    @property
    def met(self) -> bool:
        return self.required.met(self.measured) or not self.stated

    @property
    def stated(self) -> bool:
        return bool(str(self.required))


def proofs(target: Path) -> dict[Path, Experiment]:
    """The experiments of a file or folder that require something, by file.

    Raises:
      UserError: there is no such file or folder, or nothing in it requires anything.
    """
    if not target.exists():
        families = sorted(p.name for p in FAMILIES.glob("*") if any(p.glob("*.py")))
        if target.name not in families or len(target.parts) > 1:
            raise UserError(
                f"{target} does not exist: expected a family ({', '.join(families)}), "
                "an experiment file or a folder of them"
            )
        target = FAMILIES / target
    files = sorted(target.glob("*.py")) if target.is_dir() else [target]
    loaded = {path: load(str(path)) for path in files if path.name != "__init__.py"}
    found = {path: found for path, found in loaded.items() if found.required}
    if not found:
        raise UserError(f"nothing in {target} states `required` numbers to prove")
    for path, experiment in found.items():
        evaluators = {**experiment.evals, **experiment.offline_evals}
        for required in experiment.required:
            if required.metric.partition("/")[0] not in evaluators:
                raise UserError(
                    f"{path} requires {required.metric}, but has no such evaluator: "
                    f"it has {', '.join(evaluators) or 'none'}"
                )
    return found


def judge(experiment: Experiment, values: Mapping[str, float]) -> list[Finding]:
    """What was required of an experiment beside `values` by metric, then the others."""
    wanted = {required.metric for required in experiment.required}
    others = (Required(metric) for metric in values if metric not in wanted)
    return [
        Finding(experiment.name, required, values.get(required.metric, float("nan")))
        for required in (*experiment.required, *others)
    ]


def prove(
    path: Path, experiment: Experiment, workdir: Path, arguments: Settings = ()
) -> list[Finding]:
    """Trains and evaluates in processes of their own; all NaN where one fails.

    Of the arguments it gets those that its function takes.
    """
    chosen = [
        text
        for given in arguments
        if given.partition("=")[0] in arguments_of(str(path))
        for text in ("--with", given)
    ]
    evaluators = {required.metric.partition("/")[0] for required in experiment.required}
    train = ["launch.train", str(path), "--workdir", str(workdir), *chosen]
    evaluate = ["launch.evaluate", str(workdir), "--only", *sorted(evaluators)]
    values: dict[str, float] = {}
    if _python(train).returncode == 0:
        told = _python(evaluate, stdout=subprocess.PIPE)
        if told.returncode == 0:
            values = {
                name: value
                for name, value in json.loads(told.stdout).items()
                if "/" in name and isinstance(value, int | float)
            }
    return judge(experiment, values)


def _python(arguments: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", *arguments], text=True, **options)


def main(
    targets: Annotated[tuple[Path, ...], tyro.conf.Positional],
    workdir: Path = Path("runs"),
    arguments: Annotated[
        Settings, tyro.conf.arg(name="with", metavar="NAME=VALUE")
    ] = (),
) -> int:
    """Train, evaluate, and print what was measured beside what was required.

    Exits 1 if a requirement is not met.

    Args:
      targets: Families, experiment files, or folders of them.
      workdir: Holds a workdir for each; what is there is gone on with.
      arguments: An argument of those experiments' functions that take it; may be given
        again.
    """
    from rich.table import Table

    chosen = {p: e for target in targets for p, e in proofs(target).items()}
    if not chosen:
        raise UserError("nothing to prove: give families, or experiment files")
    known = {name for path in chosen for name in arguments_of(str(path))}
    for given in arguments:
        if given.partition("=")[0] not in known:
            raise UserError(
                f"--with {given}: none of these experiments takes such an argument; "
                f"theirs are {', '.join(sorted(known))}"
            )
    findings = [
        finding
        for path, experiment in chosen.items()
        for finding in prove(path, experiment, workdir / experiment.name, arguments)
    ]
    table = Table()
    for heading in ("experiment", "number", "required", "measured", ""):
        table.add_column(heading, overflow="fold")
    for found in findings:
        table.add_row(
            found.experiment,
            found.required.metric,
            str(found.required),
            f"{found.measured:.4g}",
            ("met" if found.met else "NOT MET") if found.stated else "",
        )
    console().print(table)
    return 0 if all(found.met for found in findings) else 1


if __name__ == "__main__":
    run(main)
