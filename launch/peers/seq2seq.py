"""The same Transformer for translation in PyTorch, beside ours.

Every product of ours has its counterpart, with `scaled_dot_product_attention` for the
attention: the sizes, the packed rows and their masks, the tied logits, the smoothed
labels and the dropout are alike.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from launch.peers import pytorch
from launch.timing import Contender
from research.errors import UserError
from research.experiment import Experiment
from research.layers.residual import PreNorm
from research.models.transformer import EncoderDecoder
from research.tasks.translation import Translation

INPUTS = (
    "source",
    "target",
    "source_segments",
    "target_segments",
    "source_positions",
    "target_positions",
)


def contenders(
    experiment: Experiment, batch: Mapping[str, np.ndarray], train: bool = True
) -> list[Contender]:
    """The training step on packed rows, eager and compiled.

    Raises:
      UserError: the experiment is no translation with an `EncoderDecoder` whose norms
        come before the branches.
    """
    task = experiment.task
    network = getattr(task, "network", None)
    if not isinstance(task, Translation) or not isinstance(network, EncoderDecoder):
        raise UserError(
            "the peer of seq2seq is a Transformer for translation: this experiment "
            f"trains {type(task).__name__} with {type(network).__name__}"
        )
    block: Any = network.encoder.blocks[0]
    if block.keywords["residual"].func is not PreNorm:
        raise UserError(
            "the peer of seq2seq has its norms before the branches: compare an "
            "experiment with PreNorm"
        )
    inputs = [np.asarray(batch[name], np.int64) for name in INPUTS]
    return pytorch.contenders(
        experiment, lambda: _Loss(task, network), inputs, network.dtype, train=train
    )


class _Attention(torch.nn.Module):
    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.query = torch.nn.Linear(dim, dim, bias=False)
        self.key = torch.nn.Linear(dim, dim, bias=False)
        self.value = torch.nn.Linear(dim, dim, bias=False)
        self.out = torch.nn.Linear(dim, dim, bias=False)

    def forward(
        self, x: torch.Tensor, context: torch.Tensor, mask: torch.Tensor
    ) -> torch.Tensor:
        def heads(layer: torch.nn.Module, h: torch.Tensor) -> torch.Tensor:
            return layer(h).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

        out = functional.scaled_dot_product_attention(
            heads(self.query, x),
            heads(self.key, context),
            heads(self.value, context),
            attn_mask=mask[:, None],
        )
        return self.out(out.transpose(1, 2).flatten(-2))


class _Layer(torch.nn.Module):
    def __init__(self, dim: int, heads: int, hidden: int, rate: float, crosses: bool):
        super().__init__()
        self.norms = torch.nn.ModuleList(
            torch.nn.LayerNorm(dim, eps=1e-6) for _ in range(2 + crosses)
        )
        self.attention = _Attention(dim, heads)
        self.cross = _Attention(dim, heads) if crosses else None
        self.mlp = torch.nn.Sequential(
            torch.nn.Linear(dim, hidden),
            torch.nn.ReLU(),
            torch.nn.Dropout(rate),
            torch.nn.Linear(hidden, dim),
        )
        self.dropout = torch.nn.Dropout(rate)

    def forward(
        self,
        x: torch.Tensor,
        mask: torch.Tensor,
        context: torch.Tensor | None = None,
        across: torch.Tensor | None = None,
    ) -> torch.Tensor:
        first, *second, last = self.norms
        h = first(x)
        x = x + self.dropout(self.attention(h, h, mask))
        if self.cross is not None:
            x = x + self.dropout(self.cross(second[0](x), context, across))
        return x + self.dropout(self.mlp(last(x)))


class _Loss(torch.nn.Module):
    """As `Translation.loss` in training."""

    def __init__(self, task: Translation, network: EncoderDecoder):
        super().__init__()
        table, block = network.embedding, network.encoder.blocks[0]
        settings: Any = block
        dim, rate = table.embed_dim, table.dropout_rate
        sizes = (
            dim,
            settings.keywords["mixer"].keywords["num_heads"],
            settings.keywords["mlp"].keywords["mlp_dim"],
            rate,
        )
        self.embedding = torch.nn.Embedding(table.vocab_size, dim)
        torch.nn.init.normal_(self.embedding.weight, std=dim**-0.5)
        self.scale, self.smoothing, self.begin = table.scale, task.smoothing, task.begin
        self.dropout = torch.nn.Dropout(rate)
        self.encoder = torch.nn.ModuleList(
            _Layer(*sizes, crosses=False) for _ in range(network.encoder.num_layers)
        )
        self.decoder = torch.nn.ModuleList(
            _Layer(*sizes, crosses=True) for _ in range(network.decoder.num_layers)
        )
        self.norms = torch.nn.ModuleList(
            torch.nn.LayerNorm(dim, eps=1e-6) for _ in range(2)
        )
        self.dim = dim

    def _embed(self, tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        exponents = torch.arange(0, self.dim, 2, device=positions.device) / self.dim
        angles = positions[..., None] * 10_000.0**-exponents
        waves = torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-2)
        return self.dropout(self.scale * self.embedding(tokens) + waves)

    def forward(
        self,
        source: torch.Tensor,
        target: torch.Tensor,
        source_segments: torch.Tensor,
        target_segments: torch.Tensor,
        source_positions: torch.Tensor,
        target_positions: torch.Tensor,
    ) -> torch.Tensor:
        x = self._embed(source, source_positions)
        mask = source_segments[:, :, None] == source_segments[:, None]
        for layer in self.encoder:
            x = layer(x, mask)
        context = self.norms[0](x)

        starts = target_positions == 0
        known = torch.where(starts, self.begin, target.roll(1, dims=1))
        x = self._embed(known, target_positions)
        mask = target_segments[:, :, None] == target_segments[:, None]
        mask = mask & torch.ones_like(mask).tril()
        across = target_segments[:, :, None] == source_segments[:, None]
        for layer in self.decoder:
            x = layer(x, mask, context, across)
        logits = functional.linear(self.norms[1](x), self.embedding.weight)
        return functional.cross_entropy(
            logits.float().flatten(0, 1),
            target.flatten(),
            ignore_index=0,
            label_smoothing=self.smoothing,
        )
