"""DETR with ResNet-50 on COCO panoptic: Carion et al. 2020, arXiv:2005.12872, Table 5.

    python -m launch.prepare experiments/detection/detr_r50_panoptic.py
    python -m launch.train experiments/detection/detr_r50_panoptic.py \
        --with stage=boxes --workdir runs/detr_r50_panoptic_boxes
    python -m launch.train experiments/detection/detr_r50_panoptic.py

First DETR learns boxes of things and stuff, then, all else frozen, its mask head learns
their masks for 25 epochs. `folder` holds COCO 2017 as it is published, with the maps of
annotations/panoptic_{train,val}2017.json beside it in folders of the same name.
Published: PQ 43.4, SQ 79.3, RQ 53.8, PQ of things 48.2 and of stuff 36.3, mask AP 31.1;
box AP 38.8 (official README). Ours: ?
Official setting: facebookresearch/detr, README.md and section 4.4 of the paper: boxes
as detr_r50_coco_epochs300, masks with the rate falling after 15 epochs; queries of more
than 0.85 take part in a map.
Differs: mask AP is of segments that do not overlap, and masks are learnt from the maps.
Parameters: 42,899,288; of the first stage 41,565,631.
"""

from functools import partial
from typing import Literal

from experiments.detection import detr_r50_coco as base
from research.data.coco import COCO_IDS, CocoInstances, CocoPanoptic
from research.data.detection import (
    SMALLER_SIZES,
    detr_evaluation,
    detr_training,
    targets_spec,
)
from research.data.groups import GroupedData
from research.evals.coco import CocoAP
from research.evals.panoptic import PanopticQuality
from research.experiment import Experiment, Published
from research.models.detr import MaskHead
from research.models.resnet import FrozenBatchNorm, ResNet
from research.train.start import FromRun, Partly

Stage = Literal["boxes", "masks"]

NUM_CLASSES = 250
STUFF = tuple(
    int(number)
    for number in (
        "92 93 95 100 107 109 112 118 119 122 125 128 130 133 138 141 144 145 147 148 "
        "149 151 154 155 156 159 161 166 168 171 175 176 177 178 180 181 184 185 186 "
        "187 188 189 190 191 192 193 194 195 196 197 198 199 200"
    ).split()
)
"""The categories that are no things, of panoptic_coco_categories.json."""


def experiment(
    stage: Stage = "masks",
    batch_size: int = 64,
    folder: str = base.COCO,
    boxes: str = "runs/detr_r50_panoptic_boxes",
    dtype: str = "float32",
) -> Experiment:
    """The published setting of either stage."""
    return of(
        ResNet(norm=FrozenBatchNorm, dtype=dtype),
        stage,
        batch_size=batch_size,
        folder=folder,
        boxes=boxes,
        backbone=base.RESNET50,
        num_params=42_899_288 if stage == "masks" else 41_565_631,
        published=table((43.4, 79.3, 53.8, 48.2, 36.3), mask_ap=31.1, box_ap=38.8),
        dtype=dtype,
    )


def of(
    network: ResNet,
    stage: Stage,
    *,
    batch_size: int,
    folder: str,
    boxes: str,
    backbone: str,
    num_params: int,
    published: tuple[Published, ...],
    dtype: str,
) -> Experiment:
    """A stage of a row, by its backbone."""
    masks = stage == "masks"
    heads = partial(MaskHead, dtype=dtype) if masks else None
    row = partial(
        base.of,
        base.network(network, num_classes=NUM_CLASSES, mask_head=heads, dtype=dtype),
        batch_size=batch_size,
        data=data(folder, batch_size, masks),
        num_params=num_params,
    )
    if not masks:
        return row(epochs=300, drop=base.DROP300, start=base.from_resnet(backbone))
    return row(
        epochs=25,
        drop=15 / 25,
        start=Partly(FromRun(boxes), fresh="^params/mask_head/"),
        trainable="^mask_head/",
        rates=(),
        offline_evals={
            "panoptic": PanopticQuality(stuff=STUFF, batch_size=8),
            "ap": CocoAP("instances", batch_size=8, masks=True, classes=COCO_IDS),
        },
        published=published,
    )


def data(folder: str, batch_size: int, masks: bool) -> GroupedData:
    """As detr_r50_coco, with things and stuff, and crowds."""

    def panoptic(split: str) -> CocoPanoptic:
        maps = f"{folder}/annotations/panoptic_{split}2017"
        return CocoPanoptic(f"{maps}.json", f"{folder}/{split}2017", maps)

    instances = f"{folder}/annotations/instances_val2017.json"
    num_objects = 128
    return GroupedData(
        train=panoptic("train"),
        eval={
            "val": panoptic("val"),
            "instances": CocoInstances(instances, f"{folder}/val2017", masks=True),
        },
        batch_size=batch_size,
        transforms=detr_training(num_objects, crowds=True),
        eval_transforms=detr_evaluation(num_objects),
        spec=targets_spec(base.LARGEST, num_objects, segments=masks),
        smaller=SMALLER_SIZES,
        num_workers=8,
    )


def table(
    values: tuple[float, ...], mask_ap: float, box_ap: float
) -> tuple[Published, ...]:
    """Percentages of a row of Table 5, and its boxes' in the README."""
    names = ("pq", "sq", "rq", "pq_things", "pq_stuff")
    found = {f"panoptic/{n}": v for n, v in zip(names, values, strict=True)}
    found["ap/mask_ap"] = mask_ap
    source = "arXiv:2005.12872, Table 5"
    return (
        *(Published(n, round(v / 100, 4), source) for n, v in found.items()),
        Published("ap/ap", round(box_ap / 100, 4), "facebookresearch/detr, README.md"),
    )
