"""Swin-B on ImageNet-1K after ImageNet-22K: Liu et al. 2021, arXiv:2103.14030, 1b.

    python -m launch.train experiments/swin/swin_b_imagenet22k_imagenet1k.py
    python -m launch.train experiments/swin/swin_b_imagenet22k_imagenet1k.py \
        --with resolution=384

It goes on from the run of swin_b_imagenet22k; FromPretrained(FOLDER) of
research.pretrained.start may take the place of FromRun, for a public checkpoint.
Images: as for swin_t_imagenet1k.
Published: at 224 pixels top-1 85.2, top-5 97.5 and 15.4 G multiply-adds; at 384, with
windows of 12, 86.4, 98.0 and 47.0 G (47.1 in the repository). Ours: ?
Official settings: microsoft/Swin-Transformer, configs/swin/
swin_base_patch4_window7_224_22kto1k_finetune.yaml and
swin_base_patch4_window12_384_22kto1k_finetune.yaml: 30 epochs with a batch of 1024, 5
to warm up; at 384 images are evaluated whole, whatever their proportions.
Where paper and code differ: the rate is 4e-5 and falls in the code, as here, and a
constant 1e-5 in the paper; drop path is 0.2, and 0.1 in the paper.
Differs: as swin_t_imagenet1k; and the head is drawn anew, where theirs takes the rows
of the 1000 classes from that of the 21,841.
Parameters: 87,768,224; 87,903,584 with windows of 12.
"""

from dataclasses import replace

from experiments.swin import swin_t_imagenet1k as base
from research.data.augment import Stretch
from research.data.transforms import Transform
from research.evals.accuracy import Accuracy
from research.experiment import Experiment, Published
from research.models.swin import Swin, resize
from research.train.optimizers import AdamW, Multipliers, layer_decay
from research.train.schedules import Cosine, Warmup
from research.train.start import Fitted, FromRun, Start

NUM_STEPS = 30 * 1251
"""30 epochs of batches of 1024; what is left of an epoch is dropped."""

NEW_HEAD = "^params/logits/"


def experiment(
    num_steps: int = NUM_STEPS,
    batch_size: int = 1024,
    resolution: int = 224,
    images: str = "",
    model: str = "runs/swin_b_imagenet22k",
    layer_factor: float = 1.0,
    dtype: str = "bfloat16",
) -> Experiment:
    """The published setting; `model` is the workdir of the run before.

    `layer_factor` is of the rate of a layer to that of the one above it; theirs has
    one rate for all.
    """
    large = resolution > 224
    backbone = base.BASE(
        window_size=12 if large else 7,
        drop_path_rate=0.2,
        image_size=resolution,
        dtype=dtype,
    )
    return of(
        backbone,
        start=Fitted(FromRun(model), fit=resize, fresh=NEW_HEAD),
        num_steps=num_steps,
        batch_size=batch_size,
        resolution=resolution,
        images=images,
        layer_factor=layer_factor,
        num_params=87_903_584 if large else 87_768_224,
        published=base.top(0.864, 0.980) if large else base.top(0.852, 0.975),
    )


def of(
    backbone: Swin,
    *,
    start: Start,
    num_params: int,
    num_steps: int = NUM_STEPS,
    batch_size: int = 1024,
    resolution: int = 224,
    images: str = "",
    layer_factor: float = 1.0,
    crops: tuple[Transform, ...] | None = None,
    published: tuple[Published, ...] = (),
) -> Experiment:
    """The setting of fine-tuning on ImageNet-1K, with another backbone.

    Args:
      backbone: for images of `resolution`.
      start: the variables of a trained model.
      num_params: of all, the head included.
      num_steps: of batches of 1024; a sixth warms up.
      batch_size: the rates are in proportion to it.
      resolution: the side of an image.
      images: a folder; empty is TFDS.
      layer_factor: of the rate of a layer to that of the one above it.
      crops: of images in evaluation; None is for the middle at 224 pixels and for the
        whole image above.
      published: of the table's row.
    """
    share, warmup_steps = batch_size / 1024, num_steps // 6
    cosine = Cosine(4e-5 * share, num_steps - warmup_steps, end=4e-7 * share)
    if crops is None:
        crops = base.crops(224) if resolution == 224 else (Stretch(resolution),)
    like = base.of(
        backbone, num_params=num_params, rows=64, published=published, images=images
    )
    return replace(
        like,
        data=base.imagenet1k(images, resolution, batch_size, crops),
        optimizer=AdamW(
            Warmup(cosine, warmup_steps, initial=4e-8 * share),
            weight_decay=1e-8,
            no_decay=("/position/",),
            rates=by_depth(backbone, layer_factor),
            clip_norm=5.0,
        ),
        num_steps=num_steps,
        start=start,
        evals={"val": Accuracy(split="val", batch_size=512, every=1251)},
    )


def by_depth(backbone: Swin, factor: float) -> Multipliers:
    """Rates that fall by `factor` from a block to the one below it, as in timm.

    What merges stages is of the depth of the block that follows; patches are below the
    first block, the last norm above the last one, and the head above all.
    """
    if factor == 1:
        return ()
    depths, depth = [("backbone/(patch|absolute)", 0)], 0
    for stage, blocks in enumerate(backbone.depths):
        if stage:
            depths.append((f"backbone/merge_{stage - 1}/", depth + 1))
        for block in range(blocks):
            depth += 1
            depths.append((f"backbone/stage_{stage}_block_{block}/", depth))
    return layer_decay(
        (*depths, ("^norm/", depth + 1), ("^logits/", depth + 2)), factor
    )
