"""Reads the TPU compiler's memory figures: its report of buffers, and its refusals."""

import dataclasses
import re

LARGEST = 3

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
# Refusals have two forms. The "temporaries" of the first include arguments.
_NEEDED = re.compile(r"(?:required for HLO temporaries \(|Used )([\d.]+)([KMGT]?)")
_TOTAL = re.compile(r"^Total bytes: (\d+)", re.MULTILINE)
# The first section lists HBM; a later one may be scalar memory.
_SPACE = re.compile(r"^Memory Space: .*$", re.MULTILINE)
_ROW = re.compile(r"^ *\S+\([ \d]+%\); *([\d.]+)([KMGT]?)i?B; *\d+; *\d+; (.*)$", re.MULTILINE)


@dataclasses.dataclass(frozen=True)
class Buffer:
    """An allocation in a chip's memory.

    Attributes:
      bytes: its size.
      shapes: the arrays that use it one after another, as the compiler lists them.
    """

    bytes: int
    shapes: str


def largest_buffers(report: str) -> tuple[Buffer, ...]:
    """Returns the largest allocations in HBM, largest first.

    Args:
      report: the text of XLA's ``memory-usage-report.txt``.
    """
    spaces = _SPACE.split(report)
    rows = _ROW.findall(spaces[1]) if len(spaces) > 1 else []
    buffers = [Buffer(_bytes(size, unit), shapes.strip()) for size, unit, shapes in rows]
    return tuple(sorted(buffers, key=lambda buffer: -buffer.bytes)[:LARGEST])


def needed_bytes(error: str, report: str) -> int | None:
    """Returns how much of a chip's HBM a refused program needs.

    Args:
      error: the compiler's message.
      report: the text of XLA's ``memory-usage-report.txt``, or "". It has the exact number; the
        message is rounded.

    Returns:
      Bytes, including arguments; None if the error has another cause or no number.
    """
    if not error.startswith("RESOURCE_EXHAUSTED"):
        return None
    if total := _TOTAL.search(report):
        return int(total[1])
    match = _NEEDED.search(error)
    return _bytes(*match.groups()) if match else None


def _bytes(number: str, unit: str) -> int:
    return round(float(number) * _UNITS[unit])
