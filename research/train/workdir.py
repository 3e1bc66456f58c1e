"""A run's folder: who holds it, what runs in it, and where everything goes.

experiment.txt    every setting, as `describe()` prints it
experiment.py     the experiment file as it was
run.json          how it was asked for: reference, arguments, overrides
starts.jsonl      one line a start: command, git commit, versions, devices
metrics.jsonl     one line a report       tensorboard/  the same for TensorBoard
checkpoints/      see research.train.checkpoints      rejected/  damaged ones
samples/          pictures
nonfinite/        bundles for `launch.replay`
"""

import datetime
import difflib
import fcntl
import importlib.metadata
import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import jax

from research.errors import UserError
from research.experiment import Experiment, describe, find_file, identity, load


@dataclass(frozen=True)
class Request:
    """How an experiment was asked for; enough to load it again."""

    reference: str
    arguments: Mapping[str, str] = field(default_factory=dict)
    overrides: Sequence[str] = ()

    def load(self) -> Experiment:
        """The experiment; see `research.experiment.load` for what it raises."""
        return load(self.reference, self.arguments, self.overrides)


class Workdir:
    """The folder of one run, held by one job at a time."""

    def __init__(self, path: Path):
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.samples = path / "samples"
        self.nonfinite = path / "nonfinite"
        self.metrics = path / "metrics.jsonl"
        self.tensorboard = path / "tensorboard"
        self._lock: Any = None

    def pictures(self, evaluator: str) -> Path:
        """Where the evaluator of that name draws: `samples` itself for `samples`."""
        return self.samples if evaluator == "samples" else self.samples / evaluator

    def open(self, experiment: Experiment, request: Request, adopt: bool) -> None:
        """Makes the folder or takes it over, and records this start.

        Only process 0 calls it.

        Args:
          adopt: go on although settings that decide the numbers have changed.

        Raises:
          UserError: it cannot be written, another job holds it, or it belongs to an
            experiment with other settings (each is shown).
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._acquire()
            self._claim(experiment, adopt)
            self._record(experiment, request)
        except BaseException as error:
            self.close()
            if isinstance(error, OSError):
                raise UserError(
                    f"workdir {self.path} cannot be written: {error}; choose another "
                    "with --workdir"
                ) from error
            raise

    def close(self) -> None:
        """Lets the folder go."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _acquire(self) -> None:
        self._lock = (self.path / "lock").open("a+")
        try:
            # The kernel drops the lock with the process, however that ends.
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.seek(0)
            holder = self._lock.read().strip() or "another process"
            raise UserError(
                f"workdir {self.path} is in use by {holder}: wait for it to end, stop "
                "it, or choose another with --workdir"
            ) from None
        self._lock.truncate(0)
        self._lock.write(f"process {os.getpid()} on {socket.gethostname()}")
        self._lock.flush()

    def _claim(self, experiment: Experiment, adopt: bool) -> None:
        record = self.path / "identity.txt"
        now = describe(experiment, operational=False)
        if record.exists() and self._has_progress() and not adopt:
            before = record.read_text()
            if before != now:
                lines = difflib.unified_diff(
                    before.splitlines(), now.splitlines(), n=0, lineterm=""
                )
                changes = [line for line in lines if line[:2] not in ("--", "++", "@@")]
                raise UserError(
                    f"workdir {self.path} belongs to an experiment with other settings "
                    "(- there, + here):\n  "
                    + "\n  ".join(changes)
                    + "\nchoose another "
                    "--workdir, or go on from its state with --adopt"
                )
        elif not record.exists() and self.checkpoints.exists():
            raise UserError(
                f"{self.path} has checkpoints but no identity.txt, so it is not the "
                "workdir of a run: choose another with --workdir"
            )
        _write(record, now.encode())

    def _has_progress(self) -> bool:
        """Whether an earlier start left something that another would spoil."""
        reported = self.metrics.exists() and self.metrics.stat().st_size > 0
        return reported or any(self.checkpoints.glob("*"))

    def _record(self, experiment: Experiment, request: Request) -> None:
        file = find_file(request.reference)
        asked = json.dumps(asdict(request), indent=2) + "\n"
        _write(self.path / "experiment.txt", describe(experiment).encode())
        _write(self.path / "experiment.py", file.read_bytes())
        _write(self.path / "run.json", asked.encode())
        with (self.path / "starts.jsonl").open("a") as file:
            file.write(json.dumps(_start(experiment)) + "\n")


def read_request(path: Path) -> Request:
    """How the run in the workdir `path` was asked for, by its own copy of the file.

    Raises:
      UserError: `path` is not a workdir.
    """
    try:
        record = Request(**json.loads((path / "run.json").read_text()))
    except (OSError, ValueError, TypeError):
        raise UserError(
            f"{path} is not the workdir of a run: expected run.json and experiment.py "
            "in it, as launch.train writes them"
        ) from None
    function = record.reference.partition(":")[2] or "experiment"
    reference = f"{path / 'experiment.py'}:{function}"
    return replace(record, reference=reference)


def _write(path: Path, content: bytes) -> None:
    """Writes a file whole or not at all: a kill or a full disk leaves the old one."""
    if not path.exists() or path.read_bytes() != content:
        fresh = path.with_name(f"{path.name}.tmp")
        fresh.write_bytes(content)
        os.replace(fresh, path)


def _start(experiment: Experiment) -> dict[str, Any]:
    return {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "identity": identity(experiment),
        **_git(),
        "python": sys.version.split()[0],
        "versions": {
            d.name: d.version for d in importlib.metadata.distributions() if d.name
        },
        "processes": jax.process_count(),
        "devices": [str(device) for device in jax.devices()],
        "device_kind": jax.devices()[0].device_kind,
    }


def _git() -> dict[str, Any]:
    """Commit and dirty flag of the code that runs; empty without git."""

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()

    try:
        return {
            "commit": git("rev-parse", "HEAD"),
            "dirty": bool(git("status", "--porcelain")),
        }
    except (OSError, subprocess.CalledProcessError):
        return {}
