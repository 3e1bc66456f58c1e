"""Public checkpoints: folders in the layouts of other libraries to models, and back.

Each layout has a module here, with a table of the names of its weights and one of the
keys of its config. `load` and `save` choose among them, by what a folder says that it
is, and by what a model is made of; those of a module may take more.

Files that are not folders with a `config.json` (the Inception of FID, score_sde, NCSN)
are read by their modules alone.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from research.errors import UserError
from research.models.detr import DETR
from research.models.image_classifier import ImageClassifier
from research.models.resnet import ResNet
from research.models.score_unet import ScoreUNet
from research.models.swin import Swin
from research.models.transformer import (
    Encoder,
    EncoderDecoder,
    MaskedLanguageModel,
    SequenceClassifier,
)
from research.pretrained import bert, detr, marian, resnet, swin, t5, timm_swin, unet2d
from research.pretrained.configs import CONFIG, read_config
from research.tasks.base import Variables

SOURCE = "give a folder of timm, or one that save_pretrained wrote"

LOADS: dict[str, Callable[[str], tuple[Any, Variables]]] = {
    "t5": t5.load,
    "marian": marian.load,
    "bert": bert.load,
    "UNet2DModel": unet2d.load,
    "swin": swin.load,
    "swinv2": swin.load,
    **dict.fromkeys(timm_swin.ARCHITECTURES, timm_swin.load),
    "detr": detr.load,
    "resnet": resnet.load,
    **dict.fromkeys(resnet.ARCHITECTURES, resnet.load),
}
"""By `model_type`, `_class_name` or `architecture`: transformers, diffusers, timm."""

# What raises if a model does not fit, and what writes it, of each layout.
Layouts = dict[Callable[[Any], Any], Callable[[str, Any, Variables], None]]

SAVES: dict[type, Layouts] = {
    EncoderDecoder: {t5.config_of: t5.save, marian.config_of: marian.save},
    Encoder: {bert.config_of: bert.save},
    MaskedLanguageModel: {bert.config_of: bert.save},
    SequenceClassifier: {bert.config_of: bert.save},
    Swin: {swin.config_of: swin.save},
    ImageClassifier: {
        swin.config_of: swin.save,
        timm_swin.config_of: timm_swin.save,
        resnet.config_of: resnet.save,
        resnet.timm_config_of: resnet.save_timm,
    },
    ResNet: {resnet.config_of: resnet.save},
    DETR: {detr.config_of: detr.save},
}
"""The layouts that a class may have."""


def load(folder: str) -> tuple[Any, Variables]:
    """The model that a folder describes, and its variables: float32 host arrays.

    A pipeline of diffusers is a task, and the variables of its network.

    Raises:
      UserError: a file that is missing or cannot be read; a model, a key or a value of
        the config that is not supported; or a leaf that is missing, that nothing
        claims, or that has another shape.
    """
    path = Path(folder).expanduser()
    if (path / "model_index.json").is_file():
        # Not above: the solvers of its samplers are slow to import.
        from research.pretrained import schedulers

        return schedulers.load(folder)
    config = read_config(path / CONFIG, SOURCE)
    kinds = (config.get(key) for key in ("model_type", "_class_name", "architecture"))
    kind = next((kind for kind in kinds if kind is not None), None)
    if not isinstance(kind, str) or kind not in LOADS:
        raise UserError(
            f"{path / CONFIG} is of a model {kind!r}, which is not supported: expected "
            f"one of {', '.join(LOADS)}"
        )
    return LOADS[kind](folder)


def save(folder: str, model: Any, variables: Variables) -> None:
    """Writes a folder that the library of the model's layout loads.

    Args:
      folder: made where there is none; files of the same names are replaced.
      model: as `load` returns it.
      variables: its leaves.

    Raises:
      UserError: no layout has such a model, or a leaf that is missing, that nothing
        claims, or of another shape.
    """
    if isinstance(model, ScoreUNet):
        raise UserError(
            "a ScoreUNet is written for images of one size: call "
            "research.pretrained.unet2d.save with it"
        )
    layouts = SAVES.get(type(model)) or _pipelines(model)
    reasons = []
    for config_of, write in layouts.items():
        try:
            config_of(model)
        except UserError as error:
            reasons.append(str(error))
        else:
            return write(folder, model, variables)
    raise UserError("; ".join(reasons))


def _pipelines(model: Any) -> Layouts:
    from research.pretrained import schedulers

    if not isinstance(model, schedulers.ScoreMatching):
        known = ", ".join(kind.__name__ for kind in (*SAVES, schedulers.ScoreMatching))
        raise UserError(
            f"{type(model).__name__} has no public layout here: expected one of {known}"
        )
    return {schedulers.config_of: schedulers.save}
