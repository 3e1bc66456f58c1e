"""The PyTorch peers of launch.bench do what they are compared for."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from launch.peers import pytorch, score_sde
from research.errors import UserError
from research.experiment import load
from research.train.builder import build, synthetic_batch
from research.train.optimizers import Adam
from research.train.schedules import Constant
from tests.launch import linear

# By importing the compiler of PyTorch itself.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")

DIGITS = "experiments/score_sde/vp_ddpmpp_digits.py"
CIFAR = "experiments/score_sde/vp_ddpmpp_cifar10.py"


@pytest.mark.parametrize("reference", [DIGITS, CIFAR])
def test_the_unet_is_about_as_large_as_ours(reference):
    experiment = load(reference)
    task = experiment.task
    with torch.device("meta"):
        unet = score_sde.nearest_unet(task.network, task.image_shape)
    theirs = sum(param.numel() for param in unet.parameters())
    assert theirs == pytest.approx(experiment.num_params, rel=0.05)


def test_the_steps_cost_about_as_much():
    experiment = load(DIGITS, {"batch_size": "8"})
    program = build(experiment)
    batch = jax.device_get(synthetic_batch(program))
    eager, compiled = score_sde.contenders(experiment, batch)
    assert eager.flops == compiled.flops
    assert eager.flops == pytest.approx(program.flops, rel=0.05)
    assert eager.num_params == compiled.num_params
    assert eager.name.endswith("eager") and compiled.name.endswith("compiled")
    eager.step()


def test_noise_is_that_of_our_process():
    task = load(DIGITS).task
    denoising = score_sde._Denoising(task)
    seen = {}

    class Network(torch.nn.Module):
        def forward(self, x, t):
            seen.update(x=x, t=t / 999)
            return type("Output", (), {"sample": torch.zeros_like(x)})

    denoising.network = Network()
    images = torch.full((4096, 1, 8, 8), 16, dtype=torch.uint8)
    loss = denoising(images)
    # Zero is the mean of the noise, whose variance is one.
    assert float(loss) == pytest.approx(1, abs=0.01)
    t = seen["t"].numpy()
    assert t.min() >= task.min_time and t.max() <= 1
    x0 = np.ones((4096, 8, 8, 1), np.float32)  # the highest level
    mean, std = task.process.marginal(jnp.asarray(x0), jnp.asarray(t))
    noise = (seen["x"].numpy().reshape(x0.shape) - mean) / np.asarray(std).reshape(
        -1, 1, 1, 1
    )
    assert float(noise.mean()) == pytest.approx(0, abs=0.01)
    assert float(noise.std()) == pytest.approx(1, abs=0.01)


class Quadratic(torch.nn.Module):
    """A loss of two parameters; the gradient is long."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor([30.0, 40.0]))

    def forward(self, x):
        return torch.sum(x * self.weight**2)


def test_the_step_clips_and_moves(monkeypatch):
    made = []

    def make():
        made.append(Quadratic())
        return made[-1]

    experiment = dataclasses.replace(
        load(DIGITS), optimizer=Adam(Constant(0.1), clip_norm=1.0)
    )
    norms = []
    clip = torch.nn.utils.clip_grad_norm_
    monkeypatch.setattr(
        torch.nn.utils, "clip_grad_norm_", lambda p, n: norms.append((clip(p, n), n))
    )
    eager, _ = pytorch.contenders(experiment, make, [np.ones(2, np.float32)], "float32")
    eager.step()
    ((norm, limit),) = norms
    assert float(norm) == pytest.approx(100) and limit == 1.0
    # The first step of Adam is the learning rate's length, whatever the gradient.
    moved = made[0].weight.detach().numpy()
    np.testing.assert_allclose(moved, [29.9, 39.9], rtol=1e-5)
    gradient = made[0].weight.grad.numpy()
    np.testing.assert_allclose(gradient, [0.6, 0.8], rtol=1e-5)


@dataclasses.dataclass(frozen=True)
class Sgd:
    learning_rate: Constant = Constant(0.1)

    def __call__(self):
        raise AssertionError("nobody asks for it")


def test_only_adam_is_known():
    other = dataclasses.replace(load(DIGITS), optimizer=Sgd())
    with pytest.raises(UserError, match="knows Adam only, and this .* has Sgd"):
        pytorch.contenders(other, Quadratic, [], "float32")


def test_only_score_matching_has_this_peer():
    other = dataclasses.replace(load(DIGITS), task=linear.Linear())
    with pytest.raises(UserError, match="a U-Net under denoising score matching"):
        score_sde.contenders(other, {})
