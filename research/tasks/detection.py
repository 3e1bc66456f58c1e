"""Detection of objects by queries, and of their masks where the network has them."""

from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from research.detection.boxes import generalized_iou, to_corners
from research.detection.matching import PairCosts, match
from research.errors import UserError
from research.losses import dice, sigmoid_focal
from research.tasks.base import Batch, Metrics, Variables
from research.tasks.sequences import apply

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Detection:
    """A class and a box of each object, from the query that it is matched with.

    Carion et al. 2020, arXiv:2005.12872, section 3.1. A batch holds

    - `image` uint8 (batch, height, width, 3), and `size` int32 (batch, 2): height and
      width of what is no padding, which lies to the right and below;
    - `boxes` float32 (batch, objects, 4): center x, center y, width and height,
      relative to `size`;
    - `classes` int32 (batch, objects), and `present` float32 (batch, objects): 1 for
      objects and 0 for padding;
    - with a network that has masks, `segments` int32 (batch, height, width): 1 + the
      object's place among those of the image, 0 for none.

    Differs: no normaliser is of one device's images only, as that of the class loss is
    in the official code. With microbatches each has normalisers of its own.

    Attributes:
      network: called `network(image, valid, train=)` with normalised float32 images
        and which of their pixels are valid, returns `logits` (layers, batch, queries,
        classes + 1), the last class for no object, `boxes` (layers, batch, queries, 4)
        and perhaps `masks` (batch, queries, height, width), logits in any resolution.
      mean, std: of each channel, of images whose levels 0..255 are 0..1.
      costs: of matching a query with an object.
      class_weight, l1_weight, giou_weight, mask_weight, dice_weight: of the losses;
        those of classes and boxes are of every layer.
      no_object_weight: of queries for no object in the mean over queries.
    """

    network: nn.Module
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    costs: PairCosts = PairCosts()
    class_weight: float = 1.0
    l1_weight: float = 5.0
    giou_weight: float = 2.0
    mask_weight: float = 1.0
    dice_weight: float = 1.0
    no_object_weight: float = 0.1

    def init(self, rng: Key[Array, ""], batch: Batch) -> Variables:
        image, valid = self._inputs({k: batch[k][:1] for k in ("image", "size")})
        return self.network.init(rng, image, valid, train=False)

    def loss(
        self, variables: Variables, batch: Batch, rng: Key[Array, ""], train: bool
    ) -> tuple[Float[Array, ""], tuple[Metrics, Variables]]:
        """The weighted sum of all losses, over all layers.

        The metrics are the losses before their weights, by the names of the official
        code: those of the last layer `loss_ce`, `loss_bbox`, `loss_giou`, `loss_mask`,
        `loss_dice`, `cardinality_error` (objects that are found too many or too few in
        an image) and `class_error` (percent of the objects whose query prefers another
        class), those of layer i `loss_ce_0` and so on.
        """
        image, valid = self._inputs(batch)
        found, changed = apply(self.network, variables, rng, train, image, valid)
        # Batch first: that is what is spread over devices.
        logits, boxes = (found[k].swapaxes(0, 1) for k in ("logits", "boxes"))
        mask = batch.get("mask", jnp.ones(len(image)))
        present = (batch["present"] > 0) & (mask > 0)[:, None]
        index = self.match(logits, boxes, batch["classes"], batch["boxes"], present)
        num_boxes = jnp.maximum(present.sum(), 1).astype(jnp.float32)
        parts = self._of_layers(logits, boxes, index, batch, present, mask, num_boxes)
        if "masks" in found:
            parts |= self._of_masks(found["masks"], index[:, -1:], batch, num_boxes)
        weights = {
            "loss_ce": self.class_weight,
            "loss_bbox": self.l1_weight,
            "loss_giou": self.giou_weight,
            "loss_mask": self.mask_weight,
            "loss_dice": self.dice_weight,
        }
        loss, metrics = jnp.zeros(()), {}
        for name, (totals, counts) in parts.items():
            counts = jnp.broadcast_to(counts, totals.shape)
            if name in weights:
                loss += weights[name] * (totals / counts).sum()
            *others, last = zip(totals, counts, strict=True)
            metrics[name] = last
            metrics |= {f"{name}_{layer}": pair for layer, pair in enumerate(others)}
        count = jnp.sum(mask)
        return loss, ({"loss": (loss * count, count), **metrics}, changed)

    def match(
        self,
        logits: Float[Array, "batch layers queries classes"],
        boxes: Float[Array, "batch layers queries 4"],
        target_classes: Int[Array, "batch objects"],
        target_boxes: Float[Array, "batch objects 4"],
        present: Bool[Array, "batch objects"],
    ) -> Int[Array, "batch layers objects"]:
        """The query of each object, of each layer anew; -1 for none."""
        batch, layers = logits.shape[:2]

        def flat(values: Array) -> Array:
            return values.reshape(batch * layers, *values.shape[2:])

        def each(values: Array) -> Array:
            return jnp.repeat(values, layers, axis=0)

        costs = self.costs(
            flat(logits), flat(boxes), each(target_classes), each(target_boxes)
        )
        return match(costs, each(present)).reshape(batch, layers, -1)

    def detect(self, variables: Variables, batch: Batch) -> dict[str, Array]:
        """The likeliest class of each query, never none, from the last layer.

        Returns:
          `scores` and `classes` (batch, queries), `boxes` (batch, queries, 4) as in a
          batch, and of a network with masks `masks` (batch, queries, height, width),
          logits.
        """
        image, valid = self._inputs(batch)
        key = jax.random.key(0)
        found, _ = apply(self.network, variables, key, False, image, valid)
        chances = jax.nn.softmax(found["logits"][-1])[..., :-1]
        objects = {
            "scores": chances.max(-1),
            "classes": jnp.argmax(chances, axis=-1),
            "boxes": found["boxes"][-1],
        }
        return objects | {k: v for k, v in found.items() if k == "masks"}

    def _of_layers(
        self,
        logits: Array,
        boxes: Array,
        index: Array,
        batch: Batch,
        present: Array,
        mask: Array,
        num_boxes: Array,
    ) -> dict[str, tuple[Float[Array, "layers"], Array]]:
        """Totals of each layer, and what they are divided by."""
        num_queries, num_classes = logits.shape[2], logits.shape[3] - 1

        # By query: which object it is for, if any.
        is_pair = index[..., None] == jnp.arange(num_queries)[None, None, None]
        classes = batch["classes"][:, None]
        known = (classes >= 0) & (classes < num_classes)
        target = (is_pair * classes[..., None]).sum(2)
        target = jnp.where(is_pair.any(2), target, num_classes)
        log_chances = jax.nn.log_softmax(logits)
        entropy = -jnp.take_along_axis(log_chances, target[..., None], axis=-1)[..., 0]
        weight = jnp.where(target == num_classes, self.no_object_weight, 1.0)
        weight *= mask[:, None, None]
        # A class that the network does not have makes the loss NaN, at which a run
        # stops.
        entropy += jnp.where(known | ~present[:, None], 0.0, jnp.nan).sum(-1)[..., None]

        # By object: what its query found.
        place = jnp.maximum(index, 0)[..., None]
        mine = jnp.take_along_axis(boxes, place, axis=2)
        theirs = jnp.broadcast_to(batch["boxes"][:, None], mine.shape)
        distance = jnp.abs(mine - theirs).sum(-1)
        overlap = generalized_iou(to_corners(mine), to_corners(theirs))
        likeliest = jnp.argmax(logits, axis=-1)
        wrong = jnp.take_along_axis(likeliest, place[..., 0], axis=2) != classes
        num_found = (likeliest != num_classes).sum(-1)
        astray = jnp.abs(num_found - present.sum(-1)[:, None]) * mask[:, None]

        def total(values: Array) -> Array:
            return jnp.where(index >= 0, values, 0).sum((0, 2))

        return {
            "loss_ce": ((weight * entropy).sum((0, 2)), weight.sum((0, 2))),
            "loss_bbox": (total(distance), num_boxes),
            "loss_giou": (total(1 - overlap), num_boxes),
            "cardinality_error": (astray.sum(0), mask.sum()),
            "class_error": (100 * total(wrong), num_boxes),
        }

    def _of_masks(
        self, masks: Array, index: Array, batch: Batch, num_boxes: Array
    ) -> dict[str, tuple[Float[Array, "1"], Array]]:
        """The same of the last layer's masks, in the resolution of the images."""
        if "segments" not in batch:
            raise UserError(
                "the network has masks, but a batch has no segments to learn them from:"
                " give data with masks, or a network without mask_head"
            )
        segments, index = batch["segments"][:, None], index[:, 0]
        shape = (*index.shape, *segments.shape[2:])
        place = jnp.maximum(index, 0)[..., None, None]
        mine = jnp.take_along_axis(masks, place, axis=1)
        mine = jax.image.resize(mine, shape, "bilinear", antialias=False)
        theirs = segments == 1 + jnp.arange(shape[1]).reshape(1, -1, 1, 1)
        pixels = (*index.shape, -1)
        mine = mine.reshape(pixels)
        theirs = theirs.reshape(pixels).astype(jnp.float32)

        def total(values: Array) -> Array:
            return jnp.where(index >= 0, values, 0).sum()[None]

        return {
            "loss_mask": (total(sigmoid_focal(mine, theirs)), num_boxes),
            "loss_dice": (total(dice(mine, theirs)), num_boxes),
        }

    def _inputs(
        self, batch: Batch
    ) -> tuple[Float[Array, "batch height width colors"], Bool[Array, "batch ..."]]:
        """Normalised images, zero where they are padding, and where they are not."""
        image, size = batch["image"], batch["size"]
        _, height, width, _ = image.shape
        rows = jnp.arange(height)[None] < size[:, :1]
        columns = jnp.arange(width)[None] < size[:, 1:]
        valid = rows[:, :, None] & columns[:, None]
        mean, std = (
            jnp.reshape(jnp.array(c), (1, 1, 1, -1)) for c in (self.mean, self.std)
        )
        normalized = (image.astype(jnp.float32) / 255 - mean) / std
        return jnp.where(valid[..., None], normalized, 0), valid
