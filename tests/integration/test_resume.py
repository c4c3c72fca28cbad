"""A run that is killed and started again ends with the bytes of one that never was."""

import os
import pathlib
import re
import signal
import subprocess
import sys

import pytest

SCRIPT = pathlib.Path(__file__).with_name("killed_run.py")
NEVER = 10**6
# Files that equal runs write with equal bytes.
FILES = ("adapter/adapter.safetensors", "adapter/adapter.json", "metrics.jsonl", "results.json")


def run(kill_at: int, folder: pathlib.Path, base: pathlib.Path, cache: pathlib.Path, *extra: str):
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
    return subprocess.run(
        [
            sys.executable,
            str(SCRIPT),
            str(kill_at),
            "--gin_file=experiments/mini_adalink.gin",
            *(f"--gin.{name}={value}" for name, value in flags.items()),
            *extra,
        ],
        cwd=SCRIPT.parents[2],
        env={**os.environ, "PYTHONPATH": str(SCRIPT.parents[2]), "ADALINK_CACHE_DIR": str(cache)},
        capture_output=True,
        text=True,
        timeout=500,
    )


@pytest.mark.slow
def test_killed_at_any_event_and_started_again(tmp_path, mini_base, token_cache):
    straight = run(NEVER, tmp_path / "straight", mini_base, token_cache)
    assert straight.returncode == 0, straight.stderr[-2000:]
    events = NEVER - int(re.search(r"events left: (\d+)", straight.stdout).group(1))
    killed = tmp_path / "killed"
    # Each start goes a little further than the last one's checkpoint before it dies: after the
    # metrics of step 2, inside the first save, after it, and among the final files.
    for kill_at in (6, 8, 9, 12, events // 2 + 2):
        done = run(kill_at, killed, mini_base, token_cache)
        assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    finished = run(NEVER, killed, mini_base, token_cache)
    assert finished.returncode == 0, finished.stderr[-2000:]
    assert "going on from step" in finished.stdout
    for name in FILES:
        assert (killed / name).read_bytes() == (tmp_path / "straight" / name).read_bytes(), name

    # A finished run is not run again; more steps are the same run, in another program too, and
    # another seed is another.
    again = run(NEVER, killed, mini_base, token_cache)
    assert again.returncode == 0 and "nothing to do" in again.stdout
    other = run(NEVER, killed, mini_base, token_cache, "--gin.SEED=1")
    assert other.returncode == 2
    assert re.search(
        r"^error: MODEL_DIR .*seed was 0 and is 1.*another MODEL_DIR", other.stderr, re.M
    )
    scanned = ("--gin.Layers.scan_layers=True", "--gin.Layers.remat='full'")
    more = run(NEVER, killed, mini_base, token_cache, "--gin.TRAIN_STEPS=8", *scanned)
    assert more.returncode == 0 and "going on from step 7" in more.stdout
    fewer = run(NEVER, killed, mini_base, token_cache, "--gin.TRAIN_STEPS=5")
    assert fewer.returncode == 2 and "TRAIN_STEPS is 5" in fewer.stderr
