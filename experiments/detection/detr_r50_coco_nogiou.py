"""DETR without the GIoU loss on COCO: Carion et al. 2020, Table 4.

    python -m launch.train experiments/detection/detr_r50_coco_nogiou.py

detr_r50_coco_epochs300 with classes and the L1 distance of boxes alone, in the loss and
in the costs of the matching.
Published: AP 35.8, and 40.6 with both. Ours: ?
Parameters: 41,524,768, those of detr_r50_coco.
"""

from experiments.detection import detr_r50_coco as base
from research.detection.matching import PairCosts
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
        base.network(dtype=dtype),
        epochs=epochs,
        batch_size=batch_size,
        data=base.data(folder, batch_size),
        start=base.from_resnet(backbone),
        drop=base.DROP300,
        giou_weight=0.0,
        costs=PairCosts(giou_weight=0.0),
        num_params=41_524_768,
        published=base.table(4, (35.8,)),
    )
