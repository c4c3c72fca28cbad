"""Weights & Biases: offline as the library writes it, and in one line where it cannot be used."""

import importlib.util
import sys
import types

import pytest

from adalink_jax import cli
from adalink_jax.errors import UserError, install
from adalink_jax.runs.dashboard import Dashboard

RECORD = {
    "configuration": {"seed": 3, "method": {"@": "AdaLink", "rank": 4}},
    "starts": [{"time": "2026-01-01T00:00:00+00:00"}],
}


def test_without_the_package_a_run_that_asks_for_it_is_refused_at_once(
    tmp_path, monkeypatch, capsys
):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "wandb" else found(name)
    )
    words = ["train", "--gin_file=experiments/mini_adalink.gin", "--gin.WANDB=mine"]
    words += ["--gin.INITIAL_CHECKPOINT_PATH=mini", f"--gin.MODEL_DIR={tmp_path / 'run'}"]
    assert cli.main(words) == 2
    errors = capsys.readouterr().err
    assert errors.startswith(
        f"error: WANDB is 'mine', but wandb is not installed: {install('wandb')}"
    )
    assert len(errors.splitlines()) == 1 and not (tmp_path / "run").exists()


@pytest.fixture
def pretended(monkeypatch):
    """A module that remembers what it was called with, and refuses what it is told to."""
    called = []

    class Run:
        def log(self, values, step):
            called.append((step, values))
            if values.get("refuse"):
                raise RuntimeError("no more\nof this")

        def finish(self, exit_code):
            called.append(exit_code)

    def init(**given):
        called.append(given)
        if given["project"] == "closed":
            raise PermissionError("nobody is logged in\nuse wandb login")
        return Run()

    module = types.SimpleNamespace(init=init, Settings=dict)
    monkeypatch.setitem(sys.modules, "wandb", module)
    return called


def test_all_starts_are_one_run_and_one_that_fails_is_said_to(tmp_path, pretended):
    Dashboard("mine", tmp_path, RECORD).close()
    with pytest.raises(ZeroDivisionError):
        try:
            raise ZeroDivisionError
        finally:
            later = {**RECORD, "starts": [*RECORD["starts"], {"time": "later"}]}
            Dashboard("mine", tmp_path, later).close()
    first, ended, second, failed = pretended
    assert first == second and (ended, failed) == (0, 1)
    assert first["config"] == RECORD["configuration"] and first["resume"] == "allow"
    Dashboard("mine", tmp_path / "other", RECORD)
    assert pretended[-1]["id"] != first["id"]


def test_an_error_ends_it_and_not_the_run(tmp_path, pretended, caplog):
    dashboard = Dashboard("mine", tmp_path, RECORD)
    dashboard.add(1, {"loss": 2.0})
    dashboard.add(2, {"refuse": 1.0})
    dashboard.add(3, {"loss": 1.0})
    dashboard.close()
    assert pretended[1:] == [(1, {"loss": 2.0}), (2, {"refuse": 1.0})]
    assert "no more values go to Weights & Biases (no more); metrics.jsonl has all" in caplog.text
    with pytest.raises(UserError, match="^WANDB is 'closed', but .*: nobody is logged in; with"):
        Dashboard("closed", tmp_path, RECORD)


def records(content: bytes):
    """The records of LevelDB's log format, which the library's files have, after seven bytes."""
    place, parts = 7, []
    while place + 7 < len(content):
        if place % 2**15 > 2**15 - 7:  # What is left of a block is empty.
            place += 2**15 - place % 2**15
        length, kind = int.from_bytes(content[place + 4 : place + 6], "little"), content[place + 6]
        parts.append(content[place + 7 : place + 7 + length])
        place += 7 + length
        if kind in (1, 4):  # Whole, or a last part.
            yield b"".join(parts)
            parts = []


def test_offline_the_library_writes_the_values(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="wandb is not installed")
    from wandb.proto import wandb_internal_pb2

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    dashboard = Dashboard("mine", tmp_path, RECORD)
    dashboard.add(1, {"train/loss": 2.5, "steps_per_second": 8.0})
    dashboard.add(2, {"train/loss": 1.5})
    dashboard.close()
    (path,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    history, config = [], {}
    for content in records(path.read_bytes()):
        record = wandb_internal_pb2.Record.FromString(content)
        if record.WhichOneof("record_type") == "history":
            items = record.history.item
            history.append({one.key or one.nested_key[0]: one.value_json for one in items})
        for one in record.run.config.update:
            config[one.key] = one.value_json
    assert [line["train/loss"] for line in history] == ["2.5", "1.5"]
    assert [line["_step"] for line in history] == ["1", "2"] and config["seed"] == "3"
