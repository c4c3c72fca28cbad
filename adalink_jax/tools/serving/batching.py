"""The thread that owns the device: it takes waiting requests, and runs them together.

A turn takes what waits, one request of each tenant after another: up to a call's rows of those that
one call answers (scores, beams), and as many texts to generate as there are free slots. It runs
the calls, fills the slots and adds tokens to all of them. So texts of different lengths, adapters
and beginnings share every step, and a score never waits for a text to end.
"""

import collections
import concurrent.futures
import dataclasses
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any

from adalink_jax.errors import UserError
from adalink_jax.methods.base import Method
from adalink_jax.models.decoding import BROKEN
from adalink_jax.tools.serving.generation import Draw, Table
from adalink_jax.tools.serving.metrics import Metrics
from adalink_jax.tools.serving.service import Row, Service

# Kinds of adapters whose texts are generated at one time; each has slots of its own.
_TABLES = 4


class Busy(Exception):
    """No more requests may wait."""


class Late(Exception):
    """A request's deadline has passed."""


@dataclasses.dataclass(eq=False)
class Job:
    """A row that waits or runs.

    Attributes:
      row: what to run.
      tenant: who takes turns with the others: the adapter's name.
      deadline: when the answer is of no more use, by `time.monotonic`.
      done: gets the output of `Service.run`, the reason why a text ended ("stop", "length"), or
        an error. Called by the batcher's thread, once.
      draw: how a text is generated; None for what one call answers.
      told: gets a text's new tokens; called by the batcher's thread.
      came: when it came, by `time.monotonic`.
    """

    row: Row
    tenant: str
    deadline: float
    done: Callable[[Any], None]
    draw: Draw | None = None
    told: Callable[[list[int]], None] = lambda tokens: None
    came: float = dataclasses.field(default_factory=time.monotonic)
    cancelled: bool = False
    length: int = 0


class Fair:
    """Jobs that wait; tenants take turns, and a tenant's jobs keep their order."""

    def __init__(self):
        self._tenants: dict[str, collections.deque[Job]] = {}
        self._size = 0

    def __len__(self) -> int:
        """Returns the number of waiting jobs."""
        return self._size

    def of(self, tenant: str) -> int:
        """Returns how many of a tenant's jobs wait."""
        return len(self._tenants.get(tenant, ()))

    def push(self, job: Job) -> None:
        """Adds a job behind its tenant's others."""
        self._tenants.setdefault(job.tenant, collections.deque()).append(job)
        self._size += 1

    def pop(self) -> Job:
        """Removes the first job of the tenant whose turn it is; that one is last in turn then."""
        tenant = next(iter(self._tenants))
        waiting = self._tenants.pop(tenant)
        job = waiting.popleft()
        if waiting:
            self._tenants[tenant] = waiting
        self._size -= 1
        return job

    def remove(self, job: Job) -> None:
        """Removes a job, if it waits."""
        waiting = self._tenants.get(job.tenant, ())
        if job in waiting:
            waiting.remove(job)  # pyright: ignore[reportAttributeAccessIssue]
            self._size -= 1
            if not waiting:
                del self._tenants[job.tenant]

    def oldest(self) -> float:
        """Returns when the first waiting job of any tenant came."""
        return min(waiting[0].came for waiting in self._tenants.values())


class Batcher:
    """Runs jobs of any threads on the device, batched together."""

    def __init__(self, service: Service, metrics: Metrics, *, queue: int, window: float):
        """Starts no thread yet.

        Args:
          service: what runs them.
          metrics: what is counted.
          queue: the most jobs that wait; a tenant alone may fill half of it.
          window: seconds that an idle device waits for more requests before a call.
        """
        self._service, self._metrics = service, metrics
        self._queue, self._window = queue, window
        self._changed = threading.Condition()
        self._calls = Fair()
        self._texts: dict[Method, Fair] = {}
        self._asked: collections.deque[tuple[Callable, concurrent.futures.Future]]
        self._asked = collections.deque()
        self._tables: dict[Method, Table] = {}  # Ordered by use, the most recent one last.
        self._live: dict[tuple[Method, int], Job] = {}
        self._stopping = False
        self._thread = threading.Thread(target=self._run, daemon=True, name="batcher")

    # For any thread.

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread once nothing waits or runs."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join()

    def submit(self, job: Job) -> None:
        """Queues a job.

        Raises:
          Busy: too many wait.
        """
        with self._changed:
            queue = self._calls
            if job.draw is not None:
                queue = self._texts.setdefault(job.row.kind, Fair())
            if self._stopping or self.waiting >= self._queue:
                raise Busy("too many requests wait")
            if queue.of(job.tenant) >= max(1, self._queue // 2):
                raise Busy("too many requests for this adapter wait")
            queue.push(job)
            self._changed.notify()

    def cancel(self, job: Job) -> None:
        """Ends a job whose answer nobody waits for. One that runs ends with its call."""
        with self._changed:
            job.cancelled = True
            self._calls.remove(job)
            if job.row.kind in self._texts:
                self._texts[job.row.kind].remove(job)

    def ask(self, function: Callable[[], Any]) -> concurrent.futures.Future:
        """Has the thread call a function between two turns; returns the future of its result."""
        future: concurrent.futures.Future = concurrent.futures.Future()
        with self._changed:
            self._asked.append((function, future))
            self._changed.notify()
        return future

    @property
    def waiting(self) -> int:
        """How many jobs wait."""
        return len(self._calls) + sum(map(len, tuple(self._texts.values())))

    @property
    def live(self) -> int:
        """How many texts are being generated."""
        return len(self._live)

    # The thread's own.

    def _run(self) -> None:
        while self._wait():
            while self._asked:
                function, future = self._asked.popleft()
                if not future.set_running_or_notify_cancel():
                    continue
                try:
                    future.set_result(function())
                except Exception as error:  # The asker's to handle.
                    future.set_exception(error)
            calls, texts = self._taken()
            for rows in self._service.parts([job.row for job in calls]):
                of = {job.row: job for job in calls}
                self._called([of[row] for row in rows])
            for kind, jobs in texts.items():
                self._begun(kind, jobs)
            for kind in {kind for kind, _ in self._live}:
                self._advanced(kind)

    def _wait(self) -> bool:
        """Waits for something to do; returns False to end."""
        with self._changed:
            while not (self.waiting or self._live or self._asked):
                if self._stopping:
                    return False
                self._changed.wait()
            if self._live or self._asked or self._stopping:
                return True
            first = min(queue.oldest() for queue in self._all() if queue)
            # More may come at the same time, and the device is idle.
            while 0 < self.waiting < self._service.limits.rows and not self._asked:
                left = first + self._window - time.monotonic()
                if left <= 0 or self._stopping:
                    break
                self._changed.wait(left)
            return True

    def _all(self) -> list[Fair]:
        return [self._calls, *self._texts.values()]

    def _taken(self) -> tuple[list[Job], dict[Method, list[Job]]]:
        """Takes the jobs of a turn; the late ones get their error."""
        with self._changed:
            calls = self._first(self._calls, self._service.limits.rows)
            texts: dict[Method, list[Job]] = {}
            for kind, queue in tuple(self._texts.items()):
                if not queue:
                    del self._texts[kind]
                elif table := self._table(kind):
                    if jobs := self._first(queue, table.free):
                        texts[kind] = jobs
            return calls, texts

    def _first(self, queue: Fair, most: int) -> list[Job]:
        jobs: list[Job] = []
        while queue and len(jobs) < most:
            job = queue.pop()
            if job.deadline < time.monotonic():
                job.done(Late("the deadline passed before it ran"))
            else:
                self._metrics.stages.labels("queue").observe(time.monotonic() - job.came)
                jobs.append(job)
        return jobs

    def _table(self, kind: Method) -> Table | None:
        """Returns the slots of a kind; None while those of too many others are in use."""
        table = self._tables.pop(kind, None)
        if table is None:
            live = {kind for kind, _ in self._live}
            idle = [other for other in self._tables if other not in live]
            if len(self._tables) >= _TABLES:
                if not idle:
                    return None
                del self._tables[idle[0]]
            table = Table(self._service, kind)
        self._tables[kind] = table
        return table

    def _called(self, jobs: list[Job]) -> None:
        rows = [job.row for job in jobs]
        began = time.monotonic()
        try:
            outputs = self._service.run(rows)
        except Exception as error:
            self._failed(jobs, error)
            return
        self._metrics.stages.labels("call").observe(time.monotonic() - began)
        self._metrics.rows.observe(len(rows))
        for job, output in zip(jobs, outputs, strict=True):
            job.done(output)

    def _begun(self, kind: Method, jobs: list[Job]) -> None:
        table = self._tables[kind]
        began = time.monotonic()
        try:
            places = table.begin([(job.row, job.draw) for job in jobs if job.draw])
        except Exception as error:
            self._broke(kind, error, jobs)
            return
        self._metrics.stages.labels("begin").observe(time.monotonic() - began)
        for place, job in zip(places, jobs, strict=True):
            self._live[kind, place] = job

    def _advanced(self, kind: Method) -> None:
        table, began = self._tables[kind], time.monotonic()
        try:
            tokens = table.advance()
        except Exception as error:
            self._broke(kind, error, [])
            return
        self._metrics.stages.labels("step").observe(time.monotonic() - began)
        mine = {place: job for (other, place), job in self._live.items() if other == kind}
        self._metrics.texts.observe(len(mine))
        for place, job in mine.items():
            if ended := self._extended(job, tokens[place].tolist()):
                table.end(place)
                del self._live[kind, place]
                job.done(ended)

    def _extended(self, job: Job, tokens: list[int]) -> Any:
        """Tells a job its new tokens; returns why it has ended, or None."""
        assert job.draw is not None
        if job.cancelled:
            return "cancelled"
        if job.deadline < time.monotonic():
            return Late("the deadline passed before the text ended")
        tokens = tokens[: job.draw.max_tokens - job.length]
        ended = None
        if self._service.eos_id in tokens:
            tokens, ended = tokens[: tokens.index(self._service.eos_id)], "stop"
        if BROKEN in tokens:
            return self._service.broken(job.row)
        job.length += len(tokens)
        job.told(tokens)
        return ended or ("length" if job.length >= job.draw.max_tokens else None)

    def _broke(self, kind: Method, error: Exception, jobs: list[Job]) -> None:
        """Ends all texts of a kind, whose slots a call that failed may have lost."""
        for place in [place for other, place in self._live if other == kind]:
            jobs.append(self._live.pop((kind, place)))
        self._tables.pop(kind).forget()
        self._failed(jobs, error)

    def _failed(self, jobs: list[Job], error: Exception) -> None:
        if not isinstance(error, UserError):
            traceback.print_exception(error, file=sys.stderr)
        for job in jobs:
            job.done(error)
