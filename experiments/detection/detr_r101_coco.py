"""DETR with ResNet-101 on COCO: Carion et al. 2020, Table 1.

    python -m launch.train experiments/detection/detr_r101_coco.py

detr_r50_coco with the larger backbone, from timm/resnet101.tv_in1k.
Published: AP 43.5, AP50 63.8, AP75 46.4, of small, medium and large objects 21.9, 48.0
and 61.8; 152 GFLOPS and 20 images a second on a V100. Ours: ?
Parameters: 60,464,672, of which 60,242,272 are trained, as published (60 M).
"""

from experiments.detection import detr_r50_coco as base
from research.experiment import Experiment
from research.models.resnet import FrozenBatchNorm, ResNet


def experiment(
    epochs: int = 500,
    batch_size: int = 64,
    folder: str = base.COCO,
    backbone: str = base.RESNET101,
    dtype: str = "float32",
) -> Experiment:
    """The published setting."""
    return base.of(
        base.network(
            ResNet(base.DEPTHS101, norm=FrozenBatchNorm, dtype=dtype), dtype=dtype
        ),
        epochs=epochs,
        batch_size=batch_size,
        data=base.data(folder, batch_size),
        start=base.from_resnet(backbone),
        num_params=60_464_672,
        published=base.table(1, (43.5, 63.8, 46.4, 21.9, 48.0, 61.8)),
    )
