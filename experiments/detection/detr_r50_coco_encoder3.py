"""DETR with three layers in the encoder on COCO: Carion et al. 2020, Table 2.

    python -m launch.train experiments/detection/detr_r50_coco_encoder3.py

detr_r50_coco_epochs300 with three layers of the encoder in the place of six.
Published: AP 40.1, and 40.6 with six. Ours: ?
Parameters: 37,579,552, of which 37,357,152 are trained, as published (37.4 M).
"""

from experiments.detection import detr_r50_coco as base
from research.experiment import Experiment


def experiment(
    epochs: int = 300,
    batch_size: int = 64,
    folder: str = base.COCO,
    backbone: str = base.RESNET50,
    dtype: str = "float32",
) -> Experiment:
    """The published setting."""
    return base.of(
        base.network(encoder_layers=3, dtype=dtype),
        epochs=epochs,
        batch_size=batch_size,
        data=base.data(folder, batch_size),
        start=base.from_resnet(backbone),
        drop=base.DROP300,
        num_params=37_579_552,
        published=base.table(2, (40.1,)),
    )
