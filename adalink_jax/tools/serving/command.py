"""Answers requests with many adapters of one base, batched together.

    adalink infer --base BASE --adapters RUNS --vocabulary spiece.model < requests.jsonl

Each line is a request: {"text": "rte sentence1: …", "adapter": "rte"}. It may also have "labels"
to choose from and an "id" that the answer repeats. In a *.tsv file a line is text<TAB>adapter. If
a request names no adapter, the base answers.

An adapter is a folder below --adapters. It is loaded on first use, and again if it has changed.
NAME:ROUTE selects one task of a multi-task adapter. Each answer is a line too, with the prediction
and the log-likelihood of each label, or with an error that concerns only that request. The exit
code is 1 if none could be answered.
"""

import argparse
import contextlib
import dataclasses
import json
import queue
import sys
import threading
from collections.abc import Iterator
from typing import IO, Annotated

from adalink_jax import compile_cache
from adalink_jax.errors import UserError
from adalink_jax.tools.serving.model import add_model, opened
from adalink_jax.tools.serving.requests import LONGEST_LINE, Request, failure, parse
from adalink_jax.tools.serving.service import Limits, Service
from adalink_jax.values import Range, checked

# The most that a flag takes, so that a slip is not an order for all of the memory.
_MOST = {"batch_size": 1024, "resident": 4096, "inputs": 2**14, "targets": 2**10, "beam_size": 64}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the base, the adapters, the input and the output."""
    add_model(parser)
    parser.add_argument(
        "--input", default="-", help="JSONL, or *.tsv: text<TAB>adapter; - is standard input"
    )
    parser.add_argument("--output", default="-", help="JSONL; must not exist; - is standard output")
    parser.add_argument("--batch_size", type=int, default=64, help="rows per batch")
    parser.add_argument(
        "--beam_size", type=int, default=1, help="beams to generate with; 1 is greedy"
    )


@compile_cache.kept()
def run(flags: argparse.Namespace) -> int:
    """Answers all lines of the input; returns 1 if there were some, and none could be answered."""
    for name, most in _MOST.items():
        checked(f"--{name}", getattr(flags, name), Annotated[int, Range(1, most)])
    limits = Limits(flags.inputs, flags.targets, flags.batch_size)
    # Each row of a batch may use a different adapter.
    service = opened(flags, limits, max(flags.resident, flags.batch_size))
    is_tsv = flags.input.endswith(".tsv")
    answered = failed = False
    with contextlib.ExitStack() as files:
        # Bytes: both sides are UTF-8, whatever the terminal's encoding.
        if flags.input == "-":
            source = sys.stdin.buffer
        else:
            source = files.enter_context(open(flags.input, "rb"))
        if flags.output == "-":
            sink = sys.stdout.buffer
        else:
            sink = files.enter_context(open(flags.output, "xb"))
        for lines in _batches(source, flags.batch_size):
            for answer in _answers(service, lines, is_tsv, flags.beam_size):
                answered, failed = answered or "error" not in answer, failed or "error" in answer
                text = json.dumps(answer, ensure_ascii=False, allow_nan=False)
                sink.write(text.encode("utf-8") + b"\n")
            sink.flush()
    return int(failed and not answered)


def _answers(
    service: Service, lines: list[tuple[int, bytes]], tsv: bool, beam_size: int
) -> list[dict]:
    """Returns one answer per line, in order."""
    requests: list[Request] = []
    answers: dict[int, dict] = {}
    for number, content in lines:
        try:
            request = parse(number, content, tsv)
            requests.append(dataclasses.replace(request, beam_size=beam_size))
        except UserError as error:
            answers[number] = failure(number, error)
    answers |= {one["line"]: one for one in service.answers(requests)}
    return [answers[number] for number, _ in lines]


def _batches(source: IO[bytes], size: int) -> Iterator[list[tuple[int, bytes]]]:
    """Yields numbered lines in lists of at most `size`, without waiting until a list is full."""
    lines: queue.Queue = queue.Queue(maxsize=4 * size)

    def read() -> None:
        try:
            for line in enumerate(_lines(source), 1):
                lines.put(line)
            lines.put(None)
        except Exception as error:  # Raised below, where somebody sees it.
            lines.put(error)

    threading.Thread(target=read, daemon=True).start()
    batch: list[tuple[int, bytes]] = []
    while True:
        try:
            line = lines.get(block=not batch)
        except queue.Empty:
            yield batch
            batch = []
            continue
        ended = not isinstance(line, tuple)
        if not ended:
            batch.append(line)
        if batch and (ended or len(batch) == size):
            yield batch
            batch = []
        if isinstance(line, Exception):
            raise line
        if ended:
            return


def _lines(source: IO[bytes]) -> Iterator[bytes]:
    """Yields lines without their newlines; of a line that is too long, only its beginning."""
    while line := source.readline(LONGEST_LINE + 2):
        ended = line.endswith(b"\n")
        while not ended and (rest := source.readline(LONGEST_LINE)):
            ended = rest.endswith(b"\n")
        yield line.removesuffix(b"\n")
