"""What the tests of weight tables share."""

import json
import math

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors.numpy import load_file, save_file


def their_shapes(names, leaves):
    """The shape of every tensor that a table names, given the shapes of our leaves."""
    shapes = {}
    assert names.keys() == leaves.keys()
    for ours, (theirs, axes) in names.items():
        shape = leaves[ours].shape
        each = theirs if isinstance(theirs, tuple) else (theirs,)
        if isinstance(theirs, tuple):
            stacked = len(shape) - len(axes)
            assert len(theirs) == math.prod(shape[:stacked])
            shape = shape[stacked:]
        shape = (1,) * (len(axes) - len(shape)) + shape
        for name in each:
            assert name not in shapes
            shapes[name] = tuple(shape[axis] for axis in np.argsort(axes))
    return shapes


def count(shapes):
    return sum(map(math.prod, shapes.values()))


def random_variables(leaves):
    draws = np.random.default_rng(0)
    shapes = {path: leaf.shape for path, leaf in leaves.items()}
    return unflatten_dict(
        {path: draws.normal(size=s).astype(np.float32) for path, s in shapes.items()},
        sep="/",
    )


def assert_same(variables, expected):
    variables, expected = (flatten_dict(t, sep="/") for t in (variables, expected))
    assert variables.keys() == expected.keys()
    for path, leaf in expected.items():
        np.testing.assert_array_equal(variables[path], leaf, err_msg=path)


def edit(weights, **changed):
    """Changes tensors of a safetensors file; None removes one."""
    tensors = load_file(weights) | changed
    save_file({k: t for k, t in tensors.items() if t is not None}, weights)


def configure(folder, **changed):
    """Changes keys of a folder's config."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))
