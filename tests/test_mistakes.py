"""A user's mistakes, at the command line: one line that says what and where, exit code 2.

Nothing is overwritten. Each case is a command line that works but for one thing.
"""

import json
import pathlib

import pytest

from adalink_jax.config import gin_files

ROOT = pathlib.Path(__file__).resolve().parent.parent


@pytest.fixture
def command(tmp_path, mini_base, token_cache, monkeypatch, capsys):
    """Runs train.py's command line with changes; returns (exit code, error lines)."""
    monkeypatch.setenv("ADALINK_CACHE_DIR", str(token_cache))
    for name in ("GLUE_DIR", "VOCABULARY"):
        monkeypatch.delenv(name, raising=False)

    def run(experiment="mini_adalink", entry="train", files=(), **changes):
        flags = {
            "MODEL_DIR": tmp_path / "run",
            "INITIAL_CHECKPOINT_PATH": mini_base,
            "TRAIN_STEPS": 1,
            "BATCH_SIZE": 4,
            "Evaluation.limit": 4,
            "Evaluation.batch_size": 4,
            **{name.replace("__", "."): value for name, value in changes.items()},
        }
        argv = [f"--gin_file={name}" for name in (f"experiments/{experiment}.gin", *files)]
        argv += [f"--gin.{name}={value}" for name, value in flags.items() if value is not None]
        code = gin_files.main(f"adalink_jax.runs.{entry}", argv)
        errors = [line for line in capsys.readouterr().err.splitlines() if line[:6] == "error:"]
        return code, errors

    return run


def refused(outcome) -> str:
    code, errors = outcome
    assert code == 2
    assert len(errors) == 1
    return errors[0]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"MIXTURE_OR_TASK_NAME": "mini_sst"}, "did you mean 'mini_sst2'"),
        ({"RANC": 4}, "did you mean 'RANK'"),
        ({"runs__train__scan_layer": 8}, "no parameter 'scan_layer'"),
        ({"Loss__label_smoothing": 1.0}, "label_smoothing is 1.0; it takes a number ≥ 0 and < 1"),
        ({"Layers__remat": "'most'"}, "remat is 'most'; it takes one of none, minimal, full"),
        ({"RANK": 0}, "RANK is 0; it takes a whole number"),
        ({"RANK": "'four'"}, "RANK is 'four'"),
        ({"MODEL_DIR": None}, "MODEL_DIR is required"),
        ({"BATCH_SIZE": 0}, "BATCH_SIZE is 0"),
        ({"BATCH_SIZE": 4, "Batches__gradient_accumulation_steps": 3}, "does not divide"),
        ({"Layout__model_parallelism": 3}, "does not divide the"),
        ({"Layout__slices": 3}, "slices × model_parallelism is 3, which does not divide"),
        ({"Layout__slices": 0}, "slices is 0"),
        ({"Layout__devices": 64}, "devices is 64, which is not the"),
        ({"Precision__frozen_dtype": "'bf16'"}, "did you mean 'bfloat16'"),
        ({"Evaluation__mode": "'rank'"}, "takes one of rank_classification, greedy"),
        ({"Precision__dtype": "'float16'"}, "activations overflow"),
        ({"ROUTES": 3}, "routes is 3, but mini_sst2 has 1 task"),
        ({"TRAIN_STEPS": -1}, "TRAIN_STEPS is -1"),
        ({"TASK_FEATURE_LENGTHS": "{'inputs': 32}"}, "TASK_FEATURE_LENGTHS"),
        ({"INITIAL_CHECKPOINT_PATH": "'nowhere'"}, "nowhere does not exist"),
        ({"INITIAL_CHECKPOINT_PATH": "None"}, "no base: give INITIAL_CHECKPOINT_PATH"),
        ({"MODEL_DIR": "/proc/run"}, "/proc/run cannot be written"),
    ],
)
def test_mistakes_of_a_configuration(command, tmp_path, changes, expected):
    assert expected in refused(command(**changes))
    assert not (tmp_path / "run" / "run.json").exists()


def test_hardware_of_another_size(command):
    message = refused(command(files=["hardware/tpu_v5e_4x8.gin"]))
    assert "devices is 32, which is not the" in message
    assert "tpu_v5e_4x8.gin:" in message  # Where it was set.


def test_full_fine_tuning_has_no_frozen_dtype(command):
    message = refused(command("mini_full", Precision__frozen_dtype="'bfloat16'"))
    assert "frozen_dtype is 'bfloat16', but Full freezes nothing" in message


def test_a_method_that_is_not_there(command):
    assert "did you mean 'experiments/mini_adalink.gin'" in refused(command("mini_adalnk"))


def test_another_architecture_names_both(command):
    message = refused(command(files=["models/mini.gin"]))
    assert "emb_dim" in message and "16" in message


def test_a_vocabulary_larger_than_the_table(command, shared_data):
    message = refused(
        command(
            MIXTURE_OR_TASK_NAME="glue_rte",
            GLUE_DIR=shared_data / "glue",
            VOCABULARY=shared_data / "vocab" / "spiece.model",
        )
    )
    assert "32100 ids" in message and "384 rows" in message


def test_vocabularies_that_are_none(command, shared_data, tmp_path):
    glue = {"MIXTURE_OR_TASK_NAME": "glue_rte", "GLUE_DIR": shared_data / "glue"}
    (tmp_path / "text.model").write_text("no model")
    assert "VOCABULARY" in refused(command(**glue))
    assert "nothere.model" in refused(command(**glue, VOCABULARY="/nothere.model"))
    message = refused(command(**glue, VOCABULARY=tmp_path / "text.model"))
    assert "SentencePiece" in message and "text.model" in message


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (None, "train.tsv"),
        ("index\tsentence1\tlabel\n0\ta\tentailment\n", "sentence2"),
        ("index\tsentence1\tsentence2\tlabel\n0\ta\tb\tmaybe\n", "train.tsv:2"),
    ],
)
def test_glue_folders_with_mistakes(command, shared_data, tmp_path, rows, expected):
    folder = tmp_path / "glue" / "RTE"
    folder.mkdir(parents=True)
    if rows:
        (folder / "train.tsv").write_text(rows)
    message = refused(
        command(
            MIXTURE_OR_TASK_NAME="glue_rte",
            GLUE_DIR=tmp_path / "glue",
            VOCABULARY=shared_data / "vocab" / "spiece.model",
        )
    )
    assert expected in message


def test_runs_of_another_configuration_and_adapters_of_another_base(command, tmp_path, mini_base):
    assert command() == (0, [])
    run = tmp_path / "run"
    before = {path: path.read_bytes() for path in run.rglob("*.json*")}
    message = refused(command(RANK=2))
    assert "rank was 4 and is 2" in message and "another MODEL_DIR" in message
    assert "seed was 0 and is 1" in refused(command(SEED=1))
    assert {path: path.read_bytes() for path in run.rglob("*.json*")} == before

    evaluate = {
        "MODEL_DIR": None,
        "TRAIN_STEPS": None,
        "BATCH_SIZE": None,
        "ADAPTER_PATH": run,
        "EVAL_OUTPUT_DIR": tmp_path / "scores",
        "MIXTURE_OR_TASK_NAME": "mini_sst2",
        "TASK_FEATURE_LENGTHS": "{'inputs': 32, 'targets': 16}",
    }
    eval_file = "../runs/eval"
    assert command(eval_file, "evaluate", **evaluate)[0] == 0
    assert json.loads((tmp_path / "scores" / "results.json").read_text())["tasks"]["mini_sst2"]
    assert "already holds results.json" in refused(command(eval_file, "evaluate", **evaluate))

    # Another base of the same shapes: full fine-tuning moves it by one step.
    moved = {"MODEL_DIR": tmp_path / "moved"}
    assert command("mini_full", **moved) == (0, [])
    evaluate |= {"EVAL_OUTPUT_DIR": tmp_path / "other"}
    changed = {**evaluate, "INITIAL_CHECKPOINT_PATH": tmp_path / "moved"}
    message = refused(command(eval_file, "evaluate", **changed))
    assert "base" in message and str(run) in message
    whole = {**evaluate, "ADAPTER_PATH": tmp_path / "moved"}
    assert "leave INITIAL_CHECKPOINT_PATH out" in refused(command(eval_file, "evaluate", **whole))


@pytest.mark.parametrize(
    ("rate", "steps", "expected"),
    [
        (1e38, 5, "loss of step 2 is nan"),
        # Finite, but the network's norms cannot take its square; nothing comes after to find it.
        (1e30, 1, "what step 1 has trained overflows"),
        pytest.param(3e38, 1, "what step 1 has trained overflows", marks=pytest.mark.slow),
    ],
)
def test_what_is_not_finite_is_not_saved(command, tmp_path, rate, steps, expected):
    message = refused(command(LEARNING_RATE=rate, TRAIN_STEPS=steps))
    assert expected in message and "not finite" in message
    assert not list((tmp_path / "run" / "checkpoints").glob("[0-9]*"))
    assert not (tmp_path / "run" / "adapter").exists()


@pytest.mark.slow
def test_the_last_good_checkpoint_stays_and_ends_the_run_if_asked(command, tmp_path):
    """The rate is 0 in the first step and overflows in the second."""
    changes = {"LEARNING_RATE": 1e38, "optimizers__factors__factors": "'constant*linear_warmup'"}
    for _ in range(2):
        message = refused(command(TRAIN_STEPS=9, CHECKPOINT_PERIOD=1, **changes))
        assert "what step 2 has trained overflows" in message
        assert "TRAIN_STEPS=1 ends the run at its last checkpoint" in message
    assert command(TRAIN_STEPS=1, CHECKPOINT_PERIOD=1, **changes) == (0, [])
    assert (tmp_path / "run" / "adapter" / "adapter.json").exists()


def test_truncation_is_counted_and_said(command, tmp_path, capsys):
    del capsys
    code, _ = command(TASK_FEATURE_LENGTHS="{'inputs': 5, 'targets': 16}")
    assert code == 0
    data = json.loads((tmp_path / "run" / "run.json").read_text())["data"]
    assert data["tasks"][0]["truncated"]["inputs"] > 0
