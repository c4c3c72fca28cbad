"""The record of an adapter: everything but its arrays, in ``adapter.json``."""

import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from adalink_jax.checkpoints.architecture import config_from, differing_fields
from adalink_jax.errors import UserError, nearest
from adalink_jax.methods import METHODS
from adalink_jax.methods.base import Method
from adalink_jax.models.t5 import T5Config
from adalink_jax.values import checked

RECORD = "adapter.json"
FORMAT_VERSION = 1
# Of a folder with arrays that are stored in two bits a number.
TERNARY_VERSION = 2

SHOWN_DIGITS = 12

# Every field of adapter.json and the type of its value.
_FIELDS: Mapping[str, type] = {
    "format_version": int,
    "method": str,
    "settings": dict,
    "architecture": dict,
    "base_fingerprint": str,
    "route_names": list,
    "metadata": dict,
    "tensors": dict,
    "sha256": str,
}


@dataclasses.dataclass(frozen=True)
class AdapterRecord:
    """Everything about an adapter except its arrays.

    Attributes:
      method_name: a name in ``METHODS``.
      settings: the method's fields.
      route_names: what each of the K routes is for, in order.
      metadata: what the run recorded; JSON values.
      architecture: the architecture of the base it was trained on.
      base_fingerprint: that base's `fingerprint`.
    """

    method_name: str
    settings: dict[str, Any]
    route_names: tuple[str, ...]
    metadata: dict[str, Any]
    architecture: T5Config
    base_fingerprint: str

    @property
    def method(self) -> Method:
        """The method with the adapter's settings."""
        return METHODS[self.method_name](**self.settings)

    @property
    def data(self) -> dict[str, Any]:
        """What is recorded of the data that it was trained on; empty if nothing is."""
        data = self.metadata.get("data")
        return data if isinstance(data, dict) else {}

    def tasks(self, route: str) -> list[dict[str, Any]]:
        """Returns what is recorded of a route's tasks, each with its "name".

        All are those of an adapter's only route. Of several, each has the task of its name, or in
        a stacked adapter those with its name as "route". Empty if one of the tasks has no name.
        """
        tasks = self.data.get("tasks")
        tasks = tasks if isinstance(tasks, list) else []
        if not all(isinstance(one, dict) and isinstance(one.get("name"), str) for one in tasks):
            return []
        if len(self.route_names) == 1:
            return tasks
        return [one for one in tasks if one.get("route", one["name"]) == route]

    def task(self, route: str) -> dict[str, Any]:
        """Returns what is recorded of a route's only task; empty if of several or of none."""
        tasks = self.tasks(route)
        return tasks[0] if len(tasks) == 1 else {}

    @property
    def vocabulary(self) -> str | None:
        """The identity of the vocabulary that it was trained with, if recorded."""
        found = self.data.get("vocabulary")
        return found if isinstance(found, str) else None

    @property
    def image_encoder(self) -> dict[str, Any] | None:
        """What is recorded of the encoder of the pictures that it was trained on, if of any."""
        found = self.data.get("image_encoder")
        return found if isinstance(found, dict) else None

    def shows_pictures(self, route: str) -> bool:
        """Returns whether a route was trained on pictures, and on no task without any."""
        tasks = self.tasks(route)
        return bool(tasks) and all(isinstance(one.get("images"), dict) for one in tasks)

    def labels(self, route: str) -> tuple[str, ...]:
        """Returns the labels recorded of a route's only task, if a user's examples made that."""
        source = self.task(route).get("source")
        labels = source.get("labels") if isinstance(source, dict) else None
        texts = isinstance(labels, list) and all(isinstance(label, str) for label in labels)
        return tuple(labels) if labels and texts else ()

    def route(self, name: str | None) -> int:
        """Returns a route's number. Without a name, the adapter must have only one route.

        Raises:
          UserError: there is no such route, or there are several and no name is given.
        """
        if name is None and len(self.route_names) == 1:
            return 0
        if name not in self.route_names:
            what = "needs one of its routes" if name is None else f"has no route '{name}'"
            raise UserError(
                f"the adapter {what}{nearest(name or '', self.route_names)}; its routes are "
                f"{', '.join(self.route_names)}"
            )
        return self.route_names.index(name)

    def check_base(
        self,
        where: str | os.PathLike[str],
        *,
        architecture: T5Config | None = None,
        base_fingerprint: str | None = None,
    ) -> None:
        """Checks that a base is the one the adapter was trained on.

        Args:
          where: the adapter's folder, for the error.
          architecture: the base's architecture; None skips the comparison.
          base_fingerprint: the base's `fingerprint`; None skips the comparison.

        Raises:
          UserError: it is another base.
        """
        theirs = self.base_fingerprint
        parts = []
        if base_fingerprint not in (None, theirs):
            parts.append(
                f"fingerprint {theirs[:SHOWN_DIGITS]}, this base's is"
                f" {base_fingerprint[:SHOWN_DIGITS]}"
            )
        if architecture is not None:
            differing = differing_fields(self.architecture, architecture)
            parts += [f"{name} {a}, this base's is {b}" for name, (a, b) in differing.items()]
        if parts:
            raise UserError(f"adapter {where} was trained on another base: {'; '.join(parts)}")


def write_record(folder: pathlib.Path, record: Mapping[str, Any]) -> None:
    """Writes ``adapter.json``: the record with its digest.

    Args:
      folder: the folder with the tensors' file.
      record: every field but the digest.

    Raises:
      TypeError, ValueError: the record holds other values than those of JSON.
    """
    # Tuples, and names that are no strings, become what is read again.
    fields = json.loads(json.dumps(record, allow_nan=False))
    fields["record_sha256"] = record_digest(fields)
    text = json.dumps(fields, indent=2, sort_keys=True, ensure_ascii=False)
    (folder / RECORD).write_text(text + "\n", encoding="utf-8")


def record_digest(record: Mapping[str, Any]) -> str:
    """Returns the SHA-256 of a record's fields but ``record_sha256``, as sorted JSON in ASCII."""
    fields = {name: value for name, value in record.items() if name != "record_sha256"}
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


def check_digest(record: Mapping[str, Any], where: str | os.PathLike[str]) -> None:
    """Raises `UserError` if the fields of the record at `where` do not have its digest.

    Earlier versions wrote none.
    """
    if "record_sha256" in record and record["record_sha256"] != record_digest(record):
        raise UserError(f"{where}: altered: its fields do not have the SHA-256 that it records")


def parse_record(content: bytes, where: str) -> dict[str, Any]:
    """Returns the fields of an ``adapter.json``, checked for presence and type.

    Args:
      content: the file's content.
      where: the file's path, for errors.

    Raises:
      UserError: the file is damaged or has an unknown format version.
    """
    try:
        record = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: no JSON; the file is truncated or damaged") from error
    if not isinstance(record, dict):
        raise UserError(f"{where}: not the record of an adapter")
    version = record.get("format_version")
    if version not in (FORMAT_VERSION, TERNARY_VERSION):
        raise UserError(
            f"{where}: format_version {version!r}; this version reads {FORMAT_VERSION} and "
            f"{TERNARY_VERSION}"
        )
    for name, kind in _FIELDS.items():
        if not isinstance(record.get(name), kind):
            raise UserError(f"{where}: field '{name}' is missing or no {kind.__name__}")
        if kind is str and not record[name].isprintable():
            raise UserError(f"{where}: field '{name}' is {record[name]!r}")
    names = record["route_names"]
    if not all(isinstance(name, str) and name.isprintable() for name in names):
        raise UserError(f"{where}: field 'route_names' holds other things than names")
    if len(set(names)) < len(names):
        raise UserError(f"{where}: field 'route_names' holds a name twice")
    return record


def checked_record(raw: Mapping[str, Any], folder: str, path: str | None = None) -> AdapterRecord:
    """Returns the record of raw fields, checked against the methods that there are.

    Args:
      raw: the result of `parse_record`.
      folder: the adapter's place, for errors.
      path: the record's own place, for errors; None if it has none.

    Raises:
      UserError: the method is unknown, has no such settings, or other routes than are named.
    """
    path = path or folder
    config = config_from(raw["architecture"], path)
    if raw["method"] not in METHODS:
        unknown = f"unknown method {raw['method']!r}{nearest(raw['method'], METHODS)}"
        raise UserError(f"adapter {folder}: {unknown}")
    settings = {name: _frozen(value) for name, value in raw["settings"].items()}
    _check_settings(raw["method"], settings, folder)
    record = AdapterRecord(
        method_name=raw["method"],
        settings=settings,
        route_names=tuple(raw["route_names"]),
        metadata=raw["metadata"],
        architecture=config,
        base_fingerprint=raw["base_fingerprint"],
    )
    if len(record.route_names) != record.method.routes:
        raise UserError(
            f"{path}: {len(record.route_names)} names of routes, but its settings say "
            f"{record.method.routes} routes"
        )
    return record


def _check_settings(name: str, settings: Mapping[str, Any], folder: str) -> None:
    """Raises `UserError` unless the method can be built from the settings."""
    where = f"adapter {folder}: settings of method '{name}'"
    fields = {field.name: field for field in dataclasses.fields(METHODS[name])}
    for setting, value in settings.items():
        if setting not in fields:
            raise UserError(f"{where}: unknown {setting!r}{nearest(setting, fields)}")
        checked(f"{where}: {setting}", value, fields[setting].type)
    for setting, field in fields.items():
        if field.default is dataclasses.MISSING and setting not in settings:
            raise UserError(f"{where}: no {setting}")
    try:
        METHODS[name](**settings)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error


def _frozen(value: Any) -> Any:
    """Turns lists into tuples: JSON has no tuples, and a method's fields must be hashable."""
    return tuple(_frozen(item) for item in value) if isinstance(value, list) else value
