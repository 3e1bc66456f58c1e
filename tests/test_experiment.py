"""Loading, overriding and describing experiments."""

import dataclasses
import functools
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import flax.linen as nn
import pytest

from research.data.sources import Digits
from research.diffusion import samplers
from research.errors import UserError
from research.experiment import describe, identity, load, override


class Block(nn.Module):
    rate: float = 0.1
    width: int = 8


class Model(nn.Module):
    block: Callable[..., nn.Module] = functools.partial(Block, rate=0.2)
    mults: tuple[int, ...] = (1, 2)


@dataclass(frozen=True)
class Record:
    model: Model = Model()
    rate: float = 1.0
    count: int = 3
    name: str = "one"
    flag: bool = True
    limit: float | None = 2.5
    policy: Literal["stop", "skip"] = "stop"
    slot: Callable[..., Any] = samplers.euler_maruyama
    parts: tuple[Block, ...] = (Block(), Block(width=4))
    table: dict[str, Block] = dataclasses.field(default_factory=lambda: {"a": Block()})


@pytest.mark.parametrize(
    "text, read",
    [
        ("rate=2", lambda r: r.rate == 2.0 and isinstance(r.rate, float)),
        ("count=-4", lambda r: r.count == -4),
        ("name=two words", lambda r: r.name == "two words"),
        ("name='None'", lambda r: r.name == "None"),
        ("flag=False", lambda r: r.flag is False),
        ("limit=0.5", lambda r: r.limit == 0.5),
        ("limit=None", lambda r: r.limit is None),
        ("policy=skip", lambda r: r.policy == "skip"),
        ("model.mults=(1, 2, 4)", lambda r: r.model.mults == (1, 2, 4)),
        ("model.block.rate=0.3", lambda r: r.model.block().rate == 0.3),
        ("model.block.width=2", lambda r: r.model.block().width == 2),
        ("parts.1.width=5", lambda r: [b.width for b in r.parts] == [8, 5]),
        ("table.a.rate=1", lambda r: r.table["a"].rate == 1.0),
        ("slot=reverse_diffusion", lambda r: r.slot is samplers.reverse_diffusion),
        (
            "slot=partial(research.diffusion.samplers.euler_maruyama, noise_scale=0.0)",
            lambda r: getattr(r.slot, "keywords", 0) == {"noise_scale": 0.0},
        ),
        (
            "table.a=research.data.sources.Digits(split='test')",
            lambda r: r.table["a"] == Digits(split="test"),
        ),
    ],
)
def test_overrides_reach_every_kind_of_setting(text, read):
    before = Record()
    changed = override(before, [text])
    assert read(changed)
    assert not read(before), "the original must not change"


@pytest.mark.parametrize(
    "text, told",
    [
        ("rte=2", "no setting 'rte' in the experiment: did you mean rate"),
        ("model.bloc.rate=2", "no setting 'bloc' in model: did you mean block?"),
        ("model.block.rat=2", "no setting 'rat' in model.block: did you mean rate?"),
        ("parts.7.width=2", "no setting '7' in parts: it has 0, 1"),
        ("table.b.rate=2", "no setting 'b' in table"),
        ("rate.x=2", "no setting 'x' in rate"),
        ("rate=fast", "expected float"),
        ("rate=True", "expected float"),
        ("count=2.5", "count=2.5: expected int"),
        ("count=", "count="),
        ("flag=1", "expected bool"),
        ("policy=halt", "expected 'stop' or 'skip'"),
        ("limit=x", "expected float or None"),
        ("model.mults=3", "model.mults=3: expected tuple"),
        ("model.mults=(1, 2.5)", "expected tuple"),
        ("slot=3", "slot=3"),
        ("table.a=3", "expected a record or function"),
        ("slot=no_such_sampler", "no no_such_sampler in research.diffusion.samplers"),
        ("slot=__import__('os').getcwd()", "slot="),
        ("rate", "expected PATH=VALUE"),
    ],
)
def test_bad_overrides_are_told(text, told):
    with pytest.raises(UserError, match="^[^\n]*") as error:
        override(Record(), [text])
    assert told in str(error.value)


def test_records_that_refuse_a_value_are_quoted():
    @dataclass(frozen=True)
    class Positive:
        value: int = 1

        def __post_init__(self):
            if self.value < 1:
                raise ValueError("value must be positive")

    with pytest.raises(UserError, match="value=-1: value must be positive"):
        override(Positive(), ["value=-1"])


def test_describe_has_one_line_a_setting():
    text = describe(Record())
    lines = dict(line.split(" = ", 1) for line in text.splitlines())
    assert lines["model.block"] == "partial(tests.test_experiment.Block)"
    assert lines["model.block.rate"] == "0.2"
    assert lines["model.mults"] == "(1, 2)"
    assert lines["parts.1.width"] == "4"
    assert lines["table.a"] == "tests.test_experiment.Block"
    assert lines["slot"] == "research.diffusion.samplers.euler_maruyama"
    assert "parent" not in text and "0x" not in text


def test_every_described_setting_can_be_overridden():
    record = Record()
    for line in describe(record).splitlines():
        path, _, value = line.partition(" = ")
        if not value.startswith(("partial(", "tests.")):
            assert describe(override(record, [f"{path}={value}"])) == describe(record)


FILE = """
    from dataclasses import dataclass, replace
    from launch.tiny import experiment as tiny
    import neighbour

    @dataclass(frozen=True)
    class Mine:
        def __call__(self, example, rng):
            return example

    def experiment(num_steps: int = 7, rate: float = 0.5):
        made = tiny(num_steps)
        data = replace(made.data, transforms=(Mine(),))
        return replace(made, data=data, log_every=neighbour.EVERY)

    def other(required: int):
        return tiny(required)

    def wrong():
        return 3
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "mine.py").write_text(textwrap.dedent(FILE))
    (tmp_path / "neighbour.py").write_text("EVERY = 2\n")
    (tmp_path / "broken.py").write_text("def experiment(:\n")
    return tmp_path


def test_a_file_outside_the_repository_is_like_one_inside(folder):
    experiment = load(f"{folder}/mine.py", {"num_steps": "9"}, ["seed=5"])
    assert (experiment.num_steps, experiment.seed, experiment.log_every) == (9, 5, 2)
    assert experiment.name == "mine"
    assert load(f"{folder}/mine.py:other", {"required": "4"}).num_steps == 4
    assert "data.transforms.0 = file.Mine\n" in describe(experiment)
    module = load("launch.tiny", {"num_steps": "3"})
    assert (module.num_steps, module.name) == (3, "tiny")


@pytest.mark.parametrize(
    "reference, arguments, told",
    [
        ("nowhere.py", {}, "no experiment file"),
        ("no.such.module", {}, "no experiment no.such.module"),
        ("mine.py:experment", {}, "defines no function experment()"),
        ("mine.py", {"num_step": "3"}, "no argument 'num_step'"),
        ("mine.py", {"num_steps": "many"}, "num_steps=many"),
        ("mine.py", {"num_steps": "0"}, "num_steps=0: expected at least 1"),
        ("mine.py:other", {}, "missing a required argument: 'required'"),
        ("mine.py:wrong", {}, "returned int, expected an Experiment"),
        ("broken.py", {}, "not valid Python"),
    ],
)
def test_bad_references_are_told(folder, reference, arguments, told):
    if reference.partition(":")[0].endswith(".py"):
        reference = f"{folder}/{reference}"
    with pytest.raises(UserError) as error:
        load(reference, arguments)
    assert told in str(error.value)


def test_identity_is_of_what_decides_the_numbers():
    base = load("launch.tiny")
    same = ["log_every=3", "checkpoints.every=2", "data.num_workers=2", "name=x"]
    assert identity(override(base, same)) == identity(base)
    for text in (
        "seed=1",
        "task.network.width=32",
        "data.batch_size=8",
        "ema.rate=0.5",
    ):
        assert identity(override(base, [text])) != identity(base)


def test_a_bare_name_is_looked_up_in_the_package_too():
    """Attention's cores are one to a file, and any may stand for any other."""
    path = "task.network.body.blocks.0.mixer.core"
    reference = "experiments/attention/softmax_text.py"
    changed = load(reference, {}, [f"{path}=Performer(num_features=8)"])
    text = describe(changed)
    assert f"{path} = research.layers.cores.performer.Performer\n" in text
    assert f"{path}.num_features = 8\n" in text
    with pytest.raises(UserError, match="no Preformer in research.layers.cores"):
        load(reference, {}, [f"{path}=Preformer()"])
