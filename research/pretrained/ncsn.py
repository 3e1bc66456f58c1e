"""NCSN and NCSNv2 in their public layouts, both ways.

The weights are the state dicts of ermongroup/ncsn (`CondRefineNetDilated`) and
ermongroup/ncsnv2 (`NCSNv2`, `NCSNv2Deeper`, `NCSNv2Deepest`). The released files are
pickles, which are never opened here. A few lines, run once where torch is installed,
turn one into the safetensors file that `load` reads:

    import safetensors.torch, torch
    states = torch.load("checkpoint.pth", map_location="cpu", weights_only=True)
    weights = states[0]  # NCSNv2: states[-1], the moving average that its results use
    weights = {name.removeprefix("module."): x for name, x in weights.items()}
    safetensors.torch.save_file(weights, "ncsn.safetensors")
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from research.errors import UserError
from research.models.refinenet import RefineNet
from research.tasks.base import Variables

ImageShape = tuple[int, int, int]
"""Height, width, channels."""

Leaves = Mapping[str, jax.ShapeDtypeStruct]
"""Shapes by path, such as `params/conv_in/kernel`."""

# How each stage is numbered there, the finest first: its residual blocks, and its
# refine block. The sixth stage was added later, between the third and the fourth.
STAGES = {
    4: (("1", "2", "3", "4"), ("4", "3", "2", "1")),
    5: (("1", "2", "3", "4", "5"), ("5", "4", "3", "2", "1")),
    6: (("1", "2", "3", "31", "4", "5"), ("5", "4", "3", "31", "2", "1")),
}

# The parts of a refine block.
UNITS = {
    "adapt_0_0": "adapt_convs.0.1",
    "adapt_0_1": "adapt_convs.0.2",
    "adapt_1_0": "adapt_convs.1.1",
    "adapt_1_1": "adapt_convs.1.2",
    "out_0": "output_convs.1",
    "out_1": "output_convs.2",
    "out_2": "output_convs.3",
}
CHAINS = {"fusion": "msf", "pooling": "crp"}

# Their leaf: our leaves, which it holds side by side along its last axis.
CONV = {"weight": ("kernel",), "bias": ("bias",)}
NORM = {"gamma": ("scale",), "alpha": ("mean_scale",), "beta": ("bias",)}
LEVEL_NORM = {"embed.weight": ("scale", "mean_scale", "bias")}

# Turns their array into ours, by its dimensions: kernels are (out, in, height, width)
# there and (height, width, in, out) here.
AXES = {1: (0,), 2: (0, 1), 4: (2, 3, 1, 0)}

SIGMAS = "sigmas"
"""The standard deviation of each level, in NCSNv2's state dicts: not a parameter of
the network, and none here, where the process holds the levels."""


def leaf_names(network: RefineNet, leaves: Leaves) -> dict[str, tuple[str, ...]]:
    """The weight table of a network, given its `expected_leaves`.

    `{their name: our paths}`; theirs is ours side by side, its axes moved.

    Raises:
      UserError: no released network has as many stages, or a leaf of ours has no name
        there.
    """
    names = {}
    for ours, theirs in _module_names(network).items():
        row = leaves.get(f"params/{ours}/mean_scale")
        kind = CONV if row is None else NORM if row.ndim == 1 else LEVEL_NORM
        for their_leaf, our_leaves in kind.items():
            paths = tuple(f"params/{ours}/{leaf}" for leaf in our_leaves)
            if leaves.keys() >= set(paths):
                names[f"{theirs}.{their_leaf}"] = paths
    claimed = {path for paths in names.values() for path in paths}
    for path in sorted(leaves.keys() - claimed):
        raise UserError(
            f"{path} with shape {leaves[path].shape} has no name in the released"
            " layouts: expected the parts of NCSN or NCSNv2 as published"
        )
    return names


def _module_names(network: RefineNet) -> dict[str, str]:
    """Ours to theirs, of all modules that a network of so many stages may have."""
    num_stages = len(network.channel_mults)
    if num_stages not in STAGES:
        raise UserError(
            f"no released network has {num_stages} stages, which channel_mults"
            f" {network.channel_mults} ask for: they have {', '.join(map(str, STAGES))}"
        )
    names = {"conv_in": "begin_conv", "norm_out": "normalizer", "conv_out": "end_conv"}
    for stage, (residual, refine) in enumerate(zip(*STAGES[num_stages], strict=True)):
        for block in range(2):
            ours, theirs = f"stage_{stage}_block_{block}", f"res{residual}.{block}"
            # A convolution that is pooled is a module with the pool there.
            pooled = stage > 0 and block == 0 and network.dilations[stage] == 1
            inner = ".conv" if pooled else ""
            names |= {
                f"{ours}/norm1": f"{theirs}.normalize1",
                f"{ours}/conv1": f"{theirs}.conv1",
                f"{ours}/norm2": f"{theirs}.normalize2",
                f"{ours}/conv2": f"{theirs}.conv2{inner}",
                f"{ours}/skip": f"{theirs}.shortcut{inner}",
            }
        ours, theirs = f"refine_{stage}", f"refine{refine}"
        for part in ("norm", "conv"):
            for our_unit, their_unit in UNITS.items():
                for i in (1, 2):
                    name = f"{theirs}.{their_unit}_{i}_{part}"
                    names[f"{ours}/{our_unit}/{part}{i}"] = name
            for our_chain, their_chain in CHAINS.items():
                for i in (0, 1):
                    name = f"{theirs}.{their_chain}.{part}s.{i}"
                    names[f"{ours}/{our_chain}/{part}_{i}"] = name
    return names


def load(path: str, network: RefineNet, image_shape: ImageShape) -> Variables:
    """The network's variables (float32 host arrays) from a safetensors file.

    `sigmas` is not read: the process that the network is used with has the levels.

    Raises:
      UserError: no such file, not a safetensors file, or a leaf that is missing, that
        nothing claims, or that has another shape.
    """
    path = str(Path(path).expanduser())
    if not Path(path).is_file():
        raise UserError(
            f"no weights at {path}: convert a checkpoint of ermongroup/ncsn or ncsnv2"
            " as the documentation of research/pretrained/ncsn.py says"
        )
    expected, leaves = expected_leaves(network, image_shape), {}
    names = leaf_names(network, expected)
    shapes = {path: leaf.shape for path, leaf in expected.items()}
    try:
        with safe_open(path, framework="numpy") as file:
            there = set(file.keys()) - {SIGMAS}
            for name in sorted(there - names.keys()):
                shape = tuple(file.get_slice(name).get_shape())
                raise UserError(
                    f"{path} holds {name} with shape {shape}, which no leaf of the"
                    " network claims: expected the file of a network with these stages"
                    " and norms"
                )
            for name, ours in names.items():
                shape = _joined_shape([shapes[part] for part in ours])
                becomes = ", ".join(
                    f"{part} with shape {shapes[part]}" for part in ours
                )
                if name not in there:
                    raise UserError(
                        f"{path} lacks {name} with shape {shape}, which becomes"
                        f" {becomes} here"
                    )
                leaf = file.get_tensor(name)
                if leaf.shape != shape:
                    raise UserError(
                        f"{name} in {path} has shape {leaf.shape}, but {shape} is"
                        f" expected, which becomes {becomes} here"
                    )
                leaf = leaf.astype(np.float32).transpose(AXES[leaf.ndim])
                for part, array in zip(
                    ours, np.split(leaf, len(ours), axis=-1), strict=True
                ):
                    leaves[part] = np.ascontiguousarray(array)
    except SafetensorError as error:
        raise UserError(
            f"{path} is not a safetensors file ({error}): convert a .pth file as the"
            " documentation of research/pretrained/ncsn.py says"
        ) from None
    return flax.traverse_util.unflatten_dict(leaves, sep="/")


def save(
    path: str,
    network: RefineNet,
    image_shape: ImageShape,
    variables: Variables,
    sigmas: Float[np.ndarray, "levels"] | None = None,
) -> None:
    """Writes variables in the public layout; the inverse of `load`.

    Args:
      path: of the safetensors file.
      network: that the variables are of.
      image_shape: of the images it is for.
      variables: its leaves.
      sigmas: the standard deviation of each level, the largest first, which the state
        dicts of NCSNv2 hold and those of NCSN do not.

    Raises:
      UserError: a leaf that is missing, that nothing claims, or of another shape.
    """
    leaves, there = _flat(variables), expected_leaves(network, image_shape)
    expected = {name: leaf.shape for name, leaf in there.items()}
    given = {name: leaf.shape for name, leaf in leaves.items()}
    for name in sorted(expected.keys() | given.keys()):
        if expected.get(name) != given.get(name):
            raise UserError(
                f"{name} cannot be written: its shape is {given.get(name)}, expected"
                f" {expected.get(name)}"
            )
    weights = {} if sigmas is None else {SIGMAS: np.asarray(sigmas, np.float32)}
    for name, ours in leaf_names(network, there).items():
        leaf = np.concatenate([leaves[part] for part in ours], axis=-1)
        leaf = leaf.transpose(np.argsort(AXES[leaf.ndim]))
        weights[name] = np.ascontiguousarray(leaf)
    save_file(weights, path)


def expected_leaves(network: RefineNet, image_shape: ImageShape) -> Leaves:
    """The shape of every leaf of the network's variables, by path."""
    x, t = jnp.zeros((1, *image_shape)), jnp.zeros(1)
    return _flat(
        jax.eval_shape(lambda: network.init(jax.random.key(0), x, t, train=False))
    )


def _flat(variables: Variables) -> dict[str, Any]:
    """Leaves by path."""
    return dict(flax.traverse_util.flatten_dict(dict(variables), sep="/"))


def _joined_shape(ours: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """Of their array, which holds ours side by side."""
    joined = (*ours[0][:-1], sum(shape[-1] for shape in ours))
    return tuple(joined[axis] for axis in np.argsort(AXES[len(joined)]))
