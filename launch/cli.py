"""What the commands share: their common arguments, start-up, and exit codes.

0    done                       74   a checkpoint could not be written
2    bad input, told in words   75   preempted, saved: start again to go on
3    not finite, see replay     124  stuck, see the stacks
1    anything else, with a traceback
"""

import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from research.errors import NonFiniteError, Preempted, SaveError, UserError

Settings = tyro.conf.UseAppendAction[tuple[str, ...]]


@dataclass(frozen=True)
class Choice:
    """Which experiment, and what is changed in it."""

    experiment: Annotated[str, tyro.conf.Positional]
    """Path of an experiment file, or name of a module; `:function` may follow."""

    arguments: Annotated[
        Settings, tyro.conf.arg(name="with", metavar="NAME=VALUE")
    ] = ()
    """An argument of the experiment's function; may be given again."""

    overrides: Annotated[Settings, tyro.conf.arg(name="set", metavar="PATH=VALUE")] = ()
    """Any one setting, such as task.sampler.num_steps=200; may be given again."""

    mesh: Annotated[str | None, tyro.conf.arg(metavar="AXIS=N,...")] = None
    """Sizes of the mesh axes data, fsdp, tensor; -1 takes the rest."""

    def request(self) -> Any:
        """How to load it, as a workdir records it."""
        from research.train.workdir import Request

        arguments = {}
        for text in self.arguments:
            name, equals, value = text.partition("=")
            if not equals:
                raise UserError(f"--with {text}: expected NAME=VALUE")
            arguments[name] = value
        return Request(self.experiment, arguments, tuple(self.overrides))

    def load(self) -> Any:
        """The experiment, on the mesh that was asked for."""
        import dataclasses

        experiment = self.request().load()
        if self.mesh:
            mesh = parse_mesh(self.mesh)
            experiment = dataclasses.replace(experiment, mesh=mesh)
        return experiment


@dataclass(frozen=True)
class Cluster:
    """Several processes as one run; on one machine, leave it alone."""

    distributed: bool = False
    """Find the other processes by the cluster's own means (TPU pods, SLURM, ...)."""

    coordinator: str | None = None
    """host:port of process 0, where nothing tells it by itself."""

    num_processes: int | None = None
    """How many processes there are."""

    process_id: int | None = None
    """The number of this process."""

    heartbeat_seconds: int = 100
    """A process silent for so long is taken for dead, and the others end."""

    def connect(self) -> None:
        """Joins the other processes; call it before any device is used.

        Raises:
          UserError: an argument is missing, or some of the devices are.
        """
        told = (self.coordinator, self.num_processes, self.process_id)
        if not self.distributed:
            if all(value is None for value in told):
                return
            if any(value is None for value in told):
                raise UserError(
                    "the processes cannot find each other: give --coordinator, "
                    "--num-processes and --process-id, or --distributed on a cluster "
                    "that tells them"
                )
        import jax

        try:
            jax.distributed.initialize(
                self.coordinator,
                self.num_processes,
                self.process_id,
                heartbeat_timeout_seconds=self.heartbeat_seconds,
            )
        except ValueError as error:
            raise UserError(
                f"the processes cannot find each other: {error} Give --coordinator, "
                "--num-processes and --process-id"
            ) from None
        expected = jax.process_count() * jax.local_device_count()
        if jax.device_count() != expected:
            raise UserError(
                f"{jax.device_count()} devices in {jax.process_count()} processes, but "
                f"this one has {jax.local_device_count()}: every process needs the "
                "same number"
            )


def parse_mesh(text: str) -> dict[str, int]:
    """`data=2,fsdp=4` as a mapping."""
    try:
        pairs = (part.split("=") for part in text.split(","))
        return {axis.strip(): int(size) for axis, size in pairs}
    except ValueError:
        raise UserError(
            f"--mesh {text}: expected AXIS=NUMBER,... such as data=2,fsdp=4"
        ) from None


def cache_folder() -> Path:
    """Where compiled programs are kept between starts."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "twelvefold" / "compiled"


def start() -> None:
    """What every command does before it touches JAX."""
    import logging

    from absl import flags

    from research.train.builder import enable_compile_cache

    logging.getLogger("absl").setLevel(logging.ERROR)
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # Grain's workers read absl's flags
    enable_compile_cache(cache_folder())


def run(main: Callable[..., Any], arguments: Sequence[str] | None = None) -> None:
    """Parses the command line for `main`, calls it, and exits with the right code."""
    sys.path.insert(0, os.getcwd())  # experiments of the user's own packages
    previous = signal.signal(signal.SIGTERM, _terminate)
    try:
        prog = f"python -m {Path(sys.argv[0]).parent.name}.{Path(sys.argv[0]).stem}"
        options = (tyro.conf.FlagCreatePairsOff,)
        result = tyro.cli(main, prog=prog, args=arguments, config=options)
        code = result if isinstance(result, int) else 0
    except (UserError, NonFiniteError, SaveError, Preempted) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        code = error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = 128 + signal.SIGINT
    except Exception:
        traceback.print_exc()
        code = 1
    finally:
        signal.signal(signal.SIGTERM, previous)
    sys.stdout.flush()
    sys.stderr.flush()
    if code and _has_peers():
        os._exit(code)  # the peers may be gone: do not wait for them at a barrier
    sys.exit(code)


def _terminate(*_: Any) -> None:
    """For SIGTERM outside the training steps, which `research.train.loop` guards."""
    raise Preempted("SIGTERM: nothing was to be saved; the same command starts again")


def _has_peers() -> bool:
    jax = sys.modules.get("jax")
    return jax is not None and jax.distributed.is_initialized()
