"""DETR on COCO in 300 epochs: Carion et al. 2020, Tables 2 to 4.

    python -m launch.train experiments/detection/detr_r50_coco_epochs300.py

detr_r50_coco trained for less long, the rate falling after 200 epochs: the baseline of
the paper's ablations, which the siblings of this file are.
Published: AP 40.6, AP50 61.6, of small, medium and large objects 19.9, 44.3 and 60.2.
Ours: ?
Parameters: 41,524,768, those of detr_r50_coco.
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
        base.network(dtype=dtype),
        epochs=epochs,
        batch_size=batch_size,
        data=base.data(folder, batch_size),
        start=base.from_resnet(backbone),
        drop=base.DROP300,
        num_params=41_524_768,
        published=base.table(2, (40.6, 61.6, None, 19.9, 44.3, 60.2)),
    )
