"""What a task finds in the images of a split, and what there is."""

from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float32, Int32, UInt8

from research.data.detection import annotations, names_of
from research.data.sources import Example, Source, known
from research.errors import UserError
from research.evals.base import Context
from research.tasks.base import Batch, Variables
from research.train.sharding import replicated

MaskForm = Callable[[Array, tuple[int, int]], Array]
"""Logits of masks and the height and width of a batch's images to what is needed."""


@runtime_checkable
class DetectingTask(Protocol):
    """A task that finds objects."""

    def detect(self, variables: Variables, batch: Batch) -> dict[str, Array]:
        """For each image and each of its queries the likeliest object.

        `scores`, float (batch, queries), and `classes`, int32 (batch, queries), of the
        best class; `boxes`, float (batch, queries, 4): (center x, center y, width,
        height) beside `batch["size"]`; where it finds masks, `masks`, float (batch,
        queries, rows, columns): logits on a grid over the batch's whole images, padding
        included.
        """
        ...


class Detected(NamedTuple):
    """One image, and what was found in it."""

    image_id: int
    image: UInt8[np.ndarray, "height width channels"]
    """As the network saw it, without its padding."""

    original_size: tuple[int, int]
    scores: Float32[np.ndarray, "queries"]
    classes: Int32[np.ndarray, "queries"]
    boxes: Float32[np.ndarray, "queries 4"]
    """(x0, y0, x1, y1), beside the image's width and height."""

    masks: Any
    """As the `MaskForm` made them, over `padded_size`; None without."""

    padded_size: tuple[int, int]

    def required_masks(self) -> np.ndarray:
        """The masks; a task that finds none raises UserError."""
        if self.masks is None:
            raise UserError(
                "the task finds no masks: expected a network with masks, or an "
                "evaluation without"
            )
        return np.asarray(self.masks)

    def boxes_in(self, size: tuple[int, int]) -> Float32[np.ndarray, "queries 4"]:
        """The boxes in pixels of an image of such a height and width."""
        return self.boxes * np.array([*size[::-1], *size[::-1]], np.float32)


def as_logits(masks: Array, size: tuple[int, int]) -> Array:
    """The masks as they are."""
    return masks


def as_pixels(masks: Array, size: tuple[int, int]) -> Array:
    """Whether a mask is likelier than not, at every pixel of the image."""
    return jax.image.resize(masks, (*masks.shape[:2], *size), "bilinear") > 0


def detections(
    task: DetectingTask,
    variables: Variables,
    context: Context,
    split: str,
    batch_size: int,
    masks: MaskForm | None = None,
) -> Iterator[Detected]:
    """What is found in each image of a split, in the order of the data's batches.

    Args:
      task: finds objects.
      variables: the model's.
      context: the run.
      split: a name in `data.eval`, or `train`.
      batch_size: images at a time.
      masks: how masks are wanted, where the task finds some; None for none.
    """
    with closing(context.batches(split, batch_size)) as batches:
        for batch in batches:
            found = jax.device_get(_detect(task, variables, batch, context.mesh, masks))
            corners = _corners(found["boxes"])
            for row in np.flatnonzero(found["mask"] > 0):
                height, width = found["size"][row].tolist()
                yield Detected(
                    image_id=int(found["image_id"][row]),
                    image=found["image"][row, :height, :width],
                    original_size=tuple(found["original_size"][row].tolist()),
                    scores=found["scores"][row],
                    classes=found["classes"][row],
                    boxes=corners[row],
                    masks=found["masks"][row] if "masks" in found else None,
                    padded_size=found["image"].shape[1:3],
                )


@partial(jax.jit, static_argnums=(0, 3, 4))
def _detect(
    task: DetectingTask,
    variables: Variables,
    batch: Batch,
    mesh: Mesh,
    masks: MaskForm | None,
) -> dict[str, Array]:
    found = dict(task.detect(variables, batch))
    logits = found.pop("masks", None)
    if masks is not None and logits is not None:
        found["masks"] = masks(logits, batch["image"].shape[1:3])
    for name in ("scores", "boxes"):
        found[name] = found[name].astype(jnp.float32)
    told = ("image", "size", "image_id", "original_size", "mask")
    found.update({name: batch[name] for name in told})
    return jax.lax.with_sharding_constraint(found, replicated(mesh))


def _corners(
    boxes: Float32[np.ndarray, "batch queries 4"],
) -> Float32[np.ndarray, "batch queries 4"]:
    centers, sides = boxes[..., :2], boxes[..., 2:]
    return np.concatenate([centers - sides / 2, centers + sides / 2], axis=-1)


# What there is


def source_of(context: Context, split: str) -> Source:
    """A split's examples; `train`, unless it is one, stands for the training's.

    Raises:
      UserError: no such split.
    """
    sources = {"train": context.data.train, **context.data.eval}
    return sources[known(split, sources)]


class Truth:
    """The objects of a split's images as the source tells them, by `image_id`.

    Crowds, boxes beyond the border and boxes without area are among them.

    Attributes:
      source: of the split.
      names: what the classes are called, where the source says it.
    """

    def __init__(self, context: Context, split: str):
        self.source: Source = source_of(context, split)
        self.names: dict[int, str] = names_of(self.source)
        annotation = annotations(self.source)
        self._annotations = [annotation(index) for index in range(len(self.source))]
        numbers = [int(found["image_id"]) for found in self._annotations]
        self._places = {number: place for place, number in enumerate(numbers)}
        if len(self._places) < len(numbers):
            raise UserError(
                f"data.eval.{split} has {len(numbers)} images, but {len(self._places)} "
                "different image_ids: expected a number of its own for each"
            )

    def __len__(self) -> int:
        return len(self._annotations)

    @property
    def classes(self) -> list[int]:
        """Those that the source names, or else those that are there."""
        seen = {int(k) for found in self._annotations for k in found["classes"]}
        return sorted(self.names or seen)

    def of(self, image_id: int) -> Example:
        """What an image has, without masks."""
        return self._annotations[self._places[image_id]]

    def whole(self, image_id: int) -> Example:
        """The source's example: with masks, if it has some."""
        return self.source[self._places[image_id]]
