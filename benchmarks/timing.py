"""What the benchmarks share: interleaved timing, medians of ratios, and the report.

Other work on the machine slows everything, and not evenly. So all candidates run once in every
round, one after another, and a comparison is the median over rounds of the ratio *within* a round:
a slow minute hits both sides of it. Seconds alone are of the machine and the moment; ratios carry
over to others.
"""

import argparse
import importlib.metadata
import json
import os
import pathlib
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

Times = dict[str, list[float]]

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "torch", "transformers", "peft")


def interleaved(
    candidates: Mapping[str, Callable[[], Any]], rounds: int, warm_ups: int = 1
) -> Times:
    """Runs every candidate once a round; odd rounds go backwards, so that neighbors swap.

    Args:
      candidates: name -> a call that returns only when its work is done.
      rounds: how many timed runs each gets.
      warm_ups: untimed runs of each before.

    Returns:
      name -> seconds of each round.
    """
    times: Times = {name: [] for name in candidates}
    for run in candidates.values():
        for _ in range(warm_ups):
            run()
    for number in range(rounds):
        order = list(candidates.items())
        for name, run in reversed(order) if number % 2 else order:
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
        if sys.stderr.isatty():
            print(f"\rround {number + 1} of {rounds}", end="", file=sys.stderr, flush=True)
    if sys.stderr.isatty():
        print(file=sys.stderr)
    return times


def ratio(times: Times, name: str, to: str) -> float:
    """The median over rounds of name's seconds divided by to's."""
    pairs = zip(times[name], times[to], strict=True)
    return statistics.median(ours / theirs for ours, theirs in pairs)


def parser(description: str, rounds: int) -> argparse.ArgumentParser:
    """The flags that all benchmarks have: --small, --rounds, --out.

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
    columns: Sequence[str],
    rows: Iterable[Mapping[str, Any]],
    settings: Mapping[str, Any],
    load_before: Sequence[float],
    out: pathlib.Path | None,
) -> None:
    """Prints a Markdown table, the machine's load and a JSON line; writes the JSON if asked to.

    Args:
      name: of the benchmark.
      columns: the keys of a row that the table shows, in order.
      rows: one mapping a line of the table; an absent value shows as an empty cell.
      settings: what was measured, at which sizes.
      load_before: `os.getloadavg()` when the measurement began.
      out: where to write the JSON.
    """
    rows = list(rows)
    print(f"| {' | '.join(columns)} |")
    print(f"|{'|'.join(' --- ' if i == 0 else ' ---: ' for i in range(len(columns)))}|")
    for row in rows:
        print(f"| {' | '.join(_cell(row.get(column)) for column in columns)} |")
    result = {
        "benchmark": name,
        "settings": dict(settings),
        "rows": rows,
        "cores": len(os.sched_getaffinity(0)),
        "load": {"before": list(load_before), "after": list(os.getloadavg())},
        "versions": _versions(),
    }
    before, after = load_before[0], os.getloadavg()[0]
    print(f"\n{result['cores']} cores; load average {before:.1f} before, {after:.1f} after")
    line = json.dumps(result)
    print(line)
    if out is not None:
        out.write_text(line + "\n", encoding="utf-8")


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:,.4g}" if isinstance(value, float) else str(value)


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
