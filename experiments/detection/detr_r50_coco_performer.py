"""DETR with Performer's attention in its encoder on COCO.

    python -m launch.train experiments/detection/detr_r50_coco_performer.py

detr_r50_coco_epochs300 whose encoder's attention is that of the Performer (Choromanski
et al. 2021, arXiv:2009.14794): its cost grows with the pixels, not with their square.
No number is published; to be held against 40.6 with softmax. Ours: ?
Parameters: 41,524,768, those of detr_r50_coco.
"""

from experiments.detection import detr_r50_coco as base
from research.experiment import Experiment
from research.layers.cores import Performer


def experiment(
    epochs: int = 300,
    batch_size: int = 64,
    folder: str = base.COCO,
    backbone: str = base.RESNET50,
    dtype: str = "float32",
) -> Experiment:
    """A question of our own."""
    return base.of(
        base.network(encoder_core=Performer(), dtype=dtype),
        epochs=epochs,
        batch_size=batch_size,
        data=base.data(folder, batch_size),
        start=base.from_resnet(backbone),
        drop=base.DROP300,
        num_params=41_524_768,
    )
