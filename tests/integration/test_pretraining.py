"""scripts/pretrain_mini.sh: the same bytes from the same seed, and any text file."""

import hashlib
import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
# What a run writes that holds no clock value and no path.
EQUAL = ("metrics.jsonl", "results.json", "adapter/adapter.json", "adapter/adapter.safetensors")


def pretrain(out: pathlib.Path, cache: pathlib.Path, *flags: str, **environment) -> None:
    """Runs the script as a user would, with LLVM's optimisations."""
    inherited = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "TEXT_FILE")}
    inherited |= {"ADALINK_CACHE_DIR": str(cache), "PYTHON": sys.executable}
    command = ["bash", str(ROOT / "scripts/pretrain_mini.sh"), str(out)]
    command += [f"--gin.{flag}" for flag in flags]
    done = subprocess.run(
        command, env=inherited | environment, capture_output=True, text=True, timeout=1200
    )
    assert done.returncode == 0, done.stderr[-2000:]


def digests(run: pathlib.Path) -> dict[str, str]:
    return {name: hashlib.sha256((run / name).read_bytes()).hexdigest() for name in EQUAL}


@pytest.mark.slow
def test_the_first_steps_give_the_same_bytes_twice(tmp_path, token_cache):
    """Raw and tuned, in new processes: 20 steps each."""
    few = ("TRAIN_STEPS=20", "runs.train.eval_limit=8", "runs.train.log_period=1")
    for name in ("one", "two"):
        pretrain(tmp_path / name, token_cache, *few)
    for base in ("raw", "tuned"):
        assert digests(tmp_path / "one" / base) == digests(tmp_path / "two" / base)
    # And they do train: another 20 steps from random weights would be no proof.
    lines = (tmp_path / "one/raw/metrics.jsonl").read_text().splitlines()
    losses = [json.loads(line)["train/loss"] for line in lines if "train/loss" in line]
    assert len(losses) == 20 and losses[-1] < losses[0]


@pytest.mark.slow
def test_a_text_file_takes_the_place_of_the_mini_world(tmp_path, token_cache, shared_data):
    lines = (shared_data / "text/english_valid.txt").read_text().splitlines()[:400]
    (tmp_path / "english.txt").write_text("\n".join(lines))
    pretrain(
        tmp_path / "out",
        token_cache,
        *("TRAIN_STEPS=2", "BATCH_SIZE=4", "runs.train.eval_limit=2"),
        TEXT_FILE=str(tmp_path / "english.txt"),
        VOCABULARY=str(shared_data / "vocab/spiece.model"),
    )
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["raw"]
    record = json.loads((tmp_path / "out/raw/run.json").read_text())
    assert record["data"]["tasks"][0]["source"]["file"] == "english.txt"
