"""The small DETR that knows scenes learns to draw what it finds.

    python -m launch.train experiments/detection/detr_scenes.py
    python -m launch.train experiments/detection/detr_scenes_panoptic.py

The run of the first command stays as it is, and a mask head is trained on it, as the
second stage of DETR's panoptic segmentation (Carion et al. 2020, arXiv:2005.12872,
section 4.4); `--with model=WORKDIR` if the run is not in runs/.
Required beforehand: PQ of at least 0.60 over all six shapes and six backgrounds, on 500
scenes of another seed.
Ours: 0.856
"""

from dataclasses import replace

from experiments.detection import detr_scenes
from research.evals.coco import CocoAP
from research.evals.detection_samples import DetectionSamples
from research.evals.loss import HeldOutLoss
from research.evals.panoptic import PanopticQuality
from research.experiment import Experiment, Required
from research.models.detr import MaskHead
from research.train.checkpoints import Checkpoints
from research.train.optimizers import Adam
from research.train.schedules import Cosine
from research.train.start import FromRun, Partly

THINGS, STUFF = detr_scenes.THINGS, detr_scenes.STUFF


def experiment(
    num_steps: int = 2000, batch_size: int = 16, model: str = "runs/detr_scenes"
) -> Experiment:
    """About ten minutes on two CPU cores."""
    base = detr_scenes.experiment(batch_size=batch_size)
    network = base.task.network.clone(mask_head=MaskHead)
    return replace(
        base,
        task=replace(base.task, network=network),
        start=Partly(FromRun(model), fresh="^params/mask_head/"),
        trainable="^mask_head/",
        optimizer=Adam(
            Cosine(1e-3, num_steps=num_steps, warmup_steps=100),
            weight_decay=1e-4,
            clip_norm=0.1,
        ),
        num_steps=num_steps,
        evals={
            "val": HeldOutLoss(split="val", batch_size=40, every=500),
            "val_panoptic": PanopticQuality(STUFF, "val", batch_size=40, every=500),
            "samples": DetectionSamples("val", every=1000),
        },
        offline_evals={
            "ap": CocoAP("test", batch_size=40, masks=True, classes=THINGS),
            "panoptic": PanopticQuality(STUFF, "test", batch_size=40),
        },
        checkpoints=Checkpoints(every=500),
        num_params=556_090,
        required=(Required("panoptic/pq", above=0.60),),
    )
