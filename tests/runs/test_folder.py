"""A run's folder: what it holds, what it refuses, and how metrics are cut back."""

import errno
import json
import os

import pytest

from adalink_jax.errors import UserError
from adalink_jax.runs.folder import RunFolder, comparable

RECORD = {
    "configuration": {"seed": 0, "train_steps": 5, "method": {"@": "AdaLink", "rank": 4}},
    "data": {"tasks": [{"name": "a", "rate": 1.0}]},
}


@pytest.fixture
def folder(tmp_path):
    run = RunFolder(tmp_path / "run")
    for part, value in RECORD.items():
        run.claim(part, value)
    run.start("# gin\n", 0)
    yield run
    run.close()


def lines(run) -> list[dict]:
    return [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]


def test_metrics_are_cut_back_to_the_restored_step(folder):
    for step in (1, 2, 3):
        folder.log(step, {"loss": 1.0 / step}, {"steps_per_second": 3.0})
    folder.log(2, {"late": 1.0})
    folder.close()
    path = folder.path / "metrics.jsonl"
    path.write_text(path.read_text() + '{"step": 4, "lo')  # Cut off by a kill.
    again = RunFolder(folder.path)
    again.start("# gin\n", 2)
    again.log(3, {"loss": 0.5})
    assert lines(again) == [
        {"step": 1, "loss": 1.0},
        {"step": 2, "loss": 0.5},
        {"step": 3, "loss": 0.5},
    ]
    again.close()


def test_no_clock_in_the_metrics_and_every_start_in_the_record(folder):
    folder.log(1, {"loss": 1.0}, {"steps_per_second": 3.0})
    assert lines(folder) == [{"step": 1, "loss": 1.0}]
    again = RunFolder(folder.path)
    again.claim("configuration", RECORD["configuration"])
    again.start("# gin\n", 1)
    again.close()
    record = json.loads((folder.path / "run.json").read_text())
    assert [start["step"] for start in record["starts"]] == [0, 1]
    assert record["starts"][0]["versions"]["jax"]
    assert record["configuration"] == RECORD["configuration"]
    assert (folder.path / "config.gin").read_text() == "# gin\n"
    assert list((folder.path / "tensorboard").glob("events*"))


def test_the_same_run_with_more_steps_goes_on_and_another_is_refused(folder):
    again = RunFolder(folder.path)
    again.claim("configuration", {**RECORD["configuration"], "train_steps": 9})
    again.claim("data", RECORD["data"])
    changed = {"@": "AdaLink", "rank": 8}
    with pytest.raises(UserError, match=r"method.rank was 4 and is 8.*another MODEL_DIR"):
        again.claim("configuration", {**RECORD["configuration"], "method": changed})
    with pytest.raises(UserError, match=r"tasks.0.rate was 1.0 and is 0.5"):
        again.claim("data", {"tasks": [{"name": "a", "rate": 0.5}]})


def test_a_folder_that_nobody_can_explain_is_refused(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(UserError, match="holds checkpoints but no run.json"):
        RunFolder(tmp_path).claim("configuration", {})


def test_finished_or_not(folder):
    assert not folder.is_finished(5)
    folder.write_json("results.json", {"step": 5})
    assert folder.is_finished(5)
    assert not folder.is_finished(6)
    with pytest.raises(UserError, match="TRAIN_STEPS is 4"):
        folder.is_finished(4)


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
    assert RunFolder("~/runs/a").path == tmp_path / "runs" / "a"


def test_a_full_disk_is_one_line_and_leaves_the_record(folder, monkeypatch):
    before = (folder.path / "run.json").read_bytes()

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="run.json cannot be written: No space left on device$"):
        folder.write_json("run.json", {})
    with pytest.raises(UserError, match="metrics.jsonl cannot be written: No space left"):
        folder.sync()
    assert (folder.path / "run.json").read_bytes() == before
