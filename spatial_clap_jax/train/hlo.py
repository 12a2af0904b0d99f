"""What a compiled program moves over networks and through memory, read from its HLO text.

XLA's `cost_analysis` takes the body of a loop once, and says nothing of collectives. Here every
computation counts as often as it runs.
"""

import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import NamedTuple

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "collective-permute", "all-to-all")


@dataclass(frozen=True)
class Collective:
    """One exchange between devices, as often as a step runs it.

    Attributes:
      kind: one of `KINDS`; between slices the runtime's own word where it stands for none of them.
      bytes: of its result on one device, over all runs.
      sent_bytes: what one device must send for it, over all runs, by the best algorithm
        (a ring: twice its own share of all others for an all-reduce).
      between_slices: whether it crosses the data-centre network.
    """

    kind: str
    bytes: float
    sent_bytes: float
    between_slices: bool


@dataclass(frozen=True)
class _Instruction:
    name: str
    shape: str
    opcode: str
    arguments: str
    attributes: str
    is_root: bool

    @property
    def operands(self) -> list[str]:
        return re.findall(r"%([\w.\-]+)", self.arguments)


@dataclass
class Program:
    """The computations of a compiled module.

    Attributes:
      computations: instructions by the name of their computation.
      entry: the computation that a step runs.
    """

    computations: dict[str, list[_Instruction]] = field(default_factory=dict)
    entry: str = ""


def parse(text: str) -> Program:
    """Reads `compiled.as_text()`."""
    program, current = Program(), []
    for line in text.splitlines():
        if header := _HEADER.match(line):
            current = program.computations[header["name"]] = []
            program.entry = header["name"] if header["entry"] else program.entry
        elif instruction := _instruction(line):
            current.append(instruction)
    return program


def collectives(program: Program, devices: int) -> list[Collective]:
    """The exchanges of a step.

    What a compiler cuts into pieces, fused with other work under one channel, counts once.

    Args:
      program: see `parse`.
      devices: of the whole program; the size of a group that names none.
    """
    found: dict[tuple[str, ...], tuple[int, Collective]] = {}
    whole = _runs(program, into_fusions=False)
    for name, times in _runs(program, into_fusions=True).items():
        for instruction in program.computations[name]:
            if (collective := _collective(instruction, devices)) is None:
                continue
            key: tuple[str, ...] = (name, instruction.name)
            if name not in whole:
                marks = re.findall(r"channel_id=\d+|chain_id=\"\d+\"", instruction.attributes)
                key = (collective.kind, *marks) if marks else key
            # A piece may stand in a loop that has nothing to do with it.
            if key not in found or times < found[key][0]:
                found[key] = (times, collective)
    return [
        replace(c, bytes=times * c.bytes, sent_bytes=times * c.sent_bytes)
        for times, c in found.values()
    ]


def memory_bytes(program: Program) -> float:
    """Bytes that a step reads from and writes to a device's main memory.

    Each instruction reads its operands and writes its result; of what it only cuts or updates,
    that part. On-chip memory, where XLA names it, costs nothing. The padding of tiles and the
    traffic of caches are not in it.
    """
    total = 0.0
    for name, times in _runs(program, into_fusions=False).items():
        instructions = program.computations[name]
        shapes = {i.name: i.shape for i in instructions}
        total += times * sum(_traffic(program, i, shapes) for i in instructions)
    return total


_HEADER = re.compile(r"^(?P<entry>ENTRY )?%?(?P<name>[\w.\-]+) \(.*\{\s*$")
_DEFINITION = re.compile(r"^\s+(?P<root>ROOT )?%?(?P<name>[\w.\-]+) = ")
_ARRAY = re.compile(r"\b([a-z]+\d*(?:e\d+m\d+\w*)?)\[([\d,<=]*)\](?:\{([^{}]*)\})?")
_ON_CHIP = re.compile(r"S\([1-9]\d*\)")


def _instruction(line: str) -> _Instruction | None:
    definition = _DEFINITION.match(line)
    if definition is None:
        return None
    rest = line[definition.end() :]
    # A shape ends at the first space that stands in no bracket; a tuple's may hold many.
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.find(" ")
    opcode, _, _ = rest[end:].lstrip().partition("(")
    opening = rest.find("(", end)
    closing = _closing(rest, opening)
    return _Instruction(
        name=definition["name"],
        shape=rest[:end],
        opcode=opcode.strip(),
        arguments=rest[opening + 1 : closing],
        attributes=rest[closing + 1 :],
        is_root=definition["root"] is not None,
    )


def _closing(text: str, opening: int) -> int:
    depth = 0
    for i in range(opening, len(text)):
        depth += (text[i] == "(") - (text[i] == ")")
        if depth == 0:
            return i
    return len(text)


def _runs(program: Program, *, into_fusions: bool) -> dict[str, int]:
    """How often each computation runs in a step."""
    runs: dict[str, int] = defaultdict(int)
    waiting = [(program.entry, 1)]
    while waiting:
        name, times = waiting.pop()
        runs[name] += times
        for instruction in program.computations[name]:
            if instruction.opcode == "fusion" and not into_fusions:
                continue
            each = times * _trip_count(program, instruction)
            waiting += [(called, each) for called in _called(instruction)]
    return runs


def _called(instruction: _Instruction) -> Iterator[str]:
    # What reduces two elements to one (`to_apply`) is no computation of its own, but a call's is.
    keys = "calls|body|condition|true_computation|false_computation"
    keys += "|to_apply" if instruction.opcode == "call" else ""
    yield from re.findall(rf"\b(?:{keys})=%([\w.\-]+)", instruction.attributes)
    for names in re.findall(
        r"\b(?:branch|called)_computations=\{([^}]*)\}", instruction.attributes
    ):
        yield from re.findall(r"%([\w.\-]+)", names)


def _trip_count(program: Program, instruction: _Instruction) -> int:
    """Runs of a loop's body; a loop whose length only the data tell counts once."""
    if instruction.opcode != "while":
        return 1
    if known := re.search(r'known_trip_count"?:\{"n":"(\d+)"', instruction.attributes):
        return int(known[1])
    # TPU programs do not say it; their loops count up from zero to a constant.
    condition = re.search(r"\bcondition=%([\w.\-]+)", instruction.attributes)
    inside = {i.name: i for i in program.computations[condition[1]]} if condition else {}
    for root in (i for i in inside.values() if i.is_root and "direction=LT" in i.attributes):
        for operand in (inside[name] for name in root.operands):
            if operand.opcode == "constant":
                return int(operand.arguments)
    return 1


def _collective(instruction: _Instruction, devices: int) -> Collective | None:
    opcode, attributes = instruction.opcode.removesuffix("-start"), instruction.attributes
    arrays = [array.bytes for array in _arrays(instruction.shape)]
    # Between slices a TPU's program hands its share to the network's own runtime.
    transfer = re.search(r'_xla_megascale_transfer_type="(\w+)"', attributes)
    between = transfer if opcode == "recv" else None
    if between:
        word = between[1].lower().replace("_", "-")
        opcode, arrays = _BETWEEN_SLICES.get(word, word), arrays[:1]
        slices = re.search(r'_xla_megascale_target="\{([\d,]+)\}x', attributes)
        size = len(slices[1].split(",")) if slices else devices
    else:
        size = _group_size(attributes, devices)
        if instruction.opcode.endswith("-start") and opcode != "all-reduce":
            # First come the operands, last what waits for the end; an all-reduce has its result.
            count = len(instruction.operands)
            arrays = arrays[count : 2 * count]
    if (opcode not in KINDS and not between) or size < 2:
        return None
    # Of a word that is new here no algorithm is known; what arrives was sent.
    share = _SENT[opcode](size) if opcode in KINDS else 1
    return Collective(opcode, sum(arrays), share * sum(arrays), bool(between))


# Words of the network's runtime that are not a kind's name.
_BETWEEN_SLICES = {"one-to-one": "collective-permute"}

# What a device sends over what it gets, in a group of n.
_SENT: dict[str, Callable[[int], float]] = {
    "all-reduce": lambda n: 2 * (n - 1) / n,
    "all-gather": lambda n: (n - 1) / n,
    "reduce-scatter": lambda n: n - 1,
    "all-to-all": lambda n: (n - 1) / n,
    "collective-permute": lambda n: 1,
}


def _group_size(attributes: str, devices: int) -> int:
    """Devices that exchange with each other; all where no groups are named."""
    if listed := re.search(r"replica_groups=\{\{([\d,]*)\}", attributes):
        return len(listed[1].split(","))
    if counted := re.search(r"replica_groups=\[\d+,(\d+)\]<=", attributes):
        return int(counted[1])
    if named := re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", attributes):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", named[1]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'", named[2]))
    return devices


class _Array(NamedTuple):
    """Bytes of an array's numbers, and those that it takes up in main memory."""

    bytes: float
    stored: float


def _arrays(shape: str) -> list[_Array]:
    """The arrays of a shape such as `(f32[2,3]{1,0:T(8,128)S(1)}, u32[])`."""
    found = []
    for dtype, sides, layout in _ARRAY.findall(shape):
        bits = re.search(r"\d+", dtype)
        size = 1.0 if dtype == "pred" else int(bits[0]) / 8 if bits else 0.0
        dimensions = [int(n.lstrip("<=")) for n in sides.split(",") if n]
        stored = 0.0 if _ON_CHIP.search(layout) else size * math.prod(_padded(dimensions, layout))
        found.append(_Array(size * math.prod(dimensions), stored))
    return found


def _stored(shape: str) -> float:
    return sum(array.stored for array in _arrays(shape))


def _padded(dimensions: list[int], layout: str) -> list[int]:
    """Dimensions in the order of memory, filled up to the tiles of a TPU's layout."""
    order, _, rest = layout.partition(":")
    tile = re.match(r"T\(([\d,]+)\)", rest)
    if tile is None or not dimensions:
        return dimensions
    ordered = [dimensions[int(n)] for n in reversed(order.split(","))]
    sizes = [int(n) for n in tile[1].split(",")][-len(ordered) :]
    whole = ordered[: len(ordered) - len(sizes)]
    return whole + [
        math.ceil(n / size) * size for n, size in zip(ordered[len(whole) :], sizes, strict=True)
    ]


# Other names for what is there already, control flow (its computations count by themselves) and
# beginnings (their ends are free too).
_FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional"}
_FREE |= {"call", "after-all", "opt-barrier", "partition-id", "replica-id"}
_FREE |= {"async-start", "async-update"}
_FREE_CALLS = ("AllocateBuffer", "ConcatBitcast")
_CUTS = ("dynamic-slice", "slice", "gather")


def _traffic(program: Program, instruction: _Instruction, shapes: dict[str, str]) -> float:
    """Bytes that one run of an instruction reads from and writes to main memory."""
    opcode = instruction.opcode
    if opcode in _FREE or opcode.endswith("-done"):
        return 0.0
    if opcode == "custom-call" and any(name in instruction.attributes for name in _FREE_CALLS):
        return 0.0
    reads = [_stored(shapes.get(name, "")) for name in instruction.operands]
    written = _stored(instruction.shape)
    if opcode == "copy-start":
        # Its shape names both sides.
        return sum(array.stored for array in _arrays(instruction.shape)[:2])
    if opcode == "slice-start":
        operand, result = _arrays(instruction.shape)[:2]
        return result.stored + (result.bytes if operand.stored else 0.0)
    if opcode in _CUTS:
        return written + min(reads[0], _arrays(instruction.shape)[0].bytes)
    if opcode == "dynamic-update-slice":
        return 2 * min(reads[0], _arrays(shapes[instruction.operands[1]])[0].bytes)
    if opcode == "fusion":
        return _fusion_traffic(program.computations[next(_called(instruction))], reads, written)
    return sum(reads) + written


def _fusion_traffic(inside: list[_Instruction], reads: list[float], written: float) -> float:
    """A fusion reads of an operand what it cuts from it, and writes what it updates."""
    by_name = {i.name: i for i in inside}

    def origin(name: str) -> str:
        return origin(by_name[name].operands[0]) if by_name[name].opcode == "bitcast" else name

    taken: dict[str, float] = defaultdict(float)
    for user in (i for i in inside if i.opcode not in ("parameter", "bitcast")):
        for position, name in enumerate(user.operands):
            if position == 0 and user.opcode in _CUTS:
                taken[origin(name)] += _arrays(user.shape)[0].bytes
            elif position > 0 or user.opcode != "dynamic-update-slice":
                taken[origin(name)] = math.inf
    total = written
    for parameter in (i for i in inside if i.opcode == "parameter"):
        total += min(reads[int(parameter.arguments)], taken[parameter.name])
    root = next(i for i in inside if i.is_root)
    for name in root.operands if root.opcode == "tuple" else [root.name]:
        result = by_name[origin(name)]
        if result.opcode == "dynamic-update-slice" and written:
            # In place: what is not updated is not written.
            update = _arrays(by_name[result.operands[1]].shape)[0].bytes
            total -= max(_stored(result.shape) - update, 0.0)
    return total
