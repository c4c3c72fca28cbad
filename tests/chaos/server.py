"""A fork server: runs command lines in processes that have already imported everything.

``python -m tests.chaos.server MODULE…`` imports modules and reads lists of `Start`s from its input,
a JSON list on a line. It runs each list side by side, in forked processes, and answers with a list
of `End`s. A fork takes some 20 ms, where starting Python and importing this project takes six
seconds. Nothing but modules is there before the fork: no device, no thread, no open file.
"""

import contextlib
import dataclasses
import datetime
import errno
import faulthandler
import gc
import importlib
import json
import mmap
import os
import pathlib
import pkgutil
import resource
import signal
import subprocess
import sys
import time
from typing import Any

import tests.conftest  # noqa: F401  (It sets the environment in which tests run.)

ROOT = pathlib.Path(__file__).resolve().parents[2]
# What the commands of the trials import.
MODULES = (
    "adalink_jax.cli",
    "adalink_jax.runs",
    "adalink_jax.adapters.export",
    "adalink_jax.config.gin_files",
    "adalink_jax.tools.convert",
    "adalink_jax.tools.report.command",
    "adalink_jax.tools.serving.command",
    "hypothesis",
    "tasks",
)
OUTPUTS = ("stdout", "stderr")
# Programs that took fewer seconds to compile are not kept.
_COMPILED = "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"


@dataclasses.dataclass(frozen=True)
class Start:
    """A command line of `adalink` to run, and what happens to it.

    Attributes:
      argv: the command's arguments; or a function as "module:name", and its arguments.
      folder: the folder in which it runs. Its changes of files are counted there, and its output
        is written there.
      name: what the files of its output begin with, before "stdout" and "stderr".
      stdin: the path of its input.
      environment: variables that are set for it.
      late: seconds after which it begins.
      seconds: until it counts as hanging.
      memory: bytes that it may take above those of the start.
      at: {"seconds": S}, or {"event": N}: before its Nth change of a file in the folder.
      what: what happens then: a signal's name, or "full" for a disk that is full from then on.
      room: bytes that a file may have, of a quota; 0 for no quota.
      clock: seconds by which the clock is wrong after each event, in turn.
    """

    argv: list[str]
    folder: str
    name: str = ""
    stdin: str = os.devnull
    environment: dict[str, str] = dataclasses.field(default_factory=dict)
    late: float = 0.0
    seconds: float = 240.0
    memory: int = 2 << 30
    at: dict[str, float] = dataclasses.field(default_factory=dict)
    what: str = ""
    room: int = 0
    clock: list[float] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class End:
    """How a process ended.

    Attributes:
      code: its exit code; negative is the signal that ended it.
      wrong: "hang" or "memory" if it was ended because it took too much; else "".
      memory: bytes at its largest, above those of the start.
      seconds: how long it took.
      events: how many changes of files it has begun.
    """

    code: int
    wrong: str
    memory: int
    seconds: float
    events: int = 0


class Server:
    """The fork server's process, for who asks it. It ends with its block.

    Attributes:
      history: what was run, and how it ended.
    """

    def __init__(self, *modules: str):
        """Says which modules are imported before a fork."""
        self.history: list[tuple[Start, End]] = []
        self._modules = modules

    def __enter__(self) -> "Server":
        self._process = subprocess.Popen(
            [sys.executable, "-m", __spec__.name, *self._modules],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        return self

    def __exit__(self, *_: Any) -> None:
        self._process.communicate()

    def run(self, *starts: Start) -> list[End]:
        """Runs command lines side by side, until all have ended."""
        assert self._process.stdin and self._process.stdout
        print(json.dumps([dataclasses.asdict(s) for s in starts]), file=self._process.stdin)
        self._process.stdin.flush()
        if not (answer := self._process.stdout.readline()):
            raise EOFError("the fork server has ended")
        ends = [End(**end) for end in json.loads(answer)]
        self.history += zip(starts, ends, strict=True)
        return ends


class _Child:
    """A forked process that is a `Start`, as the server sees it."""

    def __init__(self, start: Start):
        """Forks. In the forked process `pid` is 0, and it has its input and output."""
        self.start, self._wrong = start, ""
        self.end: End | None = None
        # Both processes see it: the number of events, the memory of the start, and if it began.
        self._shared, self._ready = mmap.mmap(-1, 24), 0.0
        pipes = [os.pipe() for _ in OUTPUTS]
        self._begun = time.monotonic()
        self.pid = os.fork()
        if self.pid == 0:
            self._shared[8:16] = _resident(os.getpid()).to_bytes(8, "little")
            os.setsid()
            os.chdir(start.folder)
            os.dup2(os.open(start.stdin, os.O_RDONLY), 0)
            for number, pipe in enumerate(pipes, 1):
                os.dup2(pipe[1], number)
            return
        self._pipes = [pipe[0] for pipe in pipes]
        for ours, theirs in pipes:
            os.close(theirs)
            os.set_blocking(ours, False)
        # Not the process's own files: a disk that is full for it does not silence it.
        self._files = [open(f"{start.folder}/{start.name}{name}", "wb") for name in OUTPUTS]

    def look(self) -> None:
        """Lets happen what must happen now, and sets `end` if the process has ended."""
        ended, status, usage = os.wait4(self.pid, os.WNOHANG)
        self._drain()
        seconds = time.monotonic() - self._begun
        memory = max(_resident(self.pid), 1024 * usage.ru_maxrss) - self._number(8)
        if ended:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)  # What it has started.
            for file in (*self._files, *map(os.fdopen, self._pipes)):
                file.close()
            events = self._number(0)
            wrong = self._wrong or ("memory" if memory > self.start.memory else "")
            code = os.waitstatus_to_exitcode(status)
            self.end = End(code, wrong, memory, round(seconds, 2), events)
        elif memory > self.start.memory or seconds > self.start.seconds:
            self._wrong = "hang" if seconds > self.start.seconds else "memory"
            os.kill(self.pid, signal.SIGKILL)
        elif not self._ready and self._number(16):
            self._ready = seconds
        elif self._ready and seconds - self._ready >= self.start.at.get("seconds", float("inf")):
            self.start = dataclasses.replace(self.start, at={})
            if self.start.what == "full":
                _fill(self.pid)
            else:
                os.kill(self.pid, signal.Signals[self.start.what])

    def _number(self, place: int) -> int:
        return int.from_bytes(self._shared[place : place + 8], "little")

    def _drain(self) -> None:
        for pipe, file in zip(self._pipes, self._files, strict=True):
            with contextlib.suppress(BlockingIOError):
                while content := os.read(pipe, 1 << 16):
                    file.write(content)

    def run(self) -> int:
        """Runs the command line, in the forked process."""
        start = self.start
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # The server's has a buffer.
        os.environ.update(start.environment)
        # Before it is ended for taking too long, it says where it is.
        faulthandler.dump_traceback_later(0.9 * start.seconds)
        if probe := sys.modules.get("adalink_jax.adapters.probe"):
            # Not in a new Python, which takes six seconds.
            probe.logits_of = lambda path, _, images=True: probe.base_logits(path, images)
            probe.has_transformers = lambda: False
        self._prepare()
        time.sleep(start.late)  # So that two starts meet at another moment in each trial.
        self._shared[16:24] = (1).to_bytes(8, "little")
        if ":" in start.argv[0]:
            return pkgutil.resolve_name(start.argv[0])(*start.argv[1:]) or 0
        from adalink_jax import cli

        return cli.main(start.argv)

    def _prepare(self) -> None:
        """Makes this process one to which something will happen."""
        start, shared, real, wrong, count = self.start, self._shared, time.time, 0.0, 0

        def hook(name: str, arguments: tuple[Any, ...]) -> None:
            nonlocal count, wrong
            if not _changes(name, arguments, start.folder):
                return
            count += 1
            shared[:8] = count.to_bytes(8, "little")
            if start.clock:
                wrong = start.clock[count % len(start.clock)]
            if start.what == "full" and count >= start.at.get("event", count + 1):
                _fill(0)
                if name not in ("os.remove", "os.rmdir"):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), arguments[0])
            elif count == start.at.get("event"):
                os.kill(os.getpid(), signal.Signals[start.what])

        if start.what or start.room:
            # Or half a program would stay in the cache of all tests.
            os.environ[_COMPILED] = "1e9"
            if "jax" in sys.modules:
                sys.modules["jax"].config.update(_COMPILED.lower(), 1e9)
        if start.clock:
            _replace_clock(lambda: real() + wrong)
        if start.room:
            resource.setrlimit(resource.RLIMIT_FSIZE, (start.room, start.room))
        sys.addaudithook(hook)


def _fill(pid: int) -> None:
    """Lets no file grow any more that a process writes, whichever of its threads or libraries."""
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, 0))


def _replace_clock(now: Any) -> None:
    class Wrong(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return cls.fromtimestamp(now(), tz)

    time.time, time.time_ns, datetime.datetime = now, lambda: int(1e9 * now()), Wrong


# Python's audit events of what changes files and folders, besides "open".
_CHANGES = ("os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate", "os.link")


def _changes(name: str, arguments: tuple[Any, ...], folder: str) -> bool:
    """Returns whether an audit event is a change of a file in the folder, or may be one."""
    if name == "open":
        flags = arguments[2]
        if not isinstance(flags, int) or not flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            return False
    elif name not in _CHANGES:
        return False
    path = arguments[0]
    if isinstance(path, int):  # A descriptor: what it is was looked at when it was opened.
        return False
    path = os.fsdecode(path)
    return path.startswith(folder) or not path.startswith("/")


def _resident(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * resource.getpagesize()
    except (OSError, IndexError):  # It has ended.
        return 0


def _serve(starts: list[Start]) -> list[_Child] | _Child:
    """Runs the command lines; in a process that is to be one of them, returns that one."""
    children: list[_Child] = []
    for start in starts:
        children.append(_Child(start))
        if children[-1].pid == 0:
            return children[-1]
    while not all(child.end for child in children):
        # A child's memory and what it prints have no event to wait for.
        time.sleep(0.005)
        for child in children:
            if child.end is None:
                child.look()
    return children


def main() -> int:
    """Serves until the input ends. A forked process leaves through here too, as any would."""
    for module in sys.argv[1:]:
        importlib.import_module(module)
    gc.freeze()  # What is imported stays shared with the forked processes.
    for text in sys.stdin:
        answer = _serve([Start(**start) for start in json.loads(text)])
        if isinstance(answer, _Child):
            return answer.run()
        print(json.dumps([dataclasses.asdict(child.end) for child in answer]), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
