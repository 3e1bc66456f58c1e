"""Classification of images; mixup and CutMix happen on the device, inside the step."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, UInt8

from research.errors import UserError
from research.losses import soft_cross_entropy
from research.tasks.base import Batch, Metrics, Variables
from research.tasks.sequences import apply

Images = Float[Array, "batch height width channels"]
Targets = Float[Array, "batch classes"]


@runtime_checkable
class Mix(Protocol):
    """New images and targets out of those of one batch."""

    def __call__(
        self, rng: Key[Array, ""], image: Images, target: Targets
    ) -> tuple[Images, Targets]: ...


def unmixed(
    rng: Key[Array, ""], image: Images, target: Targets
) -> tuple[Images, Targets]:
    """The images as they are."""
    del rng
    return image, target


@dataclass(frozen=True)
class MixupCutMix:
    """Each image with a part of its partner: blended with it, or a box of it pasted in.

    Mixup (Zhang et al. 2018, arXiv:1710.09412) or CutMix (Yun et al. 2019,
    arXiv:1905.04899), by chance, as timm's `Mixup` in its mode "batch". A target mixes
    in the proportion of the pixels: a box that the border clips counts as it is.

    Differs: timm pairs row i of a batch with row -1-i. Neighbours, here, are as random,
    and on one device, so that no image travels.

    Attributes:
      mixup, cutmix: alpha of the symmetric beta distribution of what an image keeps.
      prob: of mixing at all.
      switch_prob: of CutMix, where there is mixing, in the place of mixup.
      rows: that share one draw of all this, a smaller batch being one group: the batch
        of each process in distributed training elsewhere.
    """

    mixup: float = 0.8
    cutmix: float = 1.0
    prob: float = 1.0
    switch_prob: float = 0.5
    rows: int = 128

    def __call__(
        self, rng: Key[Array, ""], image: Images, target: Targets
    ) -> tuple[Images, Targets]:
        """Raises UserError where the groups or the pairs do not fill the batch."""
        batch, height, width, _ = image.shape
        rows = min(self.rows, batch)
        if batch % rows or rows % 2:
            raise UserError(
                f"MixupCutMix with rows={self.rows}: a batch of {batch} cannot be cut "
                "into such groups of pairs: choose an even number that divides it"
            )
        rngs = jax.random.split(rng, 6)
        groups = (batch // rows,)

        def of_rows(values):
            """What was drawn of each group, for each of its rows."""
            return jnp.repeat(values, rows).reshape(-1, 1, 1)

        cuts = of_rows(jax.random.uniform(rngs[0], groups) < self.switch_prob)
        mixes = of_rows(jax.random.uniform(rngs[1], groups) < self.prob)
        pasted = of_rows(symmetric_beta(rngs[2], self.cutmix, groups))
        blended = of_rows(symmetric_beta(rngs[3], self.mixup, groups))

        def inside(rng, length, place):
            # timm 0.4.12; later versions add the pixel that an odd length loses here.
            half = jnp.int32(length * jnp.sqrt(1 - pasted)) // 2
            center = of_rows(jax.random.randint(rng, groups, 0, length))
            return (place >= center - half) & (place < center + half)

        rows_inside = inside(rngs[4], height, jnp.arange(height).reshape(1, -1, 1))
        columns_inside = inside(rngs[5], width, jnp.arange(width).reshape(1, 1, -1))
        outside = 1.0 - (rows_inside & columns_inside)
        kept = jnp.where(mixes, jnp.where(cuts, outside, blended), 1.0)
        mixed = _blend(image, kept[..., None])
        return mixed, _blend(target, kept.mean((1, 2))[:, None])


def symmetric_beta(
    rng: Key[Array, ""], alpha: float, shape: tuple[int, ...]
) -> Float[Array, "*shape"]:
    """Beta(alpha, alpha), from Student's t (Bailey 1994; Devroye 1996, one line).

    Unlike `jax.random.beta` it rejects no draws: within a sharded step the loop that
    does so asks all devices at each of its turns whether to go on.
    """
    radius, angle = jax.random.uniform(rng, (2, *shape))
    power, x = radius ** (1 / alpha), jnp.cos(2 * jnp.pi * angle)
    return 0.5 + 0.5 * x / jnp.sqrt(power / (1 - power) + x * x)


def _blend(values, kept):
    """`kept` of each row and the rest of its neighbour's: 2i and 2i + 1 are two."""
    pairs = values.reshape(-1, 2, *values.shape[1:])
    return kept * values + (1 - kept) * pairs[:, ::-1].reshape(values.shape)


@dataclass(frozen=True)
class ImageClassification:
    """p(label | image).

    Attributes:
      network: called `network(image, train=)` with normalised float32 images, returns
        the logits (batch, classes).
      num_classes: of them.
      mean, std: of each channel, of images whose levels 0..255 are 0..1; what the
        network gets is their difference from the one over the other.
      smoothing: the part of a target that all classes share evenly, in training
        (Szegedy et al. 2016, arXiv:1512.00567, section 7).
      mix: of images and targets, in training.
    """

    network: nn.Module
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    smoothing: float = 0.0
    mix: Mix = unmixed

    def init(self, rng: Key[Array, ""], batch: Batch) -> Variables:
        shape = (1, *batch["image"].shape[1:])
        image = self._normalized(jnp.zeros(shape, jnp.uint8))
        return self.network.init(rng, image, train=False)

    def loss(
        self, variables: Variables, batch: Batch, rng: Key[Array, ""], train: bool
    ) -> tuple[Float[Array, ""], tuple[Metrics, Variables]]:
        """The mean cross-entropy, and how often the likeliest class is the target's.

        In training both are of the mixed images and of their smoothed targets, of which
        the class with the larger part counts as the right one; otherwise of `label`.
        """
        image, label = self._normalized(batch["image"]), batch["label"]
        # A label that is no class makes the loss NaN, at which a run stops.
        known = (label >= 0) & (label < self.num_classes)
        target = jax.nn.one_hot(jnp.where(known, label, 0), self.num_classes)
        target = jnp.where(known[:, None], target, jnp.nan)
        if train:
            target = target * (1 - self.smoothing) + self.smoothing / self.num_classes
            rng, mix_rng = jax.random.split(rng)
            image, target = self.mix(mix_rng, image, target)
        logits, changed = apply(self.network, variables, rng, train, image)
        losses = soft_cross_entropy(logits, target)
        mask = batch.get("mask", jnp.ones_like(losses))
        right = rank(logits, jnp.argmax(target, axis=-1)) == 0
        total, count = jnp.sum(mask * losses), jnp.sum(mask)
        metrics = {"loss": (total, count), "accuracy": (jnp.sum(mask * right), count)}
        return total / jnp.maximum(count, 1), (metrics, changed)

    def logits(
        self,
        variables: Variables,
        image: UInt8[Array, "batch height width channels"],
    ) -> Float[Array, "batch classes"]:
        """Of images as they are stored, in evaluation mode."""
        image = self._normalized(image)
        return apply(self.network, variables, jax.random.key(0), False, image)[0]

    def _normalized(self, image):
        channels = image.shape[-1]
        if not channels == len(self.mean) == len(self.std):
            raise UserError(
                f"images of {channels} channels, but a mean of {len(self.mean)} and a "
                f"std of {len(self.std)} numbers: give one of each for a channel"
            )
        mean = jnp.array(self.mean, jnp.float32).reshape(1, 1, 1, -1)
        std = jnp.array(self.std, jnp.float32).reshape(1, 1, 1, -1)
        return (image.astype(jnp.float32) / 255 - mean) / std


def rank(
    logits: Float[Array, "batch classes"], label: Int[Array, "batch"]
) -> Int[Array, "batch"]:
    """How many classes come before `label`: 0 where it is the likeliest one.

    Of equal logits the first comes first. One that is NaN comes last.
    """
    own = jnp.take_along_axis(logits, label[:, None], axis=-1)
    later = jnp.arange(logits.shape[-1])[None] >= label[:, None]
    behind = (logits < own) | ((logits == own) & later)
    return logits.shape[-1] - jnp.sum(behind, axis=-1)
