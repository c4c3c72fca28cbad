"""The watcher: a process on each host that notices when another host fails.

`adalink_jax.distributed.hosts` starts one on every host. It imports only the standard library.
The watcher of host 0 listens at the coordinator's address, and on no other interface if that
address belongs to the machine. All watchers, including its own, connect to it, show the run's
token and keep the connection open. So every host soon knows when another is missing, fails or
dies. The watcher is a process and not a thread for two reasons: JAX aborts a host as soon as the
coordinator is gone, and a thread cannot send anything while another one holds the interpreter.

Messages are lines of JSON with one key. The run sends "gather" (a value), "done", "mistaken" (a
user's mistake, which it prints itself) or "failed" (any other exception). It receives "here" (the
names of all hosts, a port for JAX, and host 0's interface), "gathered" (the values of all hosts),
"over" (all are done) or "end" (a text: the run must end).
"""

import asyncio
import contextlib
import hmac
import json
import os
import signal
import socket
import sys
import time
from typing import Any

# Seconds: between two signs of life; without one before a host counts as dead; for a run to end by
# itself before it is killed; and from the first failure to the end of the run, so that other hosts
# can report theirs.
BEAT, SILENCE, MERCY, GRACE = 5, 40, 5, 1
_LIMIT = 1 << 26  # Maximum bytes of a message.
# Names the secret that all hosts of a run share.
TOKEN = "ADALINK_HOSTS_TOKEN"


def line(**message: Any) -> bytes:
    """Encodes a message."""
    return json.dumps(message).encode() + b"\n"


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


class Register:
    """Host 0's list of all hosts: which are connected, what they sent, and which are gone."""

    def __init__(self, count: int, wait: float, token: str, interface: str):
        """Expects `count` hosts with the token within `wait` seconds, on `interface`."""
        self.count, self.wait, self.token, self.interface = count, wait, token, interface
        self.writers: dict[int, asyncio.StreamWriter] = {}
        self.names: dict[int, str] = {}
        self.values: dict[int, Any] = {}
        self.done: set[int] = set()
        self.over = False
        self.ending = False  # Only the first reason counts; later ones follow from it.

    async def meet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serves the connection of one host."""
        try:
            hello = json.loads(await asyncio.wait_for(reader.readline(), SILENCE))["hello"]
            index, count, name = int(hello["index"]), int(hello["count"]), str(hello["name"])
            token = str(hello["token"]).encode(errors="surrogatepass")
        except (TimeoutError, ValueError, KeyError, TypeError, OSError):
            return writer.close()  # Not a host of a run.
        if not hmac.compare_digest(token, self.token.encode(errors="surrogatepass")):
            writer.write(line(end=f"{name} came with another {TOKEN} than host 0 has"))
            return writer.close()
        if count != self.count or not 0 <= index < count or index in self.writers:
            reason = f"this run has {self.count} hosts"
            if index in self.writers:
                reason = f"so did {self.names[index]}"
            writer.write(line(end=f"{name} came as host {index} of {count}, but {reason}"))
            return writer.close()
        self.writers[index], self.names[index] = writer, name
        if len(self.writers) == self.count:
            with socket.socket() as free:
                free.bind(("", 0))
                port = free.getsockname()[1]
            names = [self.names[i] for i in range(self.count)]
            self.tell(here={"names": names, "port": port, "interface": self.interface})
        try:
            while message := await asyncio.wait_for(reader.readline(), SILENCE):
                self.hear(index, json.loads(message))
            reason = "ended without a word (killed, or crashed)"
        except TimeoutError:
            reason = f"was silent for {SILENCE} s"
        except (ValueError, OSError) as error:
            reason = f"cannot be heard: {error}"
        self.end(f"host {index} ({name}) {reason}; all hosts end")

    def hear(self, index: int, message: dict[str, Any]) -> None:
        """Handles a message from one host."""
        if "gather" in message:
            self.values[index] = message["gather"]
            if len(self.values) == self.count:
                values, self.values = [self.values[i] for i in range(self.count)], {}
                self.tell(gathered=values)
        elif "done" in message:
            self.done.add(index)
            if len(self.done) == self.count:
                self.over = True
                self.tell(over=True)
        elif reason := message.get("mistaken") or message.get("failed"):
            self.end(f"host {index} ({self.names[index]}) failed: {reason}; all hosts end", GRACE)

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
        """Sends signs of life, and ends the run if hosts are missing after the waiting time."""
        asyncio.get_running_loop().call_later(self.wait, self._expect_all)
        while True:
            self.tell(beat=True)
            await asyncio.sleep(BEAT)

    def _expect_all(self) -> None:
        if len(self.names) < self.count:
            missing = ", ".join(str(i) for i in range(self.count) if i not in self.names)
            here = ", ".join(f"{i} ({name})" for i, name in sorted(self.names.items()))
            self.end(
                f"of {self.count} hosts, {missing} did not come in {self.wait:g} s; here: {here}"
            )


class Watcher:
    """Connects one host's run, through pipes, to host 0's register."""

    def __init__(self, settings: dict[str, Any]):
        """Takes the run's settings: address, index, count, name, wait, token and pid."""
        self.settings = settings
        self.here = self.over = self.mistaken = False
        self.server: asyncio.StreamWriter | None = None

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
        tasks.append(asyncio.create_task(self._beat()))
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
            hello = {key: self.settings[key] for key in ("index", "count", "name", "token")}
            self.server.write(line(hello=hello))
            return reader

    async def _listen_to_server(self, reader: asyncio.StreamReader) -> bool:
        """Forwards messages to the run; returns whether the run must end."""
        try:
            while message := await asyncio.wait_for(reader.readline(), SILENCE):
                content = json.loads(message)
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
            self.mistaken |= "mistaken" in json.loads(message)
            self.server.write(message)
        if not self.over:
            with contextlib.suppress(OSError):  # Host 0 may be gone by now.
                self.server.write_eof()

    async def _beat(self) -> None:
        assert self.server is not None  # `watch` connects first.
        while True:
            self.server.write(line(beat=True))
            await asyncio.sleep(BEAT)


if __name__ == "__main__":
    watcher = Watcher(json.loads(sys.stdin.readline()))
    asyncio.new_event_loop().run_until_complete(watcher.watch())
    os._exit(0)  # Without waiting for tasks that still listen.
