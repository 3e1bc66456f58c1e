"""A small DETR learns 128 images of COCO by heart.

    python -m launch.prepare experiments/detection/detr_coco128.py
    python -m launch.train experiments/detection/detr_coco128.py

COCO128 is the first 128 images of COCO's training set that Ultralytics cut out for
trials: 929 objects of 71 classes, and 10 crowds. `folder` holds them as COCO does: the
JSON file annotations/instances_train2017.json[.gz], which may be the whole one cut to
these images, and train2017/*.jpg. What is proved is that all of it works together on
photographs: there is nothing to generalise from.
Required beforehand: AP50, COCO's, of at least 0.50 on these very images.
Ours: 0.665 after 3882 steps
"""

from experiments.detection.detr_scenes import network
from research.data.coco import CocoInstances
from research.data.detection import (
    CleanObjects,
    ResizeObjects,
    ToTargets,
    targets_spec,
)
from research.data.groups import GroupedData
from research.evals.coco import CocoAP
from research.evals.detection_samples import DetectionSamples
from research.experiment import Experiment, Required
from research.tasks.detection import Detection
from research.train.checkpoints import Checkpoints
from research.train.optimizers import Adam
from research.train.schedules import Cosine


def experiment(
    num_steps: int = 6000,
    batch_size: int = 8,
    embed_dim: int = 128,
    folder: str = "~/data/twelvefold/coco128",
) -> Experiment:
    """About an hour and a half on two CPU cores."""
    num_objects = 42
    steady = (CleanObjects(), ResizeObjects((176,), 256), ToTargets(num_objects))
    images = CocoInstances(
        f"{folder}/annotations/instances_train2017.json", f"{folder}/train2017"
    )
    return Experiment(
        task=Detection(
            network(
                (16, 32, 64, 128), num_classes=91, num_queries=60, embed_dim=embed_dim
            )
        ),
        data=GroupedData(
            train=images,
            eval={"same": images},
            batch_size=batch_size,
            transforms=steady,
            eval_transforms=steady,
            spec=targets_spec((256, 256), num_objects),
            smaller=((176, 256),),
            window=8,
        ),
        optimizer=Adam(
            Cosine(5e-4, num_steps=num_steps, warmup_steps=300), clip_norm=0.1
        ),
        num_steps=num_steps,
        evals={"same_ap": CocoAP("same", batch_size=16, every=500)},
        offline_evals={
            "ap": CocoAP("same", batch_size=16),
            "samples": DetectionSamples("same", num=8, columns=2),
        },
        checkpoints=Checkpoints(every=500),
        log_every=50,
        num_params=1_554_384,
        required=(Required("ap/ap50", above=0.50),),
    )
