"""The sweeps' shell scripts on the shipped base: a few steps, then the report; again is at once."""

import os
import subprocess
import sys

import pytest

SHORT = (
    "--gin.TRAIN_STEPS=2", "--gin.EVAL_PERIOD=2", "--gin.BATCH_SIZE=4",
    "--gin.runs.train.eval_limit=8",
)  # fmt: skip


def sweep(root, script, *arguments, **variables):
    environment = {**os.environ, "PYTHON": sys.executable, **variables}
    command = ["bash", f"scripts/{script}", *map(str, arguments)]
    done = subprocess.run(
        command, cwd=root, env=environment, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
def test_few_shots_and_mixtures_end_in_a_report(pytestconfig, tmp_path):
    root, base = pytestconfig.rootpath, "adalink_jax/bases/mini"
    few = ("few_shot.sh", tmp_path / "few", "experiments/mini_adalink.gin", base, "mini_cola")
    variables = {"SHOTS": "2", "SEEDS": "0", "EVAL_FLAGS": "--gin.runs.evaluate.limit=8"}
    first = sweep(root, *few, *SHORT, **variables)
    assert "\n1 runs: " in first
    assert (tmp_path / "few" / "zero_shot" / "results.json").exists()
    text = (tmp_path / "few" / "report" / "report.md").read_text()
    assert "adalink, rank 4, 2 examples" in text
    # Finished runs are left as they are.
    assert sweep(root, *few, *SHORT, **variables).count("nothing to do") == 1

    several = ("multitask_sweep.sh", tmp_path / "several", "experiments/mini_adalink.gin")
    flags = (*SHORT, f"--gin.INITIAL_CHECKPOINT_PATH={base}")
    choice = {"MIXTURES": "mini_cola:1", "TASKS": "", "RANKS": "2"}
    assert "2 runs" in sweep(root, *several, *flags, **choice)


@pytest.mark.parametrize(
    "script", ["few_shot.sh", "multitask_sweep.sh", "rank_sweep.sh", "glue.sh"]
)
def test_without_arguments_they_say_how_they_are_called(pytestconfig, script):
    command = ["bash", f"scripts/{script}"]
    done = subprocess.run(command, cwd=pytestconfig.rootpath, capture_output=True, text=True)
    assert done.returncode == 2 and f"bash scripts/{script} OUT" in done.stderr
