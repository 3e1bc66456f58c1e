"""The FID Inception against torch-fidelity's, live, with random weights.

torch-fidelity ports the TensorFlow graph's own image resize and its 1008 logits, which
pytorch-fid leaves out. Its package imports torchvision for other extractors; only the
modules that the Inception needs are imported here, so that torchvision is not.
"""

import importlib
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.torch
import torch

from research.models.inception import resize
from research.pretrained import inception


@pytest.fixture(scope="module")
def fidelity(tmp_path_factory):
    """torch-fidelity, importable module by module.

    Installed here and without what it requires: beside a CPU build of PyTorch its
    torchvision cannot be imported, and every package that looks for one would fail.
    """
    folder = tmp_path_factory.mktemp("torch-fidelity")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
    subprocess.run([*pip, "--target", folder, "torch-fidelity==0.4.0"], check=True)
    package = types.ModuleType("torch_fidelity")
    package.__path__ = [str(folder / "torch_fidelity")]
    sys.modules["torch_fidelity"] = package
    yield lambda name: importlib.import_module(f"torch_fidelity.{name}")
    for name in [name for name in sys.modules if name.startswith("torch_fidelity")]:
        del sys.modules[name]


@pytest.fixture(scope="module")
def reference(fidelity):
    """Their extractor with weights by which the image reaches the last layer."""
    module = fidelity("feature_extractor_inceptionv3")
    outputs = ["2048", "logits_unbiased", "logits"]
    with pytest.MonkeyPatch.context() as patch:
        # The constructor would download the released weights.
        patch.setattr(module, "load_state_dict_from_url", lambda *_, **__: None)
        patch.setattr(
            module.FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None
        )
        extractor = module.FeatureExtractorInceptionV3("inception", outputs)
    generator = torch.Generator().manual_seed(0)
    for name, leaf in extractor.state_dict().items():
        if name.endswith("conv.weight"):
            std = (2 / leaf[0].numel()) ** 0.5
            leaf.normal_(0, std, generator=generator)
        elif name.endswith(("bn.weight", "running_var")):
            leaf.uniform_(0.8, 1.2, generator=generator)
        elif leaf.is_floating_point():
            leaf.normal_(0, 0.1, generator=generator)
    return extractor


@pytest.fixture(scope="module")
def loaded(reference, tmp_path_factory):
    path = tmp_path_factory.mktemp("inception") / "theirs.safetensors"
    safetensors.torch.save_file(reference.state_dict(), path)
    return inception.load(str(path))


def test_outputs(reference, loaded):
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 40, 3), np.uint8)
    images[1] //= 2
    model, variables = loaded
    ours = jax.jit(model.apply)(variables, images)
    theirs = reference(torch.from_numpy(images.transpose(0, 3, 1, 2)))
    for name, expected in zip(
        ("features", "unbiased_logits", "logits"), theirs, strict=True
    ):
        expected = expected.numpy()
        scale = np.abs(expected).max()
        # The two images differ, so agreement is not that of two constants.
        assert np.abs(expected[0] - expected[1]).max() > 0.05 * scale
        error = np.abs(ours[name] - expected).max() / scale
        print(f"{name}: relative error {error:.1e}")
        assert error < 1e-4


@pytest.mark.parametrize("shape", [(32, 32), (299, 299), (420, 305)])
def test_resize(fidelity, shape):
    interpolate = fidelity("interpolate_compat_tensorflow")
    x = np.random.default_rng(0).uniform(0, 255, (1, *shape, 3)).astype(np.float32)
    theirs = interpolate.interpolate_bilinear_2d_like_tensorflow1x(
        torch.from_numpy(x.transpose(0, 3, 1, 2)), size=(299, 299), align_corners=False
    )
    expected = theirs.numpy().transpose(0, 2, 3, 1)
    assert np.abs(resize(jnp.asarray(x), 299) - expected).max() / 255 < 1e-6


def test_way_back(reference, loaded, tmp_path):
    path = tmp_path / "ours.safetensors"
    inception.save(str(path), loaded[1])
    expected = {name: leaf.clone() for name, leaf in reference.state_dict().items()}
    weights = safetensors.torch.load_file(path)
    reference.load_state_dict(weights, strict=True)
    for name, leaf in reference.state_dict().items():
        assert torch.equal(leaf, expected[name]), name
