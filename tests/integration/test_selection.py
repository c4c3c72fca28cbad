"""Runs that keep the best step, average, hold examples out and stop early."""

import json
import pathlib
import shutil
import signal

import pytest

from adalink_jax import cli
from adalink_jax.runs.folder import RunFolder
from tests.integration.asking import ask_to_stop
from tests.integration.test_resume import FILES

GIVEN = {
    "TRAIN_STEPS": 8,
    "BATCH_SIZE": 4,
    "EVAL_PERIOD": 2,
    "CHECKPOINT_PERIOD": 3,
    "Periods.log_period": 4,
    "Evaluation.limit": 16,
    "Evaluation.batch_size": 8,
    "LEARNING_RATE": 0.3,  # So much that an early step is the best.
    "WEIGHT_DECAY": 0.5,
    "CLIP_NORM": 0.5,
    "EMA_DECAY": 0.6,
    "KEEP": "best",
    "PATIENCE": 4,
    "Data.held_out": 0.1,
    "Selection.train_examples": 8,
}
HELD_OUT = "eval/mini_cola/held_out/matthews_corrcoef"


@pytest.fixture(scope="module")
def train(mini_base, token_cache):
    """Runs the command in this process, folder and what differs → exit code."""

    def call(folder: pathlib.Path, **changed) -> int:
        given = {**GIVEN, "MODEL_DIR": folder, "INITIAL_CHECKPOINT_PATH": mini_base, **changed}
        flags = [f"--gin.{name.replace('__', '.')}={value}" for name, value in given.items()]
        files = ["experiments/mini_adalink.gin", "optimizers/adamw.gin"]
        flags += ["--gin.MIXTURE_OR_TASK_NAME=mini_cola"]
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("ADALINK_CACHE_DIR", str(token_cache))
            return cli.main(["train", *(f"--gin_file={name}" for name in files), *flags])

    return call


@pytest.fixture(scope="module")
def straight(tmp_path_factory, train) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("straight") / "run"
    assert train(folder) == 0
    return folder


def lines(folder: pathlib.Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def results(folder: pathlib.Path) -> dict:
    return json.loads((folder / "results.json").read_text())


@pytest.mark.slow
def test_the_best_step_is_that_of_the_metrics(straight, train, tmp_path, capsys):
    """Its adapter is that of a run that ends there; dev is scored once, at the end."""
    scores = {
        line["step"]: line["eval/mini_cola/score"] for line in lines(straight) if HELD_OUT in line
    }
    assert list(scores) == [0, 2, 4, 6, 8]
    found = results(straight)
    best = max(scores, key=scores.get)  # The first of equal ones.
    assert 0 < best < max(scores)
    assert found["kept"] == {"step": best, "metric": "mean score", "score": round(scores[best], 4)}
    assert list(found["tasks"]["mini_cola"]["splits"]) == ["validation"]
    assert all(
        "training_eval/mini_cola/score" in line for line in lines(straight) if HELD_OUT in line
    )
    record = json.loads((straight / "run.json").read_text())
    (task,) = record["data"]["tasks"]
    assert task["held_out"]["share"] == record["configuration"]["held_out"] == 0.1
    assert task["examples"] < task["held_out"]["of"]
    short = tmp_path / "short"
    assert train(short, TRAIN_STEPS=best, KEEP=None, PATIENCE=None) == 0
    adapter = json.loads((straight / "adapter/adapter.json").read_text())
    assert adapter["metadata"]["kept"] == found["kept"]
    name = "adapter/adapter.safetensors"
    assert (short / name).read_bytes() == (straight / name).read_bytes()
    assert results(short)["tasks"] == found["tasks"]
    assert "KEEP" not in capsys.readouterr().out


@pytest.mark.parametrize("steps", [(5,), pytest.param((2, 4, 6), marks=pytest.mark.slow)])
def test_stopped_anywhere_it_ends_with_the_same_bytes(
    straight, train, tmp_path, monkeypatch, steps
):
    folder, log = tmp_path / "run", RunFolder.log
    for at in steps:

        def log_and_ask(run, step, *values, at=at):
            log(run, step, *values)
            if step >= at:
                ask_to_stop()

        with monkeypatch.context() as patched:
            patched.setattr(RunFolder, "log", log_and_ask)
            assert train(folder) == 128 + signal.SIGTERM
    assert train(folder) == 0
    for name in FILES:
        assert (folder / name).read_bytes() == (straight / name).read_bytes(), name


def test_a_run_stops_for_want_of_a_better_score(train, tmp_path, capsys):
    """With a rate of 0, all scores are that of the start, whose adapter is kept."""
    folder = tmp_path / "run"
    changed = {"LEARNING_RATE": 0.0, "PATIENCE": 2, "EMA_DECAY": None}
    assert train(folder, **changed) == 0
    assert "stopped early at step 4 of 8" in capsys.readouterr().out
    found = results(folder)
    assert (found["step"], found["stopped_early"], found["kept"]["step"]) == (4, True, 0)
    assert train(folder, **changed) == 0
    assert "finished; nothing to do" in capsys.readouterr().out
    # Killed before its outcome was written.
    before = {name: (folder / name).read_bytes() for name in FILES}
    (folder / "results.json").unlink()
    shutil.rmtree(folder / "adapter")
    assert train(folder, **changed) == 0
    assert {name: (folder / name).read_bytes() for name in FILES} == before
    assert train(folder, **changed, KEEP="lowest") == 2
    assert "keep was 'best' and is 'lowest'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"Selection__metric": "eval/mini_cola/sore"},
            "which is none of eval/mini_cola/held_out/matt",
        ),
        ({"Selection__split": "dev"}, "KEEP is best, but there is no split to choose on"),
        ({"Data__held_out": 1e-9}, "held_out is 1e-09: of "),
        ({"PATIENCE": 0}, "PATIENCE is 0; it takes a whole number"),
        ({"WEIGHT_DECAY": -1}, "WEIGHT_DECAY is -1; it takes a number ≥ 0"),
    ],
)
def test_mistakes_are_one_line_before_the_first_step(train, tmp_path, capsys, changed, message):
    assert train(tmp_path / "run", **changed) == 2
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error:")]
    assert message in line
    assert not list((tmp_path / "run").glob("checkpoints/*"))
