"""NCSN and NCSNv2 against the published architectures in PyTorch, live, in float32.

`Published` is a transcription of `CondRefineNetDilated` (ermongroup/ncsn at 80899cd8)
and of `NCSNv2`, `NCSNv2Deeper` and `NCSNv2Deepest` (ermongroup/ncsnv2 at bfae724a) into
functions over a state dict with their names, but for the division by sigma, which is
the task's here. The names and shapes that it asks for are those of the released files.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor

from research.models.refinenet import ncsn, ncsnv2, ncsnv2_deeper, ncsnv2_deepest
from research.pretrained import ncsn as tables
from tests.layers import slow

TOLERANCE = 1e-4  # of the largest element of the output

# Residual stages, the finest first: name, width in multiples of ngf, dilation.
# Refine blocks in the order they run: name, the stage they refine, width.
Stages = Sequence[tuple[str, int, int | None]]
Refines = Sequence[tuple[str, str, int]]

SHALLOW: tuple[Stages, Refines] = (
    (("1", 1, None), ("2", 2, None), ("3", 2, 2), ("4", 2, 4)),
    (("1", "4", 2), ("2", "3", 2), ("3", "2", 1), ("4", "1", 1)),
)
DEEPER: tuple[Stages, Refines] = (
    (("1", 1, None), ("2", 2, None), ("3", 2, None), ("4", 4, 2), ("5", 4, 4)),
    (("1", "5", 4), ("2", "4", 2), ("3", "3", 2), ("4", "2", 1), ("5", "1", 1)),
)
DEEPEST: tuple[Stages, Refines] = (
    (
        ("1", 1, None),
        ("2", 2, None),
        ("3", 2, None),
        ("31", 2, None),
        ("4", 4, 2),
        ("5", 4, 4),
    ),
    (
        ("1", "5", 4),
        ("2", "4", 2),
        ("31", "31", 2),
        ("3", "3", 2),
        ("4", "2", 1),
        ("5", "1", 1),
    ),
)


@dataclass
class Published:
    """The network of a state dict; leaves are drawn when they are first asked for.

    `num_levels` is NCSN's, None for NCSNv2.
    """

    architecture: tuple[Stages, Refines]
    ngf: int
    num_levels: int | None
    device: str = "cpu"
    weights: dict[str, Tensor] = field(default_factory=dict)
    generator: torch.Generator = field(
        default_factory=lambda: torch.Generator().manual_seed(0)
    )

    def leaf(self, name: str, *shape: int) -> Tensor:
        if name not in self.weights:
            leaf = torch.empty(shape, device=self.device)
            if self.device == "meta":
                pass
            elif len(shape) == 4:
                std = 0.7 * leaf[0].numel() ** -0.5
                leaf.normal_(0, std, generator=self.generator)
            else:
                leaf.uniform_(-0.2, 1.2, generator=self.generator)
            self.weights[name] = leaf
        return self.weights[name]

    def conv(
        self,
        name: str,
        x: Tensor,
        features: int,
        kernel: int = 3,
        dilation: int = 1,
        bias: bool = True,
    ) -> Tensor:
        return F.conv2d(
            x,
            self.leaf(f"{name}.weight", features, x.shape[1], kernel, kernel),
            self.leaf(f"{name}.bias", features) if bias else None,
            padding=dilation * (kernel // 2),
            dilation=dilation,
        )

    def norm(self, name: str, x: Tensor, level: Tensor) -> Tensor:
        channels = x.shape[1]
        if self.num_levels is None:
            gamma, alpha, beta = (
                self.leaf(f"{name}.{leaf}", channels)[None]
                for leaf in ("gamma", "alpha", "beta")
            )
        else:
            table = self.leaf(f"{name}.embed.weight", self.num_levels, 3 * channels)
            gamma, alpha, beta = F.embedding(level, table).chunk(3, dim=1)
        means = x.mean((2, 3))
        variance, mean = torch.var_mean(means, 1, correction=1, keepdim=True)
        means = (means - mean) / (variance + 1e-5).sqrt()
        h = F.instance_norm(x, eps=1e-5) + (means * alpha)[:, :, None, None]
        return gamma[:, :, None, None] * h + beta[:, :, None, None]

    def refine_norm(self, name: str, x: Tensor, level: Tensor) -> Tensor:
        return x if self.num_levels is None else self.norm(name, x, level)

    def pooled(self, name: str, x: Tensor, features: int, kernel: int) -> Tensor:
        return F.avg_pool2d(self.conv(f"{name}.conv", x, features, kernel), 2)

    def residual(
        self,
        name: str,
        x: Tensor,
        level: Tensor,
        features: int,
        down: bool,
        dilation: int | None,
    ) -> Tensor:
        channels = x.shape[1]
        rate = dilation or 1
        h = F.elu(self.norm(f"{name}.normalize1", x, level))
        h = self.conv(f"{name}.conv1", h, channels if down else features, dilation=rate)
        h = F.elu(self.norm(f"{name}.normalize2", h, level))
        if down and dilation is None:
            h = self.pooled(f"{name}.conv2", h, features, 3)
            return self.pooled(f"{name}.shortcut", x, features, 1) + h
        h = self.conv(f"{name}.conv2", h, features, dilation=rate)
        if down:
            x = self.conv(f"{name}.shortcut", x, features, dilation=rate)
        return x + h

    def units(self, name: str, x: Tensor, level: Tensor, num_units: int) -> Tensor:
        for unit in range(1, num_units + 1):
            h = x
            for i in (1, 2):
                h = F.elu(self.refine_norm(f"{name}.{unit}_{i}_norm", h, level))
                h = self.conv(f"{name}.{unit}_{i}_conv", h, x.shape[1], bias=False)
            x = x + h
        return x

    def pooling(self, name: str, x: Tensor, level: Tensor) -> Tensor:
        x = path = F.elu(x)
        for i in range(2):
            path = self.refine_norm(f"{name}.norms.{i}", path, level)
            if self.num_levels is None:
                path = F.max_pool2d(path, 5, stride=1, padding=2)
            else:
                path = F.avg_pool2d(path, 5, stride=1, padding=2)
            path = self.conv(f"{name}.convs.{i}", path, x.shape[1], bias=False)
            x = path + x
        return x

    def refine(
        self, name: str, xs: list[Tensor], level: Tensor, features: int, num_units: int
    ) -> Tensor:
        hs = [
            self.units(f"{name}.adapt_convs.{i}", x, level, 2) for i, x in enumerate(xs)
        ]
        if len(hs) == 1:
            h = hs[0]
        else:
            h = torch.zeros((), device=self.device)
            for i, scale in enumerate(hs):
                scale = self.refine_norm(f"{name}.msf.norms.{i}", scale, level)
                scale = self.conv(f"{name}.msf.convs.{i}", scale, features)
                h = h + F.interpolate(
                    scale, xs[0].shape[2:], mode="bilinear", align_corners=True
                )
        h = self.pooling(f"{name}.crp", h, level)
        return self.units(f"{name}.output_convs", h, level, num_units)

    def __call__(self, x: Tensor, level: Tensor) -> Tensor:
        stages, refines = self.architecture
        h = self.conv("begin_conv", 2 * x - 1, self.ngf)
        outputs = {}
        for stage, width, dilation in stages:
            for block in range(2):
                down = stage != "1" and block == 0
                name = f"res{stage}.{block}"
                h = self.residual(name, h, level, width * self.ngf, down, dilation)
            outputs[stage] = h
        below: list[Tensor] = []
        for name, stage, width in refines:
            num_units = 3 if stage == "1" else 1
            xs = [outputs[stage], *below]
            h = self.refine(f"refine{name}", xs, level, width * self.ngf, num_units)
            below = [h]
        h = F.elu(self.norm("normalizer", h, level))
        return self.conv("end_conv", h, x.shape[1])


@pytest.mark.parametrize(("name", "num_levels"), [("ncsn", 10), ("ncsnv2", None)])
def test_transcription_asks_for_the_released_names_and_shapes(name, num_levels):
    published = Published(SHALLOW, 128, num_levels, device="meta")
    level = torch.zeros(1, dtype=torch.int64, device="meta")
    published(torch.zeros(1, 3, 32, 32, device="meta"), level)
    path = Path(__file__).parents[1] / "pretrained/layouts" / f"{name}-cifar10.json"
    released = json.loads(path.read_text())["tensors"]
    released.pop("sigmas", None)
    asked = {name: list(leaf.shape) for name, leaf in published.weights.items()}
    assert asked == released


@pytest.mark.parametrize(
    ("network", "architecture", "num_levels", "size"),
    [
        pytest.param(ncsn(8, num_levels=3), SHALLOW, 3, (16, 12), id="ncsn"),
        pytest.param(ncsnv2(8), SHALLOW, None, (16, 12), id="ncsnv2"),
        pytest.param(ncsnv2_deeper(8), DEEPER, None, (16, 12), id="deeper"),
        pytest.param(ncsnv2_deepest(8), DEEPEST, None, (16, 24), id="deepest"),
    ],
)
def test_outputs_and_way_back(network, architecture, num_levels, size, tmp_path):
    published = Published(architecture, 8, num_levels)
    x = np.random.default_rng(0).uniform(size=(3, *size, 3)).astype(np.float32)
    level = np.array([2, 0, 1])
    theirs = published(torch.from_numpy(x).permute(0, 3, 1, 2), torch.from_numpy(level))
    theirs = theirs.permute(0, 2, 3, 1).numpy()

    path = str(tmp_path / "theirs.safetensors")
    safetensors.torch.save_file(published.weights, path)
    variables = tables.load(path, network, (*size, 3))
    apply = slow.jit(partial(network.apply, train=False))
    ours = apply(variables, jnp.asarray(x), jnp.asarray(level, jnp.float32))

    scale = np.abs(theirs).max()
    # Images and levels differ, so agreement is not that of constants.
    assert np.abs(theirs[0] - theirs[1]).max() > 0.05 * scale
    error = np.abs(ours - theirs).max() / scale
    print(f"relative error {error:.1e}")
    assert error < TOLERANCE

    ours_path = str(tmp_path / "ours.safetensors")
    tables.save(ours_path, network, (*size, 3), variables)
    back = safetensors.torch.load_file(ours_path)
    assert back.keys() == published.weights.keys()
    for name, leaf in published.weights.items():
        assert torch.equal(back[name], leaf), name
