"""The FID Inception-v3 in its public layout, both ways.

The weights are public as `pt_inception-2015-12-05-6726825d.pth` (releases of
mseitzer/pytorch-fid and, under another name, of toshas/torch-fidelity), a port of the
TensorFlow graph. That file is a pickle, which is never opened here. Three lines, run
once where torch is installed, turn it into the safetensors file that `load` reads:

    import safetensors.torch, torch
    weights = torch.load("pt_inception-2015-12-05-6726825d.pth", weights_only=True)
    safetensors.torch.save_file(weights, "inception.safetensors")
"""

from collections.abc import Iterator
from functools import cache

import jax.numpy as jnp

from research.models.inception import InceptionV3
from research.pretrained.tables import Leaves, Names, leaf_shapes, read, write
from research.tasks.base import Variables

SOURCE = (
    "take pt_inception-2015-12-05-6726825d.pth from the releases of "
    "github.com/mseitzer/pytorch-fid and convert it by safetensors.torch.save_file as "
    "the documentation of research/pretrained/inception.py says"
)

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
IGNORED = "*.bn.num_batches_tracked"


def leaf_names() -> Names:
    """The weight table of the network."""

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
    names, expected = leaf_names(), expected_leaves()
    return InceptionV3(), read(path, names, expected, SOURCE, IGNORED)


def save(path: str, variables: Variables) -> None:
    """Writes variables in the public layout; the inverse of `load`.

    Raises:
      UserError: no such folder, or a leaf that is missing, that nothing claims, or of
        another shape.
    """
    write(path, leaf_names(), expected_leaves(), variables)


@cache
def expected_leaves() -> Leaves:
    """The shape of every leaf of the network's variables, by path."""
    return leaf_shapes(InceptionV3(), jnp.zeros((1, 299, 299, 3), jnp.uint8))
