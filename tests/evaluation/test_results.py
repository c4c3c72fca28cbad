"""Reports of hand-made results."""

import errno
import io
import json
import math
import os

import pytest

import tasks
from adalink_jax.errors import UserError
from adalink_jax.evaluation import (
    Prediction,
    Results,
    SplitResult,
    TaskResult,
    chosen,
    print_table,
    report,
    results,
    scalars,
    write,
)


def predictions(n):
    scores = {"yes": -0.12345678, "no": -2.5}
    return tuple(Prediction(f"in {i} é", "yes", "no", scores) for i in range(n))


@pytest.fixture
def found():
    """Two tasks of GLUE, one with two splits, and one that is not GLUE's."""
    return Results(
        "rank_classification",
        {
            "glue_mrpc": TaskResult(
                {"validation": SplitResult({"f1": 80.0, "accuracy": 70.1234567}, predictions(3))}
            ),
            "glue_mnli": TaskResult(
                {
                    "validation_matched": SplitResult({"accuracy": 60.0}, predictions(2), 1),
                    "validation_mismatched": SplitResult({"accuracy": 50.0}, predictions(1)),
                }
            ),
            "mini_sst2": TaskResult(
                {"validation": SplitResult({"accuracy": 10.0}, predictions(1))}
            ),
        },
    )


def test_scores_are_means_of_metrics_and_of_splits(found):
    content = report(found)
    assert content["tasks"]["glue_mrpc"]["score"] == 75.061728  # (80 + 70.1234567) / 2
    assert content["tasks"]["glue_mnli"]["score"] == 55.0
    assert content["glue"] == {
        "average": 65.030864,  # (75.06172835 + 55) / 2: mini_sst2 is no task of GLUE
        "tasks": ["glue_mrpc", "glue_mnli"],
        "absent_tasks": [
            "glue_cola",
            "glue_sst2",
            "glue_qqp",
            "glue_stsb",
            "glue_qnli",
            "glue_rte",
        ],
    }
    assert content["tasks"]["glue_mnli"]["splits"]["validation_matched"] == {
        "metrics": {"accuracy": 60.0},
        "examples": 2,
        "truncated_inputs": 1,
        "invalid_share": None,
    }


def test_a_limit_is_said_where_cider_depends_on_it():
    def said(**more):
        split = SplitResult({"cider": 90.0, "bleu4": 30.0}, predictions(3), **more)
        found = Results("greedy", {"a": TaskResult({"validation": split}, scored_by="cider")})
        print_table(found, text := io.StringIO())
        return report(found)["tasks"]["a"], text.getvalue()

    content, table = said(of=5000)
    assert (content["score"], content["scored_by"]) == (90.0, "cider")
    assert content["splits"]["validation"]["of_examples"] == 5000
    assert "a validation: CIDEr weighs words by the 3 of 5,000 examples" in table
    content, table = said()
    assert "of_examples" not in content["splits"]["validation"] and "CIDEr weighs" not in table


def test_a_training_run_says_its_step(found, tmp_path):
    write(found, tmp_path, {"step": 30})
    content = json.loads((tmp_path / "results.json").read_text())
    assert content.pop("step") == 30 and content == report(found)


def test_what_results_are_compared_by(found):
    assert chosen(found, None) == pytest.approx((75.06172835 + 55 + 10) / 3, abs=1e-6)
    assert chosen(found, "eval/glue_mnli/validation_matched/accuracy") == 60.0
    with pytest.raises(UserError, match="Selection.metric is 'eval/glue_mnl/score', which is none"):
        chosen(found, "eval/glue_mnl/score")
    constant = SplitResult({"pearson": math.nan, "spearman": 3.0}, predictions(1))
    broken = Results("greedy", {"glue_stsb": TaskResult({"validation": constant})})
    assert math.isnan(chosen(broken, None))
    assert math.isnan(chosen(broken, "eval/glue_stsb/validation/pearson"))
    assert scalars(broken, "training_eval") == {"training_eval/glue_stsb/validation/spearman": 3.0}
    with pytest.raises(UserError, match="no task here has one"):
        chosen(Results("greedy", {"a": TaskResult({})}), None)


def test_without_a_glue_task_there_is_no_average(found):
    only = Results("greedy", {"mini_sst2": found.tasks["mini_sst2"]})
    assert "glue" not in report(only)
    assert scalars(only) == {"eval/mini_sst2/validation/accuracy": 10.0, "eval/mini_sst2/score": 10}


def test_glue_is_what_the_tasks_say_it_is():
    assert set(results.GLUE_TASKS) == set(tasks.GLUE_TASKS)


def test_scalars_are_all_numbers_of_the_report(found):
    assert scalars(found) == {
        "eval/glue_mrpc/validation/f1": 80.0,
        "eval/glue_mrpc/validation/accuracy": 70.123457,
        "eval/glue_mrpc/score": 75.061728,
        "eval/glue_mnli/validation_matched/accuracy": 60.0,
        "eval/glue_mnli/validation_mismatched/accuracy": 50.0,
        "eval/glue_mnli/score": 55.0,
        "eval/mini_sst2/validation/accuracy": 10.0,
        "eval/mini_sst2/score": 10.0,
        "eval/glue_average": 65.030864,
    }


def test_numbers_that_json_lacks_become_null(tmp_path):
    scores = {"yes": float("-inf"), "no": -0.0}
    split = SplitResult(
        {"accuracy": float("nan")}, (Prediction("in", "yes", "no", scores),), invalid=0.0
    )
    found = Results("greedy", {"glue_rte": TaskResult({"validation": split})})
    write(found, tmp_path)
    content = json.loads((tmp_path / "results.json").read_text())
    assert content["tasks"]["glue_rte"]["score"] is None and content["glue"]["average"] is None
    line = (tmp_path / "predictions/glue_rte-validation.jsonl").read_text()
    assert json.loads(line)["scores"] == {"yes": None, "no": 0.0} and "-0" not in line
    assert scalars(found) == {"eval/glue_rte/validation/invalid_share": 0.0}


def test_files_hold_the_report_and_a_line_per_example(found, tmp_path):
    write(found, tmp_path / "new" / "run")
    folder = tmp_path / "new" / "run"
    assert json.loads((folder / "results.json").read_text()) == report(found)
    assert sorted(path.name for path in (folder / "predictions").iterdir()) == [
        "glue_mnli-validation_matched.jsonl",
        "glue_mnli-validation_mismatched.jsonl",
        "glue_mrpc-validation.jsonl",
        "mini_sst2-validation.jsonl",
    ]
    text = (folder / "predictions/glue_mrpc-validation.jsonl").read_text(encoding="utf-8")
    lines = text.splitlines()
    assert len(lines) == 3 and text.endswith("\n")
    assert lines[1] == (
        '{"index": 1, "inputs": "in 1 é", "target": "yes", "prediction": "no", '
        '"scores": {"yes": -0.123457, "no": -2.5}}'
    )


def test_predictions_without_labels_are_a_submission_to_glue(tmp_path):
    """Names of files and labels: the server's page, and GLUE's own test files for the order."""

    def unlabeled(*texts, rows=None):
        made = tuple(Prediction("in", tasks.UNLABELED, text) for text in texts)
        return SplitResult({}, made, labeled=False, rows=rows or tuple(range(len(texts))))

    found = Results(
        "greedy",
        {
            "glue_rte": TaskResult({"test": unlabeled("not_entailment", "entailment")}),
            "glue_mrpc": TaskResult({"test": unlabeled("equivalent", "nonsense")}),
            # From TFDS, examples are not in the order of the rows.
            "glue_stsb": TaskResult(
                {"test": unlabeled("3.8", "2.75", "nan", "7", "x", rows=(2, 0, 1, 4, 3))}
            ),
            "glue_cola": TaskResult({"test": unlabeled("acceptable", rows=(0, 1))}),
            "glue_mnli": TaskResult(
                {"test_matched": unlabeled("neutral"), "test_mismatched": unlabeled("neutral")}
            ),
            "my_task": TaskResult({"test": unlabeled("yes")}),
        },
    )
    write(found, tmp_path)
    written = {path.name: path.read_text() for path in (tmp_path / "submission").iterdir()}
    assert written == {
        "RTE.tsv": "index\tprediction\n0\tnot_entailment\n1\tentailment\n",
        "MRPC.tsv": "index\tprediction\n0\t1\n1\t0\n",
        "STS-B.tsv": "index\tprediction\n0\t2.750\n1\t0.000\n2\t3.800\n3\t0.000\n4\t5.000\n",
        "MNLI-m.tsv": "index\tprediction\n0\tneutral\n",
        "MNLI-mm.tsv": "index\tprediction\n0\tneutral\n",
    }
    assert report(found)["tasks"]["glue_rte"]["score"] is None
    file = io.StringIO()
    print_table(found, file)
    assert "glue_rte test: its labels are not known, so there is no score\n" in file.getvalue()
    assert "glue_cola test: only 1 of 2 examples are predicted, so there is no" in file.getvalue()
    assert (
        "submission/ has MNLI-m.tsv, MNLI-mm.tsv, MRPC.tsv, RTE.tsv, STS-B.tsv: 5 of the 11 files "
        "that GLUE's server takes in one zip; absent: AX.tsv, CoLA.tsv, QNLI.tsv, QQP.tsv, "
        "SST-2.tsv, WNLI.tsv\n" in file.getvalue()
    )


def test_equal_results_are_equal_bytes(found, tmp_path):
    write(found, tmp_path / "a")
    write(found, tmp_path / "b")
    write(found, tmp_path / "b")
    for path in (tmp_path / "a").rglob("*.json*"):
        again = tmp_path / "b" / path.relative_to(tmp_path / "a")
        assert path.read_bytes() == again.read_bytes()
        assert str(tmp_path) not in path.read_text(encoding="utf-8")


def test_a_failed_write_leaves_the_file_before(found, tmp_path, monkeypatch):
    write(found, tmp_path)
    before = (tmp_path / "results.json").read_bytes()

    def full(handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="glue_mrpc-validation.jsonl cannot be written: No space"):
        write(found, tmp_path)
    assert (tmp_path / "results.json").read_bytes() == before
    assert not [path for path in tmp_path.rglob(".*")]


def test_a_folder_that_cannot_be_made_is_the_users_mistake(found, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="results|predictions"):
        write(found, tmp_path / "file" / "run")


def test_the_plain_table_is_columns_without_codes(found):
    file = io.StringIO()
    print_table(found, file)
    assert file.getvalue() == (
        "task       split                     f1  accuracy  examples  score\n"
        "glue_mrpc  validation             80.00     70.12         3  75.06\n"
        "glue_mnli  validation_matched               60.00         2\n"
        "glue_mnli  validation_mismatched            50.00         1  55.00\n"
        "mini_sst2  validation                       10.00         1  10.00\n"
        "GLUE       2 of 8 tasks                                      65.03\n"
        "the GLUE average leaves out glue_cola, glue_sst2, glue_qqp, glue_stsb, glue_qnli, "
        "glue_rte\n"
        "glue_mnli validation_matched: 1 of 2 inputs are longer than the configured length and "
        "were truncated\n"
    )


def test_the_table_names_absent_splits_and_invalid_outputs():
    split = SplitResult({"accuracy": 50.0}, predictions(4), invalid=0.25)
    found = Results("beam", {"my_task": TaskResult({"validation": split}, ("test_a", "test_b"))})
    file = io.StringIO()
    print_table(found, file)
    assert file.getvalue() == (
        "task     split       accuracy  invalid  examples  score\n"
        "my_task  validation     50.00    25.0%         4  50.00\n"
        "my_task: no split 'test_a' in its source, so it is not evaluated\n"
        "my_task: no split 'test_b' in its source, so it is not evaluated\n"
    )


def test_a_terminal_gets_a_frame(found, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "100")
    file = io.StringIO()
    print_table(found, file)
    text = file.getvalue()
    assert "rank classification" in text and "┃" in text and "65.03" in text
