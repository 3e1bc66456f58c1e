"""DETR with ResNet-101 on COCO panoptic: Carion et al. 2020, Table 5.

    python -m launch.train experiments/detection/detr_r101_panoptic.py \
        --with stage=boxes --workdir runs/detr_r101_panoptic_boxes
    python -m launch.train experiments/detection/detr_r101_panoptic.py

detr_r50_panoptic with the larger backbone, from timm/resnet101.tv_in1k.
Published: PQ 45.1, SQ 79.9, RQ 55.5, PQ of things 50.5 and of stuff 37.0, mask AP 33.0;
box AP 40.1 (official README). Ours: ?
Parameters: 61,839,192.
"""

from experiments.detection import detr_r50_panoptic as base
from research.experiment import Experiment
from research.models.resnet import FrozenBatchNorm, ResNet


def experiment(
    stage: base.Stage = "masks",
    batch_size: int = 64,
    folder: str = base.base.COCO,
    boxes: str = "runs/detr_r101_panoptic_boxes",
    dtype: str = "float32",
) -> Experiment:
    """The published setting of either stage."""
    return base.of(
        ResNet(base.base.DEPTHS101, norm=FrozenBatchNorm, dtype=dtype),
        stage,
        batch_size=batch_size,
        folder=folder,
        boxes=boxes,
        backbone=base.base.RESNET101,
        num_params=61_839_192 if stage == "masks" else 60_505_535,
        published=base.table((45.1, 79.9, 55.5, 50.5, 37.0), mask_ap=33.0, box_ap=40.1),
        dtype=dtype,
    )
