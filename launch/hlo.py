"""What a compiled program does on one device: its collectives and memory traffic.

Read from the text of the optimised HLO, because XLA's own cost analysis counts the
body of a loop once. A loop runs as often as the compiler noted, or as its condition
`i < constant` says, `i` going from 0 by 1 as in every `lax.scan`; of a loop that says
neither, one iteration counts, and `Hlo.unknown_loops` tells how many there are. Every
branch of a conditional counts.
"""

import math
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

KINDS = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
)

_BITS = {"pred": 8, "token": 0, "c64": 64, "c128": 128}

# These move nothing, or what they call is counted instead.
_FREE = {
    "after-all",
    "bitcast",
    "call",
    "conditional",
    "constant",
    "get-tuple-element",
    "opt-barrier",
    "parameter",
    "partition-id",
    "replica-id",
    "tuple",
    "while",
}
_SLICES = ("dynamic-slice", "slice", "gather")


@dataclass(frozen=True)
class Shape:
    """An array: its bytes, and the memory space that it lives in, 0 being the main."""

    bytes: int
    space: int


@dataclass(frozen=True)
class Instruction:
    """One line of a computation."""

    name: str
    opcode: str
    shapes: tuple[Shape, ...]
    arguments: str
    attributes: str
    is_root: bool

    @cached_property
    def operands(self) -> tuple[str, ...]:
        """The names of the instructions that it reads."""
        return tuple(re.findall(r"%([\w.\-]+)", self.arguments))

    @property
    def bytes(self) -> int:
        """Of the whole result."""
        return sum(shape.bytes for shape in self.shapes)

    @property
    def main_bytes(self) -> int:
        """Of what the result has in the device's main memory."""
        return sum(shape.bytes for shape in self.shapes if shape.space == 0)

    def named(self, attribute: str) -> str:
        """The computation that an attribute such as `body` names; "" for none."""
        found = re.search(rf"\b{attribute}=%?([\w.\-]+)", self.attributes)
        return found[1] if found else ""


Computation = dict[str, Instruction]
"""Instructions by name, in order."""


@dataclass(frozen=True)
class Collective:
    """All collectives of one kind that a run of the program executes, on one device.

    Attributes:
      kind: one of `KINDS`.
      count: executions; an asynchronous one counts once.
      bytes: what goes in, over all executions.
      sent: bytes that leave the device where each is a ring: n devices reducing b
        bytes send 2 b (n - 1) / n each, and gathering or scattering them half of that.
    """

    kind: str
    count: int
    bytes: int
    sent: int


class Hlo:
    """A module of optimised HLO, from `compiled.as_text()`."""

    def __init__(self, text: str):
        self.computations: dict[str, Computation] = {}
        self.entry = ""
        partitions = re.search(r"num_partitions=(\d+)", text)
        self._num_devices = int(partitions[1]) if partitions else 1
        current: Computation = {}
        for line in text.splitlines():
            if head := re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{$", line):
                current = self.computations[head[2]] = {}
                self.entry = head[2] if head[1] else self.entry
            elif instruction := _parse(line):
                current[instruction.name] = instruction
        self.unknown_loops = 0
        self.times = self._executions()

    def collectives(self) -> tuple[Collective, ...]:
        """By kind, in the order of `KINDS`; kinds that do not occur are left out."""
        counts: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0])
        for name, times in self.times.items():
            for kind, size, group in self._communications(self.computations[name]):
                total = counts[kind]
                total[0] += times
                total[1] += times * size
                total[2] += times * _sent(kind, size, group)
        return tuple(Collective(k, *counts[k]) for k in KINDS if k in counts)

    def traffic(self) -> int:
        """Bytes read from and written to the main memory of one device.

        Each instruction outside fusions reads its operands and writes its result;
        slices and updates in place move only the slice.
        """
        return sum(
            times * self._moved(instruction, computation)
            for name, times in self.times.items()
            for computation in [self.computations[name]]
            for instruction in computation.values()
        )

    def _executions(self) -> dict[str, int]:
        """How often each computation runs, of those with instructions of their own."""
        times: dict[str, int] = defaultdict(int)

        def visit(name: str, number: int) -> None:
            times[name] += number
            for instruction in self.computations[name].values():
                if instruction.opcode == "while":
                    trips = self._trips(instruction)
                    self.unknown_loops += trips is None
                    body = instruction.named("body")
                    visit(body, number * (1 if trips is None else trips))
                elif instruction.opcode == "call":
                    visit(instruction.named("to_apply"), number)
                elif instruction.opcode == "conditional":
                    for branch in _branches(instruction):
                        visit(branch, number)

        visit(self.entry, 1)
        return dict(times)

    def _trips(self, loop: Instruction) -> int | None:
        if noted := re.search(r'known_trip_count":\{"n":"(\d+)"', loop.attributes):
            return int(noted[1])
        condition = self.computations[loop.named("condition")]
        *_, root = (i for i in condition.values() if i.is_root)
        if root.opcode == "compare" and "direction=LT" in root.attributes:
            limit = condition[root.operands[1]]
            if limit.opcode == "constant":
                return int(limit.arguments)
        return None

    def _communications(
        self, computation: Computation
    ) -> Iterator[tuple[str, int, int]]:
        """`(kind, bytes in, devices in a group)` of each, those in fusions included."""
        pieces: set[str] = set()
        for instruction in computation.values():
            if kind := _kind(instruction.opcode):
                yield kind, _input(instruction, computation), self._group(instruction)
                continue
            for name, inner in self._fused(instruction.named("calls")):
                kind = _kind(inner.opcode)
                channel = re.search(r"channel_id=\d+", inner.attributes)
                # TPU compilers cut one collective into several fusions, each of which
                # shows it whole, with the same channel.
                if not kind or (channel and channel[0] in pieces):
                    continue
                if channel:
                    pieces.add(channel[0])
                # Theirs, too: an all-reduce of which each device keeps a part.
                if name.startswith("all-reduce-scatter"):
                    kind = "reduce-scatter"
                yield kind, _input(inner, self.computations[name]), self._group(inner)

    def _fused(self, name: str) -> Iterator[tuple[str, Instruction]]:
        """`(computation, instruction)` of all that a fusion holds; of "", nothing."""
        for instruction in self.computations.get(name, {}).values():
            yield name, instruction
            yield from self._fused(instruction.named("calls"))

    def _group(self, collective: Instruction) -> int:
        """How many devices take part in each instance of a collective."""
        text = collective.attributes
        if axes := re.search(r"replica_groups=mesh\[(.*?)\] ?\{(.*?)\}", text):
            sizes = dict(re.findall(r"'([^']+)'=(\d+)", axes[1]))
            named = re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", axes[2])
            return math.prod(int(part or sizes[axis]) for axis, part in named)
        if iota := re.search(r"replica_groups=\[\d+,(\d+)\]<=", text):
            return int(iota[1])
        if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", text):
            return listed[1].count(",") + 1
        return self._num_devices

    def _moved(self, instruction: Instruction, computation: Computation) -> int:
        opcode = instruction.opcode
        operands = [computation[n] for n in instruction.operands if n in computation]
        if opcode in _FREE or opcode.endswith(("-start", "-update")):
            return 0
        if opcode.endswith("-done"):  # its start is free
            begun = [computation[n] for n in operands[0].operands if n in computation]
            read = instruction.bytes if any(o.main_bytes for o in begun) else 0
            return read + instruction.main_bytes
        if opcode in _SLICES:
            return _main(operands[0], instruction.bytes) + instruction.main_bytes
        if opcode == "dynamic-update-slice":
            return operands[1].main_bytes + _main(instruction, operands[1].bytes)
        called = instruction.named("calls")
        if opcode == "fusion" and called:
            return self._fusion(self.computations[called], instruction, operands)
        return sum(o.main_bytes for o in operands) + instruction.main_bytes

    def _fusion(
        self, body: Computation, fusion: Instruction, operands: list[Instruction]
    ) -> int:
        def origin(name: str) -> Instruction:
            while body[name].opcode == "bitcast":
                name = body[name].operands[0]
            return body[name]

        users: dict[str, list[tuple[Instruction, int]]] = defaultdict(list)
        for instruction in body.values():
            if instruction.opcode != "bitcast":
                for place, name in enumerate(instruction.operands):
                    if name in body:
                        users[origin(name).name].append((instruction, place))
        parameters = [i for i in body.values() if i.opcode == "parameter"]
        moved = 0
        for parameter in parameters:
            operand = operands[int(parameter.arguments)]
            uses = users[parameter.name]
            if all(u.opcode in _SLICES and p == 0 for u, p in uses):
                moved += _main(operand, sum(u.bytes for u, _ in uses))
            elif not all(u.opcode == "dynamic-update-slice" and not p for u, p in uses):
                moved += operand.main_bytes
        root = next(origin(i.name) for i in body.values() if i.is_root)
        parts = [origin(n) for n in root.operands] if root.opcode == "tuple" else [root]
        for part, shape in zip(parts, fusion.shapes, strict=False):
            updates = part.opcode == "dynamic-update-slice"
            size = body[part.operands[1]].bytes if updates else shape.bytes
            moved += size if shape.space == 0 else 0
        return moved


def _parse(line: str) -> Instruction | None:
    head = re.match(r"\s+(ROOT )?%?([\w.\-]+) = ", line)
    if not head:
        return None
    rest = line[head.end() :]
    cut = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    shapes, rest = rest[:cut], rest[cut:].lstrip()
    opening = rest.index("(")
    closing = _closing(rest, opening)
    return Instruction(
        name=head[2],
        opcode=rest[:opening],
        shapes=tuple(_shapes(shapes)),
        arguments=rest[opening + 1 : closing],
        attributes=rest[closing + 1 :],
        is_root=head[1] is not None,
    )


def _closing(text: str, opening: int) -> int:
    """The position of the parenthesis that closes the one at `opening`."""
    depth = 0
    for position in range(opening, len(text)):
        depth += {"(": 1, ")": -1}.get(text[position], 0)
        if not depth:
            return position
    raise ValueError(f"no closing parenthesis in {text!r}")


def _shapes(text: str) -> Iterator[Shape]:
    """Of `f32[4,8]{1,0:T(8,128)S(1)}`, or of a tuple of such."""
    for dtype, sizes, layout in re.findall(r"(\w+)\[([\d,<=]*)\](\{[^}]*\})?", text):
        bits = _BITS.get(dtype) or int((re.findall(r"[a-z](\d+)", dtype) or [0])[0])
        number = math.prod(int(size) for size in re.findall(r"\d+", sizes))
        space = re.search(r"S\((\d+)\)", layout)
        yield Shape(number * bits // 8, int(space[1]) if space else 0)


def _kind(opcode: str) -> str | None:
    name = opcode.removesuffix("-start")
    return name if name in KINDS else None


def _input(instruction: Instruction, computation: Computation) -> int:
    return sum(computation[name].bytes for name in instruction.operands)


def _branches(instruction: Instruction) -> list[str]:
    listed = re.search(r"branch_computations=\{([^}]*)\}", instruction.attributes)
    if listed:
        return re.findall(r"[\w.\-]+", listed[1])
    pair = (instruction.named(f"{which}_computation") for which in ("true", "false"))
    return [name for name in pair if name]


def _main(instruction: Instruction, size: int) -> int:
    """`size`, if the instruction's result is in main memory."""
    return size if instruction.main_bytes else 0


def _sent(kind: str, size: int, group: int) -> int:
    match kind:
        case "all-reduce":
            return 2 * size * (group - 1) // group
        case "all-gather":  # what goes in is a part of what comes out
            return size * (group - 1)
        case "collective-permute":
            return size
    return size * (group - 1) // group
