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

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from research.errors import UserError
from research.models.refinenet import RefineNet
from research.pretrained.tables import (
    ImageShape,
    Leaves,
    Names,
    leaf_shapes,
    read,
    write,
)
from research.tasks.base import Variables

SOURCE = (
    "convert a checkpoint of ermongroup/ncsn or ncsnv2 as the documentation of "
    "research/pretrained/ncsn.py says"
)

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

# Our leaf: their leaf, which may hold several of ours side by side.
CONV = {"kernel": "weight", "bias": "bias"}
NORM = {"scale": "gamma", "mean_scale": "alpha", "bias": "beta"}
LEVEL_NORM = dict.fromkeys(("scale", "mean_scale", "bias"), "embed.weight")

# Turns their array into ours, by its dimensions: kernels are (out, in, height, width)
# there and (height, width, in, out) here.
AXES = {1: (0,), 2: (0, 1), 4: (2, 3, 1, 0)}

SIGMAS = "sigmas"
"""The standard deviation of each level, in NCSNv2's state dicts: not a parameter of
the network, and none here, where the process holds the levels."""


def leaf_names(network: RefineNet, leaves: Leaves) -> Names:
    """The weight table of a network, given its `expected_leaves`.

    Raises:
      UserError: no released network has as many stages, or a leaf of ours has no name
        there.
    """
    names = {}
    for ours, theirs in _module_names(network).items():
        row = leaves.get(f"params/{ours}/mean_scale")
        kind = CONV if row is None else NORM if row.ndim == 1 else LEVEL_NORM
        for our_leaf, their_leaf in kind.items():
            path = f"params/{ours}/{our_leaf}"
            if path in leaves:
                names[path] = (f"{theirs}.{their_leaf}", AXES[leaves[path].ndim])
    for path in sorted(leaves.keys() - names.keys()):
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
    expected = expected_leaves(network, image_shape)
    return read(path, leaf_names(network, expected), expected, SOURCE, SIGMAS)


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
      UserError: no such folder, or a leaf that is missing, that nothing claims, or of
        another shape.
    """
    expected = expected_leaves(network, image_shape)
    others = {} if sigmas is None else {SIGMAS: np.asarray(sigmas, np.float32)}
    write(path, leaf_names(network, expected), expected, variables, others)


def expected_leaves(network: RefineNet, image_shape: ImageShape) -> Leaves:
    """The shape of every leaf of the network's variables, by path."""
    x, t = jnp.zeros((1, *image_shape)), jnp.zeros(1)
    return leaf_shapes(network, x, t, train=False)
