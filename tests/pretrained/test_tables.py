import json
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from research.errors import UserError
from research.pretrained import tables

NAMES = {
    "params/conv/kernel": ("conv.weight", (2, 3, 1, 0)),
    "params/norm/scale": ("norm.embed", (1, 0)),
    "params/norm/bias": ("norm.embed", (1, 0)),
    "batch_stats/norm/mean": ("norm.running_mean", (0,)),
}
EXPECTED = {
    name: jax.ShapeDtypeStruct(shape, jnp.float32)
    for name, shape in {
        "params/conv/kernel": (1, 2, 3, 4),
        "params/norm/scale": (2, 5),
        "params/norm/bias": (2, 3),
        "batch_stats/norm/mean": (4,),
    }.items()
}
SHAPES = {"conv.weight": (4, 3, 1, 2), "norm.embed": (8, 2), "norm.running_mean": (4,)}
THEIRS = {
    name: np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    for name, shape in SHAPES.items()
}


def read(path, ignored=""):
    return tables.read(str(path), NAMES, EXPECTED, "ask the author", ignored)


def write(path, params, mean=None, others=None):
    mean = np.zeros(4, np.float32) if mean is None else mean
    variables = {"params": params, "batch_stats": {"norm": {"mean": mean}}}
    tables.write(str(path), NAMES, EXPECTED, variables, others)


def params(**changed):
    """Parameters of the expected shapes, but for changed modules."""
    return {
        "conv": {"kernel": np.zeros((1, 2, 3, 4), np.float32)},
        "norm": {"scale": np.zeros((2, 5)), "bias": np.zeros((2, 3))},
    } | changed


@pytest.fixture
def path(tmp_path):
    return tmp_path / "weights.safetensors"


def test_read_moves_axes_and_parts_what_lies_side_by_side(path):
    save_file(THEIRS, path)
    variables = read(path)
    kernel, norm = variables["params"]["conv"]["kernel"], variables["params"]["norm"]
    for out, inp, row, column in np.ndindex(4, 3, 1, 2):
        theirs = THEIRS["conv.weight"][out, inp, row, column]
        assert kernel[row, column, inp, out] == theirs
    np.testing.assert_array_equal(norm["scale"].T, THEIRS["norm.embed"][:5])
    np.testing.assert_array_equal(norm["bias"].T, THEIRS["norm.embed"][5:])
    mean = variables["batch_stats"]["norm"]["mean"]
    np.testing.assert_array_equal(mean, THEIRS["norm.running_mean"])
    assert jax.tree.structure(variables).num_leaves == len(NAMES)


def test_leaves_read_are_contiguous_float32(path):
    save_file({name: leaf.astype(np.float64) for name, leaf in THEIRS.items()}, path)
    for leaf in jax.tree.leaves(read(path)):
        assert leaf.dtype == np.float32 and leaf.flags.c_contiguous


def test_write_is_the_inverse_of_read(path):
    save_file(THEIRS, path)
    variables = read(path)
    path.unlink()
    write(path, variables["params"], variables["batch_stats"]["norm"]["mean"])
    written = load_file(path)
    assert written.keys() == THEIRS.keys()
    for name, theirs in THEIRS.items():
        np.testing.assert_array_equal(written[name], theirs)


def test_write_takes_device_arrays(path):
    kernel = jnp.arange(24.0).reshape(1, 2, 3, 4)
    write(path, params(conv={"kernel": kernel}))
    assert load_file(path)["conv.weight"][3, 2, 0, 1] == kernel[0, 1, 2, 3]


def test_others_are_written_and_ignored_when_read(path):
    count = np.array([7.0], np.float32)
    write(path, params(), others={"norm.count": count})
    np.testing.assert_array_equal(load_file(path)["norm.count"], count)
    assert set(read(path, ignored="*.count")) == {"params", "batch_stats"}
    # The pattern is for the whole name.
    assert set(read(path, ("norm.x", "norm.*"))) == {"params", "batch_stats"}
    for ignored in ("", "count", "norm"):
        with pytest.raises(UserError, match=r"holds norm.count with shape \(1,\)"):
            read(path, ignored)


def test_read_names_a_missing_leaf(path):
    kept = {name: leaf for name, leaf in THEIRS.items() if name != "norm.embed"}
    save_file(kept, path)
    match = (
        rf"{re.escape(str(path))} lacks norm.embed with shape \(8, 2\).*"
        r"params/norm/scale with shape \(2, 5\), params/norm/bias with shape \(2, 3\)"
    )
    with pytest.raises(UserError, match=match):
        read(path)


@pytest.mark.parametrize("shape", [(4, 3, 2, 1), (24,), (1, 2, 3, 4)])
def test_read_names_a_leaf_of_another_shape(path, shape):
    save_file(THEIRS | {"conv.weight": THEIRS["conv.weight"].reshape(shape)}, path)
    match = (
        rf"conv.weight in {re.escape(str(path))} has shape {re.escape(str(shape))}, "
        r"but \(4, 3, 1, 2\).*params/conv/kernel with shape \(1, 2, 3, 4\)"
    )
    with pytest.raises(UserError, match=match):
        read(path)


def test_a_leaf_with_fewer_axes_lacks_the_first_ones(path):
    """A dense layer of ours, a 1x1 convolution of theirs."""
    names = {"params/skip/kernel": ("skip.weight", (2, 3, 1, 0))}
    expected = {"params/skip/kernel": jax.ShapeDtypeStruct((3, 5), jnp.float32)}
    theirs = np.arange(15, dtype=np.float32).reshape(5, 3, 1, 1)
    save_file({"skip.weight": theirs}, path)
    variables = tables.read(str(path), names, expected, "")
    assert variables["params"]["skip"]["kernel"].shape == (3, 5)
    assert variables["params"]["skip"]["kernel"][2, 4] == theirs[4, 2, 0, 0]
    path.unlink()
    tables.write(str(path), names, expected, variables)
    np.testing.assert_array_equal(load_file(path)["skip.weight"], theirs)
    save_file({"skip.weight": theirs.reshape(1, 1, 5, 3)}, path)
    with pytest.raises(UserError, match=r"\(1, 1, 5, 3\), but \(5, 3, 1, 1\)"):
        tables.read(str(path), names, expected, "")


def test_older_names(path):
    older = {name.replace("conv", "convolution"): leaf for name, leaf in THEIRS.items()}

    def today(name):
        return name.replace("convolution", "conv")

    def read_older():
        return tables.read(str(path), NAMES, EXPECTED, "", "", today)

    save_file(older, path)
    kernel = read_older()["params"]["conv"]["kernel"]
    assert kernel[0, 1, 2, 3] == THEIRS["conv.weight"][3, 2, 0, 1]
    with pytest.raises(UserError, match="holds convolution.weight"):
        read(path)
    save_file(older | THEIRS, path)
    with pytest.raises(UserError, match=r"holds conv(olution)?.weight"):
        read_older()


def test_leaves_of_other_types_are_refused(path):
    save_file(THEIRS | {"norm.running_mean": np.zeros(4, np.int32)}, path)
    with pytest.raises(
        UserError, match="norm.running_mean in .* is I32: expected one of BF16, F"
    ):
        read(path)


def test_files_in_parts(path):
    """The index names the parts; both lie in one folder."""
    first, *others = THEIRS
    save_file({first: THEIRS[first]}, path.parent / "1.safetensors")
    rest = {name: THEIRS[name] for name in others}
    save_file(rest, path.parent / "2.safetensors")
    index = path.parent / f"{path.name}.index.json"

    def named(files):
        index.write_text(json.dumps({"weight_map": files}))

    files = {first: "1.safetensors"} | dict.fromkeys(others, "2.safetensors")
    named(files)
    variables = read(path)
    kernel = variables["params"]["conv"]["kernel"]
    assert kernel[0, 1, 2, 3] == THEIRS["conv.weight"][3, 2, 0, 1]
    assert jax.tree.structure(variables).num_leaves == len(NAMES)
    named(files | {first: "3.safetensors"})
    with pytest.raises(UserError, match="no 3.safetensors beside .*index.json"):
        read(path)
    for outside in ("../1.safetensors", str(path.parent / "1.safetensors"), 7):
        named(files | {first: outside})
        with pytest.raises(UserError, match="does not name files beside it"):
            read(path)
    for content in ("{", "[]", "{}", '{"weight_map": 1}'):
        index.write_text(content)
        with pytest.raises(UserError, match="does not name files beside it"):
            read(path)


def shaped(**shapes):
    return {
        f"params/{path}": jax.ShapeDtypeStruct(shape, jnp.float32)
        for path, shape in shapes.items()
    }


def random_tensors(**shapes):
    draws = np.random.default_rng(0)
    return {
        name: draws.normal(size=shape).astype(np.float32)
        for name, shape in shapes.items()
    }


def test_several_tensors_are_stacked_in_one_leaf(path):
    """The layers of a scanned stack, which lie apart in the file."""
    kernels = tuple(f"layer.{number}.weight" for number in range(3))
    names = {"params/kernel": (kernels, (1, 0))}
    expected = shaped(kernel=(3, 2, 5))
    theirs = random_tensors(**dict.fromkeys(kernels, (5, 2)))
    save_file(theirs, path)
    variables = tables.read(str(path), names, expected, "")
    for number, name in enumerate(kernels):
        ours = variables["params"]["kernel"][number]
        np.testing.assert_array_equal(ours, theirs[name].T)
    path.unlink()
    tables.write(str(path), names, expected, variables)
    written = load_file(path)
    assert written.keys() == theirs.keys()
    for name in kernels:
        np.testing.assert_array_equal(written[name], theirs[name])
    save_file({name: theirs[name] for name in kernels[:2]}, path)
    match = (
        r"lacks layer.2.weight with shape \(5, 2\), which becomes params/kernel\[2\] "
        r"with shape \(3, 2, 5\)"
    )
    with pytest.raises(UserError, match=match):
        tables.read(str(path), names, expected, "")
    save_file(theirs | {"layer.3.weight": theirs[kernels[0]]}, path)
    with pytest.raises(UserError, match="holds layer.3.weight"):
        tables.read(str(path), names, expected, "")
    save_file(theirs | {kernels[1]: np.zeros((2, 5), np.float32)}, path)
    with pytest.raises(UserError, match=r"\(2, 5\), but \(5, 2\).*kernel\[1\]"):
        tables.read(str(path), names, expected, "")


def test_stacks_of_stacks_and_side_by_side(path):
    """Two layers of three experts; queries and keys in one tensor of each layer."""
    experts = tuple(f"{layer}.{e}.w" for layer in range(2) for e in range(3))
    both = tuple(f"{layer}.qk" for layer in range(2))
    names = {
        "params/experts": (experts, (1, 0)),
        "params/query": (both, (1, 0)),
        "params/key": (both, (1, 0)),
    }
    expected = shaped(experts=(2, 3, 4, 5), query=(2, 4, 6), key=(2, 4, 2))
    shapes = dict.fromkeys(experts, (5, 4)) | dict.fromkeys(both, (8, 4))
    theirs = random_tensors(**shapes)
    save_file(theirs, path)
    variables = tables.read(str(path), names, expected, "")
    params = variables["params"]
    np.testing.assert_array_equal(params["experts"][1, 2], theirs["1.2.w"].T)
    np.testing.assert_array_equal(params["query"][1], theirs["1.qk"][:6].T)
    np.testing.assert_array_equal(params["key"][0], theirs["0.qk"][6:].T)
    path.unlink()
    tables.write(str(path), names, expected, variables)
    for name, tensor in load_file(path).items():
        np.testing.assert_array_equal(tensor, theirs[name])


def test_modules_by_their_kinds():
    leaves = shaped(**{"stack/dense/kernel": (2, 3, 4), "norm/scale": (3,)})
    modules = {"stack/dense": "layers.{}.fc", "norm": "ln"}
    assert tables.module_names(leaves, modules, "theirs") == {
        "params/stack/dense/kernel": (
            ("layers.0.fc.weight", "layers.1.fc.weight"),
            (1, 0),
        ),
        "params/norm/scale": ("ln.weight", (0,)),
    }
    for strange in ("norm/bias_2", "other/scale", "scale"):
        match = rf"params/{strange} with shape \(3,\) has no counterpart in theirs"
        with pytest.raises(UserError, match=match):
            tables.module_names(shaped(**{strange: (3,)}), modules, "theirs")


@pytest.mark.parametrize("dtype", [jnp.bfloat16, np.float16])
def test_half_precision(path, dtype):
    save_file({name: tensor.astype(dtype) for name, tensor in THEIRS.items()}, path)
    mean = read(path)["batch_stats"]["norm"]["mean"]
    assert mean.dtype == np.float32
    np.testing.assert_array_equal(mean, THEIRS["norm.running_mean"])


def test_repeats(path):
    """Tied weights: beside what they repeat, or in its place."""
    conv, twice = THEIRS["conv.weight"], {"tied.weight": "conv.weight"}

    def read_tied():
        variables = tables.read(str(path), NAMES, EXPECTED, "ask", repeats=twice)
        return variables["params"]["conv"]["kernel"].transpose(3, 2, 0, 1)

    save_file(THEIRS | {"tied.weight": conv}, path)
    np.testing.assert_array_equal(read_tied(), conv)
    with pytest.raises(UserError, match="holds tied.weight"):
        read(path)
    rest = {name: leaf for name, leaf in THEIRS.items() if name != "conv.weight"}
    save_file(rest | {"tied.weight": conv}, path)
    np.testing.assert_array_equal(read_tied(), conv)
    for other in (conv + 1, conv[:3]):
        save_file(THEIRS | {"tied.weight": np.ascontiguousarray(other)}, path)
        with pytest.raises(
            UserError, match="tied.weight in .* differs from conv.weight"
        ):
            read_tied()
    save_file(rest, path)
    with pytest.raises(UserError, match="lacks conv.weight"):
        read_tied()


def test_names_that_are_stored(path):
    save_file(THEIRS, path)
    assert tables.stored_names(str(path), "ask") == THEIRS.keys()
    with pytest.raises(UserError, match="no weights at .*: ask"):
        tables.stored_names(f"{path}.none", "ask")


def test_no_file(path):
    message = f"no weights at {path}: ask the author"
    with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        read(path)
    with pytest.raises(UserError, match="no weights at"):
        read(path.parent)


def test_files_that_are_not_whole_safetensors_files(path):
    save_file(THEIRS, path)
    whole = path.read_bytes()
    pickle = b"\x80\x02}q\x00."
    for content in (pickle, b"", whole[:4], whole[:40], whole[:-1]):
        path.write_bytes(content)
        match = f"{re.escape(str(path))} is not a safetensors file.*ask the author$"
        with pytest.raises(UserError, match=match):
            read(path)


def test_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write("~/weights.safetensors", params())
    assert (tmp_path / "weights.safetensors").is_file()
    assert "params" in read("~/weights.safetensors")


@pytest.mark.parametrize(
    ("changed", "match"),
    [
        ({"other": {"bias": np.zeros(3)}}, r"params/other/bias.*\(3,\), expected None"),
        ({"conv": {}}, r"params/conv/kernel.*None, expected \(1, 2, 3, 4\)"),
        (
            {"conv": {"kernel": np.zeros((4, 3, 2, 1))}},
            r"params/conv/kernel.*\(4, 3, 2, 1\), expected \(1, 2, 3, 4\)",
        ),
    ],
)
def test_write_names_a_leaf_that_does_not_fit(path, changed, match):
    with pytest.raises(UserError, match=match):
        write(path, params(**changed))
    assert not path.exists()


def test_write_asks_for_the_folder(path):
    path = path.parent / "absent" / path.name
    with pytest.raises(UserError, match=f"{re.escape(str(path))} cannot be written"):
        write(path, params())


def test_leaf_shapes_are_those_of_init():
    class Network(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            x = nn.Dense(2, name="dense")(x)
            return nn.BatchNorm(not train, name="norm")(x) if train else x

    x = jnp.zeros((1, 3))
    leaves = tables.leaf_shapes(Network(), x, train=False)
    shapes = {path: leaf.shape for path, leaf in leaves.items()}
    assert shapes == {"params/dense/kernel": (3, 2), "params/dense/bias": (2,)}
    more = tables.leaf_shapes(Network(), x, train=True)
    assert more.keys() - leaves.keys() == {
        *("params/norm/scale", "params/norm/bias"),
        *("batch_stats/norm/mean", "batch_stats/norm/var"),
    }
