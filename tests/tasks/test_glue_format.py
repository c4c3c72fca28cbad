"""T5's text format, from golden files written here and from the real ones."""

import numpy as np
import pytest
import seqio
import tensorflow as tf

import tasks
from tasks.glue import SCORES, format_scores
from tests.tiers import mostly_slow

# Per task: subfolder, dev file with header and rows, and the (inputs, targets) that T5's
# preprocessors make of them, written by hand after t5/data/preprocessors.py. Columns are
# deliberately not in the official order where the official header allows finding them by name.
GOLDEN = {
    "glue_cola": (
        "CoLA",
        'gj04\t1\t\tThe sailors rode.\nks08\t0\t*\tThe "sailors rode .\n',
        [
            ("cola sentence: The sailors rode.", "acceptable"),
            ('cola sentence: The "sailors rode .', "unacceptable"),
        ],
    ),
    "glue_sst2": (
        "SST-2",
        "sentence\tlabel\nit 's charming . \t1\nbleak\u2028and\x85desperate \t0\n",
        [
            ("sst2 sentence: it 's charming . ", "positive"),
            ("sst2 sentence: bleak\u2028and\x85desperate ", "negative"),
        ],
    ),
    "glue_mrpc": (
        "MRPC",
        "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\r\n"
        '1\t1\t2\tHe said "so.\t"So.\r\n0\t3\t4\tÉtat one.\tTwo.\r\n',
        [
            ('mrpc sentence1: He said "so. sentence2: "So.', "equivalent"),
            ("mrpc sentence1: État one. sentence2: Two.", "not_equivalent"),
        ],
    ),
    "glue_qqp": (
        "QQP",
        "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n0\t5\t6\tWhy?\tWhy not?\t0\n"
        "1\t7\t8\tHow?\tHow so?\t1",
        [
            ("qqp question1: Why? question2: Why not?", "not_duplicate"),
            ("qqp question1: How? question2: How so?", "duplicate"),
        ],
    ),
    "glue_stsb": (
        "STS-B",
        "index\tsentence1\tsentence2\tscore\n0\tA b.\tC d.\t4.750\n1\tE.\tF.\t2.5\n",
        [
            ("stsb sentence1: A b. sentence2: C d.", "4.8"),
            ("stsb sentence1: E. sentence2: F.", "2.4"),
        ],
    ),
    "glue_mnli": (
        "MNLI",
        "index\tgold_label\tsentence1\tsentence2\n0\tneutral\tP one.\tH one.\n"
        "1\tcontradiction\tP two.\tH two.\n2\tentailment\tP  three.\tH three.\n\n",
        [
            ("mnli hypothesis: H one. premise: P one.", "neutral"),
            ("mnli hypothesis: H two. premise: P two.", "contradiction"),
            ("mnli hypothesis: H three. premise: P  three.", "entailment"),
        ],
    ),
    "glue_qnli": (
        "QNLI",
        "index\tquestion\tsentence\tlabel\n0\tWhat?\tThat.\tentailment\n1\tWho?\tHe.\t"
        "not_entailment\n",
        [
            ("qnli question: What? sentence: That.", "entailment"),
            ("qnli question: Who? sentence: He.", "not_entailment"),
        ],
    ),
    "glue_rte": (
        "RTE",
        "index\tsentence1\tsentence2\tlabel\n0\tOne.\tTwo.\tnot_entailment\n",
        [("rte sentence1: One. sentence2: Two.", "not_entailment")],
    ),
}


def _texts(name: str, split: str) -> list[tuple[str, str, int]]:
    """Inputs, targets and idx before tokenization, so that no vocabulary is needed."""
    task = seqio.TaskRegistry.get(name)
    dataset = task.preprocessors[0](task.source.get_dataset(split, shuffle=False))
    return [
        (text.decode(), label.decode(), int(idx))
        for batch in dataset.batch(2048).as_numpy_iterator()
        for text, label, idx in zip(*(batch[k] for k in ("inputs", "targets", "idx")), strict=True)
    ]


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_texts(name, tmp_path, monkeypatch):
    folder, content, expected = GOLDEN[name]
    (tmp_path / folder).mkdir()
    file = "dev_mismatched.tsv" if name == "glue_mnli" else "dev.tsv"
    (tmp_path / folder / file).write_bytes(content.encode())
    monkeypatch.setenv("GLUE_DIR", str(tmp_path))
    split = "validation_mismatched" if name == "glue_mnli" else "validation"
    assert _texts(name, split) == [(*texts, i) for i, texts in enumerate(expected)]
    assert {target for _, target in expected} <= set(tasks.LABELS[name])
    assert seqio.TaskRegistry.get(name).num_input_examples(split) == len(expected)


def test_labels_in_the_order_of_tfds():
    pairs = {
        "glue_cola": ("unacceptable", "acceptable"),
        "glue_sst2": ("negative", "positive"),
        "glue_mrpc": ("not_equivalent", "equivalent"),
        "glue_qqp": ("not_duplicate", "duplicate"),
        "glue_mnli": ("entailment", "neutral", "contradiction"),
        "glue_qnli": ("entailment", "not_entailment"),
        "glue_rte": ("entailment", "not_entailment"),
        "glue_stsb": tuple(f"{tenths // 10}.{tenths % 10}" for tenths in range(0, 51, 2)),
    }
    assert {name: tasks.LABELS[name] for name in tasks.GLUE_TASKS} == pairs
    # What T5's preprocessors would read off TFDS itself.
    from tensorflow_datasets.text import glue

    for name, config in glue.Glue.builder_configs.items():
        if config.label_classes and f"glue_{name}" in pairs:
            assert list(pairs[f"glue_{name}"]) == config.label_classes


def test_scores_round_to_fifths_with_halves_to_even():
    scores = np.arange(0, 5001, dtype=np.float32) / np.float32(1000)
    dataset = tf.data.Dataset.from_tensor_slices(
        {"sentence1": ["a"] * len(scores), "sentence2": ["b"] * len(scores), "label": scores,
         "idx": np.arange(len(scores), dtype=np.int32)}
    )  # fmt: skip
    formatted = format_scores(dataset, prefix="stsb", fields=("sentence1", "sentence2"))
    (batch,) = formatted.batch(len(scores)).as_numpy_iterator()
    got = [text.decode() for text in batch["targets"]]
    # NumPy rounds halves to even, in float32 like TensorFlow.
    expected = [f"{np.round(score * np.float32(5)) / 5:.1f}" for score in scores]
    assert got == expected and set(got) == set(SCORES)
    halves = [got[int(1000 * score)] for score in (0.5, 1.5, 2.5, 3.5, 4.5, 4.75)]
    assert halves == ["0.4", "1.6", "2.4", "3.6", "4.4", "4.8"]


ROWS = {  # of the real files: (train, validation)
    "glue_cola": (8551, 1043),
    "glue_sst2": (67349, 872),
    "glue_mrpc": (3668, 408),
    "glue_stsb": (5749, 1500),
    "glue_rte": (2490, 277),
    "glue_qnli": (9999, 5463),
    "glue_mnli": (9999, 9815),
    "glue_qqp": (23497, 9372),
}
FIRST = {  # of the real validation files
    "glue_cola": ("cola sentence: The sailors rode the breeze clear of the rocks.", "acceptable"),
    "glue_sst2": ("sst2 sentence: it 's a charming and often affecting journey . ", "positive"),
    "glue_mrpc": (
        "mrpc sentence1: He said the foodservice pie business doesn't fit the company's long-term "
        'growth strategy. sentence2: "The foodservice pie business does not fit our long-term '
        "growth strategy.",
        "equivalent",
    ),
    "glue_stsb": (
        "stsb sentence1: A man with a hard hat is dancing. sentence2: A man wearing a hard hat is "
        "dancing.",
        "5.0",
    ),
    "glue_mnli": (
        "mnli hypothesis: Everyone really likes the newest benefits premise: The new rights are "
        "nice enough",
        "neutral",
    ),
}


@pytest.mark.parametrize("name", mostly_slow(ROWS, ["glue_cola", "glue_rte", "glue_stsb"]))
def test_real_files(name, shared_data, monkeypatch):
    monkeypatch.setenv("GLUE_DIR", str(shared_data / "glue"))
    dev = tasks.EVAL_SPLITS[name][0]
    texts = {split: _texts(name, split) for split in ("train", dev)}
    assert tuple(map(len, texts.values())) == ROWS[name]
    task = seqio.TaskRegistry.get(name)
    assert tuple(task.num_input_examples(split) for split in texts) == ROWS[name]
    assert all(target in tasks.LABELS[name] for rows in texts.values() for _, target, _ in rows)
    assert texts[dev][0][:2] == FIRST.get(name, texts[dev][0][:2])
    if name == "glue_sst2":
        assert all(text.endswith(" ") for text, _, _ in texts["train"])


def test_whole_pipeline_on_real_rte(shared_data, monkeypatch):
    monkeypatch.setenv("GLUE_DIR", str(shared_data / "glue"))
    monkeypatch.setenv("VOCABULARY", str(shared_data / "vocab" / "spiece.model"))
    task = seqio.get_mixture_or_task("glue_rte")
    dataset = task.get_dataset(sequence_length=None, split="validation", shuffle=False)
    examples = list(dataset.as_numpy_iterator())
    assert len(examples) == 277
    first = examples[0]
    vocabulary = task.output_features["inputs"].vocabulary
    text = first["inputs_pretokenized"].decode()
    assert text.startswith("rte sentence1: Dana Reeve, the widow of the actor Christopher Reeve, ")
    assert first["inputs"].tolist() == [*vocabulary.encode(text), 1]
    assert first["targets_pretokenized"].decode() == "not_entailment"
    # "not_entailment" as T5 knows it, and eos.
    assert first["targets"].tolist() == [59, 834, 35, 5756, 297, 1]
    short = task.get_dataset({"inputs": 16, "targets": 4}, "validation", shuffle=False)
    first = next(short.as_numpy_iterator())
    assert first["inputs"].shape == (16,) and first["inputs"][-1] == 1  # trimmed, still ended
    assert task.postprocess_fn("not_entailment", example=first, is_target=True) == 1
