"""Runs on a table of one's own: trained, resumed, scored, served and exported."""

import io
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import types

import jax
import numpy as np
import pytest

from adalink_jax import cli
from adalink_jax.checkpoints import fingerprint, load_adapter, save_adapter
from tests.data import test_own
from tests.data.test_tables import write
from tests.integration.test_resume import FILES, NEVER, SCRIPT

# The mini world writes small letters alone.
REVIEWS = [{**row, "label": row["label"].lower()} for row in test_own.REVIEWS]
ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def base(mini_base, tmp_path_factory):
    """A tiny base, in a folder that stands for that of the embedded bases."""
    from adalink_jax.adapters import texts

    folder = tmp_path_factory.mktemp("bases")
    shutil.copytree(mini_base, folder / "tiny")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(texts, "EMBEDDED_FOLDER", folder)
        yield folder / "tiny"


def arguments(table, folder, base, *more: str) -> list[str]:
    flags = {
        "MODEL_DIR": folder,
        "INITIAL_CHECKPOINT_PATH": base,
        "TRAIN_STEPS": 2,
        "BATCH_SIZE": 4,
        "CHECKPOINT_PERIOD": 1,
        "Evaluation.batch_size": 8,
    }
    files = ("experiments/own_data.gin", "methods/adalink.gin")
    return [
        *(f"--gin_file={name}" for name in files),
        *(f"--gin.{name}={value}" for name, value in flags.items()),
        f"--data={table}",
        *more,
    ]


@pytest.fixture(scope="module")
def trained(base, token_cache, tmp_path_factory) -> pathlib.Path:
    """A folder with reviews.csv, and the run that it gave."""
    folder = tmp_path_factory.mktemp("user")
    table = write(folder / "reviews.csv", REVIEWS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ADALINK_CACHE_DIR", str(token_cache))
        assert cli.main(["train", *arguments(table, folder / "runs/reviews", base)]) == 0
    return folder


@pytest.fixture
def user(trained, tmp_path, token_cache, monkeypatch):
    """A copy of that folder, from which commands are called."""
    monkeypatch.setenv("ADALINK_CACHE_DIR", str(token_cache))
    shutil.copytree(trained, tmp_path / "user")
    monkeypatch.chdir(tmp_path / "user")
    return tmp_path / "user"


def test_the_record_says_the_table_and_no_path_of_it(trained):
    record = json.loads((trained / "runs/reviews/run.json").read_text())
    (task,) = record["data"]["tasks"]
    assert task["name"] == "reviews" and task["source"]["labels"] == ["negative", "positive"]
    assert task["source"]["table"]["inputs"] == ["text"]
    assert set(task["source"]["table"]["sha256"]) == {"path"}
    assert record["data"]["lengths"] == {"inputs": 8, "targets": 8}
    # Which serving ranks.
    assert load_adapter(trained / "runs/reviews/adapter").labels("all") == ("negative", "positive")
    adapter = (trained / "runs/reviews/adapter/adapter.json").read_text()
    assert str(trained) not in adapter and "reviews.csv" not in adapter
    text = (trained / "runs/reviews/config.gin").read_text()
    assert "own.Table.path = " in text and "MIXTURE_OR_TASK_NAME = 'reviews'" in text


def test_the_same_rows_elsewhere_are_the_same_run(user, base, capsys):
    """In another format, too; more steps go on from where it was."""
    (user / "reviews.csv").unlink()
    table = write(user / "moved.parquet", REVIEWS)
    named = ("--gin.MIXTURE_OR_TASK_NAME=reviews",)
    assert cli.main(["train", *arguments(table, "runs/reviews", base, *named)]) == 0
    assert "nothing to do" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda path: path.write_text(path.read_text().replace("good", "fine")), "has changed"),
        (lambda path: path.unlink(), "no such file"),
    ],
)
def test_a_table_that_changed_is_refused_before_anything_is_loaded(
    user, base, capsys, monkeypatch, change, line
):
    monkeypatch.setattr("adalink_jax.runs.training.prepared_base", None)
    change(user / "reviews.csv")
    before = {path: path.read_bytes() for path in user.rglob("run.json")}
    # Also where the run is finished.
    for more in ((), ("--gin.TRAIN_STEPS=4",)):
        assert cli.main(["train", *arguments("reviews.csv", "runs/reviews", base, *more)]) == 2
        (error,) = [e for e in capsys.readouterr().err.splitlines() if e.startswith("error:")]
        assert error.startswith(f"error: reviews.csv{':' * (line[0] == 'n')} {line}")
    assert before == {path: path.read_bytes() for path in before}


def test_a_finished_run_is_of_its_own_base(user, base, capsys):
    """A copy of the base elsewhere is the same; another base is another run's."""
    bases = base.parent  # Whose vocabulary is known.
    shutil.copytree(base, bases / "copy")
    table = user / "reviews.csv"
    assert cli.main(["train", *arguments(table, "runs/reviews", bases / "copy")]) == 0
    assert "nothing to do" in capsys.readouterr().out
    adapter = load_adapter(base)
    flipped = jax.tree.map(np.negative, adapter.tree["encoder"])
    tree = {**adapter.tree, "encoder": flipped}
    save_adapter(
        bases / "other", tree, method_name="full", settings={}, route_names=adapter.route_names,
        architecture=adapter.architecture, base_fingerprint=fingerprint(tree),
    )  # fmt: skip
    before = {path: path.read_bytes() for path in user.rglob("*.json")}
    for other, words in (("other", "fingerprint was"), ("nowhere", "does not exist")):
        assert cli.main(["train", *arguments(table, "runs/reviews", bases / other)]) == 2
        assert words in capsys.readouterr().err
    assert before == {path: path.read_bytes() for path in before}


def score(*more: str, to: str = "scored") -> int:
    flags = ["--gin.ADAPTER_PATH=runs/reviews", f"--gin.EVAL_OUTPUT_DIR={to}"]
    return cli.main(["eval", "--gin_file=runs/reviews/config.gin", *flags, *more])


def test_eval_reads_the_runs_own_gin_file(user, capsys):
    assert score() == 0
    printed = capsys.readouterr().out
    assert "reviews.csv: 3 to score (a tenth, chosen by a hash)" in printed
    assert "others than" not in printed and "to train on" not in printed
    found, expected = (
        json.loads((user / path / "results.json").read_text())["tasks"]["reviews"]
        for path in ("scored", "runs/reviews")
    )
    assert found["score"] == expected["score"]
    write(user / "test.jsonl", REVIEWS[:4])
    assert score("--dev=test.jsonl", to="test") == 0
    (path,) = (user / "test/predictions").iterdir()
    lines = path.read_text().splitlines()
    assert [json.loads(line)["inputs"] for line in lines] == [r["text"] for r in REVIEWS[:4]]
    # Without the examples of the training, whose labels the adapter has.
    capsys.readouterr()
    assert score("--gin.Table.path=review.csv", to="lost") == 2
    assert "review.csv: no such file; did you mean 'reviews.csv'?" in capsys.readouterr().err
    write(user / "test.csv", [{**REVIEWS[0], "label": "Positive"}])
    assert score("--gin.Table.path=None", "--dev=test.csv", to="wrong") == 2
    assert "'Positive' is a target, but none of the labels negative" in capsys.readouterr().err


@pytest.mark.slow
def test_infer_has_the_labels_of_the_table(user, base, monkeypatch, capsysbinary):
    request = json.dumps({"text": "the film was good", "adapter": "reviews"}).encode()
    monkeypatch.setattr("sys.stdin", types.SimpleNamespace(buffer=io.BytesIO(request)))
    flags = ["--base", str(base), "--adapters", "runs", "--vocabulary", "mini"]
    assert cli.main(["infer", *flags]) == 0
    answer = json.loads(capsysbinary.readouterr().out)
    assert set(answer["scores"]) == {"negative", "positive"}


def test_a_task_needs_lengths_and_a_table_a_name_of_its_own(user, base, capsys):
    flags = [flag for flag in arguments("x", "new", base) if not flag.startswith("--data")]
    assert cli.main(["train", *flags, "--gin.MIXTURE_OR_TASK_NAME=mini_cola"]) == 2
    assert "TASK_FEATURE_LENGTHS is None" in capsys.readouterr().err
    name = ("--gin.MIXTURE_OR_TASK_NAME=mini_cola",)
    assert cli.main(["train", *arguments("reviews.csv", "other", base, *name)]) == 2
    assert "'mini_cola' is another task; give the table another" in capsys.readouterr().err


@pytest.mark.slow
def test_any_text_is_generated_and_numbers_are_ranked(user, base, capsys):
    rows = [{"text": row["text"], "label": f"{row['text']} {i}"} for i, row in enumerate(REVIEWS)]
    write(user / "free.tsv", rows)
    assert cli.main(["train", *arguments("free.tsv", "runs/free", base)]) == 0
    assert "answers are generated, greedily" in capsys.readouterr().out
    results = json.loads((user / "runs/free/results.json").read_text())
    assert results["mode"] == "greedy" and "sequence_accuracy" in json.dumps(results)
    write(user / "n.csv", [{"text": row["text"], "label": i / 8} for i, row in enumerate(REVIEWS)])
    assert cli.main(["train", *arguments("n.csv", "runs/n", base)]) == 0
    results = json.loads((user / "runs/n/results.json").read_text())
    assert set(results["tasks"]["n"]["splits"]["validation"]["metrics"]) == {
        "pearson_corrcoef", "spearman_corrcoef",
    }  # fmt: skip


@pytest.mark.slow
def test_from_a_table_to_what_others_load(user, base, capsys):
    exported = ["--adapter=runs/reviews", f"--base={base}", "--to=folded", "--format=huggingface"]
    assert cli.main(["export", *exported]) == 0
    assert (user / "folded/config.json").is_file()
    assert cli.main(["report", "runs/reviews", "--to", "report"]) == 0
    assert "reviews" in (user / "report/report.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("event", [6, 12])
def test_killed_and_started_again_it_gives_the_same_bytes(user, token_cache, event):
    def run(kill_at: int):
        command = [*arguments("reviews.csv", "killed", "mini")]
        return subprocess.run(
            [sys.executable, str(SCRIPT), str(kill_at), *command],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=500,
        )

    assert cli.main(["train", *arguments("reviews.csv", "straight", "mini")]) == 0
    assert run(event).returncode == -signal.SIGKILL
    finished = run(NEVER)
    assert finished.returncode == 0, finished.stderr[-2000:]
    for name in FILES:
        assert (user / "killed" / name).read_bytes() == (user / "straight" / name).read_bytes()
