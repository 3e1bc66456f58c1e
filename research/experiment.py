"""The experiment: one record that says everything about a run, and its text forms.

An experiment file defines `experiment(...) -> Experiment`. Its arguments are the knobs
with consequences; every other setting is a leaf that a dotted path reaches, through
dataclasses, linen modules, dicts, tuples and the keywords of `functools.partial`:

    load("experiments/score_sde/vp_ddpmpp_digits.py",
         {"num_steps": "200"}, ["task.sampler.num_steps=50"])
"""

import ast
import dataclasses
import difflib
import functools
import hashlib
import importlib
import importlib.util
import inspect
import math
import sys
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Literal, Protocol, TypeVar, Union

import flax.linen as nn

from research.data.loader import Data
from research.errors import UserError
from research.evals.base import Evaluator
from research.tasks.base import Task
from research.train.checkpoints import Checkpoints
from research.train.optimizers import Optimizer
from research.train.start import Start
from research.train.state import Ema
from research.train.step import NonFinitePolicy

OPERATIONAL = {"operational": True}
"""Metadata of a field that may change between two starts of the same run."""


FILE_PREFIX = "experiment_file_"
"""Of the modules made from files, so that they shadow none that is called alike."""


@dataclass(frozen=True)
class Published:
    """One number of the table row that an experiment reproduces."""

    metric: str
    value: float
    source: str


@dataclass(frozen=True)
class Required:
    """A bound that an evaluator's number has to meet, stated before the run.

    Attributes:
      metric: `evaluator/number`, as `launch.evaluate` prints it.
      below, above: the number lies strictly between them, where they are given.
    """

    metric: str
    below: float = math.inf
    above: float = -math.inf

    def met(self, value: float) -> bool:
        """Whether `value` is within the bounds; NaN is not."""
        return self.above < value < self.below

    def __str__(self) -> str:
        bounds = []
        if self.above > -math.inf:
            bounds.append(f"> {self.above:g}")
        if self.below < math.inf:
            bounds.append(f"< {self.below:g}")
        return " and ".join(bounds)


TaskT = TypeVar("TaskT", bound=Task)


@dataclass(frozen=True, kw_only=True)
class Experiment(Generic[TaskT]):
    """Everything that decides what a run computes, then how it is operated.

    Attributes:
      task: what is optimised.
      data: the sources, the transforms, the global batch size.
      optimizer: a record that builds the gradient transformation.
      num_steps: optimizer steps, each on one global batch.
      seed: of parameters, of every random draw in the step.
      ema: the parameters' average, kept beside them and preferred by evaluators.
      num_microbatches: gradient accumulation within a global batch.
      trainable: pattern of the parameter paths that move; "" moves all.
      start: gives some of the initial variables, such as another run's; None: all are
        drawn.
      on_nonfinite: "stop" at the first NaN or infinity, or "skip" its batch.
      evals: evaluators by name, called by the loop.
      offline_evals: further ones that only `launch.evaluate` calls: too dear for the
        loop, or in need of files that training does not need.
      checkpoints: when to save and what to keep.
      mesh: sizes of the mesh axes, -1 for the rest of the devices.
      log_every: steps between two lines of metrics.
      num_params: the parameter count that the source gives, checked at build.
      published: the numbers to reproduce.
      required: what the numbers have to be for `launch.prove` to pass.
      name: the file's own, if it gives none.
    """

    task: TaskT
    data: Data
    optimizer: Optimizer
    num_steps: int
    seed: int = 42
    ema: Ema | None = None
    num_microbatches: int = 1
    trainable: str = ""
    start: Start | None = None
    on_nonfinite: NonFinitePolicy = "stop"
    evals: dict[str, Evaluator] = field(default_factory=dict, metadata=OPERATIONAL)
    offline_evals: dict[str, Evaluator] = field(
        default_factory=dict, metadata=OPERATIONAL
    )
    checkpoints: Checkpoints = field(default=Checkpoints(), metadata=OPERATIONAL)
    mesh: dict[str, int] = field(
        default_factory=lambda: {"data": -1}, metadata=OPERATIONAL
    )
    log_every: int = field(default=100, metadata=OPERATIONAL)
    num_params: int | None = field(default=None, metadata=OPERATIONAL)
    published: tuple[Published, ...] = field(default=(), metadata=OPERATIONAL)
    required: tuple[Required, ...] = field(default=(), metadata=OPERATIONAL)
    name: str = field(default="", metadata=OPERATIONAL)

    def __post_init__(self):
        for name in ("num_steps", "num_microbatches", "log_every"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)}: expected at least 1")
        if self.data.batch_size % self.num_microbatches:
            raise UserError(
                f"data.batch_size={self.data.batch_size} cannot be cut into "
                f"num_microbatches={self.num_microbatches} equal parts"
            )


# Loading


def load(
    reference: str,
    arguments: Mapping[str, str] | None = None,
    overrides: Sequence[str] = (),
) -> Experiment:
    """The experiment of a file or module, with arguments, then overrides.

    Args:
      reference: `path/to/file.py` or `package.module`, here or anywhere else,
        optionally followed by `:function` (default `experiment`).
      arguments: the function's arguments as text, typed by their annotations.
      overrides: `path=value` each, applied in order.

    Raises:
      UserError: nothing there, or a name or value that does not fit.
    """
    module, function = _find(reference)
    signature = inspect.signature(function)
    hints = typing.get_type_hints(function)
    given = {}
    for name, text in (arguments or {}).items():
        if name not in signature.parameters:
            raise UserError(_unknown("argument", name, signature.parameters, reference))
        given[name] = _parse(text, hints.get(name, Any), name, None)
    try:
        signature.bind(**given)
    except TypeError as error:
        raise UserError(
            f"{reference}: {error}: give it with --with NAME=VALUE"
        ) from None
    experiment = function(**given)
    if not isinstance(experiment, Experiment):
        raise UserError(
            f"{reference} returned {type(experiment).__name__}, expected an Experiment"
        )
    if not experiment.name:
        name = module.__name__.rpartition(".")[2].removeprefix(FILE_PREFIX)
        experiment = dataclasses.replace(experiment, name=name)
    return override(experiment, overrides)


def _find(reference: str) -> tuple[types.ModuleType, Callable[..., Any]]:
    where, _, name = reference.partition(":")
    name = name or "experiment"
    if where.endswith(".py"):
        path = Path(where)
        if not path.is_file():
            raise UserError(
                f"no experiment file {where}: expected a path to a Python file that "
                f"defines {name}(), or a module name"
            )
        module = _load_file(path.resolve())
    else:
        try:
            module = importlib.import_module(where)
        except ModuleNotFoundError as error:
            raise UserError(
                f"no experiment {where}: {error}; expected a path to a .py file or the "
                "name of an importable module"
            ) from None
    function = getattr(module, name, None)
    if not callable(function):
        raise UserError(
            f"{where} defines no function {name}(): an experiment file has "
            "`def experiment(...) -> Experiment`"
        )
    return module, function


def arguments_of(reference: str) -> tuple[str, ...]:
    """The names of the arguments of an experiment's function; see `load`."""
    _, function = _find(reference)
    return tuple(inspect.signature(function).parameters)


def find_file(reference: str) -> Path:
    """The source file that a reference names; see `load`."""
    module, _ = _find(reference)
    assert module.__file__
    return Path(module.__file__)


def _load_file(path: Path) -> types.ModuleType:
    name = f"{FILE_PREFIX}{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    # As for a script, its neighbours can be imported; the installed packages win.
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        raise UserError(f"{path} is not valid Python: {error}") from None
    return module


# Overriding


def override(root: Any, overrides: Sequence[str]) -> Any:
    """A copy of `root` with each `path=value` replaced.

    A value is a Python literal, a dotted name, or a call of one; a bare name is looked
    up beside the present value: `task.sampler=ProbabilityFlow(rtol=1e-4)`. It must fit
    the field's annotation.

    Raises:
      UserError: a path that does not exist (with the nearest that does), or a value
        of another type.
    """
    for text in overrides:
        path, equals, value = text.partition("=")
        if not equals or not path:
            raise UserError(f"--set {text}: expected PATH=VALUE, such as num_steps=100")
        root = _replace(root, path.split("."), value, path, Any)
    return root


def _replace(node: Any, path: list[str], text: str, whole: str, hint: Any) -> Any:
    if not path:
        return _parse(text, hint, whole, node)
    name, *rest = path
    children = _children(node)
    if name not in children:
        prefix = (
            whole.rsplit(".", len(path))[0] if len(path) <= whole.count(".") else ""
        )
        raise UserError(_unknown("setting", name, children, prefix or "the experiment"))
    child, child_hint = children[name]
    if child is inspect.Parameter.empty and rest:
        raise UserError(f"{whole}: {name} has no value yet whose setting could change")
    new = _replace(child, rest, text, whole, child_hint)
    try:
        return _with(node, name, new)
    except (TypeError, ValueError) as error:
        raise UserError(f"--set {whole}={text}: {error}") from None


def _children(node: Any) -> dict[str, tuple[Any, Any]]:
    """`{name: (value, annotation)}` of what a path can step into."""
    if isinstance(node, functools.partial):
        accepted = inspect.signature(node.func).parameters
        hints = _hints(node.func)
        return {
            name: (node.keywords.get(name, parameter.default), hints.get(name, Any))
            for name, parameter in accepted.items()
            if name not in ("parent", "name", "self")
        }
    if _is_record(node):
        hints = _hints(type(node))
        return {f.name: (getattr(node, f.name), hints[f.name]) for f in _fields(node)}
    if isinstance(node, Mapping):
        return {str(key): (value, _kind(value)) for key, value in node.items()}
    if isinstance(node, tuple):
        return {str(i): (value, _kind(value)) for i, value in enumerate(node)}
    return {}


class _Slot(Protocol):
    """The annotation of what may be any record or function."""


def _kind(value: Any) -> Any:
    """What may stand in the place of an element, which has no annotation."""
    return type(value) if _is_plain(value) or isinstance(value, tuple) else _Slot


def _with(node: Any, name: str, value: Any) -> Any:
    if isinstance(node, functools.partial):
        return functools.partial(
            node.func, *node.args, **{**node.keywords, name: value}
        )
    if isinstance(node, nn.Module):
        return node.clone(**{name: value})
    if _is_record(node):
        return dataclasses.replace(node, **{name: value})
    if isinstance(node, Mapping):
        return {**node, name: value}
    return tuple(value if str(i) == name else old for i, old in enumerate(node))


def _is_record(node: Any) -> bool:
    return dataclasses.is_dataclass(node) and not isinstance(node, type)


def _fields(node: Any) -> list[dataclasses.Field]:
    """The settings of a record; linen's own two fields are not."""
    hidden = ("parent", "name") if isinstance(node, nn.Module) else ()
    return [f for f in dataclasses.fields(node) if f.init and f.name not in hidden]


def _hints(owner: Any) -> dict[str, Any]:
    try:
        return typing.get_type_hints(owner)
    except NameError:  # an annotation that only a type checker can resolve
        return dict.fromkeys(inspect.signature(owner).parameters, Any)


def _unknown(kind: str, name: str, known: Any, where: str) -> str:
    names = list(known)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    told = (
        f"did you mean {' or '.join(near)}?" if near else f"it has {', '.join(names)}"
    )
    return f"no {kind} {name!r} in {where}: {told}"


# Values


def _parse(text: str, hint: Any, where: str, present: Any) -> Any:
    """The value that `text` denotes, checked against the annotation `hint`."""
    options = _options(hint)
    if str in options:
        try:
            value = ast.literal_eval(text)
            if isinstance(value, str) or (value is None and type(None) in options):
                return value
        except (ValueError, SyntaxError):
            pass
        return text
    literals = [
        v for o in options if typing.get_origin(o) is Literal for v in o.__args__
    ]
    if text in literals:
        return text
    try:
        expression = ast.parse(text.strip(), mode="eval").body
        value = _evaluate(expression, present)
    except (SyntaxError, ValueError, TypeError, AttributeError, ImportError) as error:
        raise UserError(
            f"{where}={text}: {error}; expected {_hint_name(hint)}"
        ) from None
    for option in options:
        ok, converted = _fit(value, option)
        if ok:
            return converted
    raise UserError(f"{where}={text}: expected {_hint_name(hint)}")


def _evaluate(node: ast.expr, present: Any) -> Any:
    """Literals, dotted names, and calls of dotted names; nothing else."""
    if isinstance(node, ast.Call):
        function = _evaluate(node.func, present)
        positional = [_evaluate(argument, present) for argument in node.args]
        keywords = {
            keyword.arg: _evaluate(keyword.value, present)
            for keyword in node.keywords
            if keyword.arg
        }
        return function(*positional, **keywords)
    if isinstance(node, ast.Name | ast.Attribute):
        return _resolve(ast.unparse(node), present)
    if isinstance(node, ast.Tuple | ast.List):
        return tuple(_evaluate(element, present) for element in node.elts)
    return ast.literal_eval(node)


def _resolve(name: str, present: Any) -> Any:
    """A dotted name from the present value's module, or its package, or the root."""
    if name == "partial":
        return functools.partial
    owner = present.func if isinstance(present, functools.partial) else present
    home = getattr(owner, "__module__", None)
    tried = []
    if home:
        tried = [f"{home}.{name}", f"{home.rpartition('.')[0]}.{name}".lstrip(".")]
    for candidate in [*tried, name]:
        parts = candidate.split(".")
        for cut in range(len(parts) - 1, 0, -1):
            try:
                value: Any = importlib.import_module(".".join(parts[:cut]))
                for part in parts[cut:]:
                    value = getattr(value, part)
                return value
            except (ModuleNotFoundError, AttributeError):
                continue
    raise ValueError(f"there is no {name}" + (f" in {home}" if home else ""))


def _options(hint: Any) -> tuple[Any, ...]:
    if typing.get_origin(hint) in (Union, types.UnionType):
        return typing.get_args(hint)
    return (hint,)


def _fit(value: Any, hint: Any) -> tuple[bool, Any]:
    """Whether a value fits an annotation, and the value as that type."""
    origin = typing.get_origin(hint)
    if hint in (None, type(None)):
        return value is None, value
    if origin is Literal:
        return value in typing.get_args(hint), value
    if hint is float:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return number, float(value) if number else value
    if hint in (int, bool):
        return type(value) is hint, value
    if hint is tuple or origin is tuple:
        return _fit_tuple(value, typing.get_args(hint))
    if isinstance(hint, type) and not getattr(hint, "_is_protocol", False):
        return isinstance(value, hint), value
    # A slot: any record or function of the user's, but no bare literal.
    literal = value is None or isinstance(value, bool | int | float | str)
    return hint is Any or not literal, value


def _fit_tuple(value: Any, items: tuple[Any, ...]) -> tuple[bool, Any]:
    if not isinstance(value, tuple):
        return False, value
    if not items:
        return True, value
    hints = items[:1] * len(value) if items[-1] is Ellipsis else items
    if len(hints) != len(value):
        return False, value
    fits = [_fit(v, h) for v, h in zip(value, hints, strict=True)]
    return all(ok for ok, _ in fits), tuple(v for _, v in fits)


def _hint_name(hint: Any) -> str:
    if typing.get_origin(hint) is Literal:
        return " or ".join(repr(value) for value in typing.get_args(hint))
    if typing.get_origin(hint) in (Union, types.UnionType):
        return " or ".join(_hint_name(option) for option in typing.get_args(hint))
    if hint is type(None):
        return "None"
    if hint is _Slot:
        return "a record or function"
    return getattr(hint, "__name__", str(hint)) if hint is not Any else "a value"


# Text


def describe(root: Any, *, operational: bool = True) -> str:
    """Every setting, one `path = value` a line, in the order of the fields.

    Without `operational`, only what decides the numbers that a run computes.
    """
    return "".join(
        f"{path} = {value}\n" for path, value in _walk(root, "", operational)
    )


def identity(experiment: Experiment) -> str:
    """A hash of the settings that decide the numbers."""
    text = describe(experiment, operational=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _walk(node: Any, path: str, operational: bool) -> Iterator[tuple[str, str]]:
    join = f"{path}." if path else ""
    if isinstance(node, functools.partial):
        yield path, f"partial({_qualified(node.func)})"
        for i, value in enumerate(node.args):
            yield from _walk(value, f"{join}{i}", operational)
        for name, value in node.keywords.items():
            yield from _walk(value, f"{join}{name}", operational)
    elif _is_record(node):
        if path:
            yield path, _qualified(type(node))
        for f in _fields(node):
            if operational or not f.metadata.get("operational"):
                yield from _walk(getattr(node, f.name), f"{join}{f.name}", operational)
    elif isinstance(node, Mapping) and node:
        for name, value in node.items():
            yield from _walk(value, f"{join}{name}", operational)
    elif type(node) is tuple and not all(map(_is_plain, node)):
        for i, value in enumerate(node):
            yield from _walk(value, f"{join}{i}", operational)
    elif _is_plain(node) or isinstance(node, tuple | Mapping):
        yield path, repr(node)
    else:
        yield path, _qualified(node if hasattr(node, "__qualname__") else type(node))


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, bool | int | float | str | bytes)


def _qualified(thing: Any) -> str:
    module = thing.__module__
    # The same in the file and in a workdir's copy of it.
    if module.startswith(FILE_PREFIX):
        module = "file"
    return f"{module}.{thing.__qualname__}"
