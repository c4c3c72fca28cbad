"""What version 0.1.0 wrote: a run of 6 steps, which goes on, and its adapter, which loads.

tests/fixtures/run_of_0_1_0 is AdaLink on mini_cola from the embedded base: 8 rows a step, 64
examples, Evaluation.limit 16. The lines beside it are those of 0.1.0 when it went on to step 10.
"""

import json
import pathlib
import shutil

import numpy as np

from adalink_jax.adapters.load import load_adaptation
from adalink_jax.config import gin_files

ROOT = pathlib.Path(__file__).resolve().parents[2]
RUN = ROOT / "tests/fixtures/run_of_0_1_0"
BASE = ROOT / "adalink_jax/bases/mini"


def lines(path: pathlib.Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_run_goes_on_as_it_would_have(tmp_path, token_cache):
    run = tmp_path / "run"
    shutil.copytree(RUN, run)
    settings = {
        "MODEL_DIR": run,
        "INITIAL_CHECKPOINT_PATH": BASE,
        "MIXTURE_OR_TASK_NAME": "mini_cola",
        "TRAIN_STEPS": 10,
        "BATCH_SIZE": 8,
        "EVAL_PERIOD": 6,
        "CHECKPOINT_PERIOD": 6,
        "Evaluation.limit": 16,
        "Evaluation.batch_size": 16,
        "Periods.log_period": 2,
        "Batches.few_shot": 64,
        "Data.cache_dir": token_cache,
    }
    flags = [f"--gin.{name}={value}" for name, value in settings.items()]
    argv = ["--gin_file=experiments/mini_adalink.gin", *flags]
    assert gin_files.main("adalink_jax.runs.train", argv) == 0
    found, expected = (
        lines(run / "metrics.jsonl"),
        lines(RUN.with_name(f"{RUN.name}_after_10_steps.jsonl")),
    )
    assert found[:4] == expected[:4]  # These were kept, not computed again.
    assert [sorted(line) for line in found] == [sorted(line) for line in expected]
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose([*ours.values()], [*theirs.values()], rtol=1e-4)
    assert [start["step"] for start in json.loads((run / "run.json").read_text())["starts"]] == [
        0,
        6,
    ]


def test_an_adapter_loads_on_its_base():
    adaptation = load_adaptation(str(RUN), str(BASE))
    assert adaptation.method.rank == 4 and adaptation.routes == ("all",)
    assert adaptation.adapter.metadata["train_steps"] == 6
