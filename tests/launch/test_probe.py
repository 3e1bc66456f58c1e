"""What the probe finds, and what depth does to a network before any training."""

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from launch import cli
from launch import probe as command
from launch.probe import Layers, measure, probe
from research.data.loader import Data
from research.errors import UserError
from research.experiment import Experiment, load
from research.layers.attention import Attention
from research.layers.mlp import FeedForward
from research.layers.stack import Stack, TransformerBlock, moments
from research.tasks.sequences import apply
from research.train.optimizers import Adam
from research.train.schedules import Constant
from tests.layers import slow

BLOCK = partial(
    TransformerBlock,
    mixer=partial(Attention, num_heads=2),
    mlp=partial(FeedForward, mlp_dim=4),
)
WIDE = partial(
    TransformerBlock,
    mixer=partial(Attention, num_heads=1),
    mlp=partial(FeedForward, mlp_dim=8, gated=True),
)
X = np.random.default_rng(0).normal(size=(8, 3, 4)).astype(np.float32)


class Two(nn.Module):
    """Four layers of alternating blocks, then two, the second stack used twice."""

    @nn.compact
    def __call__(self, x, train=False):
        x = Stack(4, (BLOCK, WIDE), name="first")(x, train=train)
        second = Stack(2, (BLOCK,), name="second")
        return second(2 * second(x, train=train), train=train)


@dataclass(frozen=True)
class Fit:
    """Sum of squares of what a network makes of `batch["x"]`."""

    network: nn.Module = Two()
    tells: bool = True

    def init(self, rng, batch):
        return self.network.init(rng, batch["x"])

    def loss(self, variables, batch, rng, train):
        y, changed = apply(self.network, variables, rng, train, batch["x"])
        loss = jnp.square(y).sum()
        pair = (loss, jnp.ones(()))
        return loss, ({"loss": pair}, changed if self.tells else {})


def experiment(tells: bool = True) -> Experiment:
    return Experiment(
        task=Fit(tells=tells),
        data=Data(train=[{"x": x} for x in X], batch_size=8),
        optimizer=Adam(Constant(1e-2)),
        num_steps=5,
        name="two",
    )


@pytest.fixture(scope="module")
def found():
    return probe(experiment(), (1, 3))


def test_stacks_and_steps_are_all_there(found):
    assert list(found) == [0, 1, 3]
    for stacks in found.values():
        assert {name: layers.num_layers for name, layers in stacks.items()} == {
            "first": 4,
            "second": 2,
        }
    assert found[0]["first"].moment != found[3]["first"].moment


def test_modules_stand_in_the_layers_that_have_them(found):
    gradients = found[0]["first"].gradients
    gate = np.isnan(gradients["mlp/gate"])
    np.testing.assert_array_equal(gate, [True, False, True, False])
    assert np.isfinite(gradients["mixer/query"]).all()
    assert set(found[0]["second"].gradients) == {
        *(f"mixer/{name}" for name in ("query", "key", "value", "out")),
        *("mlp/up", "mlp/down", "mixer_residual/norm", "mlp_residual/norm"),
    }


def test_numbers_are_those_of_a_network_taken_apart():
    task = Fit()
    batch = {"x": jnp.asarray(X)}
    rng = jax.random.key(0)
    variables = slow.jit(task.init)(rng, batch)
    layers = measure(task, variables, batch, rng)["first"]

    params = variables["params"]["first"]
    rounds = [jax.tree.map(lambda leaf, i=i: leaf[i : i + 1], params) for i in (0, 1)]
    x, stream = batch["x"], [moments(batch["x"])]
    for own in rounds:
        for index, block in enumerate((BLOCK, WIDE)):
            one = {"layers": {"block_0": own["layers"][f"block_{index}"]}}
            x = slow.jit(Stack(1, (block,)).apply)({"params": one}, x)
            stream.append(moments(x))
    np.testing.assert_allclose(layers.moment, [m for m, _ in stream], rtol=1e-5)
    np.testing.assert_allclose(layers.spread, [s for _, s in stream], rtol=1e-4)

    def loss(params):
        return task.loss({"params": params}, batch, rng, True)[0]

    gradients = slow.jit(jax.grad(loss))(variables["params"])["first"]["layers"]
    for module in ("mixer/query", "mlp/down"):
        outer, inner = module.split("/")
        for layer in range(4):
            own = gradients[f"block_{layer % 2}"][outer][inner]
            squares = [(np.float64(g[layer // 2]) ** 2).sum() for g in own.values()]
            expected = np.sqrt(sum(squares))
            assert layers.gradients[module][layer] == pytest.approx(expected, rel=1e-4)


# Depth, before any training


def at_the_start(name: str, **arguments: int) -> Layers:
    """The stack of an experiment at its true size, on a few sequences."""
    given = {key: str(value) for key, value in arguments.items()}
    chosen = load(f"experiments/parametrization/{name}.py", given)
    examples = [chosen.data.train[index] for index in range(16)]
    batch = {
        part: jnp.stack([example[part] for example in examples]) for part in examples[0]
    }
    variables = jax.jit(chosen.task.init)(jax.random.key(0), batch)
    return measure(chosen.task, variables, batch, jax.random.key(1))["body"]


def first_over_last(layers: Layers) -> float:
    """Of the gradients of the feed-forward layers' last kernels."""
    norms = layers.gradients["mlp/down"]
    return norms[0] / norms[-1]


def test_deepnorm_has_equal_gradients_at_every_depth():
    layers = at_the_start("deepnorm_modsum")
    assert layers.num_layers == 48
    assert 0.8 < first_over_last(layers) < 1.25
    np.testing.assert_allclose(layers.moment[1:], 1, rtol=1e-2)
    queries = layers.gradients["mixer/query"]
    assert max(queries) < 4 * min(queries)
    assert layers.spread[-1] > 0.5  # the tokens are still there


def test_post_ln_forgets_the_tokens():
    """Each layer halves what differs: no attention above it can be learnt."""
    layers = at_the_start("postln_modsum")
    np.testing.assert_allclose(layers.moment[1:], 1, rtol=1e-2)
    assert layers.spread[1] > 0.5
    assert layers.spread[12] < 0.1
    assert layers.spread[-1] < 1e-5
    queries = layers.gradients["mixer/query"]
    assert queries[-1] < 0.02 * queries[0]


def test_the_stream_of_pre_ln_grows_with_depth():
    moment = at_the_start("preln_modsum").moment
    assert 0.8 * 48 < moment[-1] < 2 * 48
    halfway = moment[24] / moment[-1]
    assert 0.4 < halfway < 0.65


def test_scaled_branches_keep_the_stream():
    moment = np.asarray(at_the_start("preln_scaled_modsum").moment)
    assert ((0.5 < moment) & (moment < 2)).all()


def test_without_norms_the_stream_explodes():
    moment = at_the_start("plain_modsum").moment
    assert moment[-1] > 1e12
    assert moment[6] < 1e4


# The command


@pytest.fixture
def ask(capsys, tmp_path, monkeypatch):
    """Calls the command on this file's experiment; its exit code and both outputs."""
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)

    def ask(*arguments, reference=__file__):
        with pytest.raises(SystemExit) as ended:
            cli.run(command.main, [str(a) for a in (reference, *arguments)])
        told = capsys.readouterr()
        return ended.value.code, told.out, told.err

    return ask


def test_command_prints_draws_and_writes(ask, found, monkeypatch, tmp_path):
    seen = []
    monkeypatch.setattr(command, "probe", lambda *given: seen.append(given) or found)
    code, out, err = ask("--steps", 1, 3)
    assert code == 0 and seen[0][1] == (1, 3), err
    assert "first after 3 steps" in out and "query" in out
    folder = tmp_path / "runs" / "two-probe"
    for name in ("first", "second"):
        with Image.open(folder / f"{name}.png") as picture:
            assert picture.width > picture.height > 100
    record = json.loads((folder / "probe.json").read_text())
    assert record["3"]["second"]["moment"] == list(found[3]["second"].moment)
    assert record["0"]["first"]["gradients"]["mlp/gate"][0] is None

    code, out, _ = ask("--json", "--out", tmp_path / "other")
    assert code == 0 and json.loads(out) == record
    assert (tmp_path / "other" / "first.png").exists()


def test_what_is_not_finite_is_shown_as_such(capsys, tmp_path):
    layers = Layers((1.0, np.inf), (0.5, np.nan), {"mlp/up": (np.inf,)})
    command._print({0: {"body": layers}})
    out = capsys.readouterr().out
    assert "inf" in out and "nan" in out
    command.draw({0: layers}, tmp_path / "body.png")
    assert (tmp_path / "body.png").exists()


@pytest.mark.parametrize(
    "reference, arguments, words",
    [
        ("launch.tiny", [], "no stack of layers in this network"),
        (__file__, ["--with", "tells=False"], "Fit returns no `intermediates`"),
        (__file__, ["--steps", "0"], "steps 0: expected positive numbers"),
        (__file__, ["--steps", "3", "3"], "steps 3 3: expected positive"),
        ("nowhere.py", [], "no experiment file nowhere.py"),
    ],
)
def test_command_refuses_in_one_sentence(ask, tmp_path, reference, arguments, words):
    code, out, err = ask(*arguments, reference=reference)
    assert code == 2 and out == ""
    (line,) = [line for line in err.splitlines() if line.startswith("UserError")]
    assert words in line and "Traceback" not in err
    assert not list(Path(tmp_path).iterdir())


def test_a_folder_that_cannot_be_made_is_told(ask, found, monkeypatch, tmp_path):
    monkeypatch.setattr(command, "probe", lambda *given: found)
    (tmp_path / "file").write_text("precious")
    code, _, err = ask("--out", tmp_path / "file" / "probe")
    assert code == 2 and "choose another folder with --out" in err
    assert (tmp_path / "file").read_text() == "precious"


def test_steps_are_checked_before_anything_runs():
    with pytest.raises(UserError, match="each larger than the one before"):
        probe(experiment(), (5, 3))
