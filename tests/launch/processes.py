"""Real processes that train, as a user, a scheduler or a failing machine meets them."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[2]
PATIENCE = 240.0  # seconds, for machines that have much else to do


class Process:
    """`python <arguments>` on so many CPU devices; what it prints goes to a file."""

    def __init__(self, log: Path, devices: int, *arguments: str):
        self.log = log
        environment = {**os.environ, "JAX_NUM_CPU_DEVICES": str(devices)}
        with log.open("w") as file:
            self._process = subprocess.Popen(
                [sys.executable, *arguments],
                stdout=file,
                stderr=file,
                cwd=ROOT,
                env=environment,
            )

    @property
    def printed(self) -> str:
        """What it has said until now."""
        return self.log.read_text()

    def send(self, signal: int) -> None:
        """Sends a signal."""
        self._process.send_signal(signal)

    def wait(self) -> int:
        """Its exit code, once it has ended."""
        return self._process.wait(PATIENCE)

    def wait_for(self, words: str) -> None:
        """Returns once it has printed `words`."""
        wait_until(lambda: words in self.printed or self._process.poll() is not None)
        assert words in self.printed, self.printed

    def end(self) -> None:
        """Leaves nothing behind."""
        self._process.kill()
        self._process.wait()


def wait_until(ready: Callable[[], bool]) -> None:
    """Returns when `ready()`, and fails when it does not get ready."""
    deadline = time.monotonic() + PATIENCE
    while not ready():
        assert time.monotonic() < deadline, "nothing has happened"
        time.sleep(0.02)


@contextmanager
def job(
    folder: Path, number: int, devices: int, *arguments: str
) -> Iterator[list[Process]]:
    """One run of `number` processes that train in `folder`; they are gone after."""
    command = ["-m", "launch.train", *arguments, "--workdir", str(folder)]
    if number > 1:
        with socket.socket() as probe:
            probe.bind(("localhost", 0))
            port = probe.getsockname()[1]
        command += [
            "--coordinator",
            f"localhost:{port}",
            "--num-processes",
            f"{number}",
        ]
    processes: list[Process] = []
    try:
        for index in range(number):
            own = ["--process-id", f"{index}"] if number > 1 else []
            log = folder.with_name(f"{folder.name}-{index}.txt")
            processes.append(Process(log, devices, *command, *own))
        yield processes
    finally:
        for process in processes:
            process.end()
