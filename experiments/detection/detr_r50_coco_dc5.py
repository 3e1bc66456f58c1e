"""DETR with a dilated ResNet-50 on COCO: Carion et al. 2020, Table 1.

    python -m launch.train experiments/detection/detr_r50_coco_dc5.py

detr_r50_coco whose backbone's last stage is dilated instead of strided (DC5): maps of
twice the resolution, and four times the pixels for the encoder.
Published: AP 43.3, AP50 63.1, AP75 45.9, of small, medium and large objects 22.5, 47.3
and 61.1; 187 GFLOPS and 12 images a second on a V100. Ours: ?
The official evaluation is of one image a GPU.
Parameters: 41,524,768, those of detr_r50_coco.
"""

from experiments.detection import detr_r50_coco as base
from research.experiment import Experiment
from research.models.resnet import FrozenBatchNorm, ResNet


def experiment(
    epochs: int = 500,
    batch_size: int = 64,
    folder: str = base.COCO,
    backbone: str = base.RESNET50,
    dtype: str = "float32",
) -> Experiment:
    """The published setting."""
    return base.of(
        base.network(
            ResNet(output_stride=16, norm=FrozenBatchNorm, dtype=dtype), dtype=dtype
        ),
        epochs=epochs,
        batch_size=batch_size,
        data=base.data(folder, batch_size),
        start=base.from_resnet(backbone),
        num_params=41_524_768,
        published=base.table(1, (43.3, 63.1, 45.9, 22.5, 47.3, 61.1)),
    )
