"""Which query is for which object: assignments of least cost, inside a compiled step.

Carion et al. 2020, arXiv:2005.12872, section 3.1, match the objects of an image to as
many of its queries, each to one, such that the sum of the costs of all pairs is least.

On the device: `python -m launch.bench_matching` on one CPU core took 0.6 ms for two
images of six layers, 0.4 by SciPy in a callback, 4.8 and 0.6 for eight, and 16 and 20
for eight with 63 objects each. Within the loss and its gradient, 45 and 42 or 76 and 78
ms, that is lost. A callback keeps a step out of JAX's compilation cache, and on a core
that eight virtual devices share it waits for itself.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from research.detection.boxes import generalized_iou, to_corners
from research.train.sharding import BATCH_AXES

WORST = 1e6
"""What a cost that is no number, or infinite, counts as."""


@dataclass(frozen=True)
class PairCosts:
    """-p(class) + the L1 distance of the boxes - their generalized IoU, each weighted.

    The probability stands for its logarithm, so that it is of the size of the others
    (section 3.1 of the paper; weights in its App. A.4).
    """

    class_weight: float = 1.0
    l1_weight: float = 5.0
    giou_weight: float = 2.0

    def __call__(
        self,
        logits: Float[Array, "batch queries classes"],
        boxes: Float[Array, "batch queries 4"],
        target_classes: Int[Array, "batch objects"],
        target_boxes: Float[Array, "batch objects 4"],
    ) -> Float[Array, "batch objects queries"]:
        """Of every pair; boxes are (center x, center y, width, height)."""
        chances = jax.nn.softmax(logits.astype(jnp.float32))
        index = target_classes[:, None, :]
        chances = jnp.take_along_axis(chances, index, axis=-1).swapaxes(1, 2)
        mine, theirs = boxes[:, None].astype(jnp.float32), target_boxes[:, :, None]
        distance = jnp.abs(mine - theirs).sum(-1)
        overlap = generalized_iou(to_corners(mine), to_corners(theirs))
        return (
            self.l1_weight * distance
            - self.class_weight * chances
            - self.giou_weight * overlap
        )


def match(
    costs: Float[Array, "batch objects queries"], present: Bool[Array, "batch objects"]
) -> Int[Array, "batch objects"]:
    """The query of each object such that the sum of their costs is least.

    -1 is for objects that are not present, and for those that cost most to match where
    there are more than queries. No gradient passes through.

    Where the batch lies on several devices each matches its own rows, and none waits
    for another (see `assign`, whose loops ask after all rows that they have).
    """
    costs = jax.lax.stop_gradient(costs)
    mesh = jax.typeof(costs).sharding.mesh
    ways = math.prod(mesh.shape.get(axis, 1) for axis in BATCH_AXES)
    if ways == 1 or len(costs) % ways:
        return assign(costs, present)
    rows = PartitionSpec(BATCH_AXES)
    return jax.shard_map(
        assign, mesh=mesh, in_specs=(rows, rows), out_specs=rows, check_vma=False
    )(costs, present)


class _Search(NamedTuple):
    """Of each problem: what is matched, at what prices, and a search for more.

    Attributes:
      row_price, column_price: their sum is at most the cost of a pair, and just that of
        those that are matched.
      row_of, column_of: the partner of a column and of a row; -1 for none.
      start: the row that a column is sought for; -1 when all have one.
      row: the row that was reached last.
      low: how far it is from the start.
      far: how far each column is from the start, by the reached rows.
      via: the row before each column on that way.
      reached: the columns whose `far` is final.
      turn: the column whose partner changes next, once a way has been found; -1 while
        it is sought.
    """

    row_price: Float[Array, "problems rows"]
    column_price: Float[Array, "problems columns"]
    row_of: Int[Array, "problems columns"]
    column_of: Int[Array, "problems rows"]
    start: Int[Array, "problems"]
    row: Int[Array, "problems"]
    low: Float[Array, "problems"]
    far: Float[Array, "problems columns"]
    via: Int[Array, "problems columns"]
    reached: Bool[Array, "problems columns"]
    turn: Int[Array, "problems"]


def assign(
    costs: Float[Array, "problems rows columns"], present: Bool[Array, "problems rows"]
) -> Int[Array, "problems rows"]:
    """The column of each row such that the sum of their costs is least, or -1.

    Shortest augmenting paths (Jonker & Volgenant 1987; Crouse 2016, whose code is
    SciPy's), all problems side by side. Rows whose cheapest column no earlier row wants
    get it at once. For each of the others one loop reaches, in each turn, the nearest
    column that is not reached yet, by Dijkstra's algorithm, or, once that one is free,
    passes on one column along the way to it.
    """
    num_rows, num_columns = costs.shape[1:]
    costs = jnp.nan_to_num(costs, nan=WORST, posinf=WORST, neginf=WORST)
    if num_rows > num_columns:
        # So dear that a row has one only if there is no other for it.
        dear = 1 + 2 * num_columns * jnp.abs(costs).max((1, 2), keepdims=True)
        shape = (*costs.shape[:2], num_rows - num_columns)
        costs = jnp.concatenate([costs, jnp.broadcast_to(dear, shape)], axis=-1)
    search = jax.lax.while_loop(
        lambda search: (search.start >= 0).any(),
        partial(_turn, costs, present),
        _begin(costs, present),
    )
    found = search.column_of
    return jnp.where(found < num_columns, found, -1)


def _begin(costs: Array, present: Array) -> _Search:
    problems, num_rows, num_columns = costs.shape
    row_price = costs.min(-1)
    cheapest = jnp.argmin(costs, axis=-1)
    wants = cheapest[:, :, None] == jnp.arange(num_columns)[None, None]
    wants &= present[:, :, None]
    row_of = jnp.where(wants.any(1), jnp.argmax(wants, axis=1), -1)
    is_first = _at(row_of, cheapest) == jnp.arange(num_rows)[None]
    column_of = jnp.where(is_first & present, cheapest, -1)
    start = _next(column_of, present)
    columns = jnp.zeros((problems, num_columns))
    return _Search(
        row_price=row_price,
        column_price=columns,
        row_of=row_of,
        column_of=column_of,
        start=start,
        row=start,
        low=columns[:, 0],
        far=columns + jnp.inf,
        via=jnp.zeros_like(row_of),
        reached=columns > 0,
        turn=jnp.full_like(start, -1),
    )


def _turn(costs: Array, present: Array, s: _Search) -> _Search:
    columns = jnp.arange(costs.shape[2])[None]
    rows = jnp.arange(costs.shape[1])[None]
    seeks = (s.start >= 0) & (s.turn < 0)

    # Reach the nearest column, by way of the last row or of earlier ones.
    row = jnp.maximum(s.row, 0)
    cost = jnp.take_along_axis(costs, row[:, None, None], axis=1)[:, 0]
    far = cost - s.column_price + (s.low - _one(s.row_price, row))[:, None]
    nearer = (far < s.far) & ~s.reached & seeks[:, None]
    far = jnp.where(nearer, far, s.far)
    via = jnp.where(nearer, s.row[:, None], s.via)
    open_ = jnp.where(s.reached, jnp.inf, far)
    low = jnp.where(seeks, open_.min(-1), s.low)
    nearest = jnp.where(open_ == low[:, None], columns, columns.shape[1]).min(-1)
    nearest = jnp.minimum(nearest, columns.shape[1] - 1)
    reached = s.reached | ((columns == nearest[:, None]) & seeks[:, None])
    owner = _one(s.row_of, nearest)
    found = seeks & (owner < 0)

    # A free one: prices follow, such that the way to it costs nothing more.
    gain = jnp.where(reached & found[:, None], low[:, None] - far, 0)
    row_gain = jnp.where(s.column_of >= 0, _at(gain, s.column_of), 0)
    is_start = (rows == s.start[:, None]) & found[:, None]
    row_price = s.row_price + row_gain + jnp.where(is_start, low[:, None], 0)

    # Pass on a column to the row before it, which leaves its own one behind.
    turn = jnp.where(found, nearest, s.turn)
    turns = turn >= 0
    takes = _one(via, jnp.maximum(turn, 0))
    left = _one(s.column_of, takes)
    is_column = (columns == turn[:, None]) & turns[:, None]
    is_row = (rows == takes[:, None]) & turns[:, None]
    row_of = jnp.where(is_column, takes[:, None], s.row_of)
    column_of = jnp.where(is_row, turn[:, None], s.column_of)
    ends = turns & (takes == s.start)

    following = jnp.where(ends, _next(column_of, present), s.start)
    row = jnp.where(seeks & ~found, owner, s.row)
    return _Search(
        row_price=row_price,
        column_price=s.column_price - gain,
        row_of=row_of,
        column_of=column_of,
        start=following,
        row=jnp.where(ends, following, row),
        low=jnp.where(ends, 0, low),
        far=jnp.where(ends[:, None], jnp.inf, far),
        via=via,
        reached=reached & ~ends[:, None],
        turn=jnp.where(turns & ~ends, left, -1),
    )


def _next(column_of: Array, present: Array) -> Int[Array, "problems"]:
    """The first present row without a column, or -1."""
    free = present & (column_of < 0)
    return jnp.where(free.any(-1), jnp.argmax(free, axis=-1), -1)


def _at(values: Array, index: Array) -> Array:
    """`values[p, index[p, i]]`; the first for an index of -1."""
    return jnp.take_along_axis(values, jnp.maximum(index, 0), axis=1)


def _one(values: Array, index: Array) -> Array:
    """`values[p, index[p]]`."""
    return jnp.take_along_axis(values, index[:, None], axis=1)[:, 0]
