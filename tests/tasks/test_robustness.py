"""Public robustness sets: small copies of their files, in the format of GLUE's tasks."""

import json

import pytest
import seqio

import tasks
from tasks.robustness import HEURISTICS, entailed, recalls

HANS_HEADER = "gold_label\tsentence1_binary_parse\tsentence1\tsentence2\tpairID\theuristic\n"
SNLI = [("neutral", "A man.", 'B "x".'), ("-", "A", "B"), ("contradiction", "C", "D")]
FILES = {
    "AdvGLUE/dev.json": json.dumps(
        {
            "sst2": [{"idx": 0, "sentence": "it 's unaffcting . ", "label": 0}],
            "qqp": [{"idx": 0, "question1": "Q1?", "question2": "Q2?", "label": 1}],
            "mnli": [{"idx": 0, "premise": "P.", "hypothesis": "H.", "label": 2}],
            "mnli-mm": [{"idx": 0, "premise": "É.", "hypothesis": "H.", "label": 1}],
            "qnli": [{"idx": 0, "question": "Who?", "sentence": "He.", "label": 1}],
            "rte": [{"idx": 0, "sentence1": "S1.", "sentence2": "S2.", "label": 0}],
        },
        indent=1,
    ),
    "anli_v1.0/R1/dev.jsonl": "".join(
        json.dumps({"uid": label, "context": "C.", "hypothesis": "H.", "label": label}) + "\n"
        for label in "enc"
    ),
    "anli_v1.0/R3/test.jsonl": '{"uid": "u", "context": "C.", "hypothesis": "H.", "label": "n"}\n',
    "snli_1.0/snli_1.0_dev.jsonl": "".join(
        json.dumps({"gold_label": label, "sentence1": one, "sentence2": other}) + "\n"
        for label, one, other in SNLI
    ),
    "snli_1.0/snli_1.0_test.txt": "gold_label\tparse\tsentence1\tsentence2\n"
    + "".join(f"{label}\t( )\t{one}\t{other}\n" for label, one, other in SNLI),
    "SNLI/train.tsv": "index\tsentence1\tsentence2\tlabel1\tgold_label\n"
    + "".join(f"0\t{one}\t{other}\tneutral\t{label}\n" for label, one, other in SNLI),
    "SciTailV1.1/tsv_format/scitail_1.0_dev.tsv": 'P "one".\tH.\tneutral\n"P" two.\tH.\tentails\n',
    "final/test.tsv": "id\tsentence1\tsentence2\tlabel\n1\tA b .\tB a .\t0\n2\tC\tD\t1\n",
    "paws_qqp/dev_and_test.tsv": "id\tsentence1\tsentence2\tlabel\n1\tWhy ?\tHow ?\t1\n",
    "hans/heuristics_evaluation_set.txt": HANS_HEADER
    + "entailment\t( )\tThe A saw B.\tA saw B.\te0\tlexical_overlap\n"
    + "non-entailment\t( )\tThe A saw B.\tB saw A.\te1\tlexical_overlap\n"
    + "non-entailment\t( )\tIf A, B.\tA.\te2\tconstituent\n"
    + "non-entailment\t( )\tC near D left.\tD left.\te3\tsubsequence\n",
}
SNLI_TEXTS = [
    ('mnli hypothesis: B "x". premise: A man.', "neutral"),
    ("mnli hypothesis: D premise: C", "contradiction"),
]
EXPECTED = {
    "adv_glue_sst2/validation": [("sst2 sentence: it 's unaffcting . ", "negative")],
    "adv_glue_qqp/validation": [("qqp question1: Q1? question2: Q2?", "duplicate")],
    "adv_glue_mnli/validation_matched": [("mnli hypothesis: H. premise: P.", "contradiction")],
    "adv_glue_mnli/validation_mismatched": [("mnli hypothesis: H. premise: É.", "neutral")],
    "adv_glue_qnli/validation": [("qnli question: Who? sentence: He.", "not_entailment")],
    "adv_glue_rte/validation": [("rte sentence1: S1. sentence2: S2.", "entailment")],
    "anli_r1/validation": [
        ("mnli hypothesis: H. premise: C.", label)
        for label in ("entailment", "neutral", "contradiction")
    ],
    "anli_r3/test": [("mnli hypothesis: H. premise: C.", "neutral")],
    "snli/validation": SNLI_TEXTS,
    "snli/test": SNLI_TEXTS,
    "snli/train": SNLI_TEXTS,
    "scitail/validation": [
        ('rte sentence1: P "one". sentence2: H.', "not_entailment"),
        ('rte sentence1: "P" two. sentence2: H.', "entailment"),
    ],
    "paws_wiki/test": [
        ("mrpc sentence1: A b . sentence2: B a .", "not_equivalent"),
        ("mrpc sentence1: C sentence2: D", "equivalent"),
    ],
    "paws_qqp/validation": [("qqp question1: Why ? question2: How ?", "duplicate")],
    "hans/lexical_overlap": [
        ("mnli hypothesis: A saw B. premise: The A saw B.", "entailment"),
        ("mnli hypothesis: B saw A. premise: The A saw B.", "neutral"),
    ],
    "hans/subsequence": [("mnli hypothesis: D left. premise: C near D left.", "neutral")],
    "hans/constituent": [("mnli hypothesis: A. premise: If A, B.", "neutral")],
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    monkeypatch.setenv("ROBUSTNESS_DIR", str(tmp_path))
    return tmp_path


def read(name: str, split: str) -> list[dict]:
    task = seqio.TaskRegistry.get(name)
    dataset = task.source.get_dataset(split, shuffle=False)
    if name != "hans":
        dataset = task.preprocessors[0](dataset)
    return list(dataset.as_numpy_iterator())


def test_texts_are_those_of_the_glue_task(folder):
    for key, expected in EXPECTED.items():
        found = read(*key.split("/"))
        assert [(x["inputs"].decode(), x["targets"].decode()) for x in found] == expected, key
    # What annotators do not agree on is left out, and counts.
    assert [int(one["idx"]) for one in read("snli", "validation")] == [0, 2]
    assert seqio.TaskRegistry.get("snli").source.num_input_examples("validation") == 2


def test_an_adapter_of_the_glue_task_answers():
    """Labels and metrics are those of the task that an adapter was trained on."""
    belongs = {
        f"adv_glue_{name}": f"glue_{name}" for name in ("sst2", "qqp", "mnli", "qnli", "rte")
    }
    belongs |= dict.fromkeys(("anli_r1", "anli_r2", "anli_r3", "snli", "hans"), "glue_mnli")
    belongs |= {"scitail": "glue_rte", "paws_wiki": "glue_mrpc", "paws_qqp": "glue_qqp"}
    for name, task in belongs.items():
        assert tasks.LABELS[name] == tasks.LABELS[task]
        if name != "hans":
            mine, theirs = (seqio.TaskRegistry.get(one).metric_fns for one in (name, task))
            assert mine == theirs
    assert tasks.EVAL_SPLITS["adv_glue_mnli"] == ("validation_matched", "validation_mismatched")
    assert tasks.EVAL_SPLITS["anli_r2"] == ("validation",)
    members = seqio.MixtureRegistry.get("anli").tasks
    assert sorted(task.name for task in members) == list(tasks.ANLI_TASKS)
    members = seqio.MixtureRegistry.get("adv_glue").tasks
    assert {task.name for task in members} == set(tasks.ADV_GLUE_TASKS)


def test_hans_has_two_classes_of_three():
    """Of HANS's own script: neutral and contradiction are both "non-entailment"."""
    assert tasks.EVAL_SPLITS["hans"] == HEURISTICS
    said = ["entailment", "neutral", "contradiction", "nonsense"]
    assert [entailed(text) for text in said] == [1, 0, 0, -1]
    found = recalls([1, 1, 1, 1, 0, 0], [1, 1, 0, -1, 0, 1])
    assert found == {"entailed_accuracy": 50, "not_entailed_accuracy": 50}
    assert recalls([0, 0], [0, 0]) == {"not_entailed_accuracy": 100}


@pytest.mark.parametrize(
    "task, split, file, content, message",
    [
        ("adv_glue_rte", "validation", "AdvGLUE/dev.json", '{"sst2": []}',
         "{0}: no field 'rte'; found sst2"),
        ("adv_glue_rte", "validation", "AdvGLUE/dev.json", '{"rte": []}',
         "{0}: no examples of split 'validation'"),
        ("adv_glue_mnli", "validation_mismatched", "AdvGLUE/dev.json",
         '{"mnli-mm": [{"premise": "p", "hypothesis": "h", "label": 3}]}',
         "{0}: field 'mnli-mm[0].label' is 3; expected one of entailment (0), neutral (1), "),
        ("anli_r1", "validation", "anli_v1.0/R1/dev.jsonl",
         '{"context": "c", "hypothesis": "h", "label": "x"}\n',
         "{0}:1: label is 'x'; expected one of e, n, c"),
        ("snli", "validation", "snli_1.0/snli_1.0_dev.txt", "gold_label\tsentence1\nneutral\ta\n",
         "{0}:1: no column 'sentence2'; found gold_label, sentence1"),
        ("snli", "validation", "snli_1.0/snli_1.0_dev.jsonl",
         '{"gold_label": "-", "sentence1": "a", "sentence2": "b"}\n',
         "{0}: no examples of split 'validation'"),
        ("scitail", "validation", "SciTailV1.1/tsv_format/scitail_1.0_dev.tsv", "a\tb\tentail\n",
         "{0}:1: label is 'entail'; expected one of entails, neutral"),
        ("paws_qqp", "validation", "paws_qqp/dev_and_test.tsv",
         "id\tsentence1\tsentence2\tlabel\n1\tb'Why ?'\tb'How ?'\t1\n",
         "{0}:2: sentence1 is b'Why ?', the bytes of a text as Python writes them; write the"),
        ("hans", "subsequence", "hans/heuristics_evaluation_set.txt",
         HANS_HEADER + "entailment\t( )\ta\tb\te0\toverlap\n",
         "{0}:2: heuristic is 'overlap'; expected one of lexical_overlap, subsequence, constit"),
        ("hans", "subsequence", "hans/heuristics_evaluation_set.txt",
         HANS_HEADER + "neutral\t( )\ta\tb\te0\tsubsequence\n",
         "{0}:2: gold_label is 'neutral'; expected one of entailment, non-entailment"),
    ],
)  # fmt: skip
def test_faults_name_file_line_and_field(
    tmp_path, monkeypatch, task, split, file, content, message
):
    path = tmp_path / file
    path.parent.mkdir(parents=True)
    path.write_text(content)
    monkeypatch.setenv("ROBUSTNESS_DIR", str(tmp_path))
    with pytest.raises(tasks.DataError) as caught:
        read(task, split)
    said = str(caught.value)
    assert said.startswith(message.replace("{0}", str(path))) and "\n" not in said


def test_a_missing_file_names_all_its_places(folder):
    source = seqio.TaskRegistry.get("snli").source
    for name in ("snli_1.0/snli_1.0_test.txt", "SNLI/train.tsv"):
        (folder / name).unlink()
    assert source.available_splits() == ("validation",)
    with pytest.raises(tasks.DataError) as caught:
        read("snli", "test")
    first, *others = (f"{folder}/{name}" for name in (
        "snli_1.0/snli_1.0_test.jsonl", "snli_1.0/snli_1.0_test.txt", "SNLI/test.tsv"))  # fmt: skip
    assert str(caught.value) == f"{first}: no such file (nor {', '.join(others)})"
