"""Break a run in every way we know, start it again, and compare the bits.

    python -m launch.soak --events 50

First a run that nobody disturbs. Then the same run under random faults: `kill -9` at
any moment, start-up included; `kill -9` in the middle of a save; SIGTERM; a full disk;
the newest checkpoint cut short, or one bit of it flipped. After each it is started
again, and has to go on from the newest whole checkpoint and name what it left aside. In
the end every bit of its state and every loss on the way must be those of the first run.
"""

import contextlib
import dataclasses
import json
import math
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from launch import tiny
from launch.cli import run, start
from research.errors import UserError
from research.experiment import Experiment
from research.train.checkpoints import Checkpoints

PATIENCE = 300.0  # seconds that any one thing may take
DISK = "32m"
STARTS_KILLED = 0.3  # of the plain kills: how many fall into the start-up
KEPT = 3  # checkpoints


@dataclass(frozen=True)
class Noise:
    """A thousand random images, each after a while, so that faults hit a run midway."""

    seconds: float = 5e-4

    def __len__(self) -> int:
        return 1000

    def __getitem__(self, index: int) -> dict[str, Any]:
        time.sleep(self.seconds)
        rng = np.random.Generator(np.random.Philox(index))
        return {
            "image": rng.integers(0, 17, (8, 8, 1), dtype=np.uint8),
            "label": np.int32(index % 10),
        }


def experiment(num_steps: int = 1000) -> Experiment:
    """`launch.tiny` at about ten milliseconds a step, saved and reported often."""
    base = tiny.experiment(num_steps)
    data = dataclasses.replace(base.data, train=Noise(), eval={"test": Noise(0.0)})
    return dataclasses.replace(
        base,
        data=data,
        checkpoints=Checkpoints(every=5, keep_last=KEPT),
        log_every=1,
    )


class Broken(Exception):
    """What the run should have survived, and did not."""


class Run:
    """A workdir, the processes that train in it, and what is known of both."""

    def __init__(self, folder: Path, logs: Path, num_steps: int, full_disk: bool):
        self.folder, self.logs, self.num_steps = folder, logs, num_steps
        self.full_disk = full_disk
        self.checkpoints = folder / "checkpoints"
        self.damaged: set[int] = set()
        self.counts: Counter[str] = Counter()
        self.log = logs
        self._expected: tuple[int, list[str], set[int]] = (0, [], set())

    def start(self) -> subprocess.Popen:
        """Starts training, once it is noted what this start has to find."""
        self.damaged &= self.complete()  # what an earlier start has set aside is gone
        intact, unfinished = self.intact(), self.unfinished()
        step = intact[-1] if intact else 0
        told = [f"ignored the unfinished save {name}" for name in unfinished]
        told += [f"rejected checkpoint {step}" for step in self.damaged]
        self._expected = step, told, set(self.damaged)
        self.counts["starts"] += 1
        self.counts["steps repeated"] += max(0, self.reported() - step)
        self.counts["saves interrupted"] += len(unfinished)
        self.log = self.logs / f"{self.folder.name}-{self.counts['starts']:03d}.txt"
        command = [sys.executable, "-m", "launch.train", "launch.soak"]
        command += ["--with", f"num_steps={self.num_steps}"]
        with self.log.open("w") as log:
            return subprocess.Popen(
                [*command, "--workdir", str(self.folder)], stdout=log, stderr=log
            )

    def end(self, process: subprocess.Popen, code: int) -> None:
        """Waits for the process, then checks its exit code and how it had started."""
        try:
            found = process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            raise Broken(f"expected exit code {code}, but it goes on") from None
        if found != code:
            raise Broken(f"expected exit code {code}, got {found}")
        text, (step, told, rejected) = self.log.read_text(), self._expected
        if step_line := re.search(r"^step +(\d+)/\d+ +(resume|loss)", text, re.M):
            if missing := [words for words in told if words not in text]:
                raise Broken(f"it did not tell: {missing}")
            resumed = int(step_line[1]) if step_line[2] == "resume" else 0
            if resumed != step:
                raise Broken(f"expected it to go on from {step}, not {resumed}")
            self.damaged -= rejected

    def wait_for(
        self,
        process: subprocess.Popen,
        ready: Callable[[], bool],
        moment: float = math.inf,
    ) -> None:
        """Returns at `moment` or when `ready()`; until then the process has to live."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < moment and not ready():
            if process.poll() is not None:
                raise Broken(f"it ended by itself, with exit code {process.returncode}")
            if time.monotonic() > deadline:
                process.kill()
                raise Broken("it did not get on")
            time.sleep(1e-3)

    def complete(self) -> set[int]:
        """Steps of the checkpoints that were written to the end."""
        return {int(p.name) for p in self.checkpoints.glob("*") if p.name.isdigit()}

    def intact(self) -> list[int]:
        """Those of them that were not damaged since, sorted."""
        return sorted(self.complete() - self.damaged)

    def unfinished(self) -> list[str]:
        """Folders of saves under way, or cut off."""
        return [p.name for p in self.checkpoints.glob("*.orbax-checkpoint-tmp")]

    def reported(self) -> int:
        """The last step in metrics.jsonl."""
        return max(self.losses(), default=0)

    def losses(self) -> dict[int, tuple[float, float]]:
        """Loss and gradient norm of each step.

        Raises:
          Broken: a line cannot be read, or a step stands there twice.
        """
        found: dict[int, tuple[float, float]] = {}
        metrics = self.folder / "metrics.jsonl"
        lines = metrics.read_text().splitlines() if metrics.exists() else []
        for number, line in enumerate(lines, 1):
            try:
                record = json.loads(line)
            except ValueError:
                if number < len(lines):
                    raise Broken(f"{metrics}:{number} is no JSON") from None
                continue  # cut off by a kill; the next start drops it
            if record["kind"] == "train":
                if record["step"] in found:
                    raise Broken(f"{metrics} has step {record['step']} twice")
                found[record["step"]] = record["loss"], record["grad_norm"]
        return found

    def printed(self) -> int:
        """The last step that the present process has reported."""
        with self.log.open("rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - 1000))
            steps = re.findall(rb"^step +(\d+)/\d+ +loss", log.read(), re.M)
        return int(steps[-1]) if steps else 0


# The faults. Each finds the process training, and returns the exit code that is due.


def kill(run: Run, process: subprocess.Popen, rng: random.Random) -> int:
    """SIGKILL, which no process can prepare for."""
    time.sleep(rng.uniform(0, 0.1))
    process.kill()
    return -signal.SIGKILL


def kill_while_saving(run: Run, process: subprocess.Popen, rng: random.Random) -> int:
    """SIGKILL while there is a half-written checkpoint."""
    while True:
        run.wait_for(process, lambda: bool(run.unfinished()))
        time.sleep(rng.uniform(0, 0.02))
        process.send_signal(signal.SIGSTOP)
        time.sleep(0.01)
        if run.unfinished():
            process.kill()
            return -signal.SIGKILL
        process.send_signal(signal.SIGCONT)  # it was quicker


def terminate(run: Run, process: subprocess.Popen, rng: random.Random) -> int:
    """SIGTERM, as a scheduler sends before it takes the machine away."""
    process.terminate()
    if process.wait(PATIENCE) == 75:
        newest, last = max(run.intact(), default=0), run.reported()
        if newest != last:
            raise Broken(f"SIGTERM: saved step {newest}, but step {last} was done")
    return 75  # see launch.cli


def fill_disk(run: Run, process: subprocess.Popen, rng: random.Random) -> int:
    """No space left, or no byte more in any file, until the process has ended."""
    if not run.full_disk:
        size = (run.folder / "metrics.jsonl").stat().st_size
        limit = size + 3000 + rng.randrange(5000)
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (limit, limit))
        return 74
    filler = run.folder / "filler"
    space = os.statvfs(run.folder)
    less_than_a_save = rng.randrange(150_000)
    with contextlib.suppress(OSError):  # the run itself may take the last of it
        filler.write_bytes(bytes(space.f_bavail * space.f_frsize - less_than_a_save))
    process.wait(PATIENCE)
    filler.unlink()
    return 74


def truncate(run: Run, process: subprocess.Popen, rng: random.Random) -> int:
    """A file of the newest checkpoint loses its end."""

    def cut(content: bytes) -> bytes:
        return content[: rng.randrange(len(content))]

    return _damage(run, process, rng, cut)


def flip(run: Run, process: subprocess.Popen, rng: random.Random) -> int:
    """One bit of the newest checkpoint is another."""

    def change(content: bytes) -> bytes:
        changed = bytearray(content)
        changed[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        return bytes(changed)

    return _damage(run, process, rng, change)


def _damage(
    run: Run,
    process: subprocess.Popen,
    rng: random.Random,
    change: Callable[[bytes], bytes],
) -> int:
    # One stays to go back to even if a kill has cut the deletion of the oldest short.
    run.wait_for(process, lambda: len(run.intact()) >= KEPT)
    process.kill()
    process.wait()
    step = run.intact()[-1]
    folder = run.checkpoints / str(step)
    # The marker is not of the state: orbax writes it, and nothing is read from it.
    files = [p for p in sorted(folder.glob("*/**/*")) if p.is_file()]
    files = [p for p in files if p.name != "commit_success.txt" and p.stat().st_size]
    victim = rng.choice(files)
    victim.write_bytes(change(victim.read_bytes()))
    run.damaged.add(step)
    return -signal.SIGKILL


FAULTS = {
    "kill -9": kill,
    "kill -9 while saving": kill_while_saving,
    "full disk": fill_disk,
    "SIGTERM": terminate,
    "truncated checkpoint": truncate,
    "flipped bit": flip,
}


COUNTED = ("starts", "steps repeated", "saves interrupted", "checkpoints rejected")


def disturb(run: Run, events: int, rng: random.Random, start_seconds: float) -> None:
    """Trains to the end through `events` faults, about as many of each kind.

    Args:
      start_seconds: how long a start takes until its first step.

    Raises:
      Broken: one that the run did not survive as it should.
    """
    kinds = (list(FAULTS) * (events // len(FAULTS) + 1))[:events]
    rng.shuffle(kinds)
    for number, kind in enumerate(kinds, 1):
        try:
            process = run.start()
            here = run.intact()[-1] if run.intact() else 0
            furthest = run.num_steps * number // (events + 2)
            step = rng.randint(here + 1, max(here + 2, furthest))
            moment = math.inf
            if kind == "kill -9" and rng.random() < STARTS_KILLED:
                moment = time.monotonic() + rng.uniform(0, start_seconds)
            run.wait_for(process, lambda n=step: run.printed() >= n, moment)
            run.end(process, FAULTS[kind](run, process, rng))
        except Broken as error:
            raise Broken(f"event {number}, {kind}: {error}: {run.log}") from None
        run.counts[kind] += 1
        print(f"{number}/{events} {kind}, step {run.reported()}", flush=True)
    finish(run)
    run.counts["checkpoints rejected"] = len(list(run.folder.glob("rejected/*")))
    damaged = run.counts["truncated checkpoint"] + run.counts["flipped bit"]
    if run.counts["checkpoints rejected"] != damaged:
        raise Broken(f"{damaged} checkpoints were damaged, but others were rejected")


def finish(run: Run) -> float:
    """Trains to the end, undisturbed; returns the seconds until the first step."""
    began = time.monotonic()
    process = run.start()
    try:
        run.wait_for(process, lambda: run.printed() > 0)
        seconds = time.monotonic() - began
        run.end(process, 0)
    except Broken as error:
        raise Broken(f"the undisturbed start: {error}: {run.log}") from None
    return seconds


def differences(left: Run, right: Run) -> list[str]:
    """Paths of the leaves of the final state, and steps, that differ in any bit."""
    import jax

    from research.train.builder import build
    from research.train.checkpoints import CheckpointStore
    from research.train.sharding import make_mesh, path_name

    start()
    one = experiment(left.num_steps)
    program = build(one, make_mesh({"data": 1}, jax.devices()[:1]))

    def leaves(run: Run) -> dict[str, bytes]:
        policy = one.checkpoints
        with CheckpointStore(run.checkpoints, policy, read_only=True) as store:
            state = store.restore(run.num_steps, program.state)
        flat = jax.tree_util.tree_leaves_with_path(state)
        return {path_name(path): np.asarray(leaf).tobytes() for path, leaf in flat}

    first, second = leaves(left), leaves(right)
    found = [name for name in first if first[name] != second[name]]
    steps, again = left.losses(), right.losses()
    every = range(1, left.num_steps + 1)
    return found + [f"step {n}" for n in every if steps.get(n) != again.get(n)]


def own_disk(folder: Path, again: list[str]) -> bool:
    """Whether `folder` is a small disk of our own; becomes a process that has one.

    It is a tmpfs in a mount namespace, so nobody else sees it, and it goes with us. Not
    every container allows that: then False.

    Args:
      again: the arguments to begin again with, in the namespace.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if folder.is_mount():
        return True
    mount = f'mount -t tmpfs -o size={DISK} tmpfs "$0" && exec "$@"'
    prefix = ["unshare", "--mount", "--map-root-user", "sh", "-c", mount, str(folder)]
    try:
        subprocess.run([*prefix, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        return False
    os.execvp(prefix[0], [*prefix, sys.executable, "-m", "launch.soak", *again])


def main(
    events: int = 50,
    seed: int = 0,
    num_steps: int | None = None,
    workdir: Path | None = None,
) -> int:
    """Disturb a run, and say what it survived. Exit code 1 if it did not.

    Args:
      events: How many faults.
      seed: Of the faults and their moments.
      num_steps: Of the run; default 20 for each fault, and 40 more.
      workdir: A new folder for both runs and all logs; default a temporary one, which
        stays only if something broke.
    """
    if events < 1:
        raise UserError(f"--events {events}: expected at least 1")
    if workdir and workdir.exists() and set(os.listdir(workdir)) - {"disturbed"}:
        raise UserError(f"--workdir {workdir} is not empty: choose a new folder")
    num_steps = num_steps or 20 * (events + 2)
    root = workdir or Path(tempfile.mkdtemp(prefix="soak-"))
    root = root.absolute()
    again = [f"--events={events}", f"--seed={seed}", f"--num-steps={num_steps}"]
    disk = own_disk(root / "disturbed", [*again, f"--workdir={root}"])
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(root / "compiled"))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

    began = time.monotonic()
    (root / "logs").mkdir()
    reference = Run(root / "reference", root / "logs", num_steps, disk)
    disturbed = Run(root / "disturbed" / "run", root / "logs", num_steps, disk)
    try:
        start_seconds = finish(reference)
        disturb(disturbed, events, random.Random(seed), start_seconds)
        if differing := differences(reference, disturbed):
            raise Broken(f"not bitwise equal in the end: {differing}")
    except Broken as error:
        if disk:
            shutil.copytree(root / "disturbed", root / "evidence")
        print(f"BROKEN: {error}; everything is in {root}", file=sys.stderr)
        return 1
    kinds = ", ".join(f"{disturbed.counts[kind]} {kind}" for kind in FAULTS)
    rest = ", ".join(f"{disturbed.counts[name]} {name}" for name in COUNTED)
    how = f"a tmpfs of {DISK}, ENOSPC" if disk else "a limit on file size, EFBIG"
    print(
        f"survived {events} events in {num_steps} steps: {kinds} ({how}); {rest}; "
        "final state and every step's loss bitwise equal: yes; "
        f"{time.monotonic() - began:.0f} s"
    )
    if not workdir:
        shutil.rmtree(root, ignore_errors=True)
    return 0


if __name__ == "__main__":
    run(main)
