"""What a run tells: one record to a file, to TensorBoard, to the terminal, to W&B."""

import json
import math
import os
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import rich.console
import rich.progress

# Generated modules, whose names only exist at run time.
from tensorboardX.proto.event_pb2 import Event, SessionLog  # pyright: ignore
from tensorboardX.proto.summary_pb2 import Summary  # pyright: ignore
from tensorboardX.record_writer import RecordWriter

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
        self._file.write(json.dumps(finite(record), allow_nan=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class TensorBoard:
    """Scalars under `<kind>/<name>`, one file of events a start."""

    def __init__(self, folder: Path, resumed: int):
        # tensorboardX's own writer has a thread that dies on a full disk, whereupon the
        # queue to it fills up and the run hangs; this one raises.
        folder.mkdir(exist_ok=True)
        name = f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}"
        self._writer = RecordWriter(str(folder / f"{name}.{os.getpid()}"))
        self._event(file_version="brain.Event:2")
        # Hides what earlier starts wrote of the steps that this one will repeat.
        start = SessionLog(status=SessionLog.START)
        self._event(step=resumed + 1, session_log=start)

    def write(self, record: Record) -> None:
        kind = record["kind"]
        values = [
            Summary.Value(tag=f"{kind}/{name}", simple_value=value)
            for name, value in _scalars(record)
        ]
        self._event(step=record["step"], summary=Summary(value=values))

    def close(self) -> None:
        self._writer.close()

    def _event(self, **content: Any) -> None:
        event = Event(wall_time=time.time(), **content)
        self._writer.write(event.SerializeToString())
        self._writer.flush()


class WandB:
    """Weights & Biases; the run continues under its own id, the workdir's path."""

    def __init__(self, project: str, name: str, workdir: Path, settings: str):
        try:
            import wandb  # pyright: ignore[reportMissingImports]
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
        values = (f"{n} {_number(v)}" for n, v in _scalars(record))
        told = record.get("note") or "  ".join(values)
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


def finite(value: Any) -> Any:
    """A tree of dicts with None for each NaN or infinity, which JSON cannot hold."""
    if isinstance(value, Mapping):
        return {name: finite(part) for name, part in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _scalars(record: Record) -> Sequence[tuple[str, int | float]]:
    flat: list[tuple[str, int | float]] = []
    for name, value in record.items():
        if isinstance(value, Mapping):
            flat += [(f"{name}/{inner}", v) for inner, v in value.items()]
        elif name not in ("step", "kind") and isinstance(value, int | float):
            flat.append((name, value))
    return flat


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"]) if line.endswith("\n") else math.inf
    except (ValueError, KeyError, TypeError):
        return math.inf  # cut off: it will be written again


def _number(value: int | float) -> str:
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return (
        f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
    )
