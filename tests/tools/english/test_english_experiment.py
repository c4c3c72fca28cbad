"""A short run of each kind that the experiment on GLUE's tasks has, from the shipped base."""

import csv
import json

import pytest

import tasks
from adalink_jax import cli

SHORT = ["--gin.TRAIN_STEPS=2", "--gin.BATCH_SIZE=4", "--gin.Evaluation.limit=8"]
LENGTHS = ["--gin.TASK_FEATURE_LENGTHS={'inputs': 64, 'targets': 8}"]


@pytest.mark.slow
def test_every_stage_runs_and_is_reported(tmp_path, monkeypatch):
    """GLUE's files are the small world's, in the official layout."""
    monkeypatch.chdir(tmp_path)
    tasks.write_glue_folder(tmp_path / "glue")
    command = ["experiment", "out", "--world=english", "--bases=tuned", "--jobs=2", "--seeds=0"]
    command += ["--methods=adalink", "--tasks=rte", "--tuning-tasks=rte", "--rates=0.001"]
    command += ["--ranks=2", "--budget=1664", *SHORT, *LENGTHS, "--gin.GLUE_DIR=glue"]
    assert cli.main(command) == 0
    out = tmp_path / "out"
    assert sorted({path.relative_to(out).parts[0] for path in out.rglob("results.json")}) == [
        "alone", "equal", "equal_rates", "mixed", "rank_rates", "ranks", "rates", "single",
    ]  # fmt: skip
    report = out / "report"
    for part in ("methods", "ranks", "equal"):
        with open(report / part / "runs.csv", newline="") as file:
            assert list(csv.DictReader(file))
    grid = out / "rates/tuned/adalink/0.001/rte"
    (split,) = json.loads((grid / "results.json").read_text())["tasks"]["glue_rte"]["splits"]
    assert split == "held_out" and "held_out" in (report / "learning_rates.md").read_text()
    trained = json.loads((out / "equal/tuned/adalink/rte/seed0/run.json").read_text())
    assert trained["configuration"]["method"]["rank"] == 2
    assert trained["configuration"]["learning_rate"]["base_learning_rate"] == 0.001
