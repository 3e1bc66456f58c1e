"""DETR with learnt positions on COCO: Carion et al. 2020, Table 3.

    python -m launch.train experiments/detection/detr_r50_coco_learnedpositions.py

detr_r50_coco_epochs300 whose rows and columns have learnt vectors, in the place of
sines.
Published: AP 39.6, and 40.6 with sines. Ours: ?
Parameters: 41,537,568, 12,800 more than those of detr_r50_coco.
"""

from experiments.detection import detr_r50_coco as base
from research.experiment import Experiment
from research.models.detr import LearnedPositions


def experiment(
    epochs: int = 300,
    batch_size: int = 64,
    folder: str = base.COCO,
    backbone: str = base.RESNET50,
    dtype: str = "float32",
) -> Experiment:
    """The published setting."""
    return base.of(
        base.network(positions=LearnedPositions(), dtype=dtype),
        epochs=epochs,
        batch_size=batch_size,
        data=base.data(folder, batch_size),
        start=base.from_resnet(backbone),
        drop=base.DROP300,
        num_params=41_537_568,
        published=base.table(3, (39.6,)),
    )
