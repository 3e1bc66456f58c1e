"""DETR with ResNet-50 on COCO: Carion et al. 2020, arXiv:2005.12872, Table 1.

    python -m launch.prepare experiments/detection/detr_r50_coco.py
    python -m launch.train experiments/detection/detr_r50_coco.py

`folder` holds COCO 2017 as it is published: annotations/instances_{train,val}2017.json,
train2017/ and val2017/. `backbone` is timm/resnet50.tv_in1k, the weights of torchvision
that the official code begins with.
Published: AP 42.0 on val2017, AP50 62.4, AP75 44.2, of small, medium and large objects
20.5, 45.8 and 61.1; 86 GFLOPS and 28 images a second on a V100. Ours: ?
Official setting: facebookresearch/detr, main.py and App. A.4 of the paper: 500 epochs
with a batch of 64, a tenth of the rate after 400, that of the backbone a tenth of the
others', and all gradients clipped to a norm of 0.1. Stem, first stage and norms of the
backbone stay as they are. AP depends on padding (official README): evaluated in small
batches of images of one size.
Differs: biases of linear layers begin at zero; see also `Detection`.
Parameters: 41,524,768, of which 41,302,368 are trained, as published (41.3 M), the
norms of the backbone, which are constants, not counted.
"""

import math
from functools import partial
from typing import Any

import flax.linen as nn

from research.data.coco import CocoInstances
from research.data.detection import (
    SMALLER_SIZES,
    detr_evaluation,
    detr_training,
    targets_spec,
)
from research.data.groups import GroupedData
from research.evals.base import Evaluator
from research.evals.coco import CocoAP
from research.experiment import Experiment, Published
from research.layers.attention import Attention
from research.layers.cores import Core, Softmax
from research.layers.initializers import xavier
from research.layers.mlp import FeedForward
from research.layers.norms import LayerNorm
from research.layers.residual import PostNorm
from research.layers.stack import Stack, TransformerBlock
from research.models.detr import DETR
from research.models.resnet import FrozenBatchNorm, ResNet
from research.pretrained import resnet
from research.pretrained.start import FromPretrained
from research.tasks.detection import Detection
from research.train.checkpoints import Checkpoints
from research.train.optimizers import AdamW, everything
from research.train.schedules import Piecewise
from research.train.start import Start

NUM_IMAGES = 118_287
COCO = "~/data/twelvefold/coco2017"
RESNET50 = "~/data/twelvefold/resnet50.tv_in1k"
RESNET101 = "~/data/twelvefold/resnet101.tv_in1k"
DEPTHS101 = (3, 4, 23, 3)
DROP300 = 2 / 3
"""Of 300 epochs, after which the rate falls."""

TRAINABLE = "^(?!backbone/(stem|stage_0))"
"""All but the first layers of the backbone."""

LARGEST = (1344, 1344)


def experiment(
    epochs: int = 500,
    batch_size: int = 64,
    folder: str = COCO,
    backbone: str = RESNET50,
    dtype: str = "float32",
) -> Experiment:
    """The published setting."""
    return of(
        network(dtype=dtype),
        epochs=epochs,
        batch_size=batch_size,
        data=data(folder, batch_size),
        start=from_resnet(backbone),
        num_params=41_524_768,
        published=table(1, (42.0, 62.4, 44.2, 20.5, 45.8, 61.1)),
    )


def network(
    backbone: nn.Module | None = None,
    encoder_layers: int = 6,
    mlp_dim: int = 2048,
    encoder_core: Core = Softmax(dropout_rate=0.1),  # noqa: B008, it is a record
    dtype: str = "float32",
    **settings: Any,
) -> DETR:
    """The published network, or one that differs.

    Args:
      backbone: None is for ResNet-50.
      encoder_layers: 0 is for no encoder.
      mlp_dim: of the feed-forward layers; 0 is for none.
      encoder_core: of the encoder's attention.
      dtype: of the computation.
      **settings: of `DETR`.
    """
    norm = partial(LayerNorm, epsilon=1e-5)
    attention = partial(
        Attention,
        num_heads=8,
        core=Softmax(dropout_rate=0.1),
        # Theirs are drawn as one matrix, of three times the columns.
        kernel_init=xavier(math.sqrt(0.5)),
        out_init=xavier(),
        dtype=dtype,
    )
    block = partial(
        TransformerBlock,
        mlp=partial(
            FeedForward,
            mlp_dim=mlp_dim,
            dropout_rate=0.1,
            kernel_init=xavier(),
            dtype=dtype,
        )
        if mlp_dim
        else None,
        residual=partial(PostNorm, norm=norm, dropout_rate=0.1, dtype=dtype),
    )
    encoder = partial(block, mixer=partial(attention, core=encoder_core))
    decoder = partial(block, mixer=attention, cross=attention)
    return DETR(
        backbone=backbone or ResNet(norm=FrozenBatchNorm, dtype=dtype),
        encoder=Stack(encoder_layers, (encoder,), dtype=dtype)
        if encoder_layers
        else None,
        decoder=Stack(6, (decoder,), final_norm=norm, dtype=dtype),
        dtype=dtype,
        **settings,
    )


def data(folder: str, batch_size: int) -> GroupedData:
    """Flips, scales and parts in training, one scale in evaluation."""

    def split(name: str) -> CocoInstances:
        path = f"{folder}/annotations/instances_{name}2017.json"
        return CocoInstances(path, f"{folder}/{name}2017")

    return GroupedData(
        train=split("train"),
        eval={"val": split("val")},
        batch_size=batch_size,
        transforms=detr_training(),
        eval_transforms=detr_evaluation(),
        spec=targets_spec(LARGEST, num_objects=100),
        smaller=SMALLER_SIZES,
        num_workers=8,
    )


def from_resnet(folder: str) -> Start:
    """The backbone, as it was trained on ImageNet."""
    return FromPretrained(folder, under="backbone", load=resnet.backbone)


def of(
    network: DETR,
    *,
    epochs: int,
    batch_size: int,
    data: GroupedData,
    start: Start,
    num_params: int,
    published: tuple[Published, ...] = (),
    drop: float = 0.8,
    trainable: str = TRAINABLE,
    rates: tuple[tuple[str, float], ...] = (("^backbone/", 0.1),),
    offline_evals: dict[str, Evaluator] | None = None,
    **weights: Any,
) -> Experiment:
    """What all rows have in common.

    Args:
      network: of the row.
      epochs: after which it ends.
      batch_size: of the training.
      data: of the row.
      start: of the parameters.
      num_params: all of them.
      published: numbers of the row.
      drop: the part of the epochs after which the rate falls.
      trainable: pattern of what is trained.
      rates: of its parts.
      offline_evals: in the place of AP.
      **weights: of `Detection`.
    """
    epoch = NUM_IMAGES // batch_size
    return Experiment(
        task=Detection(network, **weights),
        data=data,
        optimizer=AdamW(
            Piecewise(((0, 1e-4), (round(drop * epochs) * epoch, 1e-5))),
            weight_decay=1e-4,
            decays=everything,
            rates=rates,
            clip_norm=0.1,
        ),
        num_steps=epochs * epoch,
        trainable=trainable,
        start=start,
        evals={"val": CocoAP("val", batch_size=64, every=25 * epoch)},
        offline_evals=offline_evals or {"ap": CocoAP("val", batch_size=8)},
        checkpoints=Checkpoints(every=epoch),
        num_params=num_params,
        published=published,
    )


def table(number: int, values: tuple[float | None, ...]) -> tuple[Published, ...]:
    """Percentages of a row: AP, AP50, AP75, and by size; None is not there."""
    names = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
    source = f"arXiv:2005.12872, Table {number}"
    return tuple(
        Published(f"ap/{name}", round(value / 100, 4), source)
        for name, value in zip(names, values, strict=False)
        if value is not None
    )
