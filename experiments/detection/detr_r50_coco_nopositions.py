"""DETR without spatial positions on COCO: Carion et al. 2020, Table 3.

    python -m launch.train experiments/detection/detr_r50_coco_nopositions.py

detr_r50_coco_epochs300 whose encoder and decoder are not told where pixels are, and
whose queries are a part of the decoder's input only.
Published: AP 32.8, and 40.6 with positions. Ours: ?
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
        base.network(positions=None, positions_at="input", dtype=dtype),
        epochs=epochs,
        batch_size=batch_size,
        data=base.data(folder, batch_size),
        start=base.from_resnet(backbone),
        drop=base.DROP300,
        num_params=41_524_768,
        published=base.table(3, (32.8,)),
    )
