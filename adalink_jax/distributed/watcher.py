"""The watcher: a process on each host that notices when another host fails.

`adalink_jax.distributed.hosts` starts one on every host. It imports only the standard library.
The watcher of host 0 listens at the coordinator's address, and on no other interface if that
address belongs to the machine. All watchers, including its own, connect to it, prove that they know
the run's token and keep the connection open. So every host soon knows when another is missing,
fails, dies or stands still. The watcher is a process and not a thread for two reasons: JAX aborts
a host as soon as the coordinator is gone, and a thread cannot send anything while another one holds
the interpreter. A watcher lives on where its run is frozen, so its own sign of life says nothing of
the run. It sends what the run itself came to, and what the system says of the run's process.

Messages are lines of JSON with one key. The run sends "reached" (a point of its work), "gather" (a
value), "done", "mistaken" (a user's mistake, which it prints itself) or "failed" (any other
exception). It receives "here" (the names of all hosts, a port for JAX, and host 0's interface),
"gathered" (the values of all hosts), "over" (all are done) or "end" (a text: the run must end).
Between watchers there are also "nonce" (host 0's greeting), "hello" (a host's place and proof) and
"beat" (a sign of life, with the run's state).
"""

import asyncio
import collections
import contextlib
import dataclasses
import hmac
import itertools
import json
import os
import pathlib
import secrets
import signal
import socket
import sys
import time
from typing import Any

# Seconds: between two signs of life; without one before a host counts as dead; that a run may be
# stopped by a signal as long; for a run to end by itself before it is killed; and from the first
# failure to the end of the run, so that other hosts can report theirs.
BEAT, SILENCE, MERCY, GRACE = 5, 40, 5, 1
# Seconds that a run may stand still where another goes on, and for host 0 to greet who connects.
STANDSTILL, GREETING = 300, 10
# The share of one core below which a run neither computes, compiles nor reads.
IDLE = 0.01
_LIMIT = 1 << 26  # Maximum bytes of a message.
# Names the secret that all hosts of a run share.
TOKEN = "ADALINK_HOSTS_TOKEN"


def line(**message: Any) -> bytes:
    """Encodes a message."""
    return json.dumps(message).encode() + b"\n"


def message_of(text: bytes) -> dict[str, Any]:
    """Decodes a message.

    Raises:
      ValueError: it is none; it may come from anybody.
    """
    try:
        message = json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(message, dict):
        raise ValueError("no message")
    return message


def proof(token: str, nonce: str) -> str:
    """Returns what shows that one knows the token, which itself is never sent."""
    return hmac.new(token.encode(errors="surrogatepass"), nonce.encode(), "sha256").hexdigest()


def own_interface(host: str) -> str:
    """Returns the address of this machine's interface with the given host name, or "".

    It is "" if the name belongs to another machine, which forwards connections, or is not known
    here yet. It is also "" if the name only means the loopback in this machine's own files, and
    another interface on other machines, as on Debian.
    """
    try:
        address = str(socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0][4][0])
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.bind((address, 0))
    except OSError:
        return ""
    loopback = address == "::1" or address.startswith("127.")
    return "" if loopback and host not in (address, "localhost") else address


@dataclasses.dataclass
class State:
    """What a watcher knows of its run. Times are in seconds, counted in beats.

    A frozen run and one that compiles for minutes say the same, nothing. But the frozen one is
    stopped or uses no CPU time, as ``/proc`` shows; without ``/proc`` both count as busy.

    Attributes:
      reached: number of points of its work that the run has come to.
      point: the last of them.
      stopped: whether the process is stopped, by a signal or a debugger.
      idle: how long it has come to no point and used next to no CPU time.
      waiting: how long a thread has been seen in waits that no signal interrupts, as for a disk or
        a network file system that does not answer.
    """

    reached: int = 0
    point: str = "its start"
    stopped: bool = False
    idle: int = 0
    waiting: int = 0


class Pulse:
    """Follows the state of one run."""

    def __init__(self, pid: int):
        """Takes the process id of the run."""
        self.state = State()
        self._folder = pathlib.Path("/proc", str(pid))
        self._busy: tuple[int, float] = (-1, 0.0)  # Points and CPU time when it was last busy.
        self._waits: dict[str, int] = {}

    def reach(self, point: str) -> None:
        """Takes a point that the run has come to."""
        self.state.reached += 1
        self.state.point = point

    def beat(self) -> dict[str, Any]:
        """Looks at the process, once in `BEAT` seconds, and returns the state as a message."""
        state = self.state
        with contextlib.suppress(OSError, ValueError, IndexError):  # It is gone, or no Linux.
            status, seconds = _status(self._folder)
            threads = [(p.name, _status(p)[0]) for p in (self._folder / "task").iterdir()]
            self._waits = {n: self._waits.get(n, 0) + BEAT for n, s in threads if s == "D"}
            state.waiting = max(self._waits.values(), default=0)
            state.stopped = status in "Tt"
            state.idle += 0 if state.stopped else BEAT
            if state.reached != self._busy[0] or seconds > self._busy[1] + IDLE * STANDSTILL:
                self._busy, state.idle = (state.reached, seconds), 0
        return dataclasses.asdict(state)


def _status(folder: pathlib.Path) -> tuple[str, float]:
    """Returns the state of a process or thread in ``/proc``, a letter, and its CPU seconds."""
    fields = (folder / "stat").read_text().rpartition(")")[2].split()
    return fields[0], (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Register:
    """Host 0's list of all hosts: which are connected, what they sent, and which are gone."""

    def __init__(self, count: int, wait: float, token: str, interface: str):
        """Expects `count` hosts with the token within `wait` seconds, on `interface`."""
        self.count, self.wait, self.token, self.interface = count, wait, token, interface
        self.writers: dict[int, asyncio.StreamWriter] = {}
        self.readers: dict[int, asyncio.StreamReader] = {}
        self.unheard: dict[int, int] = {}
        self.names: dict[int, str] = {}
        self.states: dict[int, State] = {}
        self.stopped: collections.Counter[int] = collections.Counter()
        self.values: dict[int, Any] = {}
        self.done: set[int] = set()
        self.over = False
        self.ending = False  # Only the first reason counts; later ones follow from it.

    async def meet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serves the connection of one host."""
        nonce = secrets.token_hex(16)
        writer.write(line(nonce=nonce))
        try:
            hello = message_of(await asyncio.wait_for(reader.readline(), SILENCE))["hello"]
            index, count, name = int(hello["index"]), int(hello["count"]), str(hello["name"])
            shown = str(hello["proof"]).encode(errors="surrogatepass")
        except (TimeoutError, ValueError, OverflowError, KeyError, TypeError, OSError):
            return writer.close()  # Not a host of a run.
        if not hmac.compare_digest(shown, proof(self.token, nonce).encode()):
            writer.write(line(end=f"{name} came with another {TOKEN} than host 0 has"))
            return writer.close()
        if count != self.count or not 0 <= index < count or index in self.writers:
            reason = f"this run has {self.count} hosts"
            if index in self.writers:
                reason = f"so did {self.names[index]}; does another run have this address?"
            writer.write(line(end=f"{name} came as host {index} of {count}, but {reason}"))
            return writer.close()
        self.writers[index], self.names[index] = writer, name
        self.readers[index], self.unheard[index], self.states[index] = reader, 0, State()
        if len(self.writers) == self.count:
            with socket.socket() as free:
                free.bind(("", 0))
                port = free.getsockname()[1]
            names = [self.names[i] for i in range(self.count)]
            self.tell(here={"names": names, "port": port, "interface": self.interface})
        try:
            while message := await reader.readline():
                self.unheard[index] = 0
                self.hear(index, message_of(message))
            reason = "ended without a word (killed, or crashed)"
        except TimeoutError:
            reason = f"was silent for {SILENCE} s"
        except (ValueError, TypeError, OSError) as error:
            reason = f"cannot be heard: {error}"
        self.blame(index, reason)

    def hear(self, index: int, message: dict[str, Any]) -> None:
        """Handles a message from one host."""
        if "beat" in message:
            self.states[index] = State(**message["beat"])
        elif "gather" in message:
            self.values[index] = message["gather"]
            if len(self.values) == self.count:
                values, self.values = [self.values[i] for i in range(self.count)], {}
                self.tell(gathered=values)
        elif "done" in message:
            self.done.add(index)
            if len(self.done) == self.count:
                self.over = True
                self.tell(over=True)
        elif "mistaken" in message:
            self.end(f"{self.label(index)} failed: {message['mistaken']}; all hosts end", GRACE)
        elif "failed" in message:
            self.blame(index, f"failed: {message['failed']}", GRACE)

    def label(self, index: int) -> str:
        """Returns a host's name in errors."""
        return f"host {index} ({self.names[index]})"

    def blame(self, index: int, reason: str, grace: float = 0) -> None:
        """Ends the run because of a host, or of one that is stopped: others fail of that first."""
        for other, state in self.states.items():
            if state.stopped:
                index = other
                reason = f"was stopped at {state.point}, by a signal or a debugger"
        self.end(f"{self.label(index)} {reason}; all hosts end", grace)

    def judge(self) -> None:
        """Ends the run if one host is stopped or stands still, and names it."""
        ahead = max(self.states, key=lambda index: self.states[index].reached, default=0)
        # If all are stopped, somebody means it, and will let them go on.
        meant = all(state.stopped for state in self.states.values())
        for index, state in self.states.items():
            still = f"has stood still at {state.point} for {STANDSTILL} s"
            self.stopped[index] += BEAT
            if meant or not state.stopped:
                self.stopped[index] = 0
            elif self.stopped[index] > SILENCE:
                self.blame(index, "was stopped")
            if min(state.idle, state.waiting) >= STANDSTILL:
                self.blame(index, f"{still}, waiting for a disk or a network")
            elif state.idle >= STANDSTILL and state.reached < self.states[ahead].reached:
                point = self.states[ahead].point
                self.blame(index, f"{still}, while {self.label(ahead)} is at {point}")

    def tell(self, **message: Any) -> None:
        """Sends a message to all connected hosts."""
        for writer in self.writers.values():
            writer.write(line(**message))

    def end(self, text: str, grace: float = 0) -> None:
        """Ends the run on all hosts, unless it is over or another reason came first."""
        if not self.over and not self.ending:
            self.ending = True
            asyncio.get_running_loop().call_later(grace, lambda: self.tell(end=text))

    async def keep(self) -> None:
        """Sends signs of life, and ends the run if hosts are missing, silent or standing still."""
        asyncio.get_running_loop().call_later(self.wait, self._expect_all)
        while True:
            self.tell(beat={})
            self.judge()
            for index in self.unheard:
                self.unheard[index] += BEAT
                if self.unheard[index] > SILENCE:
                    self.readers[index].set_exception(TimeoutError())
            await asyncio.sleep(BEAT)

    def _expect_all(self) -> None:
        if len(self.names) < self.count:
            absent = (str(i) for i in range(self.count) if i not in self.names)
            missing = ", ".join(itertools.islice(absent, 16))
            missing += ", …" if self.count - len(self.names) > 16 else ""
            here = ", ".join(f"{i} ({name})" for i, name in sorted(self.names.items()))
            self.end(
                f"of {self.count} hosts, {missing} did not come in {self.wait:g} s; here: {here}"
            )


class Watcher:
    """Connects one host's run, through pipes, to host 0's register."""

    def __init__(self, settings: dict[str, Any]):
        """Takes the run's settings: address, index, count, name, wait, token and pid."""
        self.settings = settings
        self.here = self.over = self.mistaken = self.ended = False
        self.server: asyncio.StreamWriter | None = None
        self.unheard = 0
        self.pulse = Pulse(settings["pid"])

    def tell_run(self, message: bytes) -> None:
        """Sends a line to the run, which may be gone."""
        with contextlib.suppress(OSError):
            sys.stdout.buffer.write(message)
            sys.stdout.buffer.flush()

    async def watch(self) -> None:
        """Watches until the run is over, or must end."""
        host, _, port = self.settings["address"].rpartition(":")
        first = self.settings["index"] == 0
        tasks = []  # asyncio itself holds no strong reference to a task.
        if first:
            interface = own_interface(host.strip("[]"))
            count, wait, token = (self.settings[key] for key in ("count", "wait", "token"))
            register = Register(count, wait, token, interface)
            try:
                await asyncio.start_server(
                    register.meet, interface or None, int(port), limit=_LIMIT
                )
            except OSError as error:
                return self.tell_run(line(end=f"host 0 cannot listen on port {port}: {error}"))
            tasks.append(asyncio.create_task(register.keep()))
            host = interface or "127.0.0.1"
        reader = await self._connect(host.strip("[]"), int(port))
        if reader is None:
            return None
        listening = asyncio.create_task(self._listen_to_run())
        tasks.append(asyncio.create_task(self._beat(reader)))
        if await self._listen_to_server(reader):
            await asyncio.wait([listening], timeout=MERCY)
            if not listening.done():
                os.kill(self.settings["pid"], signal.SIGKILL)
        if first:
            await asyncio.sleep(GRACE)  # Until the others have received it too.
        return None

    async def _connect(self, host: str, port: int) -> asyncio.StreamReader | None:
        """Connects to host 0 and identifies this host; retries until the waiting time is over."""
        wait = self.settings["wait"]
        deadline = time.monotonic() + wait
        while True:
            try:
                reader, self.server = await asyncio.wait_for(
                    asyncio.open_connection(host, port, limit=_LIMIT), max(wait, 1)
                )
            except OSError as error:
                if time.monotonic() < deadline:
                    await asyncio.sleep(0.2)
                    continue
                text = f"host 0 did not answer at {host}:{port} within {wait:g} s ({error})"
                self.tell_run(line(end=text))
                return None
            try:
                greeting = message_of(await asyncio.wait_for(reader.readline(), GREETING))
                shown = proof(self.settings["token"], greeting["nonce"])
            except (TimeoutError, ValueError, KeyError, AttributeError, OSError):
                text = f"what answers at {host}:{port} is not host 0, or one of another version"
                self.tell_run(line(end=f"{text}; does another program have this port?"))
                return None
            hello = {key: self.settings[key] for key in ("index", "count", "name")}
            self.server.write(line(hello={**hello, "proof": shown}))
            return reader

    async def _listen_to_server(self, reader: asyncio.StreamReader) -> bool:
        """Forwards messages to the run; returns whether the run must end."""
        try:
            while message := await reader.readline():
                self.unheard = 0
                content = message_of(message)
                if "beat" in content:
                    continue
                if "end" in content:
                    return self._end(content["end"])
                self.here |= "here" in content
                self.tell_run(message)
                if "over" in content:
                    self.over = True
                    return False
            reason = "is gone"
        except TimeoutError:
            reason = f"was silent for {SILENCE} s"
        except (ValueError, OSError) as error:
            reason = f"cannot be heard: {error}"
        return self._end(f"host 0 ({self.settings['address']}) {reason}; all hosts end")

    def _end(self, text: str) -> bool:
        # Before all hosts are connected, and after a user's mistake, the run prints the reason.
        if self.here and not self.mistaken:
            print(f"error: {text}", file=sys.stderr, flush=True)
        self.tell_run(line(end=text))
        return True

    async def _listen_to_run(self) -> None:
        """Forwards the run's messages to host 0, and the end of its output."""
        assert self.server is not None  # `watch` connects first.
        reader = asyncio.StreamReader(limit=_LIMIT)
        await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
        )
        while message := await reader.readline():
            content = json.loads(message)
            self.mistaken |= "mistaken" in content
            if "reached" in content:  # There may be thousands in a second.
                self.pulse.reach(content["reached"])
                continue
            self.server.write(message)
        self.ended = True
        if not self.over:
            with contextlib.suppress(OSError):  # Host 0 may be gone by now.
                self.server.write_eof()

    async def _beat(self, reader: asyncio.StreamReader) -> None:
        """Sends signs of life and the run's state; counts the beats without one from host 0.

        Time is counted in beats, so that hosts which are all stopped for a while find each other
        alive when they go on.
        """
        assert self.server is not None  # `watch` connects first.
        while not self.ended:
            self.server.write(line(beat=self.pulse.beat()))
            self.unheard += BEAT
            if self.unheard > SILENCE:
                reader.set_exception(TimeoutError())
            await asyncio.sleep(BEAT)


if __name__ == "__main__":
    watcher = Watcher(json.loads(sys.stdin.readline()))
    asyncio.new_event_loop().run_until_complete(watcher.watch())
    os._exit(0)  # Without waiting for tasks that still listen.
