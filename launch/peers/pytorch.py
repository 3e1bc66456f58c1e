"""A PyTorch training step like ours: Adam(W), clipping by global norm, an average."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.optim.swa_utils import get_ema_multi_avg_fn
from torch.utils.flop_counter import FlopCounterMode

from launch.timing import Contender
from research.errors import UserError
from research.experiment import Experiment
from research.train.optimizers import Adam, AdamW


def contenders(
    experiment: Experiment,
    make_loss: Callable[[], torch.nn.Module],
    inputs: Sequence[Any],
    dtype: str,
    train: bool = True,
) -> list[Contender]:
    """The same step run eagerly and by `torch.compile`, on the GPU if there is one.

    As it is fastest in PyTorch: images in `channels_last`, fused Adam, the whole loss
    compiled, and products of float32 in TF32 on a GPU, as JAX has them there, too.
    Parameters that need no gradient stay as they are.

    Args:
      experiment: whose optimizer and average are taken over.
      make_loss: a module called with `inputs` that returns the scalar loss.
      inputs: NumPy arrays; images as (batch, channels, height, width).
      dtype: of the computation: "float32", or "bfloat16" by autocast.
      train: a training step, or else the loss alone, in evaluation.

    Raises:
      UserError: an optimizer other than Adam and AdamW.
    """
    if not isinstance(experiment.optimizer, Adam | AdamW):
        raise UserError(
            "the PyTorch step knows Adam and AdamW only, and this experiment has "
            f"{type(experiment.optimizer).__name__}: compare one with these"
        )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.backends.cuda.matmul.allow_tf32 = True
    placed = [_place(torch.tensor(value), device) for value in inputs]
    rest = (placed, dtype, device)
    return [
        _step(experiment, make_loss(), *rest, compiled)
        if train
        else _evaluation(make_loss(), *rest, compiled)
        for compiled in (False, True)
    ]


def _step(
    experiment: Experiment,
    loss: Any,
    inputs: Sequence[torch.Tensor],
    dtype: str,
    device: torch.device,
    compiled: bool,
) -> Contender:
    settings: Any = experiment.optimizer
    loss = loss.to(device=device, memory_format=torch.channels_last).train()
    params = [param for param in loss.parameters() if param.requires_grad]
    average = [param.detach().clone() for param in params]
    adam = torch.optim.AdamW(
        [
            {"params": [p for p in params if p.ndim >= 2]},
            {"params": [p for p in params if p.ndim < 2], "weight_decay": 0.0},
        ],
        lr=float(settings.learning_rate(experiment.num_steps)),
        betas=(settings.b1, settings.b2),
        eps=settings.eps,
        weight_decay=settings.weight_decay,
        fused=True,
    )
    precision = torch.autocast(device.type, torch.bfloat16, enabled=dtype == "bfloat16")

    def backward(function: Callable[..., torch.Tensor]) -> None:
        with precision:
            value = function(*inputs)
        value.backward()

    with FlopCounterMode(display=False) as counter:
        backward(loss)
    function = torch.compile(loss) if compiled else loss
    ema = get_ema_multi_avg_fn(experiment.ema.rate) if experiment.ema else None
    peak = 0
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()

    def step() -> None:
        nonlocal peak
        adam.zero_grad()
        backward(function)
        if settings.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(params, settings.clip_norm)
        adam.step()
        if ema:
            ema(average, params, 0)
        if device.type == "cuda":
            torch.cuda.synchronize()
            peak = torch.cuda.max_memory_allocated()

    return Contender(
        name=_name(compiled),
        step=step,
        num_params=sum(param.numel() for param in loss.parameters()),
        flops=counter.get_total_flops(),
        peak_memory=lambda: peak or None,
    )


def _evaluation(
    loss: Any,
    inputs: Sequence[torch.Tensor],
    dtype: str,
    device: torch.device,
    compiled: bool,
) -> Contender:
    loss = loss.to(device=device, memory_format=torch.channels_last).eval()
    precision = torch.autocast(device.type, torch.bfloat16, enabled=dtype == "bfloat16")
    function = torch.compile(loss) if compiled else loss

    def step() -> None:
        with torch.no_grad(), precision:
            function(*inputs)
        if device.type == "cuda":
            torch.cuda.synchronize()

    with FlopCounterMode(display=False) as counter, torch.no_grad(), precision:
        loss(*inputs)
    return Contender(
        name=_name(compiled),
        step=step,
        num_params=sum(param.numel() for param in loss.parameters()),
        flops=counter.get_total_flops(),
    )


def _name(compiled: bool) -> str:
    return f"PyTorch {torch.__version__} {'compiled' if compiled else 'eager'}"


def _place(value: torch.Tensor, device: torch.device) -> torch.Tensor:
    layout = torch.channels_last if value.ndim == 4 else torch.preserve_format
    return value.to(device).contiguous(memory_format=layout)
