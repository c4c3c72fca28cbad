"""A run's folder: what it holds, what it refuses, and how metrics are cut back."""

import contextlib
import errno
import json
import os
import re
import socket

import pytest
import tensorflow as tf

from adalink_jax import files
from adalink_jax.errors import UserError
from adalink_jax.runs import folder as folders
from adalink_jax.runs import metrics
from adalink_jax.runs.folder import RunFolder, comparable
from adalink_jax.runs.metrics import Metrics

RECORD = {
    "configuration": {"seed": 0, "train_steps": 5, "method": {"@": "AdaLink", "rank": 4}},
    "data": {"tasks": [{"name": "a", "rate": 1.0}]},
}


@pytest.fixture
def start(tmp_path):
    """Starts the run, or starts it again, at a step."""
    started = []

    def run_from(step: int) -> RunFolder:
        for earlier in started:
            earlier.close()
        started.append(RunFolder(tmp_path / "run"))
        for part, value in RECORD.items():
            started[-1].claim(part, value)
        started[-1].start("# gin\n", step)
        return started[-1]

    yield run_from
    started[-1].close()


@pytest.fixture
def folder(start):
    return start(0)


def lines(run) -> list[dict]:
    return [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]


def test_a_run_that_begins_anew_has_no_line_of_its_start_twice(folder, start):
    folder.log(0, {"score": 1.0})
    folder.sync()
    again = start(0)
    again.log(0, {"score": 1.0})
    again.log(1, {"loss": 1.0})
    again.sync()
    assert lines(again) == [{"step": 0, "score": 1.0}, {"step": 1, "loss": 1.0}]
    assert len(lines(start(1))) == 2


def test_metrics_are_cut_back_to_the_restored_step(folder, start):
    for step in (1, 2, 3):
        folder.log(step, {"loss": 1.0 / step}, {"steps_per_second": 3.0})
    folder.sync()
    folder.log(2, {"late": 1.0})
    path = folder.path / "metrics.jsonl"
    path.write_text(path.read_text() + '{"step": 4, "lo')  # Cut off by a kill.
    again = start(2)
    again.log(3, {"loss": 0.5})
    assert lines(again) == [
        {"step": 1, "loss": 1.0},
        {"step": 2, "loss": 0.5},
        {"step": 3, "loss": 0.5},
    ]


def test_no_clock_in_the_metrics_and_every_start_in_the_record(folder, start):
    folder.log(1, {"loss": 1.0}, {"steps_per_second": 3.0})
    assert lines(folder) == [{"step": 1, "loss": 1.0}]
    start(1)
    record = json.loads((folder.path / "run.json").read_text())
    assert [start["step"] for start in record["starts"]] == [0, 1]
    assert record["starts"][0]["versions"]["jax"]
    assert record["configuration"] == RECORD["configuration"]
    assert (folder.path / "config.gin").read_text() == "# gin\n"
    assert list((folder.path / "tensorboard").glob("events*"))


def test_the_same_run_with_more_steps_goes_on_and_another_is_refused(folder):
    folder.close()
    again = RunFolder(folder.path)
    again.claim("configuration", {**RECORD["configuration"], "train_steps": 9})
    again.claim("data", RECORD["data"])
    changed = {"@": "AdaLink", "rank": 8}
    with pytest.raises(UserError, match=r"method.rank was 4 and is 8.*another MODEL_DIR"):
        again.claim("configuration", {**RECORD["configuration"], "method": changed})
    with pytest.raises(UserError, match=r"tasks.0.rate was 1.0 and is 0.5"):
        again.claim("data", {"tasks": [{"name": "a", "rate": 0.5}]})
    again.close()


WATCHED = {"eval_period": 10, "checkpoint_period": 10, "log_period": 5, "keep": None, "limit": 8}


@pytest.mark.parametrize(
    ("changes", "refused"),
    [
        ({"eval_period": 3, "checkpoint_period": 4, "log_period": 1, "train_examples": 9}, None),
        ({"eval_period": 3, "limit": 9}, "limit was 8 and is 9"),
        ({"keep": "best", "eval_period": 3}, "eval_period was 10 and is 3"),
    ],
)
def test_what_cannot_change_the_result_may_change(tmp_path, changes, refused):
    """With KEEP, when a run is evaluated is a part of which step it ends with."""
    for settings, error in ((WATCHED, None), ({**WATCHED, **changes}, refused)):
        settings = {**settings, "keep": changes.get("keep")}
        with contextlib.closing(RunFolder(tmp_path / "run")) as folder:
            expected = pytest.raises(UserError, match=error) if error else contextlib.nullcontext()
            with expected:
                folder.claim("configuration", settings)
            if error is None:
                folder.write_record("", 0)


def test_a_folder_that_nobody_can_explain_is_refused(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    folder = RunFolder(tmp_path)
    folder.claim("configuration", {})  # A kill can leave an empty folder.
    (tmp_path / "checkpoints" / "3").mkdir()
    with pytest.raises(UserError, match="holds checkpoints but no run.json"):
        folder.claim("configuration", {})
    folder.close()


def test_a_run_holds_its_folder(folder):
    host, pid = re.escape(socket.gethostname()), os.getpid()
    with pytest.raises(UserError, match=rf"^MODEL_DIR .*/run is in use by process {pid} on {host}"):
        RunFolder(folder.path)
    folder.close()
    RunFolder(folder.path).close()
    assert not (folder.path / ".lock").exists()


def test_a_run_that_lost_its_folder_writes_no_more(folder):
    (folder.path / ".lock").unlink()
    before = {path: path.read_bytes() for path in folder.path.glob("*.*")}
    for write in (folder.sync, folder.record_seconds, lambda: folder.log(1, {"loss": 1.0})):
        with pytest.raises(UserError, match="MODEL_DIR .* is not held by this process any more"):
            write()
    assert {path: path.read_bytes() for path in folder.path.glob("*.*")} == before


@pytest.fixture
def finished(folder):
    """A run of 5 steps with its outcome."""
    folder.log(5, {"loss": 1.0})
    folder.sync()
    for name in ("adapter/adapter.safetensors", "adapter/adapter.json", "predictions/a.jsonl"):
        files.write_text(folder.path / name, f"the content of {name}\n")
    files.write_text(folder.path / "results.json", json.dumps({"step": 5, "score": 61.25}))
    folder.record_seconds()
    folder.record_outcome()
    return folder


def test_finished_or_not(folder, request):
    assert not folder.is_finished(5)
    request.getfixturevalue("finished")
    assert folder.is_finished(5)
    assert not folder.is_finished(6)
    with pytest.raises(UserError, match="TRAIN_STEPS is 4"):
        folder.is_finished(4)


@pytest.mark.parametrize(
    "name",
    ["results.json", "metrics.jsonl", "predictions/a.jsonl", "adapter/adapter.safetensors",
     "adapter/adapter.json"],
)  # fmt: skip
def test_a_finished_run_whose_files_are_damaged_is_not_finished(finished, name):
    path = finished.path / name
    content = path.read_bytes()
    for damaged in (content[:-3], content.replace(b"e", b"f", 1), None):
        path.write_bytes(damaged) if damaged is not None else path.unlink()
        if name == "results.json" and damaged is None:
            assert not finished.is_finished(5)  # What it lacks is written again.
            continue
        with pytest.raises(UserError, match=f"{name} .*(is|was) (missing|truncated|damaged)"):
            finished.is_finished(5)


def test_a_run_killed_before_its_outcome_was_recorded_gets_its_record(finished, monkeypatch):
    """Between results.json and the digests in run.json; the next start writes what is missing."""
    whole = finished.record()
    killed = {**whole, "files": {"metrics.jsonl": whole["files"]["metrics.jsonl"]}}
    monkeypatch.setattr(folders, "load_adapter", lambda path: None)
    for open_metrics in (finished._metrics, None):
        files.write_sealed(finished.path / "run.json", killed)
        finished._metrics = open_metrics
        assert finished.is_finished(5)
        assert finished.record() == whole


def test_a_finished_run_of_before_has_its_adapter_checked(finished):
    files.write_text(finished.path / "run.json", json.dumps({**RECORD, "starts": []}))
    with pytest.raises(UserError, match=r"adapter\.json: no JSON"):
        finished.is_finished(5)


@pytest.mark.parametrize("name", ["run.json", "results.json", "metrics.jsonl"])
def test_any_changed_byte_of_a_record_is_noticed_or_changes_nothing(finished, name):
    path, record = finished.path / name, finished.record()
    content = path.read_bytes()
    for i in range(0, len(content) + 1, 2):  # At the end, a cut.
        flipped = bytes(byte ^ (1 << i % 7) for byte in content[i : i + 1])
        path.write_bytes(content[:i] + flipped + content[i + 1 :] if flipped else content[:-9])
        try:
            assert finished.record() == record  # In JSON, \\u00D7 is \\u00d7.
            Metrics(finished.path / "metrics.jsonl", record["files"]["metrics.jsonl"], 5)
            assert finished.is_finished(5) and name == "run.json"
        except UserError as error:
            assert name in str(error)


@pytest.mark.parametrize("value", ["[]", "[1]", "7", "null", '"5"', "[" * 9999, "1" * 5000, "{"])
def test_records_of_another_shape_are_mistakes(folder, value):
    records = [value, f'{{"starts": {value}}}', f'{{"starts": [], "data": {value}}}']
    for content in records if value != "[]" else (value, records[2]):
        files.write_text(folder.path / "run.json", content)
        with pytest.raises(UserError, match=r"run\.json is damaged"):
            folder.record()
    (folder.path / "run.json").unlink()
    lines = [value, f'{{"step": {value}}}']
    for content in lines if value != "7" else (value,):
        files.write_text(folder.path / "results.json", content)
        with pytest.raises(UserError, match=r"results\.json is damaged"):
            folder.is_finished(5)
        files.write_text(folder.path / "metrics.jsonl", content + "\n")
        for read in (lambda path: Metrics(path, None, 9), metrics.read):
            with pytest.raises(
                UserError, match=r"metrics\.jsonl, line 1: damaged; delete the file"
            ):
                read(folder.path / "metrics.jsonl")


def test_comparable_leaves_out_paths_and_lengths():
    tree = {"model_dir": "/a", "x": {"initial_checkpoint_path": "/b", "y": [1, 2]}, "keep": None}
    assert comparable(tree) == {"x.y": [1, 2], "keep": None}


@pytest.mark.parametrize("path", ["gs://bucket/run", "s3://bucket/run"])
def test_a_folder_on_another_machine_is_refused_and_none_of_its_name_is_made(
    path, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=rf"{path} .* on this machine's file system only"):
        RunFolder(path)
    assert not list(tmp_path.iterdir())


def test_a_home_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    with contextlib.closing(RunFolder("~/runs/a")) as folder:
        assert folder.path == tmp_path / "runs" / "a"


def test_a_full_disk_is_one_line_and_leaves_the_record(folder, monkeypatch):
    before = (folder.path / "run.json").read_bytes()

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="run.json cannot be written: No space left on device; fr"):
        folder.record_seconds()
    with pytest.raises(UserError, match="metrics.jsonl cannot be written: No space left"):
        folder.sync()
    assert (folder.path / "run.json").read_bytes() == before


def test_a_full_disk_ends_metrics_in_one_line_and_only_the_events_of_tensorboard(folder, caplog):
    folder.log(1, {"loss": 1.0})
    # Every write to it finds the disk full.
    folder._boards[0]._writer = tf.io.TFRecordWriter("/dev/full")
    for step in range(2, 50):
        folder.log(step, {"loss": 1.0})
    assert [r.getMessage() for r in caplog.records] == [
        f"{folder.path}/tensorboard cannot be written (No space left on device): no more events "
        "for TensorBoard; metrics.jsonl has all"
    ]
    folder._metrics._file = open("/dev/full", "wb", buffering=0)
    with pytest.raises(UserError, match="metrics.jsonl cannot be written: No space left on device"):
        folder.log(50, {"loss": 1.0})
    folder.close()  # Raises nothing, not even with data that was not written.
    assert len(lines(folder)) == 49


def test_settings_that_came_later_have_their_defaults_in_methods_of_methods_too():
    adalink = {"@": "adalink_jax.methods.adalink.AdaLink", "rank": 4}
    now = {"method": {"parts": [{**adalink, "bias": False}]}}
    assert folders._with_later_settings({"method": {"parts": [adalink]}}, now) == now
    changed = {"method": {"parts": [{**adalink, "bias": True}]}}
    assert folders._with_later_settings({"method": {"parts": [adalink]}}, changed) == now
