"""torch.nn's recurrent layers, eager and compiled."""

from typing import Any

import torch

from launch.bench_recurrent import Workload
from launch.timing import Contender


def layers(work: Workload, name: str) -> list[Contender]:
    """The gradients by `torch.nn.NAME`."""
    return [_contender(work, name, compiled) for compiled in (False, True)]


def _contender(work: Workload, name: str, compiled: bool) -> Contender:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.backends.cuda.matmul.allow_tf32 = True
    layer: Any = getattr(torch.nn, name)(
        work.x.shape[-1], work.hidden_dim, work.num_layers, batch_first=True
    ).to(device)
    x = torch.tensor(work.x, device=device, requires_grad=True)
    weight = torch.tensor(work.weight, device=device)

    def total(x: torch.Tensor) -> torch.Tensor:
        return (layer(x)[0] * weight).sum()

    function = torch.compile(total) if compiled else total

    def step() -> None:
        layer.zero_grad()
        x.grad = None
        function(x).backward()
        if device.type == "cuda":
            torch.cuda.synchronize()

    num_params = sum(param.numel() for param in layer.parameters())
    how = "compiled" if compiled else "eager"
    return Contender(f"PyTorch {torch.__version__} {how}", step, num_params, 0)
