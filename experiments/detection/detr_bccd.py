"""A small DETR counts blood cells.

    python -m launch.train experiments/detection/detr_scenes.py
    python -m launch.prepare experiments/detection/detr_bccd.py
    python -m launch.train experiments/detection/detr_bccd.py

BCCD (Shenggan/BCCD_Dataset, MIT): 364 photographs through a microscope, 640x480 pixels,
with the boxes of red cells, white cells and platelets, 205 to learn from, 87 and 72 to
judge by. `folder` holds JPEGImages and, with form=voc, Annotations and ImageSets as
the set is published; with form=coco a JSON file of all, annotations_coco.json[.gz],
whose images each say their split. DETR (Carion et al. 2020, arXiv:2005.12872) at two
CPU cores' size, that of detr_scenes, from whose run it begins, with queries and classes
of its own. From nothing, on images of four times the pixels, it had not learnt where
things are after 1000 steps (AP50 0.03).
Required beforehand: AP50, COCO's, of at least 0.50 on the test images.
Ours: 0.504, and an AP of 0.253
"""

from typing import Literal

from experiments.detection.detr_scenes import network
from research.data.coco import CocoInstances
from research.data.detection import (
    CleanObjects,
    CropObjects,
    FlipObjects,
    OneOf,
    ResizeObjects,
    ToTargets,
    targets_spec,
)
from research.data.groups import GroupedData
from research.data.sources import Source
from research.data.voc import Voc
from research.evals.coco import CocoAP
from research.evals.detection_samples import DetectionSamples
from research.evals.loss import HeldOutLoss
from research.experiment import Experiment, Required
from research.tasks.detection import Detection
from research.train.checkpoints import Checkpoints
from research.train.optimizers import Adam
from research.train.schedules import Cosine
from research.train.start import Fitted, FromRun
from research.train.state import Ema

CELLS = ("RBC", "WBC", "Platelets")
Form = Literal["voc", "coco"]


def source(folder: str, split: str, form: Form) -> Source:
    """Classes 1 to 3 are the cells, as in the JSON file."""
    if form == "voc":
        return Voc(folder, split, classes=("", *CELLS), one_based=False)
    path = f"{folder}/annotations_coco.json"
    return CocoInstances(path, f"{folder}/JPEGImages", split=split)


def data(folder: str, form: Form, batch_size: int) -> GroupedData:
    """Half of the training images are parts, which may be higher than wide."""
    num_objects = 30
    clean, targets = CleanObjects(), ToTargets(num_objects)
    scale = ResizeObjects((96,), 128)
    part = (ResizeObjects((120,)), CropObjects(72, 96), scale)
    return GroupedData(
        train=source(folder, "train", form),
        eval={split: source(folder, split, form) for split in ("val", "test")},
        batch_size=batch_size,
        transforms=(clean, FlipObjects(), OneOf(((scale,), part)), targets),
        eval_transforms=(clean, scale, targets),
        spec=targets_spec((128, 128), num_objects),
        smaller=((96, 128),),
    )


def experiment(
    num_steps: int = 1500,
    batch_size: int = 16,
    form: Form = "voc",
    folder: str = "~/data/twelvefold/bccd",
    model: str = "runs/detr_scenes",
) -> Experiment:
    """About ten minutes on two CPU cores."""
    classes = (1, 2, 3)
    return Experiment(
        task=Detection(
            network((16, 48, 96), num_classes=4, num_queries=40, embed_dim=64),
            # These photographs are pale: by ImageNet's numbers a third of the contrast.
            mean=(0.737, 0.696, 0.715),
            std=(0.061, 0.102, 0.075),
        ),
        data=data(folder, form, batch_size),
        optimizer=Adam(
            Cosine(5e-4, num_steps=num_steps, warmup_steps=100),
            weight_decay=1e-4,
            clip_norm=0.1,
        ),
        num_steps=num_steps,
        start=Fitted(FromRun(model), fresh="^params/(queries|classes/)"),
        ema=Ema(0.998, warmup=True),
        evals={
            "val": HeldOutLoss(split="val", batch_size=8, every=500),
            "val_ap": CocoAP("val", batch_size=8, classes=classes, every=500),
        },
        offline_evals={
            "ap": CocoAP("test", batch_size=8, classes=classes, by_class=True),
            "samples": DetectionSamples("test", num=8, columns=2),
        },
        checkpoints=Checkpoints(every=500),
        log_every=50,
        num_params=473_593,
        required=(Required("ap/ap50", above=0.50),),
    )
