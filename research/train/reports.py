"""What a run tells: one record to a file, to TensorBoard, to the terminal, to W&B."""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import rich.console
import rich.progress
from tensorboardX import SummaryWriter

from research.errors import UserError

Record = Mapping[str, Any]
"""`step`, `kind` ("train", "eval", "resume", ...) and values by name."""


@runtime_checkable
class Report(Protocol):
    """A place that records go to."""

    def write(self, record: Record) -> None: ...

    def close(self) -> None: ...


class JsonLines:
    """`metrics.jsonl`; lines of steps that a resumed run will repeat are dropped."""

    def __init__(self, path: Path, resumed: int):
        if path.exists():
            lines = path.read_text().splitlines(keepends=True)
            kept = [line for line in lines if _step_of(line) <= resumed]
            if kept != lines:
                fresh = path.with_suffix(".tmp")
                fresh.write_text("".join(kept))
                os.replace(fresh, path)
        self._file = path.open("a")

    def write(self, record: Record) -> None:
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class TensorBoard:
    """Scalars under `<kind>/<name>`."""

    def __init__(self, folder: Path, resumed: int):
        self._writer = SummaryWriter(str(folder), purge_step=resumed + 1)

    def write(self, record: Record) -> None:
        for name, value in _scalars(record):
            tag = f"{record['kind']}/{name}"
            self._writer.add_scalar(tag, value, record["step"])

    def close(self) -> None:
        self._writer.close()


class WandB:
    """Weights & Biases; the run continues under its own id, the workdir's path."""

    def __init__(self, project: str, name: str, workdir: Path, settings: str):
        try:
            import wandb
        except ImportError:
            raise UserError(
                "--wandb needs the package wandb: pip install 'twelvefold[wandb]'"
            ) from None
        self._run = wandb.init(
            project=project,
            name=name,
            dir=str(workdir),
            id=str(workdir.resolve()).strip("/").replace("/", "-"),
            resume="allow",
            config=dict(line.split(" = ", 1) for line in settings.splitlines()),
        )

    def write(self, record: Record) -> None:
        values = {f"{record['kind']}/{n}": v for n, v in _scalars(record)}
        self._run.log(values, step=record["step"])

    def close(self) -> None:
        self._run.finish()


class Lines:
    """One plain line a record, for logs."""

    def __init__(self, num_steps: int, file: Any = None):
        self._num_steps = num_steps
        self._file = file or sys.stdout

    def write(self, record: Record) -> None:
        print(render(record, self._num_steps), file=self._file, flush=True)

    def close(self) -> None: ...


class Bar:
    """A progress bar at the bottom of a terminal, and a line for each record."""

    def __init__(self, num_steps: int, console: rich.console.Console):
        self._num_steps = num_steps
        self._progress = rich.progress.Progress(
            rich.progress.TextColumn("{task.description}"),
            rich.progress.BarColumn(),
            rich.progress.MofNCompleteColumn(),
            rich.progress.TimeRemainingColumn(),
            rich.progress.TextColumn("{task.fields[told]}"),
            console=console,
        )
        self._task = self._progress.add_task("steps", total=num_steps, told="")
        self._progress.start()

    def advance(self, step: int, loss: float, seconds: float, rate: float) -> None:
        """After every step: its loss, seconds, and examples per second."""
        told = f"loss {loss:.4f}  {seconds * 1e3:.0f} ms  {rate:,.0f} examples/s"
        self._progress.update(self._task, completed=step, told=told)

    def write(self, record: Record) -> None:
        self._progress.console.print(render(record, self._num_steps), highlight=False)

    def close(self) -> None:
        self._progress.stop()


def console(num_steps: int) -> Bar | Lines:
    """A bar on a terminal, lines elsewhere."""
    screen = rich.console.Console()
    return Bar(num_steps, screen) if screen.is_terminal else Lines(num_steps)


def render(record: Record, num_steps: int) -> str:
    """A record as one line of text."""
    step = f"step {record['step']:>{len(str(num_steps))}}/{num_steps}"
    if record["kind"] != "train":
        told = "  ".join(f"{n} {_number(v)}" for n, v in _scalars(record))
        return f"{step}  {record['kind']}  {told}"
    return (
        f"{step}  loss {record['loss']:.4f}  "
        f"grad_norm {record['grad_norm']:.3g}  "
        f"{record['step_ms_p50']:.1f} ms p50 {record['step_ms_p95']:.1f} p95  "
        f"{record['examples_per_second']:,.0f} examples/s  "
        f"{record['utilization']:.1%} of {record['peak']}  "
        f"data wait {record['data_wait']:.1%}  "
        f"eta {_duration(record['eta_seconds'])}"
    )


def _scalars(record: Record) -> Sequence[tuple[str, float]]:
    flat: list[tuple[str, float]] = []
    for name, value in record.items():
        if isinstance(value, Mapping):
            flat += [(f"{name}/{inner}", v) for inner, v in value.items()]
        elif name not in ("step", "kind") and isinstance(value, int | float):
            flat.append((name, value))
    return flat


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError):
        return float("inf")  # cut off by a kill: it will be written again


def _number(value: float) -> str:
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return (
        f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
    )
