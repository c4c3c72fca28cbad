"""Tasks whose metrics read more of an example than its texts, from the files to the scores."""

import json

import pytest
import seqio

from adalink_jax import cli
from adalink_jax.data import EvalExamples
from adalink_jax.evaluation.metrics import Outputs, TaskMetrics
from adalink_jax.models.t5 import T5Config
from tests.tasks.test_robustness import FILES
from tests.tasks.test_super_glue import write_files

LENGTHS = {"inputs": 128, "targets": 16}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """SuperGLUE, WNLI, HANS, and GLUE's RTE, all in one folder."""
    folder = write_files(tmp_path_factory.mktemp("sets"))
    hans = folder / "hans" / "heuristics_evaluation_set.txt"
    hans.parent.mkdir()
    hans.write_text(FILES["hans/heuristics_evaluation_set.txt"])
    rows = "0\tp0\th0\tentailment\n1\tp1\th1\tnot_entailment\n"
    (folder / "RTE").joinpath("dev.tsv").write_text("index\tsentence1\tsentence2\tlabel\n" + rows)
    return folder


@pytest.fixture
def sets(folder, shared_data, monkeypatch):
    for name in ("GLUE_DIR", "SUPER_GLUE_DIR", "ROBUSTNESS_DIR"):
        monkeypatch.setenv(name, str(folder))
    monkeypatch.setenv("VOCABULARY", str(shared_data / "vocab" / "spiece.model"))
    monkeypatch.delenv("TEMPLATE_SEED", raising=False)
    return folder


def scores(task: str, split: str, token_cache, said) -> dict[str, float]:
    """The metrics of predicted texts, each a function of the example and its target."""
    examples = EvalExamples(task, split, LENGTHS, cache_dir=token_cache)
    metrics = TaskMetrics(seqio.TaskRegistry.get(task))
    assert metrics.reads_examples and examples.labeled
    features = examples.features()
    targets = metrics.postprocessed(examples.target_texts, features, is_target=True)
    texts = [said(*one) for one in zip(features, examples.target_texts, strict=True)]
    return metrics(targets, Outputs(texts, None), features)[0]


RIGHT = {
    "super_glue_multirc": {"f1": 100, "exact_match": 100},
    "super_glue_record": {"em": 100, "f1": 100},
    "super_glue_wsc": {"accuracy": 100},
    "flan_rte": {"mean_accuracy": 100},
}


@pytest.mark.slow
@pytest.mark.parametrize("task", RIGHT)
def test_targets_are_right(task, sets, token_cache):
    found = scores(task, "validation", token_cache, lambda example, target: target)
    assert found == pytest.approx(RIGHT[task])


def test_other_texts_are_scored_by_group(sets, token_cache):
    def any_answer(example, target):
        return example["answers"][-1].decode()

    found = scores("super_glue_record", "validation", token_cache, any_answer)
    assert found == {"em": 100, "f1": 100}  # Any of the right answers is.
    # One of three questions has only "False" as its right answers.
    found = scores("super_glue_multirc", "validation", token_cache, lambda *_: "False")
    assert found == {"f1": 0, "exact_match": pytest.approx(100 / 3)}
    found = scores("glue_wnli", "validation", token_cache, lambda one, _: one["referent"].decode())
    # Every answer says "yes": but for the empty noun, which no text is.
    labels = [0, 1, 1, 1, 1, 0, 1, 1, 0, 1, 0]
    assert found == {"accuracy": pytest.approx(100 * sum(labels) / len(labels))}
    # "yes" in each of nine templates.
    found = scores("flan_rte", "validation", token_cache, lambda *_: "yes")
    assert found == {"mean_accuracy": 50}


@pytest.mark.slow
def test_a_model_is_scored_and_its_predictions_are_submitted(sets, write_base, tmp_path):
    config = T5Config(
        vocab_size=32128,
        emb_dim=8,
        num_heads=2,
        num_encoder_layers=1,
        num_decoder_layers=1,
        head_dim=4,
        mlp_dim=8,
        mlp_activations=("gelu", "linear"),
    )
    base = write_base(config)

    def evaluated(task: str, **settings) -> dict:
        flags = {
            "ADAPTER_PATH": None,
            "EVAL_OUTPUT_DIR": str(tmp_path / task),
            "INITIAL_CHECKPOINT_PATH": str(base),
            "MIXTURE_OR_TASK_NAME": task,
            "TASK_FEATURE_LENGTHS": LENGTHS,
            **settings,
        }
        given = [f"--gin.{name}={value!r}" for name, value in flags.items()]
        assert cli.main(["eval", "--gin_file=runs/eval.gin", *given]) == 0
        return json.loads((tmp_path / task / "results.json").read_text())["tasks"]

    found = evaluated("super_glue_equal", **{"Evaluation.mode": "greedy"})
    names = {task: set(one["splits"]["validation"]["metrics"]) for task, one in found.items()}
    assert len(names) == 8 and names["super_glue_cb"] == {"mean_3class_f1", "accuracy"}
    assert names["super_glue_record"] == {"em", "f1"}
    (split, *others) = evaluated("hans")["hans"]["splits"].values()
    assert len(others) == 2 and split["examples"] == 2
    assert set(split["metrics"]) == {"entailed_accuracy", "not_entailed_accuracy"}
    assert evaluated("flan_rte", TEMPLATE_SEED=1)["flan_rte"]["splits"]["validation"] == {
        "metrics": {"accuracy": 50.0},
        "examples": 2,
        "truncated_inputs": 0,
        "invalid_share": None,
    }
    for task, name, mode in (
        ("glue_ax", "AX", "rank_classification"),
        ("glue_wnli", "WNLI", "greedy"),
    ):
        evaluated(task, **{"Evaluation.mode": mode, "Evaluation.split": "test"})
        lines = (tmp_path / task / "submission" / f"{name}.tsv").read_text().splitlines()
        assert lines[0] == "index\tprediction" and len(lines) == 3
