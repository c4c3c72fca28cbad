"""The scripts on real GLUE data."""

import json
import os
import pathlib
import subprocess
import sys
import time

import pytest

from adalink_jax.models.t5 import T5Config

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def script(shared_data, token_cache):
    """Runs one of scripts/ with real data; returns its output."""

    def run(name: str, *files: str, **macros) -> str:
        macros |= {
            "GLUE_DIR": shared_data / "glue",
            "VOCABULARY": shared_data / "vocab" / "spiece.model",
        }
        command = [sys.executable, str(ROOT / "scripts" / name)]
        command += [f"--gin_file={file}" for file in files]
        command += [f"--gin.{key.replace('__', '.')}={value}" for key, value in macros.items()]
        # As a user's: with LLVM's optimisations, which the tests otherwise do without.
        environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
        environment["ADALINK_CACHE_DIR"] = str(token_cache)
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=1500
        )
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    return run


@pytest.fixture(scope="module")
def random_base(write_base) -> pathlib.Path:
    """A base of random weights for T5's vocabulary."""
    config = T5Config(
        vocab_size=32128,
        emb_dim=16,
        num_heads=2,
        num_encoder_layers=1,
        num_decoder_layers=1,
        head_dim=8,
        mlp_dim=16,
        logits_via_embedding=True,
    )
    return write_base(config)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "examples", "metrics"),
    [
        ("glue_rte", 277, {"accuracy"}),
        ("glue_cola", 1043, {"matthews_corrcoef"}),
        ("glue_mrpc", 408, {"f1", "accuracy"}),
        ("glue_stsb", 1500, {"pearson_corrcoef", "spearman_corrcoef"}),
    ],
)
def test_train_and_eval(script, random_base, tmp_path, task, examples, metrics):
    """Whole validation sets, trained for a few steps and scored again by eval.py."""
    lengths = "{'inputs': 256, 'targets': 16}"
    shared = {
        "MIXTURE_OR_TASK_NAME": task,
        "INITIAL_CHECKPOINT_PATH": random_base,
        "TASK_FEATURE_LENGTHS": lengths,
    }
    few = {"TRAIN_STEPS": 3, "BATCH_SIZE": 8}
    run, scores = tmp_path / "run", tmp_path / "eval"
    script("train.py", "experiments/glue_adalink.gin", MODEL_DIR=run, **few, **shared)
    script("eval.py", "runs/eval.gin", ADAPTER_PATH=run, EVAL_OUTPUT_DIR=scores, **shared)
    trained, scored = (
        json.loads((tmp_path / name / "results.json").read_text()) for name in ("run", "eval")
    )
    split = scored["tasks"][task]["splits"]["validation"]
    assert split["examples"] == examples
    assert set(split["metrics"]) == metrics
    assert trained["tasks"] == scored["tasks"]
    lines = (tmp_path / "eval" / "predictions" / f"{task}-validation.jsonl").read_text()
    assert len(lines.splitlines()) == examples


@pytest.mark.slow
def test_a_mixture_of_packed_rows_with_a_route_for_each_task(script, random_base, tmp_path):
    script(
        "train.py",
        "experiments/glue_adalink.gin",
        MODEL_DIR=tmp_path / "run",
        MIXTURE_OR_TASK_NAME="glue_proportional",
        INITIAL_CHECKPOINT_PATH=random_base,
        TASK_FEATURE_LENGTHS="{'inputs': 128, 'targets': 32}",
        ROUTES=8,
        TRAIN_STEPS=3,
        BATCH_SIZE=8,
        Batches__packing=True,
        Evaluation__limit=16,
    )
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["glue"]["absent_tasks"] == []
    # The data has no mismatched part of MNLI; it is named, and the matched part is scored.
    assert results["tasks"]["glue_mnli"]["absent_splits"] == ["validation_mismatched"]
    adapter = json.loads((tmp_path / "run" / "adapter" / "adapter.json").read_text())
    assert adapter["route_names"] == sorted(results["tasks"])
    assert adapter["tensors"]["encoder/adalink/down"]["shape"] == [8, 16, 4]


@pytest.mark.slow
def test_a_tiny_t5_learns_sst2_from_scratch(script, tmp_path):
    """75 % of the validation set; how long it takes on two idle cores stands in the README."""
    start = time.perf_counter()
    script("train.py", "experiments/sst2_from_scratch.gin", MODEL_DIR=tmp_path / "run")
    print(f"SST-2 from scratch: {time.perf_counter() - start:.0f} s")
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    split = results["tasks"]["glue_sst2"]["splits"]["validation"]
    assert split["examples"] == 872
    assert split["metrics"]["accuracy"] > 75
