"""The Swin Transformer of transformers, beside ours.

Of the same sizes, on the same images: `SwinForImageClassification` and, for the second
version, `Swinv2ForImageClassification`, with the normalisation of images, the smoothing
of labels and, where ours mixes images, a mixing of each with another one before them.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import transformers
from torch.nn import functional

from launch.peers import pytorch
from launch.timing import Contender
from research.errors import UserError
from research.experiment import Experiment
from research.models.image_classifier import ImageClassifier
from research.models.swin import Swin
from research.pretrained import swin
from research.pretrained.configs import setting
from research.tasks.image_classification import ImageClassification, unmixed


def contenders(
    experiment: Experiment, batch: Mapping[str, np.ndarray], train: bool = True
) -> list[Contender]:
    """The training step, eager and compiled.

    Raises:
      UserError: the experiment does not classify images with a Swin, or with one that
        transformers does not have.
    """
    task = experiment.task
    network = getattr(task, "network", None)
    if (
        not isinstance(task, ImageClassification)
        or not isinstance(network, ImageClassifier)
        or not isinstance(network.backbone, Swin)
    ):
        raise UserError(
            "the peer of swin classifies images with a Swin: this experiment trains "
            f"{type(task).__name__} with {type(network).__name__}"
        )
    image = np.asarray(batch["image"], np.float32).transpose(0, 3, 1, 2)
    inputs = [image, np.asarray(batch["label"], np.int64)]
    config = config_of(network, image.shape[1], image.shape[2])
    return pytorch.contenders(
        experiment,
        lambda: _Loss(task, config),
        inputs,
        network.backbone.dtype,
        train=train,
    )


def config_of(network: ImageClassifier, channels: int, size: int) -> Any:
    """Theirs, of our network on images of this size."""
    backbone: Any = network.backbone
    if setting(backbone, "attention.match") is None and backbone.image_size == size:
        # The first version of theirs goes by the image that comes.
        network = network.clone(backbone=backbone.clone(image_size=None))
    config: dict[str, Any] = swin.config_of(network)
    config |= {"num_channels": channels, "image_size": size}
    classes: dict[str, Any] = {
        "swin": transformers.SwinConfig,
        "swinv2": transformers.Swinv2Config,
    }
    return classes[config["model_type"]](**config)


class _Loss(torch.nn.Module):
    """As `ImageClassification.loss` in training."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, task: ImageClassification, config: Any):
        super().__init__()
        models: dict[str, Any] = {
            "swin": transformers.SwinForImageClassification,
            "swinv2": transformers.Swinv2ForImageClassification,
        }
        self.network = models[config.model_type](config)
        self.num_classes, self.smoothing = task.num_classes, task.smoothing
        self.mixes = task.mix is not unmixed
        for name in ("mean", "std"):
            values = torch.tensor(getattr(task, name)).reshape(1, -1, 1, 1)
            self.register_buffer(name, values)

    def forward(self, image: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        image = (image / 255 - self.mean) / self.std
        target = functional.one_hot(label, self.num_classes).to(image.dtype)
        target = target * (1 - self.smoothing) + self.smoothing / self.num_classes
        if self.mixes:
            part = torch.rand((), device=image.device)
            image = torch.lerp(image, image.flip(0), part)
            target = torch.lerp(target, target.flip(0), part)
        return functional.cross_entropy(self.network(image).logits, target)
