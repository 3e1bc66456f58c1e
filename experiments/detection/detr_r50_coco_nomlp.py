"""DETR without feed-forward layers on COCO: Carion et al. 2020, section 4.2.

    python -m launch.train experiments/detection/detr_r50_coco_nomlp.py

detr_r50_coco_epochs300 with nothing but attention in the layers.
Published: AP lower by 2.3, which is 38.3. Ours: ?
Parameters: 28,908,064, of which 28,685,664 are trained, as published (28.7 M); the
norms after those layers go, too.
"""

from experiments.detection import detr_r50_coco as base
from research.experiment import Experiment, Published


def experiment(
    epochs: int = 300,
    batch_size: int = 64,
    folder: str = base.COCO,
    backbone: str = base.RESNET50,
    dtype: str = "float32",
) -> Experiment:
    """The published setting."""
    return base.of(
        base.network(mlp_dim=0, dtype=dtype),
        epochs=epochs,
        batch_size=batch_size,
        data=base.data(folder, batch_size),
        start=base.from_resnet(backbone),
        drop=base.DROP300,
        num_params=28_908_064,
        published=(Published("ap/ap", 0.383, "arXiv:2005.12872, section 4.2"),),
    )
