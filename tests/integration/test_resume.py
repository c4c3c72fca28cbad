"""A run that is killed and started again ends with the bytes of one that never was."""

import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys

import pytest
import tensorflow as tf

from adalink_jax import cli
from adalink_jax.runs.board import Board
from adalink_jax.runs.folder import RunFolder
from tests.integration.asking import ask_to_stop

SCRIPT = pathlib.Path(__file__).with_name("killed_run.py")
NEVER = 10**6
# Files that equal runs write with equal bytes.
FILES = ("adapter/adapter.safetensors", "adapter/adapter.json", "metrics.jsonl", "results.json")


def arguments(folder: pathlib.Path, base: pathlib.Path) -> list[str]:
    flags = {
        "MODEL_DIR": folder,
        "INITIAL_CHECKPOINT_PATH": base,
        "TRAIN_STEPS": 7,
        "BATCH_SIZE": 4,
        "EVAL_PERIOD": 4,
        "CHECKPOINT_PERIOD": 3,
        "Periods.log_period": 2,
        "Evaluation.limit": 8,
        "Evaluation.batch_size": 8,
        "DROPOUT_RATE": 0.1,
    }
    flags = [f"--gin.{name}={value}" for name, value in flags.items()]
    return ["--gin_file=experiments/mini_adalink.gin", *flags]


def run(kill_at: int, folder: pathlib.Path, base: pathlib.Path, cache: pathlib.Path):
    return subprocess.run(
        [sys.executable, str(SCRIPT), str(kill_at), *arguments(folder, base)],
        cwd=SCRIPT.parents[2],
        env={**os.environ, "PYTHONPATH": str(SCRIPT.parents[2]), "ADALINK_CACHE_DIR": str(cache)},
        capture_output=True,
        text=True,
        timeout=500,
    )


@pytest.fixture
def here(mini_base, token_cache, monkeypatch, capsys):
    """Runs the command in this process; returns exit code, output and errors."""
    monkeypatch.setenv("ADALINK_CACHE_DIR", str(token_cache))

    def call(folder: pathlib.Path, *extra: str):
        code = cli.main(["train", *arguments(folder, mini_base), *extra])
        return (code, *capsys.readouterr())

    return call


@pytest.fixture(scope="module")
def straight(tmp_path_factory, mini_base, token_cache) -> pathlib.Path:
    """The folder of a run that was never killed; in this process, which changes no byte."""
    folder = tmp_path_factory.mktemp("straight") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ADALINK_CACHE_DIR", str(token_cache))
        assert cli.main(["train", *arguments(folder, mini_base)]) == 0
    return folder


# Each start goes a little further than the last one's checkpoint before it dies.
@pytest.mark.parametrize(
    "events",
    [
        # Between the last checkpoint and the results.
        (23,),
        # After metrics that are younger than the checkpoint.
        pytest.param((12, 23), marks=pytest.mark.slow),
        # Before the record; before the metrics are cut; after the metrics of step 2; after their
        # digest, which goes before the first save.
        pytest.param((1, 4, 6, 8), marks=pytest.mark.slow),
        # Before the first save; after the metrics of step 4, the last metrics, and while the last
        # step is written.
        pytest.param((9, 12, 18, 12), marks=pytest.mark.slow),
        # Between the results and their digests.
        pytest.param((35,), marks=pytest.mark.slow),
    ],
)
def test_killed_at_events_and_started_again(tmp_path, straight, mini_base, token_cache, events):
    killed = tmp_path / "killed"
    for event in events:
        done = run(event, killed, mini_base, token_cache)
        assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    saved = any(path.name.isdigit() for path in killed.glob("checkpoints/*"))
    finished = run(NEVER, killed, mini_base, token_cache)
    assert finished.returncode == 0, finished.stderr[-2000:]
    assert bool(re.search("going on from step|nothing to do", finished.stdout)) == saved
    for name in FILES:
        assert (killed / name).read_bytes() == (straight / name).read_bytes(), name


def test_stopped_by_a_signal_and_started_again(tmp_path, straight, here, monkeypatch):
    """At a step without a checkpoint of its own, which is then saved."""
    folder, log = tmp_path / "stopped", RunFolder.log

    def log_and_ask(run, step, *values):
        log(run, step, *values)
        if step == 4:
            ask_to_stop()

    with monkeypatch.context() as patched:
        patched.setattr(RunFolder, "log", log_and_ask)
        code, _, errors = here(folder)
    assert code == 128 + signal.SIGTERM
    assert errors.splitlines()[-1] == "stopped at step 5; the same command goes on"
    assert not (folder / ".lock").exists()
    code, output, _ = here(folder)
    assert code == 0 and "going on from step 5" in output
    for name in FILES:
        assert (folder / name).read_bytes() == (straight / name).read_bytes(), name


def test_a_damaged_checkpoint_is_left_for_the_one_before(tmp_path, straight, here):
    """Of step 7, which was the last. The run goes on from 6 and ends with the same bytes."""
    folder = tmp_path / "run"
    shutil.copytree(straight, folder)
    (folder / "results.json").unlink()
    shutil.rmtree(folder / "adapter")
    path = max((folder / "checkpoints/7/default").rglob("d/*"), key=lambda p: p.stat().st_size)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    code, output, errors = here(folder)
    assert code == 0, errors
    assert f"checkpoints/7 is damaged: {path}: truncated or altered" in output
    assert "going on from step 6" in output
    for name in FILES:
        assert (folder / name).read_bytes() == (straight / name).read_bytes(), name
    assert {p.name for p in (folder / "checkpoints").iterdir()} == {"6", "7", "7.damaged"}


def test_a_finished_run_is_not_run_again(tmp_path, straight, here):
    """More steps are the same run, in another program too, and another seed is another."""
    folder = tmp_path / "run"
    shutil.copytree(straight, folder)
    code, output, _ = here(folder)
    assert code == 0 and "nothing to do" in output
    code, _, errors = here(folder, "--gin.SEED=1")
    assert code == 2
    assert re.search(r"^error: MODEL_DIR .*seed was 0 and is 1.*another MODEL_DIR", errors, re.M)
    code, _, errors = here(folder, "--gin.TRAIN_STEPS=5")
    assert code == 2 and "TRAIN_STEPS is 5" in errors
    code, output, _ = here(
        folder, "--gin.TRAIN_STEPS=8", "--gin.Layers.scan_layers=True", "--gin.Layers.remat='full'"
    )
    assert code == 0 and "going on from step 7" in output


def test_tensorflow_reads_the_events_of_all_starts(tmp_path):
    for first, value in ((1, 1.5), (2, 0.25)):
        board = Board(tmp_path, first)
        board.add(first, {"loss": value, "steps_per_second": 3.0})
        board.close()
    found = []
    for path in sorted(tmp_path.glob("events*")):
        for record in tf.data.TFRecordDataset(str(path)):  # Checks both checksums.
            event = tf.compat.v1.Event.FromString(record.numpy())
            found += [(event.step, v.tag, v.simple_value) for v in event.summary.value]
            found += [(event.step, "start")] if event.session_log.status else []
    assert found == [
        (1, "start"), (1, "loss", 1.5), (1, "steps_per_second", 3.0),
        (2, "start"), (2, "loss", 0.25), (2, "steps_per_second", 3.0),
    ]  # fmt: skip
