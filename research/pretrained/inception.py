"""The FID Inception-v3 in its public layout, both ways.

The weights are public as `pt_inception-2015-12-05-6726825d.pth` (releases of
mseitzer/pytorch-fid and, under another name, of toshas/torch-fidelity), a port of the
TensorFlow graph. That file is a pickle, which is never opened here. Three lines, run
once where torch is installed, turn it into the safetensors file that `load` reads:

    import safetensors.torch, torch
    weights = torch.load("pt_inception-2015-12-05-6726825d.pth", weights_only=True)
    safetensors.torch.save_file(weights, "inception.safetensors")
"""

from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from research.errors import UserError
from research.models.inception import InceptionV3
from research.tasks.base import Variables

RELEASED = "pt_inception-2015-12-05-6726825d.pth"

STEM = {
    "stem_0": "Conv2d_1a_3x3",
    "stem_1": "Conv2d_2a_3x3",
    "stem_2": "Conv2d_2b_3x3",
    "stem_3": "Conv2d_3b_1x1",
    "stem_4": "Conv2d_4a_3x3",
}

INCEPTION_A = {
    "point_0": "branch1x1",
    "wide_0": "branch5x5_1",
    "wide_1": "branch5x5_2",
    "double_0": "branch3x3dbl_1",
    "double_1": "branch3x3dbl_2",
    "double_2": "branch3x3dbl_3",
    "pool_0": "branch_pool",
}

REDUCTION_A = {
    "single_last": "branch3x3",
    "double_0": "branch3x3dbl_1",
    "double_1": "branch3x3dbl_2",
    "double_last": "branch3x3dbl_3",
}

INCEPTION_B = {
    "point_0": "branch1x1",
    "single_0": "branch7x7_1",
    "single_1": "branch7x7_2",
    "single_2": "branch7x7_3",
    "double_0": "branch7x7dbl_1",
    "double_1": "branch7x7dbl_2",
    "double_2": "branch7x7dbl_3",
    "double_3": "branch7x7dbl_4",
    "double_4": "branch7x7dbl_5",
    "pool_0": "branch_pool",
}

REDUCTION_B = {
    "single_0": "branch3x3_1",
    "single_last": "branch3x3_2",
    "double_0": "branch7x7x3_1",
    "double_1": "branch7x7x3_2",
    "double_2": "branch7x7x3_3",
    "double_last": "branch7x7x3_4",
}

INCEPTION_C = {
    "point_0": "branch1x1",
    "single_0": "branch3x3_1",
    "single_row": "branch3x3_2a",
    "single_column": "branch3x3_2b",
    "double_0": "branch3x3dbl_1",
    "double_1": "branch3x3dbl_2",
    "double_row": "branch3x3dbl_3a",
    "double_column": "branch3x3dbl_3b",
    "pool_0": "branch_pool",
}

BLOCKS = {
    "a_0": ("Mixed_5b", INCEPTION_A),
    "a_1": ("Mixed_5c", INCEPTION_A),
    "a_2": ("Mixed_5d", INCEPTION_A),
    "reduce_a": ("Mixed_6a", REDUCTION_A),
    "b_0": ("Mixed_6b", INCEPTION_B),
    "b_1": ("Mixed_6c", INCEPTION_B),
    "b_2": ("Mixed_6d", INCEPTION_B),
    "b_3": ("Mixed_6e", INCEPTION_B),
    "reduce_b": ("Mixed_7a", REDUCTION_B),
    "c_0": ("Mixed_7b", INCEPTION_C),
    "c_1": ("Mixed_7c", INCEPTION_C),
}

# The axes turn their array into ours: kernels are (out, in, height, width) there and
# (height, width, in, out) here.
CONV_NORM = {
    ("params", "conv/kernel"): ("conv.weight", (2, 3, 1, 0)),
    ("params", "norm/scale"): ("bn.weight", (0,)),
    ("params", "norm/bias"): ("bn.bias", (0,)),
    ("batch_stats", "norm/mean"): ("bn.running_mean", (0,)),
    ("batch_stats", "norm/var"): ("bn.running_var", (0,)),
}

HEAD = {
    "params/logits/kernel": ("fc.weight", (1, 0)),
    "params/logits_bias": ("fc.bias", (0,)),
}

# torch counts training batches beside each batch norm; inference does not read them.
IGNORED = ".bn.num_batches_tracked"


def leaf_names() -> dict[str, tuple[str, tuple[int, ...]]]:
    """`{our path: (their name, axes)}` with `ours = theirs.transpose(axes)`."""

    def modules() -> Iterator[tuple[str, str]]:
        yield from STEM.items()
        for ours, (theirs, branches) in BLOCKS.items():
            for branch, name in branches.items():
                yield f"{ours}/{branch}", f"{theirs}.{name}"

    return HEAD | {
        f"{collection}/{module}/{leaf}": (f"{name}.{their_leaf}", axes)
        for module, name in modules()
        for (collection, leaf), (their_leaf, axes) in CONV_NORM.items()
    }


def load(path: str) -> tuple[InceptionV3, Variables]:
    """The network and its variables (float32 host arrays) from a safetensors file.

    Raises:
      UserError: no such file, not a safetensors file, or a leaf that is missing, that
        nothing claims, or that has another shape.
    """
    path = str(Path(path).expanduser())
    if not Path(path).is_file():
        raise UserError(
            f"no Inception weights at {path}: take {RELEASED} from the releases of "
            "github.com/mseitzer/pytorch-fid and convert it where torch is installed: "
            f"`safetensors.torch.save_file(torch.load('{RELEASED}'), '{path}')`"
        )
    names, expected, leaves = leaf_names(), expected_leaves(), {}
    try:
        with safe_open(path, framework="numpy") as file:
            there = {name for name in file.keys() if not name.endswith(IGNORED)}
            for name in sorted(there - {theirs for theirs, _ in names.values()}):
                shape = tuple(file.get_slice(name).get_shape())
                raise UserError(
                    f"{path} holds {name} with shape {shape}, which no leaf here "
                    "claims: expected the FID Inception with 1008 classes"
                )
            for ours, (theirs, axes) in names.items():
                if theirs not in there:
                    raise UserError(
                        f"{path} lacks {theirs}, which becomes {ours} with shape "
                        f"{expected[ours].shape} here"
                    )
                leaf = file.get_tensor(theirs)
                if _moved(leaf.shape, axes) != expected[ours].shape:
                    raise UserError(
                        f"{theirs} in {path} has shape {leaf.shape}, but {ours}, "
                        f"its axes {axes}, has shape {expected[ours].shape}"
                    )
                leaves[ours] = np.ascontiguousarray(leaf.transpose(axes), np.float32)
    except SafetensorError as error:
        raise UserError(
            f"{path} is not a safetensors file ({error}): convert a .pth file as the "
            "documentation of research/pretrained/inception.py says"
        ) from None
    return InceptionV3(), flax.traverse_util.unflatten_dict(leaves, sep="/")


def save(path: str, variables: Variables) -> None:
    """Writes variables in the public layout; the inverse of `load`.

    Raises:
      UserError: a leaf that is missing, that nothing claims, or of another shape.
    """
    leaves = _flat(variables)
    expected = {name: leaf.shape for name, leaf in expected_leaves().items()}
    given = {name: leaf.shape for name, leaf in leaves.items()}
    for name in sorted(expected.keys() | given.keys()):
        if expected.get(name) != given.get(name):
            raise UserError(
                f"{name} cannot be written: its shape is {given.get(name)}, expected "
                f"{expected.get(name)}"
            )
    save_file(
        {
            theirs: np.ascontiguousarray(np.transpose(leaves[ours], np.argsort(axes)))
            for ours, (theirs, axes) in leaf_names().items()
        },
        path,
    )


@cache
def expected_leaves() -> Mapping[str, jax.ShapeDtypeStruct]:
    """The shape of every leaf of the network's variables, by path."""
    image = jnp.zeros((1, 299, 299, 3), jnp.uint8)
    return _flat(jax.eval_shape(InceptionV3().init, jax.random.key(0), image))


def _flat(variables: Variables) -> dict[str, Any]:
    """Leaves by path, such as `params/stem_0/conv/kernel`."""
    return dict(flax.traverse_util.flatten_dict(dict(variables), sep="/"))


def _moved(shape: tuple[int, ...], axes: tuple[int, ...]) -> tuple[int, ...] | None:
    if len(shape) != len(axes):
        return None
    return tuple(shape[axis] for axis in axes)
