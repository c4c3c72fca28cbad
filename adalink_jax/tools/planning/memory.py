"""What the TPU compiler says of a program's memory: its report of buffers, and its refusal."""

import dataclasses
import re

LARGEST = 3

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
# The compiler refuses in two forms; what the first calls temporaries is arguments too.
_NEEDED = re.compile(r"(?:required for HLO temporaries \(|Used )([\d.]+)([KMGT]?)")
_TOTAL = re.compile(r"^Total bytes: (\d+)", re.MULTILINE)
# The first section is what lies in HBM; a later one may be scalar memory.
_SPACE = re.compile(r"^Memory Space: .*$", re.MULTILINE)
_ROW = re.compile(r"^ *\S+\([ \d]+%\); *([\d.]+)([KMGT]?)i?B; *\d+; *\d+; (.*)$", re.MULTILINE)


@dataclasses.dataclass(frozen=True)
class Buffer:
    """A place in a chip's memory.

    Attributes:
      bytes: its size.
      shapes: of the arrays that lie there one after another, as the compiler lists them.
    """

    bytes: int
    shapes: str


def largest_buffers(report: str) -> tuple[Buffer, ...]:
    """The largest places in HBM, largest first.

    Args:
      report: the text of XLA's ``memory-usage-report.txt``.
    """
    spaces = _SPACE.split(report)
    rows = _ROW.findall(spaces[1]) if len(spaces) > 1 else []
    found = [Buffer(_bytes(size, unit), shapes.strip()) for size, unit, shapes in rows]
    return tuple(sorted(found, key=lambda buffer: -buffer.bytes)[:LARGEST])


def needed_bytes(error: str, report: str) -> int | None:
    """What a program that was refused for its memory needs of a chip's HBM.

    Args:
      error: the compiler's.
      report: the text of XLA's ``memory-usage-report.txt``, empty where there is none. It is exact
        where the error is rounded.

    Returns:
      Bytes, arguments among them; None where the error is another, or tells nothing.
    """
    if not error.startswith("RESOURCE_EXHAUSTED"):
        return None
    if total := _TOTAL.search(report):
        return int(total[1])
    found = _NEEDED.search(error)
    return _bytes(*found.groups()) if found else None


def _bytes(number: str, unit: str) -> int:
    return round(float(number) * _UNITS[unit])
