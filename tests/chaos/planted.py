"""Commands with one fault each, which trials must find. `right` has none.

They sleep where a trial's signal is to meet them: a fault that takes no time cannot be met. Those
that must not end, or hold memory, sleep until the trial ends them.
"""

import json
import os
import pathlib
import signal
import sys
import time

from hypothesis import strategies as st

from adalink_jax import files, signals
from adalink_jax.errors import UserError
from tests.chaos.jobs import Job

RUN, SOURCE, MARK = pathlib.Path("run"), pathlib.Path("source.json"), pathlib.Path("mark")
PRODUCT = RUN / "product.json"


def _source() -> None:
    files.write_sealed(SOURCE, {"content": "a" * 99})


def right() -> int:
    try:
        with signals.listening(), files.held(RUN, "the run"):
            content = files.read_json(SOURCE)
            time.sleep(0.03)
            files.write_text(PRODUCT, json.dumps(content))
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _before() -> bool:
    """Whether it was started before."""
    before = MARK.exists()
    MARK.touch()
    time.sleep(0.03)
    return before


def ends_otherwise_after_a_kill() -> None:
    files.write_text(PRODUCT, json.dumps(_before()))


def refuses_after_a_kill() -> int:
    if _before():
        print("error: it is there", file=sys.stderr)
        return 2
    return right()


def leaves_something_after_a_kill() -> int:
    (RUN / ".left").mkdir(parents=True) if _before() else None
    return right()


def writes_a_part_first() -> None:
    RUN.mkdir(exist_ok=True)
    PRODUCT.write_text('{"content": ')
    time.sleep(0.1)
    PRODUCT.write_text('{"content": "all"}')


def says_nothing_when_told_to_end() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    time.sleep(0.7)
    files.write_text(PRODUCT, "{}")


def says_a_full_disk_in_a_traceback() -> None:
    RUN.mkdir(exist_ok=True)
    PRODUCT.write_text("{}")


def believes_what_it_reads() -> None:
    files.write_text(
        PRODUCT.with_suffix(".txt"), SOURCE.read_bytes().hex() if SOURCE.exists() else ""
    )


def says_damage_in_two_lines() -> int:
    if right() == 0:
        return 0
    print("error: so it cannot go on", file=sys.stderr)
    return 2


def aborts_on_damage() -> None:
    if right():
        os.abort()


def loses_something_where_it_refuses() -> int:
    code = right()
    if code == 0 and MARK.exists():
        files.write_text(PRODUCT, "{}")
    MARK.touch()
    return code


def believes_the_clock() -> None:
    _before()
    files.write_text(PRODUCT, json.dumps(time.time() // 1e8))


def counts_its_starts() -> None:
    RUN.mkdir(exist_ok=True)
    with PRODUCT.with_suffix(".txt").open("a") as file:
        file.write("started\n")


def never_ends() -> None:
    time.sleep(1e6)


def takes_memory() -> None:
    content = b"\1" * (400 << 20)
    time.sleep(1e6 * len(content))


def names_no_host() -> int:
    if "JAX_PROCESS_ID" in os.environ:
        time.sleep(1)
        return 1
    files.write_text(RUN / "metrics.jsonl", '{"step": 1, "train/loss": 1.5}\n')
    return 0


def has_other_losses_alone() -> int:
    if "JAX_PROCESS_ID" in os.environ:
        MARK.touch()
        time.sleep(1)
        print("error: host 0 (x) and host 1 (x) ended", file=sys.stderr)
        return 1
    loss = 2.5 if MARK.exists() else 1.5
    files.write_text(RUN / "metrics.jsonl", json.dumps({"step": 1, "train/loss": loss}) + "\n")
    return 0


def attack_that_fails(place: pathlib.Path):
    def attack(draw):
        number = draw(st.integers())
        if number > 1000:
            raise KeyError(number)

    return attack


def attack_that_passes(place: pathlib.Path):
    def attack(draw):
        if draw(st.booleans()):
            raise UserError("false")

    return attack


_READS = {"source.json": ("source", "source.json")}
JOBS = {
    "source": Job(["tests.chaos.planted:_source"], ["source.json"]),
    "fuzz": Job([], []),
} | {
    name: Job([f"tests.chaos.planted:{name}"], ["run/"], _READS)
    for name, found in list(vars().items())
    if callable(found) and getattr(found, "__module__", "") == __name__ and name[0] != "_"
}
