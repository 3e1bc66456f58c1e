"""The one loop: restore, step, report, evaluate, save, until done or told to leave."""

import contextlib
import json
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from orbax.checkpoint import multihost

from research.data.sources import all_missing
from research.errors import NonFiniteError, Preempted, SaveError, UserError
from research.evals.base import Context
from research.experiment import Experiment, identity
from research.train import bundle, hardware, metrics, sharding
from research.train.builder import Program, build
from research.train.checkpoints import CheckpointStore, read_meta, select
from research.train.clock import Clock
from research.train.preemption import Preemption
from research.train.reports import Bar, JsonLines, Report, TensorBoard, finite
from research.train.start import begin
from research.train.state import TrainState
from research.train.watchdog import SLOW, Watchdog
from research.train.workdir import Request, Workdir


@dataclass(frozen=True)
class Options:
    """How a run is operated; nothing here changes what it computes.

    Attributes:
      adopt: take over a workdir whose experiment had other settings.
      stop_at: save and return after this step.
      watchdog_seconds: without progress for so long, dump stacks and exit.
      reports: makers of further reports, such as the console, given the step that
        the run starts from.
    """

    adopt: bool = False
    stop_at: int | None = None
    watchdog_seconds: float = 1800.0
    reports: Sequence[Callable[[int], Report]] = ()


def train(
    experiment: Experiment,
    workdir: Workdir,
    request: Request,
    options: Options = Options(),
    clock: Clock | None = None,
) -> dict[str, float]:
    """Trains from the newest checkpoint of `workdir`, or from the beginning.

    The state after step n is a function of the experiment alone: however often the run
    is cut off and started again on the same devices, every bit is the same.

    Returns:
      The final evaluation and the last report's loss, by name.

    Raises:
      UserError: bad settings, data or workdir.
      NonFiniteError: a loss or gradient was not finite, and the policy is to stop.
      SaveError: a checkpoint or a report could not be written.
      Preempted: SIGTERM came; the state is saved.
    """
    clock = clock or Clock()
    primary = jax.process_index() == 0
    _check(options)
    program = build(experiment)
    _require_data(program)
    if primary:
        workdir.open(experiment, request, options.adopt)
    _meet("workdir")
    with contextlib.ExitStack() as stack:
        stack.callback(workdir.close)
        store = stack.enter_context(
            CheckpointStore(workdir.checkpoints, experiment.checkpoints)
        )
        stacks = workdir.path / f"stacks-{jax.process_index()}.txt"
        watchdog = stack.enter_context(Watchdog(options.watchdog_seconds, stacks))
        preemption = stack.enter_context(Preemption())
        state, start, notes = _start(program, workdir, store, clock)
        reports: list[Report] = []
        stack.callback(_close, reports)
        if primary:
            lost = _last_step(workdir) - start
            with _writing():
                reports.append(JsonLines(workdir.metrics, start))
                reports.append(TensorBoard(workdir.tensorboard, start))
                reports.extend(make(start) for make in options.reports)
            for note in notes:
                _tell(reports, {"step": start, "kind": "note", "note": note})
            if start:
                repeated = {"repeated_steps": max(0, lost)}
                _tell(reports, {"step": start, "kind": "resume", **repeated})
        run = _Run(program, workdir, store, clock, watchdog, reports, state, start)
        return run.steps(options.stop_at, preemption)


class _Run:
    """The moving parts of one start of a run, between two checkpoints."""

    def __init__(
        self,
        program: Program,
        workdir: Workdir,
        store: CheckpointStore,
        clock: Clock,
        watchdog: Watchdog,
        reports: list[Report],
        state: TrainState,
        start: int,
    ):
        self.program, self.experiment = program, program.experiment
        self.workdir, self.store, self.clock = workdir, store, clock
        self.watchdog, self.reports, self.state = watchdog, reports, state
        self.step = self.done = start  # dispatched, and known to have finished
        self.window: list[dict] = []
        self.times: deque[float] = deque(maxlen=1000)
        self.work: deque[tuple[int, int]] = deque(maxlen=1000)  # examples, FLOPs
        self.waits = self.started = 0.0
        self.skipped = int(state.skipped)
        self.latest = _saved_metrics(workdir, start)
        self.peak, self.peak_rule = hardware.peak_flops(program.mesh.devices.flat)

    def steps(self, stop_at: int | None, preemption: Preemption) -> dict[str, float]:
        """Runs to the end, to `stop_at`, or to a preemption."""
        experiment, clock = self.experiment, self.clock
        last = experiment.num_steps
        stop_at = min(last, stop_at or last)
        with clock.measure("compile"):
            compiled = self.program.compile()
            _ = self.program.flops  # traced once, and not within a step
            _meet("compiled")
        data = experiment.data
        if len(compiled) > 1:
            shapes = "; ".join(map(str, self.program.buckets))
            note = f"compiled {len(compiled)} steps, for {shapes}"
            _tell(self.reports, {"step": self.step, "kind": "note", "note": note})
        rows = _local_rows(self.program)
        pending: tuple[Any, Any] | None = None
        with contextlib.closing(data.batches(self.step, rows)) as batches:
            self.started = time.perf_counter()
            while self.step < stop_at:
                batch = self._next(batches)
                with clock.measure("step"):
                    self.state, measured = compiled(self.state, batch)
                    self.step += 1
                    # The device works on this step while the host reads the last one.
                    if pending:
                        self._take(*pending)
                    pending = (measured, batch)
                    leave = preemption.reached(self.step)
                    pause = leave or self._due() or self.step == stop_at
                    if pause:
                        self._take(*pending)
                        pending = None
                self.store.check()
                if pause:
                    self._pause(leave or self.step == stop_at)
                if leave:
                    break
        with clock.measure("save"):
            self.store.wait()
        self._goodput()
        if self.step < stop_at:
            raise Preempted(
                f"SIGTERM: saved at step {self.step} of {last}; the same command goes "
                "on from there"
            )
        return self.latest

    def _next(self, batches: Iterator) -> Any:
        with self.clock.measure("data_wait"):
            before = time.perf_counter()
            local = next(batches)
            size = self.program.batch_size_of(local)
            batch = sharding.to_global(local, self.program.mesh, size)
            self.waits += time.perf_counter() - before
        return batch

    def _take(self, measured: Any, batch: Any) -> None:
        """Waits for a step's metrics; the state may be one step further."""
        values = jax.device_get(measured)
        now = time.perf_counter()
        self.done += 1
        self.times.append(now - self.started)
        rows = self.program.batch_size_of(batch)
        self.work.append((rows, self.program.flops_of(batch)))
        self.started = now
        self.watchdog.beat()
        self.window.append(values)
        skipped = int(values["skipped"][0])
        if skipped > self.skipped:
            self._not_finite(values, batch, skipped)
        for report in self.reports:
            if isinstance(report, Bar):
                loss = metrics.mean({"loss": values["loss"]})["loss"]
                rate = rows / self.times[-1]
                report.advance(self.done, loss, self.times[-1], rate)

    def _not_finite(self, values: Any, batch: Any, skipped: int) -> None:
        numbers = metrics.mean(values)
        culprits = [n for n, v in numbers.items() if not math.isfinite(v)]
        step = f"step {self.done - 1} (update {self.done})"
        told = f"{step}: {', '.join(culprits)} not finite"
        if self.experiment.on_nonfinite == "skip":
            self.skipped = skipped
            self.window.pop()
            record = {"step": self.done, "kind": "skipped", "note": told}
            _tell(self.reports, {**record, "skipped": skipped})
            return
        words = {n: v if math.isfinite(v) else repr(v) for n, v in numbers.items()}
        folder = bundle.write(self.workdir.path, self.state, batch, words)
        self.store.wait()
        raise NonFiniteError(
            f"{told}; its batch and state are in {folder}: run it again with python -m "
            f"launch.replay {folder}; the last checkpoint is {self.store.steps()[-1:]}"
        )

    def _due(self) -> bool:
        experiment, step = self.experiment, self.step
        every = [experiment.log_every, experiment.checkpoints.every]
        every += [evaluator.every for evaluator in experiment.evals.values()]
        return any(n and step % n == 0 for n in every)

    def _pause(self, leave: bool) -> None:
        """Reports, evaluates and saves, each if this step is one of its own."""
        before = time.perf_counter()
        experiment = self.experiment
        if leave or self.step % experiment.log_every == 0:
            with self.clock.measure("log"):
                self._log()
        self._evaluate(final=self.step == experiment.num_steps)
        every = experiment.checkpoints.every
        if leave or (every and self.step % every == 0):
            self._save()
        self.started += time.perf_counter() - before  # no step's time

    def _log(self) -> None:
        if not self.window:
            return
        means = metrics.pool(self.window)
        times = np.array(self.times)
        total = float(times.sum())
        examples, flops = (sum(parts) for parts in zip(*self.work, strict=True))
        median, tail = np.percentile(times, [50, 95])
        seconds = self.clock.seconds()
        record = {
            "step": self.step,
            "kind": "train",
            **means,
            "learning_rate": float(
                self.experiment.optimizer.learning_rate(self.step - 1)
            ),
            "step_ms_p50": 1e3 * float(median),
            "step_ms_p95": 1e3 * float(tail),
            "examples_per_second": examples / total,
            "flops_per_second": flops / total,
            "utilization": flops / total / self.peak,
            "peak": self.peak_rule,
            "data_wait": self.waits / total,
            "eta_seconds": float(median) * (self.experiment.num_steps - self.step),
            "wall_seconds": sum(seconds.values()),
            "seconds": seconds,
        }
        self.latest["loss"] = means["loss"]
        _tell(self.reports, record)
        self.window.clear()
        self.times.clear()
        self.work.clear()
        self.waits = 0.0

    def _evaluate(self, final: bool) -> None:
        for name, evaluator in self.experiment.evals.items():
            if not (final or (evaluator.every and self.step % evaluator.every == 0)):
                continue
            self.watchdog.beat(SLOW)
            with self.clock.measure("eval"):
                context = Context(
                    data=self.experiment.data,
                    mesh=self.program.mesh,
                    step=self.step,
                    seed=self.experiment.seed + 1,
                    folder=self.workdir.pictures(name),
                )
                variables = self.state.variables(average=True)
                values = evaluator(self.experiment.task, variables, context)
            self.watchdog.beat()
            values = {f"{name}/{n}": float(v) for n, v in values.items()}
            self.latest.update(values)
            if values:  # some only draw a picture
                _tell(self.reports, {"step": self.step, "kind": "eval", **values})

    def _save(self) -> None:
        with self.clock.measure("save"):
            record = {
                "identity": identity(self.experiment),
                "next_batch": self.step,
                "metrics": finite(self.latest),
            }
            self.store.save(self.state, record)
        self.watchdog.beat()

    def _goodput(self) -> None:
        seconds = self.clock.seconds()
        record = {"wall_seconds": sum(seconds.values()), "seconds": seconds}
        _tell(self.reports, {"step": self.step, "kind": "goodput", **record})


def _meet(name: str) -> None:
    """Waits for all processes of the run, however long they take.

    Devices do not: a process that computes with the others' devices is ended after 40
    seconds in which these have not come, because their processes still compile.
    """
    a_day = 24 * 3600 * 1000  # a dead process is told by its heartbeat, long before
    multihost.get_barrier_sync_fn()(key=name, timeout_ms=a_day)


def _check(options: Options) -> None:
    for name in ("stop_at", "watchdog_seconds"):
        value = getattr(options, name)
        if value is not None and value <= 0:
            raise UserError(f"{name}={value}: expected a positive number")


def _require_data(program: Program) -> None:
    """Refuses at once what would else fail after compiling, or after days of training.

    Raises:
      UserError: a split is missing or unknown, or the first example cannot be used.
    """
    data, evals = program.experiment.data, program.experiment.evals
    sources = {"train": data.train, **data.eval}
    needed = {"train": "data.train"}
    for name, evaluator in evals.items():
        for field in ("split", "reference_split"):
            split = getattr(evaluator, field, "train")
            if split not in sources:
                raise UserError(
                    f"evals.{name}.{field}={split!r}: data.eval has "
                    f"{', '.join(data.eval) or 'none'}"
                )
            needed.setdefault(split, f"data.eval.{split}")
        if hasattr(evaluator, "split"):
            sharding.check_batch_size(getattr(evaluator, "batch_size", 0), program.mesh)
    for split, path in needed.items():
        source = sources[split]
        if missing := all_missing([source]):
            raise UserError(
                f"{path} is not there: no {' and no '.join(missing)}: python -m "
                f"launch.prepare says what it can download; --set {path} points "
                "elsewhere"
            )
    if missing := all_missing([*data.transforms, *data.eval_transforms]):
        raise UserError(
            f"the transforms read {' and '.join(missing)}, which is not there: python "
            "-m launch.prepare says what it can make"
        )
    rows = _local_rows(program)
    data.batch(0, {size: some[:1] for size, some in rows.items()})


def _local_rows(program: Program) -> dict[int, list[int]]:
    """What this process feeds of a global batch, by the size of the batch."""
    sizes = [bucket.batch_size for bucket in program.buckets]
    return {size: sharding.local_rows(program.mesh, size) for size in sizes}


def _start(
    program: Program, workdir: Workdir, store: CheckpointStore, clock: Clock
) -> tuple[TrainState, int, list[str]]:
    """The state to begin from, its step, and what was found on the way."""
    with clock.measure("restore"):
        step, notes = select(workdir.checkpoints)
        if step is not None:
            store.reload()
            state = store.restore(step, program.state)
            if program.experiment.on_nonfinite == "stop":
                # Where one that skipped is taken over: the step takes any count but
                # zero for a run that is about to stop.
                state = state.replace(skipped=jnp.zeros_like(state.skipped))
            return state, step, notes
    with clock.measure("init"):
        state = program.init()
        if program.experiment.start is not None:
            state = begin(state, program.experiment.start)
        return jax.block_until_ready(state), 0, notes


def _last_step(workdir: Workdir) -> int:
    """The last step that an earlier start reported."""
    steps = [0]
    if workdir.metrics.exists():
        for line in workdir.metrics.read_text().splitlines():
            with contextlib.suppress(ValueError, KeyError, TypeError):
                steps.append(json.loads(line)["step"])
    return max(steps)


def _saved_metrics(workdir: Workdir, start: int) -> dict[str, float]:
    """What was known of the run when it saved the step that it goes on from."""
    if not start:
        return {}
    saved = read_meta(workdir.checkpoints, start)["metrics"]
    return {n: math.nan if v is None else v for n, v in saved.items()}


@contextlib.contextmanager
def _writing() -> Iterator[None]:
    """A full disk ends a run alike, whether a checkpoint or a report meets it first."""
    try:
        yield
    except OSError as error:
        raise SaveError(f"a report could not be written: {error}") from error


def _tell(reports: Sequence[Report], record: dict[str, Any]) -> None:
    with _writing():
        for report in reports:
            report.write(record)


def _close(reports: Sequence[Report]) -> None:
    for report in reports:
        # What could not be written has been told, and would be tried again here.
        with contextlib.suppress(OSError):
            report.close()
