"""DETR with a dilated ResNet-50 on COCO panoptic: Carion et al. 2020, Table 5.

    python -m launch.train experiments/detection/detr_r50_panoptic_dc5.py \
        --with stage=boxes --workdir runs/detr_r50_panoptic_dc5_boxes
    python -m launch.train experiments/detection/detr_r50_panoptic_dc5.py

detr_r50_panoptic with the last stage of the backbone dilated instead of strided (DC5).
Published: PQ 44.6, SQ 79.8, RQ 55.0, PQ of things 49.4 and of stuff 37.3, mask AP 31.9;
box AP 40.2 (official README). Ours: ?
Parameters: 42,899,288, those of detr_r50_panoptic.
"""

from experiments.detection import detr_r50_panoptic as base
from research.experiment import Experiment
from research.models.resnet import FrozenBatchNorm, ResNet


def experiment(
    stage: base.Stage = "masks",
    batch_size: int = 64,
    folder: str = base.base.COCO,
    boxes: str = "runs/detr_r50_panoptic_dc5_boxes",
    dtype: str = "float32",
) -> Experiment:
    """The published setting of either stage."""
    return base.of(
        ResNet(output_stride=16, norm=FrozenBatchNorm, dtype=dtype),
        stage,
        batch_size=batch_size,
        folder=folder,
        boxes=boxes,
        backbone=base.base.RESNET50,
        num_params=42_899_288 if stage == "masks" else 41_565_631,
        published=base.table((44.6, 79.8, 55.0, 49.4, 37.3), mask_ap=31.9, box_ap=40.2),
        dtype=dtype,
    )
