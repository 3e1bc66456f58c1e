"""Time of matching queries with objects: on the device, and by SciPy on the host.

    python -m launch.bench_matching --batch-sizes 2 8

The problems are those of one step of DETR: for every image and layer 100 queries and up
to 63 objects, a dozen or less in most images of COCO. In "alike" all queries say nearly
the same, as in the beginning, and want the same objects; in "apart" most objects have a
query of their own, as after training. The host's times are those of a callback inside a
compiled function, SciPy's included, once in a thread and once in four.

A callback would also keep the step from JAX's compilation cache, and on one core with
several virtual devices it waits for itself.
"""

import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.table import Table
from scipy.optimize import linear_sum_assignment

from launch.cli import run, start
from launch.text import console
from research.detection.matching import PairCosts, assign
from research.errors import UserError

QUERIES, CLASSES, LAYERS = 100, 91, 6


def problems(
    batch_size: int, objects: int, mean: float, spread: float, seed: int = 0
) -> tuple[jax.Array, jax.Array]:
    """Costs (batch * layers, objects, queries), and which objects are there.

    Args:
      batch_size: of the images.
      objects: the most in an image.
      mean: number of objects, drawn from a geometric distribution; 0 is for all.
      spread: standard deviation of the queries' boxes.
      seed: of all that is drawn.
    """
    rng = np.random.default_rng(seed)
    number = np.full(batch_size, objects)
    if mean:
        number = np.minimum(rng.geometric(1 / mean, batch_size), objects)
    shape = (batch_size * LAYERS, objects)
    present = np.repeat(np.arange(objects)[None] < number[:, None], LAYERS, axis=0)
    targets = rng.uniform(0.2, 0.8, (*shape, 4))
    boxes = 0.5 + spread * rng.uniform(-1, 1, (len(present), QUERIES, 4))
    costs = jax.jit(PairCosts())(
        jnp.asarray(rng.normal(size=(*boxes.shape[:2], CLASSES + 1)), jnp.float32),
        jnp.asarray(boxes.clip(0.01, 0.99), jnp.float32),
        jnp.asarray(rng.integers(0, CLASSES, shape), jnp.int32),
        jnp.asarray(targets, jnp.float32),
    )
    return costs, jnp.asarray(present)


def by_scipy(costs: Any, present: Any, threads: int = 1) -> np.ndarray:
    """As `assign`, one problem after the other, or several at once."""
    costs, present = np.asarray(costs), np.asarray(present)
    found = np.full(present.shape, -1, np.int32)

    def one(number: int) -> None:
        rows = np.flatnonzero(present[number])
        pairs = linear_sum_assignment(costs[number][rows])
        found[number, rows[pairs[0]]] = pairs[1]

    if threads == 1:
        for number in range(len(costs)):
            one(number)
    else:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(one, range(len(costs))))
    return found


def on_host(threads: int, costs: jax.Array, present: jax.Array) -> jax.Array:
    """`by_scipy` in the middle of a compiled function."""
    shape = jax.ShapeDtypeStruct(present.shape, jnp.int32)
    return jax.pure_callback(partial(by_scipy, threads=threads), shape, costs, present)


def by_optax(costs: jax.Array, present: jax.Array) -> jax.Array:
    """As `assign`, absent objects costing the same with every query."""
    padded = jnp.where(present[..., None], costs, 1e4)
    rows, columns = jax.vmap(optax.assignment.hungarian_algorithm)(padded)
    order = jnp.argsort(rows, axis=-1)
    return jnp.where(present, jnp.take_along_axis(columns, order, axis=-1), -1)


WAYS: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "device": assign,
    "host": partial(on_host, 1),
    "host, 4 threads": partial(on_host, 4),
    "device, by optax": by_optax,
}
CASES = {"alike": (8.0, 0.05), "apart": (8.0, 0.4), "63 objects, alike": (0.0, 0.05)}


def milliseconds(
    way: Callable[..., Any], costs: jax.Array, present: jax.Array, repeats: int
) -> tuple[float, np.ndarray]:
    """The median of several runs, and what was found."""
    compiled = jax.jit(way).lower(costs, present).compile()
    found, times = compiled(costs, present), []
    for _ in range(repeats):
        before = time.perf_counter()
        jax.block_until_ready(compiled(costs, present))
        times.append(1e3 * (time.perf_counter() - before))
    return statistics.median(times), np.asarray(found)


def main(
    batch_sizes: tuple[int, ...] = (2, 8), objects: int = 63, repeats: int = 9
) -> None:
    """Time both places, and check that they agree.

    Args:
      batch_sizes: Images in a step.
      objects: The most in an image.
      repeats: Timed runs.
    """
    if min((*batch_sizes, objects, repeats)) < 1:
        raise UserError("batch sizes, objects and repeats are at least 1")
    start()
    table = Table("images", "queries", *WAYS, "same pairs", title="ms for 6 layers")
    for batch_size in batch_sizes:
        for case, settings in CASES.items():
            costs, present = problems(batch_size, objects, *settings)
            times, results = zip(
                *(milliseconds(w, costs, present, repeats) for w in WAYS.values()),
                strict=True,
            )
            same = np.mean([(found == results[1]).mean() for found in results])
            numbers = (*(f"{t:.2f}" for t in times), f"{100 * same:.1f}%")
            table.add_row(str(batch_size), case, *numbers)
    console().print(table)


if __name__ == "__main__":
    run(main)
