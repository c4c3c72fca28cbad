"""What the benchmarks share: interleaved timing, medians of ratios, and the report.

Other work on the machine slows everything down, but not evenly. So every round runs all candidates
once, one after another, and a comparison is the median over rounds of the ratio *within* a round: a
slow minute affects both sides. Seconds depend on the machine and the moment; ratios carry over to
other machines. The CPU time of the process (all threads) is reported too. It is hardly affected by
other processes on the same cores, but it does not count waiting.
"""

import argparse
import importlib.metadata
import json
import math
import os
import pathlib
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

# name -> seconds of each round
Times = dict[str, list[float]]


class Seconds(NamedTuple):
    """Returned by a candidate that measures its own time."""

    wall: float
    cpu: float


_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "torch", "transformers", "peft")


def interleaved(
    candidates: Mapping[str, Callable[[], Any]],
    rounds: int,
    warm_ups: int = 1,
) -> tuple[Times, Times]:
    """Runs every candidate once per round; every other round runs in reverse order.

    Args:
      candidates: name -> a call that returns when its work is done. It is timed from outside,
        unless it returns its own measurement as `Seconds`.
      rounds: number of timed runs of each.
      warm_ups: number of untimed runs of each before that.

    Returns:
      Wall seconds and CPU seconds.
    """
    wall: Times = {name: [] for name in candidates}
    cpu: Times = {name: [] for name in candidates}
    for run in candidates.values():
        for _ in range(warm_ups):
            run()
    for number in range(rounds):
        order = list(candidates.items())
        for name, run in reversed(order) if number % 2 else order:
            start, cpu_start = time.perf_counter(), time.process_time()
            measured = run()
            if not isinstance(measured, Seconds):
                measured = Seconds(time.perf_counter() - start, time.process_time() - cpu_start)
            wall[name].append(measured.wall)
            cpu[name].append(measured.cpu)
        if sys.stderr.isatty():
            print(f"\rround {number + 1} of {rounds}", end="", file=sys.stderr, flush=True)
    if sys.stderr.isatty():
        print(file=sys.stderr)
    return wall, cpu


def ratio(times: Times, name: str, to: str) -> float:
    """Returns the median over rounds of name's seconds divided by to's."""
    pairs = zip(times[name], times[to], strict=True)
    return statistics.median(ours / theirs for ours, theirs in pairs)


def median_with_bounds(times: Times, name: str, to: str) -> dict[str, float]:
    """Returns the median ratio of `name` to `to`, with bounds of about 95 % confidence.

    The bounds are order statistics (of a binomial count), so they assume no shape of the noise.

    Args:
      times: measurements of the two by `interleaved`; useful with at least ten rounds.
      name: the numerator.
      to: the denominator.
    """
    ratios = sorted(a / b for a, b in zip(times[name], times[to], strict=True))
    cut = max(0, int((len(ratios) - 1.96 * math.sqrt(len(ratios))) / 2))
    return {"median": statistics.median(ratios), "low": ratios[cut], "high": ratios[-1 - cut]}


def parser(description: str, rounds: int) -> argparse.ArgumentParser:
    """Returns a parser with the flags of all benchmarks: --small, --rounds, --out.

    Args:
      description: the script's docstring.
      rounds: the default number of rounds.
    """
    flags = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    flags.add_argument("--small", action="store_true", help="toy sizes: shows that it works")
    flags.add_argument("--rounds", type=int, default=rounds, help=f"default {rounds}")
    flags.add_argument("--out", type=pathlib.Path, help="also write the JSON into this file")
    return flags


def report(
    name: str,
    rows: Iterable[Mapping[str, Any]],
    settings: Mapping[str, Any],
    times: tuple[Times, Times],
    load_before: Sequence[float],
    out: pathlib.Path | None,
    **findings: Any,
) -> None:
    """Prints a Markdown table, the machine's load and a JSON line; can also write the JSON.

    Args:
      name: the benchmark's name.
      rows: one mapping per line of the table, with keys in the order of the columns; missing keys
        give empty cells.
      settings: what was measured, and at which sizes.
      times: wall and CPU seconds of all rounds, for the JSON.
      load_before: `os.getloadavg()` at the start of the measurement.
      out: the file for the JSON, or None.
      **findings: other measurements, for the JSON.
    """
    rows, load_after = list(rows), os.getloadavg()
    columns = list(dict.fromkeys(key for row in rows for key in row))
    print(f"| {' | '.join(columns)} |")
    print(f"|{'|'.join(' --- ' if i == 0 else ' ---: ' for i in range(len(columns)))}|")
    for row in rows:
        print(f"| {' | '.join(_cell(row.get(column)) for column in columns)} |")
    result = {
        "benchmark": name,
        "settings": dict(settings),
        "rows": rows,
        **findings,
        "seconds": {"wall": _rounded(times[0]), "cpu": _rounded(times[1])},
        "cores": cores(),
        "load": {"before": list(load_before), "after": list(load_after)},
        "versions": _versions(),
    }
    print(
        f"\n{cores()} cores, load average {load_before[0]:.1f} before, {load_after[0]:.1f} after\n"
    )
    line = json.dumps(result, ensure_ascii=False)
    print(line)
    if out is not None:
        out.write_text(line + "\n", encoding="utf-8")


def cores() -> int:
    """Returns the number of cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _rounded(times: Times) -> Times:
    return {name: [round(value, 7) for value in values] for name, values in times.items()}


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if not isinstance(value, float):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _versions() -> dict[str, str]:
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
