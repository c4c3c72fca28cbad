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


def run(cache: pathlib.Path, command: list[str], *flags: str, **environment) -> None:
    """Runs a script."""
    inherited = {k: v for k, v in os.environ.items() if k != "TEXT_FILE"}
    inherited |= {"ADALINK_CACHE_DIR": str(cache), "PYTHON": sys.executable}
    command = [*command, *(f"--gin.{flag}" for flag in flags)]
    done = subprocess.run(
        command, env=inherited | environment, capture_output=True, text=True, timeout=1200
    )
    assert done.returncode == 0, done.stderr[-2000:]


def digests(folder: pathlib.Path) -> dict[str, str]:
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in EQUAL}


@pytest.mark.slow
def test_the_first_steps_give_the_same_bytes_twice(tmp_path, token_cache):
    """The raw base's first 20 steps and, from there, 20 on instructions, in new processes.

    Of the instructions one skill: all of them take minutes to generate.
    """
    few = ("TRAIN_STEPS=20", "BATCH_SIZE=32", "Evaluation.limit=8", "Periods.log_period=1")
    train = [sys.executable, str(ROOT / "scripts/train.py")]
    for name in ("one", "two"):
        raw, tuned = tmp_path / name / "raw", tmp_path / name / "tuned"
        run(token_cache, [*train, "--gin_file=experiments/mini_raw.gin"], f"MODEL_DIR={raw}", *few)
        run(
            token_cache,
            [*train, "--gin_file=experiments/mini_tuning.gin"],
            f"MODEL_DIR={tuned}",
            f"INITIAL_CHECKPOINT_PATH={raw}",
            "MIXTURE_OR_TASK_NAME=mini_instruct_paraphrase",
            *few,
        )
    for base in ("raw", "tuned"):
        assert digests(tmp_path / "one" / base) == digests(tmp_path / "two" / base)
    # And they do train: equal bytes of a run that stood still would prove nothing.
    lines = (tmp_path / "one/raw/metrics.jsonl").read_text().splitlines()
    losses = [json.loads(line)["train/loss"] for line in lines if "train/loss" in line]
    assert len(losses) == 20 and losses[-1] < losses[0]


@pytest.mark.slow
def test_the_shipped_raw_base_began_so(tmp_path, token_cache):
    """The shipped base's record says what the first run of the script would say today."""
    shipped = json.loads((ROOT / "adalink_jax/bases/mini_raw/adapter.json").read_text())
    command = [sys.executable, str(ROOT / "scripts/train.py")]
    run(
        token_cache,
        [*command, "--gin_file=experiments/mini_raw.gin"],
        *(f"MODEL_DIR={tmp_path / 'run'}", "TRAIN_STEPS=1", "Evaluation.limit=8"),
        XLA_FLAGS="",  # With LLVM's optimisations, as a user's: random weights have other bits.
    )
    again = json.loads((tmp_path / "run/adapter/adapter.json").read_text())
    assert again["metadata"]["data"] == shipped["metadata"]["data"]
    assert again["base_fingerprint"] == shipped["base_fingerprint"]  # the random weights


@pytest.mark.slow
def test_a_text_file_takes_the_place_of_the_mini_world(tmp_path, token_cache, shared_data):
    lines = (shared_data / "text/english_valid.txt").read_text().splitlines()[:400]
    (tmp_path / "english.txt").write_text("\n".join(lines))
    run(
        token_cache,
        ["bash", str(ROOT / "scripts/pretrain_mini.sh"), str(tmp_path / "out")],
        *("TRAIN_STEPS=2", "BATCH_SIZE=4", "Evaluation.limit=2"),
        TEXT_FILE=str(tmp_path / "english.txt"),
        VOCABULARY=str(shared_data / "vocab/spiece.model"),
    )
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["raw"]
    record = json.loads((tmp_path / "out/raw/run.json").read_text())
    assert record["data"]["tasks"][0]["source"]["file"] == "english.txt"
