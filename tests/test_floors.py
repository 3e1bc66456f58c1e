"""The floors of the house: an import goes down, never up or sideways."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

FLOORS = {
    # The longest prefix of a module's name gives its floor.
    "research.errors": 0,
    "research.layers": 1,
    "research.losses": 1,
    "research.diffusion": 1,
    "research.decoding": 1,
    "research.detection": 1,
    "research.data": 1,
    "research.tasks.base": 1,
    "research.train.metrics": 1,
    "research.train.schedules": 1,
    "research.train.sharding": 1,
    "research.train.flops": 1,
    "research.train.hardware": 1,
    "research.train.clock": 1,
    "research.train.watchdog": 1,
    "research.train.preemption": 1,
    "research.models": 2,
    "research.tasks": 2,
    "research.train.optimizers": 2,
    "research.train.state": 2,
    "research.train.step": 3,
    "research.train.checkpoints": 3,
    "research.train.start": 3,
    "research.evals": 3,
    "research.pretrained": 3,
    "research.experiment": 4,
    "research.train": 5,
    "experiments": 6,
    "launch": 7,
}

# Rooms of one floor that may not see each other.
CLOSED = [
    ("research.tasks", "research.models"),
    ("research.models", "research.tasks"),
    ("research.models", "research.diffusion"),
    ("research.layers", "research.diffusion"),
    ("research.data", "research.diffusion"),
    ("research.diffusion", "research.data"),
]


def floor(module: str) -> int:
    prefixes = [p for p in FLOORS if module == p or module.startswith(p + ".")]
    return FLOORS[max(prefixes, key=len)]


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def imports(path: Path) -> set[str]:
    """Our own modules that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in found if name.split(".")[0] in ("research", "experiments")}


ROOMS = ("research", "experiments", "launch")
FILES = [path for room in ROOMS for path in (ROOT / room).rglob("*.py")]
OPEN = (1, 5, 6, 7)  # floors whose modules may see each other


def test_there_are_files():
    assert len(FILES) > 30


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_go_down(path):
    module = name_of(path)
    for target in imports(path):
        same_room = target.startswith(module.rpartition(".")[0] + ".")
        level = floor(target) == floor(module) and (same_room or floor(module) in OPEN)
        assert floor(target) < floor(module) or level, (
            f"{module} may not import {target}"
        )
        for inside, outside in CLOSED:
            assert not (module.startswith(inside) and target.startswith(outside)), (
                f"{module} may not import {target}"
            )


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_only_launch_reads_the_environment_and_the_command_line(path):
    module = name_of(path)
    if module.startswith("launch"):
        return
    text = path.read_text()
    assert "os.environ" not in text and "getenv" not in text, module
    assert "argparse" not in text and "import tyro" not in text, module
