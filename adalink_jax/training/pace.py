"""How fast a run trains, and what it says of it.

Only the steps' own time counts. Compiling, evaluating and saving are left out, and so is the step
that compiles, so a rate is the same for a run that has compiled its programs and one that has not.
"""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from adalink_jax import progress

# The first compilation is said, and later ones if the one before took so many seconds.
_LONG = 5.0


@dataclasses.dataclass(frozen=True)
class Work:
    """What one step does.

    Attributes:
      tokens: tokens of inputs and targets, without padding.
      places: the same with padding.
      flops: floating-point operations; 0 if they are not counted.
    """

    tokens: int
    places: int
    flops: float = 0.0


class Pace:
    """Measures the steps of a run, and tells how far it is.

    Args:
      work: number of a batch, from 0 -> its work; None if nobody knows it.
      lengths: how many lengths batches may have, each a program of its own; 0 if nobody knows it.
      peak: FLOPs per second of all devices together, at most; None if nobody knows it.
    """

    def __init__(
        self,
        work: Callable[[int], Work] | None = None,
        lengths: int = 0,
        peak: float | None = None,
    ):
        self._work, self._lengths, self._peak = work, lengths, peak
        self._met: set[Any] = set()
        self._compiled = 0.0  # Seconds, the last time.
        self._wait = 0.0  # Seconds, for the latest batch.
        self._steps, self._seconds = 0, 0.0  # All that were counted.
        self._evaluation = 0.0  # Seconds, the last time.
        self._score = ""
        self._lap()

    def _lap(self) -> None:
        self._clock, self._waited, self._counted = time.perf_counter(), 0.0, 0
        self._sum = Work(0, 0)

    @contextlib.contextmanager
    def telling(self, step: int, train_steps: int, eval_period: int) -> Iterator[None]:
        """Shows a bar inside the block, in which the run trains.

        Args:
          step: the steps that are done.
          train_steps: the number of steps.
          eval_period: steps between evaluations.
        """
        self._period = eval_period
        with progress.bar("training", train_steps, "steps", step) as self._bar:
            self._lap()
            yield

    @contextlib.contextmanager
    def apart(self, what: str) -> Iterator[None]:
        """Leaves the time inside the block out, and says what is done in it."""
        before = time.perf_counter()
        self._bar.says(what, line=False)
        yield
        self._clock += time.perf_counter() - before

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[Callable[[Mapping[str, float]], Mapping[str, float]]]:
        """As `apart`; yields a function that notes the scores and returns them."""
        before = time.perf_counter()
        with self.apart("evaluating"):
            yield self._scored
        self._evaluation = time.perf_counter() - before

    def _scored(self, values: Mapping[str, float]) -> Mapping[str, float]:
        names = [n for n in values if n.startswith("eval/") and n.endswith("/score")]
        self._score = f"score {np.mean([values[n] for n in names]):.2f}" if names else ""
        return values

    def waited(self, take: Callable[[], Any]) -> Any:
        """Returns what is taken, e.g. the next batch; the time is that of waiting for data."""
        before = time.perf_counter()
        taken = take()
        self._wait = time.perf_counter() - before
        self._waited += self._wait
        return taken

    def step(self, train_step: Callable[..., Any], step: int, state: Any, batch: Any) -> Any:
        """Returns what a step returns. The first one of each length compiles, and does not count.

        Args:
          train_step: (state, batch) -> (state, metrics).
          step: the step's number, from 1.
          state: the state.
          batch: the batch.
        """
        lengths = tuple(map(np.shape, jax.tree.leaves(batch)))
        if lengths in self._met:
            self._count(step)
            return train_step(state, batch)
        jax.block_until_ready(state)  # The step before counts until here.
        before = time.perf_counter()
        self._met.add(lengths)
        number, of = len(self._met), max(self._lengths, len(self._met))
        about = f" (about {self._compiled:.0f} s)" if number > 1 else ""
        said = f"compiling {number} of {of} length{'s' if of > 1 else ''}{about}"
        self._bar.says(said, line=number == 1 or self._compiled >= _LONG)
        result = jax.block_until_ready(train_step(state, batch))
        self._compiled = time.perf_counter() - before
        self._clock += self._compiled + self._wait
        self._waited -= self._wait
        return result

    def _count(self, step: int) -> None:
        self._counted += 1
        if self._work is not None:
            more = self._work(step - 1)
            self._sum = Work(
                self._sum.tokens + more.tokens,
                self._sum.places + more.places,
                self._sum.flops + more.flops,
            )

    def at(self, step: int, loss: float) -> None:
        """Tells that this step is done, with its loss."""
        self._bar.at(step, lambda: self._note(step, loss))

    def _note(self, step: int, loss: float) -> str:
        steps = self._steps + self._counted
        seconds = self._seconds + time.perf_counter() - self._clock
        parts = [f"loss {loss:.4f}"]
        if steps and seconds > 0:
            total = self._bar.total
            evaluations = -(-total // self._period) - step // self._period
            ahead = (total - step) * seconds / steps + evaluations * self._evaluation
            parts += [f"{_rounded(steps / seconds)} steps/s", progress.left(ahead)]
        parts += [self._score, *self._more]
        return ", ".join(filter(None, parts))

    _more: tuple[str, ...] = ()

    def times(self) -> dict[str, float]:
        """Returns what was measured since the last call, by name, and begins anew.

        Steps and tokens per second, the shares of padding and of waiting for data, the peak bytes
        of a device's memory, and the share of the chip's FLOPs that is used; each where it is
        known. Without a step that counts there are no rates.
        """
        seconds = max(time.perf_counter() - self._clock, 1e-9)
        times: dict[str, float] = {}
        if self._counted:
            times = {
                "steps_per_second": self._counted / seconds,
                "data_wait": min(self._waited / seconds, 1.0),
            }
        if self._sum.places:
            times["tokens_per_second"] = self._sum.tokens / seconds
            times["padding"] = 1 - self._sum.tokens / self._sum.places
        if self._sum.flops and self._peak:
            times["mfu"] = self._sum.flops / seconds / self._peak
        stats = jax.local_devices()[0].memory_stats() or {}
        if (bytes_used := stats.get("peak_bytes_in_use")) is not None:
            times["device_memory"] = bytes_used
        self._steps, self._seconds = self._steps + self._counted, self._seconds + seconds
        self._more = _said(times) or self._more
        self._lap()
        return times


def _said(times: Mapping[str, float]) -> tuple[str, ...]:
    texts = {
        "tokens_per_second": lambda n: f"{n:,.0f} tokens/s",
        "padding": lambda n: f"padding {n:.0%}",
        "data_wait": lambda n: f"data wait {n:.0%}",
        "device_memory": lambda n: f"memory {n / 2**30:.1f} GiB",
        "mfu": lambda n: f"MFU {n:.0%}",
    }
    return tuple(text(times[name]) for name, text in texts.items() if name in times)


def _rounded(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.2g}" if rate < 1 else f"{rate:.1f}"
