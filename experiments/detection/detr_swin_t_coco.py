"""DETR with Swin-T for its backbone on COCO.

    python -m launch.train experiments/detection/detr_swin_t_coco.py

detr_r50_coco_epochs300 with the maps of Swin-T (Liu et al. 2021, arXiv:2103.14030), as
trained on ImageNet-1K (timm/swin_tiny_patch4_window7_224.ms_in1k), in the place of
ResNet-50's: about as many parameters. Each map is normed, as the detectors of that
paper have it, and all of the backbone is trained.
No number of this pair is published; to be held against 40.6 with ResNet-50. Ours: ?
Parameters: 45,261,530.
"""

from functools import partial

from experiments.detection import detr_r50_coco as base
from research.experiment import Experiment
from research.layers.norms import LayerNorm
from research.models.swin import Swin
from research.pretrained.start import FromPretrained

SWIN = "~/data/twelvefold/swin_tiny_patch4_window7_224.ms_in1k"
FRESH = "^params/(?!backbone/)|^params/backbone/out_norm"
"""What a classifier does not have, and its norm and head, which are left aside."""


def experiment(
    epochs: int = 300,
    batch_size: int = 64,
    folder: str = base.COCO,
    backbone: str = SWIN,
    dtype: str = "float32",
) -> Experiment:
    """A question of our own."""
    norm = partial(LayerNorm, epsilon=1e-5)
    swin = Swin(out_norm=norm, out_stages=(3,), drop_path_rate=0.2, dtype=dtype)
    return base.of(
        base.network(swin, dtype=dtype),
        epochs=epochs,
        batch_size=batch_size,
        data=base.data(folder, batch_size),
        start=FromPretrained(backbone, fresh=FRESH),
        drop=base.DROP300,
        trainable="",
        num_params=45_261_530,
    )
