"""The PyTorch peers of launch.bench do what they are compared for."""

import dataclasses
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from launch import bench_decoding, bench_recurrent
from launch.bench_samplers import samplers
from launch.peers import (
    decoding,
    detection,
    pytorch,
    recurrent,
    score_sde,
    seq2seq,
    swin,
)
from research.diffusion.parameterizations import ScaledScore
from research.diffusion.processes import VE, probability_flow
from research.errors import UserError
from research.experiment import load
from research.train.builder import build, synthetic_batch
from research.train.optimizers import Adam
from research.train.schedules import Constant
from tests.launch import linear

pytestmark = [
    # By importing the compiler of PyTorch itself.
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),
    # By the Heun scheduler of diffusers.
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]

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


NORM = "partial(research.layers.norms.GroupNorm, max_groups=2)"
SMALL = (
    "task.network.channels=8",
    "task.network.channel_mults=(1, 2)",
    "task.network.num_res_blocks=1",
    "task.network.attention_resolutions=()",
    f"task.network.norm={NORM}",
    f"task.network.block.norm={NORM}",
    f"task.network.attention.norm={NORM}",
    "task.image_shape=(8, 8, 3)",
)


@pytest.fixture(params=["VP", "VE"], scope="module")
def small(request):
    """A task whose network diffusers has, and variables that matter."""
    file = "experiments/score_sde/vp_ddpm_continuous_cifar10.py"
    task = load(file, {}, SMALL).task
    if request.param == "VE":
        task = replace(task, process=VE(sigma_max=5.0), predicts=ScaledScore())
    batch = {"image": jnp.zeros((1, 8, 8, 3), jnp.uint8)}
    variables = jax.jit(task.init)(jax.random.key(0), batch)
    # The last layer is as good as zero, and the ODE of anything far from it is stiff.
    last = variables["params"]["conv_out"]
    noise = jax.random.normal(jax.random.key(1), last["kernel"].shape)
    last["kernel"] += 0.003 * noise
    return task, variables


def test_the_samplers_have_our_very_network(small):
    task, variables = small
    network, same = score_sde.same_or_nearest_unet(task, variables)
    network.eval()
    assert same
    x, t = (
        np.random.default_rng(1).random((2, 8, 8, 3), np.float32),
        np.float32([0.2, 1]),
    )
    with torch.no_grad():
        theirs = network(
            torch.from_numpy(x).permute(0, 3, 1, 2), torch.from_numpy(999 * t)
        ).sample
    ours = jax.jit(lambda x, t: task.network.apply(variables, x, t, train=False))(x, t)
    np.testing.assert_allclose(
        theirs.permute(0, 2, 3, 1).numpy(), ours, rtol=0, atol=1e-4 * abs(ours).max()
    )


def test_their_samplers_take_the_evaluations_that_they_say(small):
    """And are at home under our names."""
    task, variables = small
    found = score_sde.samplers(task, variables, batch_size=2, evaluations=50)
    ve = isinstance(task.process, VE)
    fixed = (
        {"predictor-corrector"}
        if ve
        else {
            "Euler-Maruyama",
            "ancestral",
            "DDIM",
            "Heun",
        }
    )
    assert found.keys() == fixed | {"ODE", "likelihood"}
    assert found.keys() <= samplers(50, task.process).keys() | {"likelihood"}
    for name, ((eager, taken), (compiled, _)) in found.items():
        assert eager.name.endswith("eager") and compiled.name.endswith("compiled")
        assert (
            taken > 20 if name not in fixed else taken == (49 if name == "Heun" else 50)
        )
    eager.step()


def test_the_slope_of_their_ode_is_ours(small):
    task, variables = small
    x = np.random.default_rng(1).random((2, 3, 8, 8), np.float32)
    network, _ = score_sde.same_or_nearest_unet(task, variables)
    network.eval()

    def predict(x, t):
        return network(x, torch.full((len(x),), 999 * t)).sample

    with torch.no_grad():
        theirs = score_sde._drift(task, predict, torch.from_numpy(x), 0.6)
    flow = probability_flow(task.process, partial(task.score, variables))
    ours = jax.jit(flow.drift)(np.moveaxis(x, 1, -1), jnp.full(2, 0.6))
    ours = np.moveaxis(ours, -1, 1)
    np.testing.assert_allclose(
        theirs.numpy(), ours, rtol=0, atol=1e-4 * abs(ours).max()
    )


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


def test_only_adam_and_adamw_are_known():
    other = dataclasses.replace(load(DIGITS), optimizer=Sgd())
    with pytest.raises(UserError, match="Adam and AdamW only, and this .* has Sgd"):
        pytorch.contenders(other, Quadratic, [], "float32")


def test_only_score_matching_has_this_peer():
    other = dataclasses.replace(load(DIGITS), task=linear.Linear())
    with pytest.raises(UserError, match="a U-Net under denoising score matching"):
        score_sde.contenders(other, {})


MULTI30K = "experiments/seq2seq/transformer_multi30k.py"


def test_the_transformer_is_as_large_as_ours_and_as_dear():
    """Their counter leaves out what fused attention multiplies: 6 % here."""
    experiment = load(MULTI30K, {"batch_size": "8"})
    program = build(experiment)
    places = np.tile(np.arange(16), 4)[None].repeat(8, axis=0)
    words = np.random.default_rng(0).integers(4, 6000, (2, 8, 64))
    batch = {"source": words[0], "target": words[1]}
    for part in ("source", "target"):
        batch[f"{part}_positions"] = places
        batch[f"{part}_segments"] = 1 + np.arange(64)[None].repeat(8, axis=0) // 16
    eager, _ = seq2seq.contenders(experiment, batch)
    assert eager.num_params == program.num_params()
    assert eager.flops == pytest.approx(program.flops, rel=0.07)
    eager.step()


def test_what_is_no_translation_has_no_peer_there():
    with pytest.raises(UserError, match="trains ScoreMatching with ScoreUNet"):
        seq2seq.contenders(load(DIGITS), {})


@pytest.mark.parametrize("reference", ["swin_t_imagenet1k", "swinv2_t_imagenet1k"])
def test_the_swin_is_as_large_as_ours_and_as_dear(reference):
    """And loses as much at first, of labels that no network can know."""
    size = "(64, 64, 3)"
    overrides = [
        "task.network.backbone.depths=(1, 1)",
        "task.network.backbone.num_heads=(3, 6)",
        "task.network.backbone.image_size=64",
        f"data.spec={{'image': ({size}, 'uint8'), 'label': ((), 'int32')}}",
    ]
    experiment = load(
        f"experiments/swin/{reference}.py", {"batch_size": "8"}, overrides
    )
    program = build(experiment)
    batch = jax.device_get(synthetic_batch(program))
    eager, compiled = swin.contenders(experiment, batch)
    assert eager.num_params == compiled.num_params == program.num_params()
    assert eager.flops == pytest.approx(program.flops, rel=0.07)
    eager.step()
    (alone, _) = swin.contenders(experiment, batch, train=False)
    assert eager.flops > 2.5 * alone.flops > 0
    with torch.no_grad():
        config = swin.config_of(experiment.task.network, 3, 64)
        loss = swin._Loss(experiment.task, config).eval()
        image = torch.tensor(batch["image"]).permute(0, 3, 1, 2)
        value = float(loss(image, torch.tensor(batch["label"]).long()))
    assert value == pytest.approx(np.log(experiment.task.num_classes), rel=0.1)


def test_the_detr_is_as_large_as_ours_and_as_dear():
    scenes = load("experiments/detection/detr_scenes.py", {"batch_size": "8"})
    experiment = load("experiments/detection/detr_r50_coco.py")
    experiment = dataclasses.replace(experiment, data=scenes.data)
    program = build(experiment)
    batch = scenes.data.batch(0)
    eager, compiled = detection.contenders(experiment, batch)
    assert eager.num_params == compiled.num_params == program.num_params()
    assert eager.flops == pytest.approx(program.flops, rel=0.07)
    eager.step()


def test_what_has_no_such_network_has_no_peer_there():
    scenes = load("experiments/detection/detr_scenes.py")
    with pytest.raises(UserError, match="a Swin: this experiment trains Detection"):
        swin.contenders(scenes, {})
    with pytest.raises(UserError, match="on a ResNet, .* trains Detection with DETR"):
        detection.contenders(scenes, {})


@pytest.mark.parametrize("beam_size", [1, 3])
def test_generators_find_the_tokens_that_ours_finds(beam_size, tmp_path, monkeypatch):
    small = {"vocab_size": 50, "decoder_vocab_size": 50, "pad_token_id": 49}
    small |= {"d_model": 16, "encoder_layers": 2, "decoder_layers": 2}
    small |= dict.fromkeys(["encoder_ffn_dim", "decoder_ffn_dim"], 32)
    small |= dict.fromkeys(["encoder_attention_heads", "decoder_attention_heads"], 2)
    monkeypatch.setattr(bench_decoding, "OPUS", {**bench_decoding.OPUS, **small})
    bench_decoding.fresh(str(tmp_path))
    source = np.random.default_rng(0).integers(4, 49, (3, 6))
    work = bench_decoding.Workload(str(tmp_path), source, 8, beam_size, 49)
    eager, compiled = decoding.generators(work)
    assert eager.name.endswith("eager") and compiled.name.endswith("compiled")
    timings, agreed = bench_decoding.bench(work, [eager], repeats=1)
    assert agreed == {eager.name: 1.0}
    assert timings[0].name == "ours"
    assert all(timing.examples_per_second > 0 for timing in timings)


@pytest.mark.parametrize("name", list(bench_recurrent.CELLS))
def test_recurrent_layers_have_as_many_parameters(name):
    x, weight = (np.ones((2, 3, width), np.float32) for width in (4, 5))
    work = bench_recurrent.Workload(x, weight, num_layers=2)
    eager, compiled = recurrent.layers(work, name)
    contender = bench_recurrent.ours(work, bench_recurrent.CELLS[name])
    assert contender.num_params == eager.num_params == compiled.num_params
    for one in (contender, eager):
        one.step()
