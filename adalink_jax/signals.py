"""Signals: what SIGINT (Ctrl-C), SIGTERM and SIGHUP do to a command.

They end it at once with one line, as a kill would: whatever is killed loses nothing. Where the
work of hours is worth a moment, a block waits (`waiting`): the first signal is only noted, and a
second Ctrl-C ends the command. A signal that the shell told the command to ignore stays ignored.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

_waiting: "Wish | None" = None


class Stopped(KeyboardInterrupt):
    """A signal has stopped the command; the message is one line.

    Attributes:
      code: the exit code, 128 and the signal's number.
    """

    def __init__(self, number: int, message: str):
        super().__init__(message)
        self.code = 128 + number


class Wish:
    """The wish to stop, in a block of `waiting`.

    Attributes:
      number: the signal's number; 0 without a wish.
    """

    def __init__(self, once: str):
        self.number = 0
        self._taken, self._once = False, once

    def take(self) -> None:
        """From now on a signal is noted. Before, it ends the command, as outside of the block."""
        self._taken = True

    def note(self, number: int) -> bool:
        """Notes a signal; returns False if it must end the command at once."""
        if not self._taken or (self.number == number == signal.SIGINT):
            return False
        if not self.number:
            self.number = number
            _say(f"{signal.Signals(number).name}: stopping once {self._once}")
        return True


@contextlib.contextmanager
def waiting(once: str = "the work so far is saved") -> Iterator[Wish]:
    """Yields a wish, which a signal sets inside the block once `Wish.take` was called.

    It does so in a command (`listening`), and in the main thread of any other program, such as a
    notebook. There a second Ctrl-C raises `KeyboardInterrupt`.

    Args:
      once: what is waited for, as the line on the terminal says it.
    """
    global _waiting
    before, wish = _waiting, Wish(once)

    def heard(number: int, frame: object) -> None:
        if not wish.note(number):
            raise KeyboardInterrupt

    _waiting = wish
    try:
        # A command hears signals in its own thread.
        with contextlib.nullcontext() if _listens else _handled(heard):
            yield wish
    finally:
        _waiting = before


_listens = False


@contextlib.contextmanager
def listening() -> Iterator[None]:
    """Makes signals end this process inside the block: one line, and exit code 128 + number.

    A thread hears them, because Python's own handlers run only between two lines of Python, and
    compiling a large model is one line for minutes. Outside the main thread, nothing is changed.
    """
    global _listens
    if _listens or threading.current_thread() is not threading.main_thread():
        yield
        return
    heard, told = os.pipe()
    os.set_blocking(told, False)
    thread = threading.Thread(target=_hear, args=(heard,), daemon=True, name="signals")
    thread.start()
    before, _listens = signal.set_wakeup_fd(told, warn_on_full_buffer=False), True
    try:
        # Only a signal with a handler of Python's is written to the pipe.
        with _handled(lambda number, frame: None):
            yield
    finally:
        signal.set_wakeup_fd(before)
        _listens = False
        os.close(told)
        thread.join()
        os.close(heard)


@contextlib.contextmanager
def _handled(handler) -> Iterator[None]:
    """Sets the handler of all signals but ignored ones; only in the main thread."""
    before = {}
    if threading.current_thread() is threading.main_thread():
        before = {one: signal.getsignal(one) for one in _SIGNALS}
        before = {one: old for one, old in before.items() if old is not signal.SIG_IGN}
    try:
        for one in before:
            signal.signal(one, handler)
        yield
    finally:
        for one, old in before.items():
            signal.signal(one, old or signal.SIG_DFL)  # None: another library's.


def _hear(pipe: int) -> None:
    while number := os.read(pipe, 1):
        if number[0] in _SIGNALS and not (_waiting and _waiting.note(number[0])):
            _say(f"stopped by {signal.Signals(number[0]).name}")
            os._exit(128 + number[0])


def _say(line: str) -> None:
    # Not printed: the thread that is interrupted may hold the stream.
    with contextlib.suppress(OSError):
        os.write(2, f"{line}\n".encode())
