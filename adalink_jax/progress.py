"""Says how far work is: a bar on a terminal, a line that changes in a notebook, lines elsewhere.

All of it goes to the standard error, and is of the first process of a run alone. Where there is
neither terminal nor notebook (a file, a cluster's log) there is a line every half minute, so work
that ends sooner says nothing. Of several threads, the first one that has a bar shows its own.
"""

import contextlib
import functools
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

# Between two lines of a log, and between two changes of a bar.
LINE_SECONDS, BAR_SECONDS = 30.0, 0.1

Note = str | Callable[[], str]


class Bar:
    """Work that is told of, as `bar` gives it.

    Attributes:
      what: what is done.
      total: how many of them; 0 if nobody knows.
      unit: of what there are so many.
      done: how many are done.
    """

    def __init__(self, what: str, total: int, unit: str, done: int, shown: "_Lines"):
        self.what, self.total, self.unit, self.done, self._shown = what, total, unit, done, shown
        self._first, self._began = done, time.monotonic()

    def at(self, done: int, note: Note | None = None) -> None:
        """Says that so many are done.

        Args:
          done: how many.
          note: what is said beside it, or what makes it; None for the time that is left.
        """
        self.done = done
        if self._shown.is_due():
            self._show(note)

    def advance(self, count: int = 1) -> None:
        """Says that so many more are done."""
        self.at(self.done + count)

    def says(self, text: str, line: bool = True) -> None:
        """Says at once what is done meanwhile, which may take long.

        Args:
          text: what is done.
          line: whether that is worth a line of its own in a log.
        """
        if line or self._shown.changes:
            self._shown.show(self, text, alone=True)

    def _show(self, note: Note | None) -> None:
        if note is None:
            since, count = time.monotonic() - self._began, self.done - self._first
            known = count > 0 and self.total >= self.done
            note = left(since / count * (self.total - self.done)) if known else ""
        self._shown.show(self, note if isinstance(note, str) else note())


def left(seconds: float) -> str:
    """Returns a time that is left, such as "1:02:03 left" or "0:46 left"."""
    minutes, second = divmod(max(0, round(seconds)), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02} left" if hours else f"{minute}:{second:02} left"


@contextlib.contextmanager
def bar(what: str, total: int, unit: str = "", done: int = 0) -> Iterator[Bar]:
    """Yields a bar of work inside the block. Bars inside of it are shown below it.

    Args:
      what: what is done, such as "training".
      total: how many of them there are; 0 if nobody knows.
      unit: of what, in the plural.
      done: how many are done already.
    """
    outermost = _here.shown is None
    shows = outermost and _screen.acquire(blocking=False)
    if _here.shown is None:
        _here.shown = _medium() if shows else _Nothing()
    shown = _here.shown
    one = Bar(what, total, unit, done, shown)
    try:
        shown.begin(one)
        yield one
    finally:
        shown.end(one, outermost)
        if outermost:
            _here.shown = None
        if shows:
            _screen.release()


class _Lines:
    """A line now and then."""

    changes = False  # Whether what was shown is replaced.

    def __init__(self, seconds: float = LINE_SECONDS):
        self._seconds, self._said = seconds, time.monotonic()

    def is_due(self) -> bool:
        return time.monotonic() - self._said >= self._seconds

    def begin(self, one: Bar) -> None:
        pass

    def show(self, one: Bar, note: str, alone: bool = False) -> None:
        self._said = time.monotonic()
        self._say(note if alone else f"{one.what}: {_count(one)}{', ' * bool(note)}{note}")

    def end(self, one: Bar, last: bool) -> None:
        pass

    def _say(self, line: str) -> None:
        with contextlib.suppress(OSError):  # A full disk: the run's own files will say so.
            print(line, file=sys.stderr, flush=True)


class _Notebook(_Lines):
    """A line in the output of a cell, which changes."""

    changes = True

    def __init__(self):
        display: Any = sys.modules["IPython"].display.display
        super().__init__(5 * BAR_SECONDS)
        self._bars: list[Bar] = []
        self._display = functools.partial(display, raw=True)
        self._handle = self._display({"text/plain": ""}, display_id=True)

    def begin(self, one: Bar) -> None:
        self._bars.append(one)

    def show(self, one: Bar, note: str, alone: bool = False) -> None:
        self._said = time.monotonic()
        parts = (*(f"{other.what} {_drawn(other)} {_count(other)}" for other in self._bars), note)
        self._handle.update({"text/plain": "  ".join(filter(None, parts))}, raw=True)

    def end(self, one: Bar, last: bool) -> None:
        self.show(one, "")
        self._bars.remove(one)


class _Terminal(_Lines):
    """Bars below each other, of which the outermost stays."""

    changes = True

    def __init__(self, console: Any):
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        super().__init__(BAR_SECONDS)
        self._rich = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[count]}"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
        )
        self._tasks: dict[Bar, Any] = {}

    def begin(self, one: Bar) -> None:
        if not self._tasks:
            self._rich.start()
        self._tasks[one] = self._rich.add_task(
            one.what, total=one.total, completed=one.done, note="", count=_count(one)
        )

    def show(self, one: Bar, note: str, alone: bool = False) -> None:
        self._said = time.monotonic()
        self._rich.update(self._tasks[one], completed=one.done, note=note, count=_count(one))

    def end(self, one: Bar, last: bool) -> None:
        task = self._tasks.pop(one)
        self._rich.update(task, completed=one.done, count=_count(one))
        if last:
            self._rich.stop()
        else:
            self._rich.remove_task(task)


class _Nothing(_Lines):
    """What other hosts and threads than the first say."""

    def _say(self, line: str) -> None:
        pass


def _medium() -> _Lines:
    jax = sys.modules.get("jax")
    if jax is not None and jax.process_index() != 0:
        return _Nothing()
    from rich.console import Console

    console = Console(stderr=True)
    if console.is_jupyter:
        return _Notebook()
    return _Terminal(console) if console.is_terminal else _Lines()


def _count(one: Bar) -> str:
    of = f" of {one.total:,}" if one.total >= one.done and one.total else ""
    return f"{one.done:,}{of}{' ' * bool(one.unit)}{one.unit}"


def _drawn(one: Bar, width: int = 20) -> str:
    full = round(width * min(one.done / one.total, 1)) if one.total else width
    return "█" * full + "░" * (width - full)


class _Here(threading.local):
    shown: _Lines | None = None


_here = _Here()  # The medium of this thread, while it has a bar.
_screen = threading.Lock()  # Of the thread whose bars are shown.
