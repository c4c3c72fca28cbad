"""Kinds of trials: something happens to a command, and what it promises must hold.

A trial is a function of a world, a source of random numbers and an empty folder. It returns how
often the command was right and how often it refused in one line, or raises `Wrong`.
"""

import collections
import functools
import json
import pathlib
import random
import re
import shlex
import shutil
import signal
import socket
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from tests.chaos.jobs import METHODS, World, said, spoken, whole
from tests.chaos.server import End, Start

Counts = collections.Counter[str]
Trial = Callable[[World, random.Random, pathlib.Path], Counts]

RIGHT, REFUSED = Counts(right=1), Counts(refused=1)
GOOD = {*RIGHT, *REFUSED}


class Wrong(Exception):
    """A promise does not hold: which one, in a word or two, then a colon and what has happened."""


def kill(job: str, world: World, rng: random.Random, place: pathlib.Path) -> Counts:
    """Killed one to three times, at a random moment or before a random change of a file."""
    world.prepare(job, place)
    for _ in range(rng.choice((1, 1, 2, 3))):
        start = world.start(job, place, what="SIGKILL", at=_moment(world, job, rng))
        (done,) = _run(world, job, [start], (0, 2, -signal.SIGKILL))
        if done.code >= 0:  # It has ended before; or it refuses, as all may be there already.
            break
    return _ended(world, job, place)


def stop(job: str, world: World, rng: random.Random, place: pathlib.Path) -> Counts:
    """Told to end by a signal; it goes on when it is started again."""
    world.prepare(job, place)
    number = rng.choice((signal.SIGINT, signal.SIGTERM, signal.SIGHUP))
    at = _moment(world, job, rng)
    if "seconds" in at:
        at["seconds"] = max(at["seconds"], 0.5)  # The command is there to hear it.
    # What has done its work and is about to end, ends as any program.
    start = world.start(job, place, what=number.name, at=at)
    (done,) = _run(world, job, [start], (0, 128 + number, -number))
    if done.code < 0 and world.differing(job, place):
        raise Wrong("without a word")
    return _ended(world, job, place)


def full(job: str, world: World, rng: random.Random, place: pathlib.Path) -> Counts:
    """On a disk that is full from a random moment on, or with a quota for each file."""
    world.prepare(job, place)
    happens = {"what": "full", "at": _moment(world, job, rng)}
    if rng.random() < 0.3:
        largest = max(map(len, world.products(job).values()))
        happens = {"room": rng.randint(1, 2 * largest)}
    _run(world, job, [world.start(job, place, **happens)], (0, 2))
    return _ended(world, job, place)


def clock(job: str, world: World, rng: random.Random, place: pathlib.Path) -> Counts:
    """With a clock that jumps, and killed half of the time."""
    world.prepare(job, place)
    jumps = [rng.choice((0, 0, 1e-3, 61, -61, 3600, -3600, 4e8, -4e8)) for _ in range(9)]
    happens = {"what": "SIGKILL", "at": _moment(world, job, rng)} if rng.random() < 0.5 else {}
    _run(world, job, [world.start(job, place, clock=jumps, **happens)], (0, -signal.SIGKILL))
    return _ended(world, job, place)


def twice(job: str, world: World, rng: random.Random, place: pathlib.Path) -> Counts:
    """Started twice, at once or almost: one does the work."""
    world.prepare(job, place)
    late = rng.choice((0.0, rng.uniform(0, world.reference(job).seconds)))
    starts = [
        world.start(job, place, name=f"{name}-", late=late * i) for i, name in enumerate("ab")
    ]
    if all(end.code for end in _run(world, job, starts, (0, 2))):
        raise Wrong(f"neither: {said(place, 'a-')} {said(place, 'b-')}")
    return _ended(world, job, place)


def damage(job: str, world: World, rng: random.Random, place: pathlib.Path) -> Counts:
    """One file of those that it reads is altered: the same end, or a refusal that loses nothing."""
    world.prepare(job, place)
    # Events are never read, and any request is a right one.
    unread = ("tensorboard", world.jobs[job].stdin)
    files = [p for p in sorted(place.rglob("*")) if p.is_file() and not {*p.parts} & {*unread}]
    path = rng.choice(files)
    intact = path.read_bytes()
    detail = f"{path.relative_to(place)}: {alter(path, rng)}"
    (done,) = world.server.run(world.start(job, place))
    if wrong := spoken(done, said(place), (0, 2)):
        raise Wrong(f"{wrong}: {detail}: {said(place)}")
    if done.code == 0:
        differing = world.differing(job, place)
        if differing and not _SAID.search(said(place)):
            raise Wrong(f"silent: {detail}: other {', '.join(differing)}")
        return RIGHT
    path.write_bytes(intact)
    try:
        return _ended(world, job, place) and REFUSED
    except Wrong as wrong:
        raise Wrong(f"{wrong}; after {detail} was refused and put back") from wrong


# What is gone and said to be gone: a run goes on without the earlier metrics, a report lacks a run.
_SAID = re.compile(r"metrics\.jsonl is missing: it begins anew|, left out: | is gone, so ")


def alter(path: pathlib.Path, rng: random.Random) -> str:
    """Alters a file at random; returns what was done."""
    content = bytearray(path.read_bytes())
    at = rng.randrange(len(content) + 1)
    kind = rng.choice(("flip", "flip", "flip", "cut", "zeros", "more", "empty", "gone"))
    if kind == "gone":
        path.unlink()
        return "it is gone"
    if kind == "flip" and at < len(content):
        bit = rng.randrange(8)
        content[at] ^= 1 << bit
        kind = f"bit {bit} is flipped"
    elif kind == "zeros" and content[at : at + 512].strip(b"\0"):
        content[at : at + 512] = bytes(len(content[at : at + 512]))
    elif kind == "more":
        content[at:at] = rng.randbytes(rng.choice((1, 100)))
    else:
        kind, at = "cut", 0 if kind == "empty" else min(at, max(0, len(content) - 1))
        del content[at:]
    path.write_bytes(content)
    return f"{kind} at byte {at}"


def hosts(job: str, world: World, rng: random.Random, place: pathlib.Path) -> Counts:
    """One of two hosts is killed, stopped or told to end; then one host goes on alone."""
    world.prepare(job, place)
    victim, late = rng.randrange(2), rng.uniform(0, 3 * world.reference(job).seconds)
    what = rng.choice((*["SIGKILL"] * 6, "SIGTERM", "SIGSTOP"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    starts = []
    for index in range(2):
        environment = {
            "JAX_COORDINATOR_ADDRESS": address,
            "JAX_NUM_PROCESSES": "2",
            "JAX_PROCESS_ID": str(index),
            "ADALINK_HOSTS_WAIT_SECONDS": "60",
        }
        happens = {"what": what, "at": {"seconds": late}} if index == victim else {}
        starts.append(world.start(job, place, name=f"{index}-", environment=environment, **happens))
    ends = world.server.run(*starts)
    happened = f"{what} of host {victim} after {late:.2f} s: {ends}"
    for index, end in enumerate(ends):
        if end.wrong or "Traceback" in said(place, f"{index}-"):
            raise Wrong(f"{end.wrong or 'traceback'}: {happened} {said(place, f'{index}-')}")
    # A host that is killed after its last part of the work is not missed.
    agreed = ends[1 - victim].code == 0 or {end.code for end in ends} == {128 + signal.SIGTERM}
    named = re.findall(r"^error: (.*)", said(place, f"{1 - victim}-"), re.MULTILINE)
    expected = ("did not come", "did not answer", f"host {victim} (")
    if not agreed and not (len(named) == 1 and any(words in named[0] for words in expected)):
        raise Wrong(f"not named: {happened} {named}")
    (done,) = world.server.run(world.start(job, place))
    if wrong := spoken(done, said(place), (0,)) or whole(place):
        raise Wrong(f"{wrong}: alone after {happened}: {said(place)}")
    # Two hosts add in another order than one.
    pairs = zip(_losses(world.products(job)), _losses(world.products(job, place)), strict=True)
    if not all(abs(one - other) < 1e-4 for one, other in pairs):
        raise Wrong(f"silent: other losses after {happened}")
    return RIGHT


def fuzz(what: str, world: World, rng: random.Random, place: pathlib.Path) -> Counts:
    """Inputs by hypothesis, in one process; the smallest that fails is in its standard error."""
    world.prepare("fuzz", place)
    attack = what if ":" in what else f"tests.chaos.fuzz:{what}"
    argv = ["tests.chaos.fuzz:main", attack, str(rng.randrange(2**32)), "200"]
    (done,) = world.server.run(Start(argv, str(place), seconds=600, memory=world.memory))
    if wrong := spoken(done, said(place), (0,)):
        raise Wrong(f"{wrong}: {said(place)}")
    return Counts(json.loads((place / "stdout").read_text().splitlines()[-1]))


_TRAIN = tuple(f"train {method}" for method in METHODS)
_CONVERT = ("convert native", "convert t5x", "convert huggingface")
_USES = ("export", "infer", "report")
_FUZZED = ("gin", "tsv", "records", "safetensors", "msgpack", "adapter", "request")
KINDS: dict[str, Trial] = {
    f"{trial.__name__} {what}": functools.partial(trial, what)
    for trial, objects in (
        (kill, (*_TRAIN, "tokens", "eval", *_CONVERT, *_USES)),
        (stop, (*_TRAIN, "eval", "convert t5x", "infer", "report")),
        (full, (*_TRAIN, "tokens", "eval", *_CONVERT, *_USES)),
        (clock, ("train adalink", "eval", "convert t5x")),
        (twice, ("train adalink", "eval", "convert native", "report")),
        (damage, ("resume", "train again", "train lora", "eval", *_CONVERT, *_USES)),
        (hosts, ("train adalink",)),
        (fuzz, _FUZZED),
    )
    for what in objects
}


def run(
    world: World, kinds: Mapping[str, Trial], seed: int, numbers: Iterable[int], kept: pathlib.Path
) -> Iterator[tuple[str, Counts]]:
    """Runs trials of these kinds in turn, and yields each one's kind and counts.

    Args:
      world: the world.
      kinds: the trials by name, such as `KINDS`.
      seed: seed of all trials.
      numbers: the trials' numbers; a seed, a kind and a number are one trial.
      kept: the folder of a failure's files, with all that was run and how it ended.
    """
    names = list(kinds)
    for number in numbers:
        kind, place = names[number % len(names)], world.folder / "trial"
        place.mkdir()
        world.server.history.clear()
        try:
            counts = kinds[kind](world, random.Random(f"{seed}/{kind}/{number}"), place)
        except EOFError:  # There is no server any more.
            raise
        except Exception as error:
            wrong = str(error)
            if not isinstance(error, Wrong):
                wrong = f"broken: {error!r}\n{traceback.format_exc()}"
            word = wrong.partition(":")[0]
            counts = Counts({word: 1})
            print(f"{kind}, number {number}: {wrong[:300]}", flush=True)
            folder = kept / f"{kind.replace(' ', '_')}-{seed}-{number}"
            shutil.copytree(place, folder, dirs_exist_ok=True)
            flags = f"--seed {seed} --first {number} --kind '{kind}' --hours 0"
            lines = (f"{_told(start)}\n  {end}" for start, end in world.server.history)
            (folder / "wrong.txt").write_text("\n".join((flags, *lines, wrong)))
        shutil.rmtree(place)
        yield kind, counts


def _told(start: Start) -> str:
    """A command line, and what is special about its start."""
    usual = vars(Start([], start.folder, stdin=start.stdin))
    special = [f"{k}={v}" for k, v in vars(start).items() if v != usual[k] and k != "argv"]
    return "; ".join([shlex.join(start.argv), *special])


def _moment(world: World, job: str, rng: random.Random) -> dict[str, float]:
    end = world.reference(job)
    if end.events and rng.random() < 0.5:
        return {"event": rng.randint(1, end.events)}
    return {"seconds": rng.uniform(0, end.seconds)}


def _run(world: World, job: str, starts: Sequence[Start], codes: tuple[int, ...]) -> list[End]:
    """Starts a job, which must end well; if it says that its work is done, it is."""
    ends = world.server.run(*starts)
    place = pathlib.Path(starts[0].folder)
    for start, end in zip(starts, ends, strict=True):
        if wrong := spoken(end, said(place, start.name), codes) or whole(place):
            raise Wrong(f"{wrong}: {said(place, start.name)}")
    if any(end.code == 0 for end in ends) and (differing := world.differing(job, place)):
        raise Wrong(f"silent: other {', '.join(differing)}")
    return ends


def _ended(world: World, job: str, place: pathlib.Path) -> Counts:
    """Starts the job again, undisturbed: it must end as one that never was disturbed."""
    (done,) = _run(world, job, [world.start(job, place)], (0, 2))
    if done.code == 2 and world.differing(job, place):  # It may refuse where all is there already.
        raise Wrong(f"stranded: {said(place)}")
    if done.code == 0 and (left := world.left_behind(job, place)):
        raise Wrong(left)
    return RIGHT


def _losses(products: dict[str, bytes]) -> list[float]:
    lines = map(json.loads, products["run/metrics.jsonl"].splitlines())
    return [line["train/loss"] for line in lines if "train/loss" in line]
