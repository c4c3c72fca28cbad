"""The sweeps' shell scripts on the shipped base: a few steps, then the report; again is at once."""

import json
import os
import shlex
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file

SHORT = (
    "--gin.TRAIN_STEPS=2", "--gin.EVAL_PERIOD=2", "--gin.BATCH_SIZE=4",
    "--gin.Evaluation.limit=8",
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
    variables = {"SHOTS": "2", "SEEDS": "0", "EVAL_FLAGS": "--gin.Evaluation.limit=8"}
    first = sweep(root, *few, *SHORT, **variables)
    assert "\n3 runs: " in first  # Among them the frozen base, without and with examples.
    text = (tmp_path / "few" / "report" / "report.md").read_text()
    assert "adalink, rank 4, 2 examples" in text
    assert "the frozen base, 4 examples in context" in text
    shown = (tmp_path / "few" / "in_context4" / "run.json").read_text()
    assert '"in_context": 4' in shown
    # Finished runs are left as they are.
    assert sweep(root, *few, *SHORT, **variables).count("was finished") == 1

    several = ("multitask_sweep.sh", tmp_path / "several", "experiments/mini_adalink.gin")
    flags = (*SHORT, f"--gin.INITIAL_CHECKPOINT_PATH={base}")
    choice = {"MIXTURES": "mini_cola:1", "TASKS": "", "RANKS": "2"}
    assert "2 runs" in sweep(root, *several, *flags, **choice)


@pytest.mark.slow
def test_side_by_side_each_is_trained_as_alone(pytestconfig, tmp_path):
    """Three command lines, one of them wrong: the others are trained all the same."""
    root, base = pytestconfig.rootpath, "adalink_jax/bases/mini"

    def line(name, *more):
        flags = ["--gin_file=experiments/mini_adalink.gin", f"--gin.MODEL_DIR={tmp_path / name}"]
        return [*flags, f"--gin.INITIAL_CHECKPOINT_PATH={base}", *SHORT, *more]

    lines = [line("a"), line("b", "--gin.SEED=1"), line("c", "--gin.RANK=0"), line("a")]
    done = subprocess.run(
        [sys.executable, "scripts/sweep.py", "--jobs", str(min(2, os.cpu_count()))],
        input="\n".join(map(shlex.join, lines)), cwd=root, capture_output=True, text=True,
        timeout=900,
    )  # fmt: skip
    assert done.returncode == 2
    assert "AdaLink.rank is 0" in done.stderr and "1 of 3 trainings failed" in done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(p.name for p in tmp_path.iterdir() if (p / "results.json").exists()) == ["a", "b"]
    record = json.loads((tmp_path / "b" / "run.json").read_text())
    assert record["starts"][0]["command"].startswith("scripts/train.py --gin_file=experiments/mini")
    assert record["starts"][0]["seconds"] > 0
    alone = subprocess.run(
        [sys.executable, "scripts/train.py", *line("alone")], cwd=root, capture_output=True
    )
    assert alone.returncode == 0
    # Equal to rounding: another number of cores may add in another order.
    arrays, expected = (
        load_file(tmp_path / name / "adapter" / "adapter.safetensors") for name in ("a", "alone")
    )
    assert arrays.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_allclose(arrays[name], array, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("jobs", ["0", "1000"])
def test_a_wrong_number_of_processes_is_one_line(pytestconfig, jobs):
    command = [sys.executable, "scripts/sweep.py", "--jobs", jobs]
    done = subprocess.run(
        command, cwd=pytestconfig.rootpath, input="", capture_output=True, text=True
    )
    assert done.returncode == 2 and done.stderr.startswith(f"error: --jobs={jobs}; this machine")


@pytest.mark.parametrize(
    "script", ["few_shot.sh", "multitask_sweep.sh", "rank_sweep.sh", "glue.sh", "experiment.sh"]
)
def test_without_arguments_they_say_how_they_are_called(pytestconfig, script):
    command = ["bash", f"scripts/{script}"]
    done = subprocess.run(command, cwd=pytestconfig.rootpath, capture_output=True, text=True)
    assert done.returncode == 2 and f"bash scripts/{script} OUT" in done.stderr
