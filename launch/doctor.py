"""Look over an installation, and an experiment's needs, without starting anything.

    python -m launch.doctor experiments/score_sde/vp_ddpmpp_digits.py

The exit code is 0 if all is well and 1 if something is not. Versions are compared with
the ranges that the installed package declares and with the tested set in `locks/`,
which is part of the repository but not of a wheel.
"""

import importlib.metadata
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import tyro
from packaging.requirements import Requirement

from launch.cli import Choice, Settings, cache_folder, run, start
from launch.text import size_text
from research.errors import UserError

LOCKS = Path(__file__).parents[1] / "locks"

CORE = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "diffrax", "numpy")
"""What decides the numbers: these have to be the tested ones."""

OPTIONAL = ("grain", "tensorflow-datasets", "libtpu", "torch", "diffusers", "wandb")

SPARE = 2**30
"""Bytes of disk that any run may need beside its checkpoints."""


@dataclass(frozen=True)
class Finding:
    """What one look found."""

    subject: str
    told: str
    ok: bool = True


def examine(
    choice: Choice | None, workdir: Path = Path("runs"), locks: Path = LOCKS
) -> list[Finding]:
    """All findings. Whatever goes wrong is one of them, never an exception.

    Args:
      choice: the experiment whose needs are looked at, too.
      workdir: where runs would go.
      locks: the folder with the tested sets of versions.
    """
    checks: dict[str, Callable[[], Iterator[Finding]]] = {
        "python": _python,
        "packages": lambda: _packages(locks),
        "devices": _devices,
        "cache": _cache,
    }
    if choice:
        checks["experiment"] = lambda: _experiment(choice, workdir)
    else:
        checks["disk"] = lambda: _disk(workdir, SPARE)
    return [finding for name, check in checks.items() for finding in _try(name, check)]


def _try(subject: str, check: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    try:
        yield from check()
    except UserError as error:
        yield Finding(subject, str(error), ok=False)
    except Exception as error:  # any at all: that is what a doctor is called for
        yield Finding(subject, f"{type(error).__name__}: {error}", ok=False)


def _python() -> Iterator[Finding]:
    version = platform.python_version()
    ok = sys.version_info >= (3, 11)
    yield Finding("python", version if ok else f"{version}: expected 3.11 or newer", ok)


def _packages(locks: Path) -> Iterator[Finding]:
    found = {name: _version(name) for name in CORE}
    told = ", ".join(f"{name} {version or 'absent'}" for name, version in found.items())
    yield Finding("packages", told, all(found.values()))
    extras = (f"{name} {_version(name) or 'absent'}" for name in OPTIONAL)
    yield Finding("optional", ", ".join(extras))
    yield from _ranges()
    yield _locked(locks, found)


def _ranges() -> Iterator[Finding]:
    try:
        declared = importlib.metadata.requires("twelvefold") or []
    except importlib.metadata.PackageNotFoundError:
        yield Finding("ranges", "twelvefold runs from its folder: nothing declares any")
        return
    broken = []
    for requirement in map(Requirement, declared):
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        version = _version(requirement.name)
        if version is None or not requirement.specifier.contains(version, True):
            broken.append(f"{requirement.name} {version or 'absent'}")
            broken[-1] += f" (expected {requirement.specifier or 'any'})"
    told = "; ".join(broken) or "all as declared"
    yield Finding("ranges", told, not broken)


def _locked(locks: Path, found: dict[str, str | None]) -> Finding:
    major, minor, *_ = platform.python_version_tuple()
    path = locks / f"py{major}{minor}-cpu.txt"
    if not path.is_file():
        told = f"no {path}: the repository has those that were tested"
        return Finding("tested set", told)
    lines = path.read_text().splitlines()
    tested = dict(line.split("==") for line in lines if "==" in line)
    other = [
        f"{name} {found[name]}, tested {tested[name]}"
        for name in CORE
        if found[name] != tested.get(name)
    ]
    told = "; ".join(other) + f": pip install -r {path}" if other else str(path)
    return Finding("tested set", told, not other)


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _devices() -> Iterator[Finding]:
    import jax
    import jax.numpy as jnp

    devices = jax.devices()
    kind = devices[0].device_kind
    begun = time.perf_counter()
    total = jax.jit(lambda x: jnp.sum(x @ x))(jnp.ones((64, 64)))
    right = int(total) == 64**3
    seconds = time.perf_counter() - begun
    told = f"{len(devices)} x {kind}; a product took {seconds:.2f} s to compile and run"
    yield Finding("devices", told if right else f"{told} and came out wrong", right)
    for path, extra in (("/dev/nvidia0", "cuda"), ("/dev/accel0", "tpu")):
        if devices[0].platform == "cpu" and Path(path).exists():
            told = f"{path} is there, but JAX uses the CPU"
            hint = f"pip install 'twelvefold[{extra}]'"
            yield Finding("devices", f"{told}: {hint}", ok=False)


def _cache() -> Iterator[Finding]:
    folder = Path(os.environ.get("JAX_COMPILATION_CACHE_DIR") or cache_folder())
    if not folder.exists():
        yield Finding("cache", f"{folder} will be made")
        return
    files = [path for path in folder.rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in files)
    with tempfile.TemporaryFile(dir=folder):
        yield Finding("cache", f"{folder}: {len(files)} files, {size_text(size)}")


def _disk(workdir: Path, needed: int) -> Iterator[Finding]:
    there = workdir.absolute()
    while not there.exists():
        there = there.parent
    free = shutil.disk_usage(there).free
    told = f"{size_text(free)} free for {workdir}"
    if free < needed:
        told += f": expected {size_text(needed)}"
    yield Finding("disk", told, free >= needed)


def _experiment(choice: Choice, workdir: Path) -> Iterator[Finding]:
    import jax

    from research.train.builder import build

    experiment = choice.load()
    yield from _data(experiment, choice.experiment)
    program = build(experiment)
    mesh = ", ".join(f"{a}={n}" for a, n in program.mesh.shape.items())
    told = f"{program.num_params():,} parameters, batch {experiment.data.batch_size}"
    yield Finding("experiment", f"{experiment.name}: {told}, mesh {mesh}")
    state = jax.tree.leaves(program.state)
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in state)
    policy = experiment.checkpoints
    kept = policy.keep_last + 1  # the one being written
    if policy.keep_every:
        kept += experiment.num_steps // policy.keep_every
    yield Finding("checkpoints", f"{size_text(size)} each, up to {kept} at a time")
    yield from _disk(workdir / experiment.name, kept * size + SPARE)


def _data(experiment: Any, reference: str) -> Iterator[Finding]:
    from research.data.sources import Preparable

    def look(name: str, source: Any) -> Iterator[Finding]:
        missing = source.missing() if isinstance(source, Preparable) else []
        told = f"no {', no '.join(missing)}: python -m launch.prepare {reference}"
        yield Finding(name, told if missing else "is there", not missing)

    data = experiment.data
    sources = {"data.train": data.train}
    sources |= {f"data.eval.{name}": source for name, source in data.eval.items()}
    for name, source in sources.items():
        yield from _try(name, partial(look, name, source))


def main(
    experiment: Annotated[str | None, tyro.conf.Positional] = None,
    arguments: Annotated[
        Settings, tyro.conf.arg(name="with", metavar="NAME=VALUE")
    ] = (),
    overrides: Annotated[
        Settings, tyro.conf.arg(name="set", metavar="PATH=VALUE")
    ] = (),
    mesh: str | None = None,
    workdir: Path = Path("runs"),
) -> int:
    """Look over the installation, and what an experiment needs of it.

    Args:
      experiment: Path of an experiment file, or name of a module.
      arguments: An argument of the experiment's function; may be given again.
      overrides: Any one setting, such as data.train.data_dir=PATH.
      mesh: Sizes of the mesh axes, such as data=2,fsdp=4.
      workdir: Where runs would go.
    """
    choice = Choice(experiment, arguments, overrides, mesh) if experiment else None
    findings = [*_try("cache", _start), *examine(choice, workdir)]
    for finding in findings:
        mark = "ok" if finding.ok else "PROBLEM"
        print(f"{mark:<8} {finding.subject:<15} {finding.told}")
    problems = sum(not finding.ok for finding in findings)
    print(f"{problems or 'no'} problem{'' if problems == 1 else 's'}")
    return int(problems > 0)


def _start() -> Iterator[Finding]:
    start()
    yield from ()


if __name__ == "__main__":
    run(main)
