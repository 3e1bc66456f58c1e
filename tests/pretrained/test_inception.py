import jax
import numpy as np
import pytest
from flax.traverse_util import unflatten_dict
from safetensors.numpy import load_file, save_file

from research.errors import UserError
from research.pretrained import inception


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """A file of the public layout with random weights, and its path."""
    rng = np.random.default_rng(0)
    shapes = {name: leaf.shape for name, leaf in inception.expected_leaves().items()}
    weights = {}
    for ours, (theirs, axes) in inception.leaf_names().items():
        shape = [shapes[ours][axis] for axis in np.argsort(axes)]
        weights[theirs] = rng.standard_normal(shape, np.float32)
    weights["Mixed_5b.branch1x1.bn.num_batches_tracked"] = np.array(7)
    path = tmp_path_factory.mktemp("released") / "inception.safetensors"
    save_file(weights, path)
    return path, weights


def test_there_and_back(released, tmp_path):
    path, weights = released
    _, variables = inception.load(str(path))
    kernel = variables["params"]["b_0"]["single_1"]["conv"]["kernel"]
    theirs = weights["Mixed_6b.branch7x7_2.conv.weight"]
    assert kernel.shape == (1, 7, 128, 128)
    assert kernel[0, 5, 3, 4] == theirs[4, 3, 0, 5]
    inception.save(str(tmp_path / "ours.safetensors"), variables)
    again = load_file(tmp_path / "ours.safetensors")
    del weights["Mixed_5b.branch1x1.bn.num_batches_tracked"]
    assert again.keys() == weights.keys()
    assert all(np.array_equal(again[name], weights[name]) for name in weights)


def refused(tmp_path, weights, match):
    path = str(tmp_path / "inception.safetensors")
    save_file(weights, path)
    with pytest.raises(UserError, match=match):
        inception.load(path)


def test_every_leaf_is_claimed(released, tmp_path):
    bias, head = released[1]["fc.bias"], released[1]["fc.weight"]
    lacking = r"lacks fc.weight.*params/logits/kernel.*\(2048, 1008\)"
    refused(tmp_path, {"fc.bias": bias}, lacking)
    imagenet = r"fc.weight.*\(1000, 2048\).*params/logits/kernel.*\(2048, 1008\)"
    refused(tmp_path, {"fc.bias": bias, "fc.weight": head[:1000]}, imagenet)
    flat = r"fc.weight.*\(2048,\).*params/logits/kernel.*\(2048, 1008\)"
    refused(tmp_path, {"fc.bias": bias, "fc.weight": head[0]}, flat)
    unclaimed = {"AuxLogits.fc.bias": np.zeros(1000, np.float32)}
    refused(tmp_path, unclaimed, r"AuxLogits.fc.bias.*\(1000,\)")


def test_other_files_are_refused(tmp_path):
    with pytest.raises(UserError, match="pytorch-fid.*save_file"):
        inception.load(str(tmp_path / "missing.safetensors"))
    path = tmp_path / "weights.pth"
    path.write_bytes(b"\x80\x02}q\x00.")
    with pytest.raises(UserError, match="not a safetensors file"):
        inception.load(str(path))


def test_save_claims_every_leaf(tmp_path):
    leaves = dict(inception.expected_leaves())
    stem = "params/stem_0/conv/kernel"
    for name, shape in {stem: (3, 3, 3, 31), "params/other": (1,)}.items():
        wrong = leaves | {name: jax.ShapeDtypeStruct(shape, np.float32)}
        with pytest.raises(UserError, match=name):
            inception.save(
                str(tmp_path / "no.safetensors"), unflatten_dict(wrong, sep="/")
            )
    del leaves[stem]
    with pytest.raises(UserError, match=stem):
        inception.save(
            str(tmp_path / "no.safetensors"), unflatten_dict(leaves, sep="/")
        )
    assert not (tmp_path / "no.safetensors").exists()
