"""The DETR of transformers, beside ours: its matching by SciPy, and its losses.

`DetrForObjectDetection` of the same sizes on the same batch. What it compiles is the
network; the matching on the host, and the losses around it, run as they are.
"""

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import transformers

from launch.peers import pytorch
from launch.timing import Contender
from research.errors import UserError
from research.experiment import Experiment
from research.models.detr import DETR
from research.models.resnet import ResNet
from research.pretrained import detr
from research.tasks.detection import Detection

INPUTS = ("image", "size", "boxes", "classes", "present")


def contenders(
    experiment: Experiment, batch: Mapping[str, np.ndarray], train: bool = True
) -> list[Contender]:
    """The training step, eager and compiled.

    Raises:
      UserError: the experiment does not detect with a DETR on a ResNet and without
        masks, or with one that transformers does not have.
    """
    task = experiment.task
    network = getattr(task, "network", None)
    if (
        not isinstance(task, Detection)
        or not isinstance(network, DETR)
        or not isinstance(network.backbone, ResNet)
        or network.mask_head is not None
    ):
        raise UserError(
            "the peer of detection is a DETR on a ResNet, without masks: this "
            f"experiment trains {type(task).__name__} with {type(network).__name__}"
        )
    values: dict[str, Any] = {name: np.asarray(batch[name]) for name in INPUTS}
    values["image"] = values["image"].astype(np.float32).transpose(0, 3, 1, 2)
    values["classes"] = values["classes"].astype(np.int64)
    return pytorch.contenders(
        experiment,
        lambda: _Loss(task, network, bool(experiment.trainable)),
        [values[name] for name in INPUTS],
        network.dtype,
        train=train,
    )


class _Loss(torch.nn.Module):
    """As `Detection.loss` in training."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, task: Detection, network: DETR, freezes: bool):
        super().__init__()
        config: Any = transformers.DetrConfig(
            **detr.config_of(network, timm=False), auxiliary_loss=True
        )
        self.network: Any = transformers.DetrForObjectDetection(config)
        self.weights = SimpleNamespace(  # as the loss reads them from a config
            class_cost=task.costs.class_weight,
            bbox_cost=task.costs.l1_weight,
            giou_cost=task.costs.giou_weight,
            bbox_loss_coefficient=task.l1_weight,
            giou_loss_coefficient=task.giou_weight,
            eos_coefficient=task.no_object_weight,
            num_labels=config.num_labels,
            decoder_layers=config.decoder_layers,
            auxiliary_loss=True,
        )
        for name, param in self.network.model.backbone.named_parameters():
            param.requires_grad_(
                not freezes or any(f"stages.{i}." in name for i in (1, 2, 3))
            )
        for name in ("mean", "std"):
            values = torch.tensor(getattr(task, name)).reshape(1, -1, 1, 1)
            self.register_buffer(name, values)

    def forward(
        self,
        image: torch.Tensor,
        size: torch.Tensor,
        boxes: torch.Tensor,
        classes: torch.Tensor,
        present: torch.Tensor,
    ) -> torch.Tensor:
        rows = torch.arange(image.shape[2], device=image.device)[None] < size[:, :1]
        columns = torch.arange(image.shape[3], device=image.device)[None] < size[:, 1:]
        valid = rows[:, :, None] & columns[:, None]
        image = torch.where(valid[:, None], (image / 255 - self.mean) / self.std, 0)
        found = self.network.model(image, pixel_mask=valid.long())
        layers = found.intermediate_hidden_states
        logits = self.network.class_labels_classifier(layers)
        places = self.network.bbox_predictor(layers).sigmoid()
        uncompiled: Any = torch.compiler.disable(self._matched)
        return uncompiled(logits, places, boxes, classes, present > 0)

    def _matched(
        self,
        logits: torch.Tensor,
        found: torch.Tensor,
        boxes: torch.Tensor,
        classes: torch.Tensor,
        present: torch.Tensor,
    ) -> torch.Tensor:
        """Of all layers, (layers, batch, queries, ...), the last one last."""
        labels = [
            {"class_labels": classes[i][present[i]], "boxes": boxes[i][present[i]]}
            for i in range(len(present))
        ]
        loss, *_ = self.network.loss_function(
            logits[-1], labels, logits.device, found[-1], self.weights, logits, found
        )
        return loss
