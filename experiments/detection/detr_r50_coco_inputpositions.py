"""DETR with positions at its input on COCO: Carion et al. 2020, Table 3.

    python -m launch.train experiments/detection/detr_r50_coco_inputpositions.py

detr_r50_coco_epochs300 whose positions are added once to the encoder's input, and
whose queries to the decoder's, instead of in every attention. The official code scales
the positions by 0.1 then.
Published: AP 39.2, and 40.6 at every attention. Ours: ?
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
        base.network(positions_at="input", dtype=dtype),
        epochs=epochs,
        batch_size=batch_size,
        data=base.data(folder, batch_size),
        start=base.from_resnet(backbone),
        drop=base.DROP300,
        num_params=41_524_768,
        published=base.table(3, (39.2,)),
    )
