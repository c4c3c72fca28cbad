"""Reads from a compiled program's text what it sends between chips.

The text contains a loop's body once, however often it runs, and XLA's own counts follow the text.
Here each computation counts as often as it is called, through all loops around it. A collective
that appears in several computations (the start and the copies of an asynchronous one) is counted
once, by its channel.
"""

import collections
import dataclasses
import functools
import re
from collections.abc import Iterator, Mapping

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.-]+) (?:\(.*\) -> .* )?\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.-]+) = (.*)$")
_OPERATION = re.compile(rf"^(.*?) ((?:{'|'.join(KINDS)})(?:-start)?)\(")
_CALLED = re.compile(r"\b(calls|to_apply|body|condition|called_computations|branch_computations)=")
_NAMES = re.compile(r"%?([\w.-]+)")
_ARRAY = re.compile(r"\b([a-z]+\d*[a-z0-9]*)\[([\d,]*)\]")
_CHANNEL = re.compile(r"\bchannel_id=(\d+)")
_TRIPS = re.compile(r'known_trip_count"?:\{"?n"?:"?(\d+)')
_CONSTANT = re.compile(r"^[su]\d+\[\]\S* constant\((\d+)\)")
# replica_groups={{0,1},{2,3}}; as an array of [groups, chips per group]; or along axes of a mesh,
# mesh['a'=2,'b'=4] {'b'}, also along a part of an axis, {'b':(1)2}, or with reordered devices,
# mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'b'}.
_GROUPS = re.compile(
    r"replica_groups=(?:\{\{([\d,]*)\}|\[\d+,(\d+)\]|mesh\[([^\]]*)\][^{]*\{([^}]*)\})"
)
_AXIS = re.compile(r"'([^']+)'(?:=(\d+)|:\(\d+\)(\d+))?")


@dataclasses.dataclass(frozen=True)
class Traffic:
    """Collectives of one kind in one run of a program.

    Attributes:
      count: how often they run.
      sent_bytes: bytes sent by each chip, on a ring: (n-1)/n of the gathered or scattered bytes
        for n chips, twice that for an all-reduce.
    """

    count: int
    sent_bytes: int


def traffic(text: str) -> dict[str, Traffic]:
    """Returns a compiled program's collectives by kind, with loops unrolled.

    Args:
      text: the optimized HLO module, from ``Compiled.as_text``.

    Raises:
      ValueError: a loop has collectives, but the text does not show its number of iterations.
    """
    module = _Module(text)
    by_channel: dict[tuple, tuple[str, int, int]] = {}
    for computation, lines in module.computations.items():
        for name, right in lines:
            collective = _collective(computation, right)
            if collective is None:
                continue
            kind, sent = collective
            channel = _CHANNEL.search(right)
            key = (computation, name)
            if channel:
                key = (module.loop_around(computation), kind, channel[1])
            count = module.runs(computation)
            if count is None:
                raise ValueError(f"{name} is in a loop of unknown length")
            if count >= by_channel.get(key, ("", 0, 0))[1]:
                by_channel[key] = (kind, count, sent)
    totals: dict[str, list[int]] = collections.defaultdict(lambda: [0, 0])
    for kind, count, sent in by_channel.values():
        totals[kind][0] += count
        totals[kind][1] += count * sent
    return {kind: Traffic(*totals[kind]) for kind in KINDS if kind in totals}


class _Module:
    """A module's computations, and how often each runs."""

    def __init__(self, text: str):
        self.computations: dict[str, list[tuple[str, str]]] = {}
        self.entry = ""
        lines: list[tuple[str, str]] = []
        for line in text.splitlines():
            if head := _COMPUTATION.match(line):
                lines = self.computations.setdefault(head[2], [])
                self.entry = head[2] if head[1] else self.entry
            elif instruction := _INSTRUCTION.match(line):
                lines.append((instruction[1], instruction[2]))
        self.callers: dict[str, list[tuple[str, int | None]]] = collections.defaultdict(list)
        self.bodies: set[str] = set()
        for caller, instructions in self.computations.items():
            for _, right in instructions:
                called = dict(_called(right))
                self.bodies.update(called.get("body", ()))
                rounds = self.rounds(right, called) if "body" in called else 1
                for role, names in called.items():
                    for name in names:
                        times = rounds if role == "body" else 1
                        self.callers[name].append((caller, times))

    @functools.cache  # noqa: B019 (a module lives as long as it is read)
    def runs(self, computation: str) -> int | None:
        """Returns how often a computation runs in one run of the program; None if unknown."""
        if computation == self.entry:
            return 1
        total = 0
        for caller, times in self.callers[computation]:
            outside = self.runs(caller)
            if outside == 0:
                continue
            if outside is None or times is None:
                return None
            total += outside * times
        return total

    def loop_around(self, computation: str) -> str:
        """Returns the loop's body, or the entry, that a computation belongs to."""
        while callers := self.callers[computation]:
            if computation in self.bodies:
                break
            computation = callers[0][0]
        return computation

    def rounds(self, right: str, called: Mapping[str, list[str]]) -> int | None:
        """Returns a while loop's number of iterations: stated, or its condition's one constant."""
        if known := _TRIPS.search(right):
            return int(known[1])
        inside, waiting = set(), list(called["condition"])
        constants = []
        while waiting:
            name = waiting.pop()
            if name in inside:
                continue
            inside.add(name)
            for _, line in self.computations.get(name, ()):
                if constant := _CONSTANT.match(line):
                    constants.append(int(constant[1]))
                waiting += [each for names in dict(_called(line)).values() for each in names]
        return constants[0] if len(constants) == 1 else None


def _called(right: str) -> Iterator[tuple[str, list[str]]]:
    if "=%" not in right and "={%" not in right:
        return
    for match in _CALLED.finditer(right):
        rest = right[match.end() :]
        part = rest[1 : rest.index("}")] if rest.startswith("{") else rest.split(",", 1)[0]
        yield match[1], _NAMES.findall(part.split(" ", 1)[0] if "{" not in rest[:1] else part)


def _collective(computation: str, right: str) -> tuple[str, int] | None:
    """Returns a collective's kind and the bytes each chip sends; None for other instructions."""
    match = any(kind in right for kind in KINDS) and _OPERATION.match(right)
    if not match:
        return None
    kind = match[2].removesuffix("-start")
    arrays = [_bytes(*array) for array in _ARRAY.findall(match[1]) if array[1]]
    if match[2] in ("all-gather-start", "collective-permute-start"):
        arrays = arrays[len(arrays) // 2 :]  # The operands come first, then the results.
    size = sum(arrays)
    if kind == "collective-permute":
        return kind, size
    chips = _group_size(right)
    if kind == "reduce-scatter":
        return kind, size * (chips - 1)
    once = size * (chips - 1) // chips
    if kind == "all-reduce" and computation.startswith("all-reduce-scatter"):
        return "reduce-scatter", once  # A fusion that keeps only a part of the sum.
    return kind, 2 * once if kind == "all-reduce" else once


def _group_size(right: str) -> int:
    groups = _GROUPS.search(right)
    if not groups:
        raise ValueError(f"no replica groups in: {right[:200]}")
    listed, columns, mesh, along = groups.groups()
    if listed is not None:
        return len(listed.split(","))
    if columns is not None:
        return int(columns)
    sizes = {name: int(size) for name, size, _ in _AXIS.findall(mesh)}
    chips = 1
    for name, _, part in _AXIS.findall(along):
        chips *= int(part) if part else sizes[name]
    return chips


def _bytes(dtype: str, dimensions: str) -> int:
    size = 1
    for length in dimensions.split(","):
        size *= int(length)
    bits = re.search(r"\d+", dtype)
    return size * int(bits[0]) // 8 if bits else size
