"""Runs of a report at Weights & Biases and for TensorBoard: what is told of each, and refusals."""

import importlib.util
import sys
import types

import pytest
import tensorflow as tf

from adalink_jax import cli
from tests.tools.report.made import write_evaluation, write_run


@pytest.fixture
def runs(tmp_path):
    """Two seeds of a method, and a frozen base."""
    for seed in (0, 1):
        write_run(tmp_path / "runs" / f"run{seed}", "adalink", {"rank": 2}, ("mini_a",), seed)
    write_evaluation(tmp_path / "runs" / "alone", None)
    return tmp_path / "runs"


@pytest.mark.parametrize("words", [["--wandb", "mine"], ["--tensorboard"]])
def test_what_is_not_installed_is_said_before_anything_is_written(
    runs, monkeypatch, capsys, tmp_path, words
):
    find = importlib.util.find_spec
    missing = ("wandb", "tensorboard")
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name in missing else find(name)
    )
    assert cli.main(["report", str(runs), f"--to={tmp_path / 'report'}", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert (
        line.startswith(f"error: {words[0]}")
        and " is not installed: " in line
        and line.endswith("]'")
    )
    assert not (tmp_path / "report").exists()


@pytest.fixture
def wandb(monkeypatch):
    """A module that remembers what it was called with, by run."""
    begun = []

    class Run:
        def __init__(self, given):
            self.given, self.logged, self.summary, self.ended = given, [], {}, False

        def log(self, values, step):
            self.logged.append((step, values))
            if self.given["project"] == "failing":
                raise RuntimeError("no more\nof this")

        def finish(self):
            self.ended = True

    def init(**given):
        begun.append(Run(given))
        return begun[-1]

    module = types.SimpleNamespace(
        init=init, Settings=dict, __spec__=importlib.util.spec_from_loader("wandb", None)
    )
    monkeypatch.setitem(sys.modules, "wandb", module)
    return begun


def test_each_run_is_one_at_weights_and_biases_however_often(runs, wandb, tmp_path):
    for _ in range(2):
        words = ["report", str(runs), f"--to={tmp_path / 'report'}", "--wandb", "mine"]
        assert cli.main(words) == 0
    assert len(wandb) == 6 and all(run.ended for run in wandb)
    assert [run.given["id"] for run in wandb[:3]] == [run.given["id"] for run in wandb[3:]]
    assert len({run.given["id"] for run in wandb}) == 3
    told = {run.given["config"]["seed"]: run for run in wandb if "adalink" in run.given["group"]}
    assert sorted(told) == [0, 1]
    for seed, run in told.items():
        assert run.given["config"]["steps"] == 30 and run.given["project"] == "mine"
        expected = 50 + 3 * 2 - 2 + seed + len("adalink") / 10
        assert run.summary == pytest.approx(
            {"mini_a/score": expected, "mini_a/validation/f1_mini_a": expected / 2}
        )


def test_a_run_that_cannot_be_sent_is_named_in_one_line(runs, wandb, tmp_path, capsys):
    words = ["report", str(runs), f"--to={tmp_path / 'report'}", "--wandb", "failing"]
    assert cli.main(words) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line == f"error: --wandb: {runs / 'run0'} cannot be sent: no more"
    assert (tmp_path / "report" / "report.md").exists()


@pytest.fixture
def hparams(monkeypatch):
    """TensorBoard's module of such messages, with other ones in their place."""
    if importlib.util.find_spec("tensorboard") is not None:
        return False

    def message(kind, content):
        return tf.compat.v1.Summary(value=[{"tag": kind, "metadata": {"display_name": content}}])

    summary = types.SimpleNamespace(
        session_start_pb=lambda settings: message("start", repr(settings)),
        session_end_pb=lambda status: message("end", repr(status)),
    )
    for name in ("tensorboard", "tensorboard.plugins"):
        module = types.ModuleType(name)
        module.__spec__ = importlib.util.spec_from_loader(name, None)
        monkeypatch.setitem(sys.modules, name, module)
    module = types.SimpleNamespace(api_pb2=types.SimpleNamespace(STATUS_SUCCESS=1), summary=summary)
    monkeypatch.setitem(sys.modules, "tensorboard.plugins.hparams", module)
    return True


def test_each_run_is_a_session_for_tensorboard_however_often(runs, hparams, tmp_path):
    for _ in range(2):
        assert cli.main(["report", str(runs), f"--to={tmp_path / 'report'}", "--tensorboard"]) == 0
    folders = sorted((tmp_path / "report" / "tensorboard").iterdir())
    assert len(folders) == 3
    for folder in folders:
        (path,) = folder.glob("events.out.tfevents.*")
        events = [
            tf.compat.v1.Event.FromString(record.numpy())
            for record in tf.data.TFRecordDataset(str(path))
        ]
        values = [(e.step, v) for e in events for v in e.summary.value]
        (_, start), *scalars, (_, end) = values
        form = "{}" if hparams else "_hparams_/session_{}_info"
        assert (start.tag, end.tag) == (form.format("start"), form.format("end"))
        if hparams and "seed_1" in folder.name:
            assert "'seed': 1" in start.metadata.display_name
            assert "'few_shot': ''" in start.metadata.display_name
        found = {v.tag: (step, v.simple_value) for step, v in scalars}
        if "adalink" in folder.name:
            seed = int(folder.name.partition("seed_")[2][0])
            expected = 50 + 3 * 2 - 2 + seed + len("adalink") / 10
            assert found["mini_a/score"] == (30, pytest.approx(expected))
