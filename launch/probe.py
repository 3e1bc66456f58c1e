"""Look into a deep network: its stream and its gradients, layer by layer.

    python -m launch.probe experiments/parametrization/deepnorm_modsum.py --steps 10 100

It prints, of each stack of layers at initialization and after so many training steps,
the second moment of the stream after every layer, what part of it differs between the
positions of a sequence (where that is zero, attention has nothing to choose from), and
the norm of the gradient of every module of a layer; all on the batch that the next step
would take. A folder gets the same as pictures, one a stack, and as `probe.json`.
"""

import dataclasses
import json
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from launch.cli import Choice, run, start
from launch.text import console
from research.errors import UserError
from research.experiment import Experiment
from research.tasks.base import Batch, Task, Variables
from research.train.builder import build
from research.train.sharding import path_name, to_global

LAYER = re.compile(r"^(?:(.*)/)?layers/block_(\d+)/(.*)/[^/]+$")
"""The stack, the block and the module of a parameter that layers have each their own
of, in the first axis."""


@dataclass(frozen=True)
class Layers:
    """One stack at one step.

    Attributes:
      moment: the stream's second moment before the first layer and after each.
      spread: what part of it differs within a sequence, at the same places.
      gradients: by module, the norm of the gradient of its parameters in each layer;
        NaN in the layers that have no such module.
    """

    moment: tuple[float, ...]
    spread: tuple[float, ...]
    gradients: Mapping[str, tuple[float, ...]]

    @property
    def num_layers(self) -> int:
        """In the stack."""
        return len(self.moment) - 1


def measure(
    task: Task, variables: Variables, batch: Batch, rng: jax.Array
) -> dict[str, Layers]:
    """What the loss of a batch does to each stack of a network, by the stack's name.

    Raises:
      UserError: there is no stack, or the task keeps what layers sow to itself.
    """
    norms, sown = _gradient_norms(task, variables, batch, rng)
    streams = {
        path_name(path): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(sown)
    }
    found: dict[str, dict[tuple[str, int], np.ndarray]] = {}
    for name, norm in norms.items():
        stack, block, module = re.split(r"\n", name)
        found.setdefault(stack, {})[module, int(block)] = np.asarray(norm)
    if not found:
        raise UserError(
            "there is no stack of layers in this network: expected parameters under "
            "`layers/`, as those of research.layers.stack.Stack"
        )
    if not streams:
        raise UserError(
            f"{type(task).__name__} returns no `intermediates`: expected those among "
            "the collections that changed, as research.tasks.sequences.apply has it"
        )
    return {
        stack: _layers(stack, gradients, streams) for stack, gradients in found.items()
    }


def _layers(
    stack: str,
    gradients: Mapping[tuple[str, int], np.ndarray],
    streams: Mapping[str, np.ndarray],
) -> Layers:
    prefix = f"{stack}/" if stack else ""
    num_blocks = 1 + max(block for _, block in gradients)
    num_layers = num_blocks * len(next(iter(gradients.values())))
    # One stack may be called several times, as for both sentences of a pair: the mean.
    stream = np.full((1 + num_layers, 2), np.nan)
    stream[0] = _mean(streams, f"{prefix}stream_in/")
    norms = {module: np.full(num_layers, np.nan) for module, _ in gradients}
    for block in range(num_blocks):
        stream[1 + block :: num_blocks] = _mean(
            streams, f"{prefix}layers/stream_{block}/"
        )
    for (module, block), norm in gradients.items():
        norms[module][block::num_blocks] = norm
    return Layers(
        moment=tuple(stream[:, 0].tolist()),
        spread=tuple(stream[:, 1].tolist()),
        gradients={module: tuple(norm.tolist()) for module, norm in norms.items()},
    )


def _mean(streams: Mapping[str, np.ndarray], prefix: str) -> np.ndarray:
    return np.mean([x for name, x in streams.items() if name.startswith(prefix)], 0)


def _gradient_norms(task, variables, batch, rng) -> tuple[dict[str, jax.Array], Any]:
    """Norms by `stack newline block newline module`, and what the layers sowed."""

    @jax.jit
    def compute(variables, batch, rng):
        def loss(params):
            # A collection that is there is one that a task lets training change.
            tapped = {**variables, "params": params, "intermediates": {}}
            value, (_, changed) = task.loss(tapped, batch, rng, True)
            return value, changed.get("intermediates", {})

        gradients, sown = jax.grad(loss, has_aux=True)(variables["params"])
        groups: dict[str, list[jax.Array]] = {}
        for path, leaf in jax.tree_util.tree_leaves_with_path(gradients):
            if match := LAYER.match(path_name(path)):
                stack, block, module = match.groups()
                rows = leaf.astype(jnp.float32).reshape(leaf.shape[0], -1)
                groups.setdefault(f"{stack or ''}\n{block}\n{module}", []).append(rows)
        norms = {}
        for name, parts in groups.items():
            rows = jnp.concatenate(parts, axis=1)
            # Without overflow: what explodes is to be told from what is infinite.
            largest = jnp.maximum(abs(rows).max(1), jnp.finfo(jnp.float32).tiny)
            scaled = rows / largest[:, None]
            norms[name] = largest * jnp.sqrt(jnp.square(scaled).sum(1))
        return norms, sown

    return jax.device_get(compute(variables, batch, rng))


def probe(
    experiment: Experiment,
    steps: tuple[int, ...] = (),
    tell: Callable[[str], None] = lambda line: None,
) -> dict[int, dict[str, Layers]]:
    """Every stack at initialization and after each of `steps`, by step and name.

    Raises:
      UserError: steps that are not positive and increasing, or what `measure` refuses.
    """
    if steps and (steps[0] < 1 or list(steps) != sorted(set(steps))):
        raise UserError(
            f"steps {' '.join(map(str, steps))}: expected positive numbers, each larger"
            " than the one before it"
        )
    program = build(experiment)
    state = program.init()
    rng = jax.random.key(experiment.seed)
    found = {}
    batches = experiment.data.batches()
    try:
        for step in range(1 + max(steps, default=0)):
            rows = next(batches)
            size = len(next(iter(rows.values())))
            batch = to_global(rows, program.mesh, size)
            if step == 0 or step in steps:
                tell(f"step {step} ...")
                variables = state.variables()
                found[step] = measure(experiment.task, variables, batch, rng)
            if step < max(steps, default=0):
                state, _ = program.step(state, batch)
    finally:
        batches.close()
    return found


# The command


def main(
    choice: Annotated[Choice, tyro.conf.arg(name="")],
    steps: tuple[int, ...] = (),
    out: Path | None = None,
    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False,
) -> None:
    """Measure the stream and the gradients of every layer.

    Args:
      choice: Which experiment.
      steps: Training steps after which to measure, besides initialization.
      out: Folder of the pictures; default runs/NAME-probe.
      as_json: Print everything as JSON, every layer of it.
    """
    start()
    experiment = choice.load()
    found = probe(experiment, steps, _tell)
    folder = out or Path("runs") / f"{experiment.name}-probe"
    record = {
        str(step): {name: dataclasses.asdict(layers) for name, layers in stacks.items()}
        for step, stacks in found.items()
    }
    text = json.dumps(_finite(record))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "probe.json").write_text(text)
        for name in found[0]:
            picture = folder / f"{name.replace('/', '_') or 'layers'}.png"
            draw({step: stacks[name] for step, stacks in found.items()}, picture)
    except OSError as error:
        raise UserError(
            f"{folder} cannot be written: {error}; choose another folder with --out"
        ) from None
    if as_json:
        print(text)
    else:
        _print(found)
    _tell(f"pictures: {folder}")


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _finite(node: Any) -> Any:
    """Without what JSON has no word for: None in its place."""
    if isinstance(node, dict):
        return {key: _finite(value) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return [_finite(value) for value in node]
    return node if np.isfinite(node) else None


def _print(found: Mapping[int, Mapping[str, Layers]], most: int = 13) -> None:
    from rich.table import Table

    out = console()
    for step, stacks in found.items():
        for name, layers in stacks.items():
            modules = list(layers.gradients)
            heads = [module.replace("/", "/\n") for module in modules]
            table = Table("layer", "moment", "spread", *heads, box=None)
            last = layers.num_layers
            places = np.linspace(0, last, min(most, 1 + last)).round().astype(int)
            for place in np.unique(np.append(places, 1)).tolist():
                row = [str(place) if place else "in"]
                row += [f"{layers.moment[place]:.3g}", f"{layers.spread[place]:.2g}"]
                for module in modules:
                    norm = layers.gradients[module][place - 1] if place else np.nan
                    row.append("" if np.isnan(norm) and not place else f"{norm:.2g}")
                table.add_row(*row)
            out.print(
                f"\n{name or 'layers'} after {step} steps: the stream's second moment,"
                " the part that differs within a sequence; norms of gradients\n",
                highlight=False,
            )
            out.print(table, highlight=False)


def draw(layers: Mapping[int, Layers], path: Path) -> None:
    """One stack at each step, as a PNG: its stream, and the gradients of its modules.

    Lines are drawn through what is positive and finite.
    """
    # Not pyplot, whose figures are global and whose backend may want a screen.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    def line(axes: Any, values: tuple[float, ...], first: int, label: str) -> None:
        y = np.asarray(values)
        shown = np.isfinite(y) & (y > 0)
        axes.plot(first + np.flatnonzero(shown), y[shown], ".-", ms=3, label=label)

    columns = 2 + len(layers)
    figure = Figure(figsize=(3.2 * columns, 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    for index, (title, name) in enumerate(
        {"second moment": "moment", "part that differs": "spread"}.items()
    ):
        axes = figure.add_subplot(1, columns, index + 1, title=title, yscale="log")
        for step, at in layers.items():
            line(axes, getattr(at, name), 0, f"step {step}")
        axes.set_xlabel("layer")
        axes.legend(fontsize=6)
    for index, (step, at) in enumerate(layers.items()):
        title = f"gradient norms, step {step}"
        axes = figure.add_subplot(1, columns, index + 3, title=title, yscale="log")
        for module, norms in at.gradients.items():
            line(axes, norms, 1, module)
        axes.set_xlabel("layer")
        axes.legend(fontsize=5)
    figure.savefig(path, dpi=80)


if __name__ == "__main__":
    run(main)
