"""Compiles the programs of a server before it is ready, so that none is compiled later."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence

from adalink_jax.errors import UserError
from adalink_jax.tools.serving.generation import Draw, Table
from adalink_jax.tools.serving.requests import Request
from adalink_jax.tools.serving.service import Row, Service
from adalink_jax.tools.serving.shapes import lengths, row_counts


def examples(service: Service, most: int) -> list[Row]:
    """Returns rows of the base and of every kind of adapter, the widest of each, with its labels.

    Args:
      service: whose adapters are looked at.
      most: how many adapters are read for it.
    """
    rows = [service.row(Request(1, "a", scores=False))]
    widest: dict[tuple, Row] = {}
    for name in service.shelf.names()[:most]:
        try:
            routes = service.shelf.read(name).modules
            found = [service.row(Request(1, "a", f"{name}:{route}", image="")) for route in routes]
        except (UserError, OSError):
            continue  # Whoever asks for it is told.
        for row in found:
            key = row.kind, None if row.options is None else row.options.shape
            if key not in widest or _size(row) > _size(widest[key]):
                widest[key] = row
    # The widest of a kind first: a bank that grows later has other programs.
    return rows + sorted(widest.values(), key=_size, reverse=True)


def _size(row: Row) -> int:
    return row.module.size if row.module else 0


def steps(service: Service, rows: Sequence[Row]) -> Iterator[Callable[[], object]]:
    """Yields calls of every shape that these rows have, for the thread that owns the device."""
    texts = set()
    pictures = service.pictures
    if pictures is not None:
        yield pictures.warm
    for row in rows:
        longer = [_of_length(row, length) for length in lengths(service.limits.inputs)]
        if row.options is not None:
            for one in longer:
                for count in row_counts(service.most_rows(one)):
                    part = [_copy(one) for _ in range(count)]
                    yield functools.partial(service.run, part)
                    if pictures is not None:
                        shown = dataclasses.replace(part[0], picture=pictures.blank())
                        yield functools.partial(service.run, [shown, *part[1:]])
        if row.kind not in texts:
            texts.add(row.kind)
            table = Table(service, row.kind)
            for one in longer:
                for count in row_counts(service.limits.slots):
                    yield functools.partial(_generate, table, [one] * count)


def _generate(table: Table, rows: Sequence[Row]) -> None:
    places = table.begin([(row, Draw(1)) for row in rows])
    table.advance()
    for place in places:
        table.end(place)


def _of_length(row: Row, length: int) -> Row:
    return Row(row.request, (row.tokens[-1],) * length, 0, row.module, row.options)


def _copy(row: Row) -> Row:
    return Row(row.request, row.tokens, 0, row.module, row.options)
