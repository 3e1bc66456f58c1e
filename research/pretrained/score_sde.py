"""The networks of score_sde_pytorch in their public layout, both ways.

DDPM, DDPM++ and NCSN++ of Song et al. 2021, arXiv:2011.13456, are public as
`checkpoint_N.pth` (yang-song/score_sde_pytorch). These files are pickles, which are
never opened here. A few lines, run once where torch is installed, turn the averaged
weights of one into the safetensors file that `load` reads:

    import safetensors.torch, torch
    state = torch.load("checkpoint_8.pth", map_location="cpu", weights_only=True)
    weights = {name.removeprefix("module."): w for name, w in state["model"].items()}
    # The averages are a list, in the order of what is trained.
    trained = [name for name in weights if name not in ("sigmas", "all_modules.0.W")]
    weights.update(zip(trained, state["ema"]["shadow_params"], strict=True))
    safetensors.torch.save_file(weights, "score_sde.safetensors")

Their modules are numbered in the order in which they are called, those without weights
too. Their networks divide by the noise level themselves where `scale_by_sigma` is set,
and know the noise levels; ours leave both to the task.
"""

from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from research.errors import UserError
from research.models.score_unet import ScoreUNet
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
    "convert a checkpoint of score_sde_pytorch as the documentation of "
    "research/pretrained/score_sde.py says"
)

NORM = {"scale": ("weight", (0,)), "bias": ("bias", (0,))}
DENSE = {"kernel": ("weight", (1, 0)), "bias": ("bias", (0,))}
CONV = {"kernel": ("weight", (2, 3, 1, 0)), "bias": ("bias", (0,))}
# Their older 1x1 convolutions are (in, out), as dense layers are here.
NIN = {"kernel": ("W", (0, 1)), "bias": ("b", (0,))}

# The parts of a module, by our name and by the axes of the kernel, if there is one.
PARTS = {
    ("", 1): ("", NORM | {"frequencies": ("W", (0,))}),
    ("", 2): ("", DENSE),
    ("", 4): ("", CONV),
    ("norm1", 1): ("GroupNorm_0.", NORM),
    ("conv1", 4): ("Conv_0.", CONV),
    ("time", 2): ("Dense_0.", DENSE),
    ("norm2", 1): ("GroupNorm_1.", NORM),
    ("conv2", 4): ("Conv_1.", CONV),
    ("skip", 4): ("Conv_2.", CONV),
    ("skip", 2): ("NIN_0.", NIN),
    ("norm", 1): ("GroupNorm_0.", NORM),
    ("query", 2): ("NIN_0.", NIN),
    ("key", 2): ("NIN_1.", NIN),
    ("value", 2): ("NIN_2.", NIN),
    ("out", 2): ("NIN_3.", NIN),
    ("conv", 4): ("Conv_0.", CONV),
    ("residual", 4): ("Conv2d_0.", CONV),
    ("combine", 4): ("Conv.", CONV),
}

# The noise levels, from the largest, are a buffer of their networks.
SIGMAS = "sigmas"


def leaf_names(network: ScoreUNet, leaves: Leaves) -> Names:
    """The weight table of a network, given its `expected_leaves`.

    Raises:
      UserError: a leaf of the network that theirs do not have.
    """
    present = {path.split("/")[1] for path in leaves}
    modules = [name for name in _modules(network, leaves) if name in present | {""}]
    numbers = {name: number for number, name in enumerate(modules)}
    names = {}
    for path, leaf in leaves.items():
        _, module, *parts, name = path.split("/")
        ndim = leaves.get(path.removesuffix(name) + "kernel", leaf).ndim
        theirs, layout = PARTS.get(("/".join(parts), ndim), ("", {}))
        if module not in numbers or name not in layout:
            raise UserError(
                f"{path} with shape {leaf.shape} has no counterpart in score_sde: "
                "expected DDPM, DDPM++ or NCSN++, as research/models/score_unet.py "
                "builds them"
            )
        their_name, axes = layout[name]
        names[path] = (f"all_modules.{numbers[module]}.{theirs}{their_name}", axes)
    return names


def load(path: str, network: ScoreUNet, image_shape: ImageShape) -> Variables:
    """The network's variables (float32 host arrays) from a safetensors file.

    Raises:
      UserError: no such file, not a safetensors file, or a leaf that is missing, that
        nothing claims, or that has another shape.
    """
    expected = expected_leaves(network, image_shape)
    return read(path, leaf_names(network, expected), expected, SOURCE, SIGMAS)


def save(
    path: str,
    network: ScoreUNet,
    image_shape: ImageShape,
    variables: Variables,
    sigmas: Float[np.ndarray, "levels"],
) -> None:
    """Writes variables in the public layout; the inverse of `load`.

    Args:
      path: of the safetensors file.
      network: that the variables are of.
      image_shape: of the images it is for.
      variables: its leaves.
      sigmas: the noise levels, from the largest, which their networks hold.

    Raises:
      UserError: no such folder, or a leaf that is missing, that nothing claims, or of
        another shape.
    """
    expected = expected_leaves(network, image_shape)
    others = {SIGMAS: np.asarray(sigmas, np.float32)}
    write(path, leaf_names(network, expected), expected, variables, others)


def expected_leaves(network: ScoreUNet, image_shape: ImageShape) -> Leaves:
    """The shape of every leaf of the network's variables, by path."""
    x, t = jnp.zeros((1, *image_shape)), jnp.zeros(1)
    return leaf_shapes(network, x, t, train=False)


def _modules(network: ScoreUNet, leaves: Leaves) -> Iterator[str]:
    """Our name of each of their modules, in their order, and names of absent ones.

    A module of theirs that has no weights has no name.
    """
    levels = range(len(network.channel_mults))
    yield from ("time_embedding", "time_hidden", "time_out", "conv_in")
    for level in levels:
        for i in range(network.num_res_blocks):
            yield from (f"down_{level}_block_{i}", f"down_{level}_attention_{i}")
        yield f"down_{level}_resample"
        if f"params/down_{level}_input/combine/kernel" in leaves:
            yield ""  # The image becomes smaller.
        yield f"down_{level}_input"
    yield from ("mid_block_0", "mid_attention", "mid_block_1")
    for level in reversed(levels):
        for i in range(network.num_res_blocks + 1):
            yield f"up_{level}_block_{i}"
        yield f"up_{level}_attention"
        yield f"up_{level}_output"
        if f"params/up_{level}_conv_out/kernel" in leaves and level != levels[-1]:
            yield ""  # The image becomes larger.
        yield from (f"up_{level}_norm_out", f"up_{level}_conv_out")
        yield f"up_{level}_resample"
    yield from ("norm_out", "conv_out")
