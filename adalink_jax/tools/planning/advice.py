"""Finds the cheapest change that makes a step fit, by compiling the step with each change."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

from adalink_jax.errors import UserError
from adalink_jax.models.config import REMATS
from adalink_jax.models.kernels import FROZEN_DTYPES
from adalink_jax.tools.planning.compiling import Case, Prepared, Program

# The most compilations for one step that does not fit. A change is not compiled if the step's
# arguments already need more memory than a chip has.
TRIES = 5
_MODEL_PARALLELISM = 8  # The most that is tried. Beyond it, few of T5's heads are left per chip.


@dataclasses.dataclass(frozen=True)
class Try:
    """A change of a case.

    Attributes:
      change: the changed settings, as a user writes them.
      fits: whether the step fits.
      peak_bytes: peak memory of a chip; None if `argument_bytes` alone is too much.
      argument_bytes: bytes of the step's arguments on each chip.
    """

    change: str
    fits: bool
    peak_bytes: int | None
    argument_bytes: int


def search(case: Case, devices: list[Any], level: str) -> list[Try]:
    """Tries changes of a case that does not fit, cheapest first, until one fits.

    Args:
      case: the step.
      devices: the topology's devices.
      level: the compiler's optimization level, as in `Prepared.decided`.

    Returns:
      The tried changes; the last one fits, or none does.
    """
    return _search(case, lambda changed: Prepared(changed, devices), level)


def _search(case: Case, prepare: Callable[[Case], Any], level: str) -> list[Try]:
    tries: list[Try] = []
    compiled = 0
    for change, changed in changes(case):
        try:
            prepared = prepare(changed)
        except UserError:
            continue  # The batch or the model cannot be divided like this.
        arguments = prepared.arguments.total
        if arguments > case.topology.chip.allowed_bytes:
            tries.append(Try(change, False, None, arguments))
            continue
        if compiled == TRIES:
            break
        program: Program = prepared.decided(level)
        compiled += 1
        tries.append(Try(change, program.fits, program.peak_bytes, arguments))
        if program.fits:
            break
    return tries


def changes(case: Case) -> Iterator[tuple[str, Case]]:
    """Yields changes of a case: single ones, cheapest first, then combinations.

    Recomputation costs FLOPs, sharding costs communication, and accumulation costs both. Storing
    the base in fewer bits costs precision.
    """
    last = len(REMATS) - 1
    for stage in range(REMATS.index(case.config.remat), last):
        yield _with(case, remat=REMATS[stage + 1])
    if not case.layout.fully_sharded and case.topology.chips > 1:
        yield _with(case, fully_sharded=True)
    for parallel in _doubled(case.layout.model_parallelism, _MODEL_PARALLELISM):
        yield _with(case, model_parallelism=parallel)
    for parts in _doubled(case.accumulation, case.shape.batch):
        yield _with(case, accumulation=parts)
    smaller = FROZEN_DTYPES[FROZEN_DTYPES.index(case.frozen_dtype) + 1 :]
    for dtype in () if case.method.trains_base else smaller:
        yield _with(case, frozen_dtype=dtype)
    together = {"remat": REMATS[last], "fully_sharded": case.topology.chips > 1}
    if smaller and not case.method.trains_base:
        together["frozen_dtype"] = smaller[0]
    yield _with(case, **together)
    for parts in _doubled(case.accumulation, case.shape.batch):
        yield _with(case, **together, accumulation=parts)
    for parallel in _doubled(case.layout.model_parallelism, _MODEL_PARALLELISM):
        yield _with(case, **together, model_parallelism=parallel)


def _doubled(count: int, most: int) -> Iterator[int]:
    while 2 * count <= most:
        count *= 2
        yield count


def _with(case: Case, **settings: Any) -> tuple[str, Case]:
    """Returns a description of the new settings, and the case with them."""
    now = {
        "remat": case.config.remat,
        "fully_sharded": case.layout.fully_sharded,
        "model_parallelism": case.layout.model_parallelism,
        "accumulation": case.accumulation,
        "frozen_dtype": case.frozen_dtype,
    }
    names = {"accumulation": "gradient_accumulation_steps"}
    new = {name: value for name, value in settings.items() if value != now[name]}
    words = ", ".join(f"{names.get(name, name)}={value}" for name, value in new.items())
    value = now | settings
    changed = dataclasses.replace(
        case,
        config=dataclasses.replace(case.config, remat=value["remat"]),
        layout=dataclasses.replace(
            case.layout,
            fully_sharded=value["fully_sharded"],
            model_parallelism=value["model_parallelism"],
        ),
        accumulation=value["accumulation"],
        frozen_dtype=value["frozen_dtype"],
    )
    return words, changed
