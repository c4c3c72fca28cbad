"""A run that is killed and started again ends with the bytes of one that never was."""

import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys

import pytest

from adalink_jax import cli

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
        # After metrics that are younger than the checkpoint; between the last one and the results.
        (12, 21),
        # After the metrics of step 2, before the first save, and after the last metrics too.
        pytest.param((6, 8, 9, 12, 17), marks=pytest.mark.slow),
    ],
)
def test_killed_at_events_and_started_again(tmp_path, straight, mini_base, token_cache, events):
    killed = tmp_path / "killed"
    for event in events:
        done = run(event, killed, mini_base, token_cache)
        assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    finished = run(NEVER, killed, mini_base, token_cache)
    assert finished.returncode == 0, finished.stderr[-2000:]
    assert "going on from step" in finished.stdout
    for name in FILES:
        assert (killed / name).read_bytes() == (straight / name).read_bytes(), name


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
