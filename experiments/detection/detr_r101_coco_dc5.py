"""DETR with a dilated ResNet-101 on COCO: Carion et al. 2020, Table 1.

    python -m launch.train experiments/detection/detr_r101_coco_dc5.py

detr_r101_coco whose backbone's last stage is dilated instead of strided (DC5).
Published: AP 44.9, AP50 64.7, AP75 47.7, of small, medium and large objects 23.7, 49.5
and 62.3; 253 GFLOPS and 10 images a second on a V100. Ours: ?
The official evaluation is of one image a GPU.
Parameters: 60,464,672, those of detr_r101_coco.
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
            ResNet(base.DEPTHS101, output_stride=16, norm=FrozenBatchNorm, dtype=dtype),
            dtype=dtype,
        ),
        epochs=epochs,
        batch_size=batch_size,
        data=base.data(folder, batch_size),
        start=base.from_resnet(backbone),
        num_params=60_464_672,
        published=base.table(1, (44.9, 64.7, 47.7, 23.7, 49.5, 62.3)),
    )
