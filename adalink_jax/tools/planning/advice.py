"""The cheapest change that makes a step fit, found by compiling it with the change."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

from adalink_jax.errors import UserError
from adalink_jax.models.config import REMATS
from adalink_jax.models.kernels import FROZEN_DTYPES
from adalink_jax.tools.planning.compiling import Case, Prepared, Program

# Compilations for one refused step. A change is not compiled where what the step is given alone
# takes more than a chip has.
TRIES = 5
_MODEL_PARALLELISM = 8  # The most that is tried: beyond it, T5's heads get few.


@dataclasses.dataclass(frozen=True)
class Try:
    """A change of a case.

    Attributes:
      change: what differs, as a user sets it.
      fits: whether it fits.
      peak_bytes: of a chip; None where it was ruled out by `argument_bytes`.
      argument_bytes: of what the step is given, on a chip.
    """

    change: str
    fits: bool
    peak_bytes: int | None
    argument_bytes: int


def search(case: Case, devices: list[Any], level: str) -> list[Try]:
    """Tries changes of a case that does not fit, cheapest first, until one fits.

    Args:
      case: the step.
      devices: of its topology.
      level: the compiler's, as `Prepared.decided` takes it.

    Returns:
      What was tried; the last one fits, or none does.
    """
    return _search(case, lambda changed: Prepared(changed, devices), level)


def _search(case: Case, prepare: Callable[[Case], Any], level: str) -> list[Try]:
    tries: list[Try] = []
    compiled = 0
    for change, changed in changes(case):
        try:
            prepared = prepare(changed)
        except UserError:
            continue  # The mesh does not divide the batch or the model so.
        given = prepared.arguments.total
        if given > case.topology.chip.allowed_bytes:
            tries.append(Try(change, False, None, given))
            continue
        if compiled == TRIES:
            break
        program: Program = prepared.decided(level)
        compiled += 1
        tries.append(Try(change, program.fits, program.peak_bytes, given))
        if program.fits:
            break
    return tries


def changes(case: Case) -> Iterator[tuple[str, Case]]:
    """Changes of a case: each alone, in the order of what they cost; then together.

    Recomputing costs operations, sharding costs traffic, accumulation costs both; a base in fewer
    bits costs precision.
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
    """The case with settings, and the words for those of them that are new."""
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
