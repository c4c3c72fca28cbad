"""SuperGLUE, AX and WNLI against T5's own code, whose results the golden file holds."""

import collections
import json
import pathlib

import pytest
import seqio
from tensorflow_datasets.text import super_glue as tfds_super_glue

import tasks
from tasks import metrics, pronouns
from tasks.super_glue import multirc_value, record_value

GOLDEN = json.loads(
    (pathlib.Path(__file__).parents[1] / "golden/t5_tasks.json").read_text(encoding="utf-8")
)
# T5's targets of these are nouns even where it is not known whether they are right.
NOUNS = ("super_glue_wsc/test", "glue_wnli/test")


def write_files(folder: pathlib.Path) -> pathlib.Path:
    for name, text in GOLDEN["files"].items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> pathlib.Path:
    """A folder of made files in the official layouts of SuperGLUE, DPR, WNLI and AX."""
    return write_files(tmp_path_factory.mktemp("sets"))


@pytest.fixture
def folder(files, monkeypatch):
    """The same, as SUPER_GLUE_DIR and GLUE_DIR."""
    monkeypatch.setenv("SUPER_GLUE_DIR", str(files))
    monkeypatch.setenv("GLUE_DIR", str(files))
    return files


def read(name: str, split: str) -> list[dict]:
    """The examples before tokenization."""
    task = seqio.TaskRegistry.get(name)
    dataset = task.source.get_dataset(split, shuffle=False)
    if name.startswith("glue"):
        dataset = task.preprocessors[0](dataset)
    return list(dataset.as_numpy_iterator())


@pytest.mark.parametrize("key", GOLDEN["examples"])
def test_texts_are_t5s(folder, key):
    found, expected = read(*key.split("/")), GOLDEN["examples"][key]
    assert [one["inputs"].decode() for one in found] == [one["inputs"] for one in expected]
    targets = [one["targets"] for one in expected]
    if key in NOUNS:
        assert [one["referent"].decode() for one in found] == targets
        targets = [tasks.UNLABELED] * len(expected)
    assert [one["targets"].decode() for one in found] == targets
    for mine, theirs in zip(found, expected, strict=True):
        for name in {"idx", "label"} & mine.keys() & theirs.keys():
            assert mine[name] == theirs[name]
        assert [one.decode() for one in mine.get("answers", ())] == theirs.get("answers", [])
    source = seqio.TaskRegistry.get(key.split("/")[0]).source
    assert source.num_input_examples(key.split("/")[1]) == len(expected)


def test_examples_of_one_question_have_one_group(folder):
    for key, name, theirs in (
        ("super_glue_multirc/validation", "question", ("idx/paragraph", "idx/question")),
        ("super_glue_record/validation", "query", ("idx/passage", "idx/query")),
    ):
        mine = [one[name].decode() for one in read(*key.split("/"))]
        groups = [" ".join(str(one[i]) for i in theirs) for one in GOLDEN["examples"][key]]
        assert mine == groups


def test_labels_are_in_the_order_of_tfds():
    configs = tfds_super_glue.SuperGlue.builder_configs
    for name in ("boolq", "cb", "copa", "multirc", "rte", "wic"):
        assert list(tasks.LABELS[f"super_glue_{name}"]) == list(configs[name].label_classes)
    assert not {"super_glue_record", "super_glue_wsc", "dpr", "glue_wnli"} & set(tasks.LABELS)
    assert tasks.LABELS["glue_ax"] == tasks.LABELS["glue_mnli"]


def test_rates_are_t5s():
    """`SUPER_GLUE_WEIGHT_MAPPING` of t5/data/glue_utils.py, without the sets of rate 0."""
    rates = {
        "super_glue_boolq": 9427, "super_glue_cb": 250, "super_glue_copa": 400,
        "super_glue_multirc": 27243, "super_glue_record": 138854, "super_glue_rte": 2490,
        "super_glue_wic": 5428, "super_glue_wsc": 259,
    }  # fmt: skip
    for name, expected in (
        ("super_glue_proportional", rates),
        ("super_glue_dpr_proportional", rates | {"dpr": 1322}),
        ("super_glue_equal", dict.fromkeys(rates, 1)),
    ):
        mixture = seqio.MixtureRegistry.get(name)
        assert {task.name: mixture.get_rate(task) for task in mixture.tasks} == expected
    assert set(tasks.SUPER_GLUE_TASKS) == set(rates)


def test_a_noun_is_recognized_as_in_t5():
    for text, referent, expected in GOLDEN["wsc"]:
        example = {"referent": referent.encode(), "label": 0}
        assert pronouns.is_referent(text, example=example) == expected, (text, referent)
        assert pronouns.is_referent(text, example=example, is_target=True) == 0


@pytest.mark.parametrize(
    "key, functions",
    [
        ("multirc", [metrics.f1_of_values, metrics.exact_match_of_groups]),
        ("record", [metrics.squad_of_groups]),
        ("cb", [metrics.mean_3class_f1]),
    ],
)
def test_metrics_are_t5s(key, functions):
    given = GOLDEN[key]
    targets = [
        one | {"group": str(one["group"])} if isinstance(one, dict) else one
        for one in given["targets"]
    ]
    found = collections.ChainMap(*(one(targets, given["predictions"]) for one in functions))
    assert dict(found) == pytest.approx(given["metrics"])


def test_postprocessing_gives_what_the_metrics_take(folder):
    first, *_ = read("super_glue_multirc", "validation")
    assert multirc_value("True", example=first, is_target=True) == {"value": 1, "group": b"0 0"}
    assert multirc_value("Maybe", example=first) == {"value": -1}
    first, *_ = read("super_glue_record", "validation")
    answers = ["Annan", "Côte d'Ivoire"]
    found = record_value("Annan", example=first, is_target=True)
    assert found == {"value": answers, "group": b"0 0"}
    assert record_value("Annan", example=first) == {"value": "Annan"}


BOOLQ = '{"question": "q", "passage": "p", "idx": 0, "label": true}\n'
WSC = (
    '{"text": "Ann met Eve as she left", "idx": 0, "label": true, "target": {"span1_text": "Ann", '
    '"span1_index": 0, "span2_text": "%s", "span2_index": %d}}\n'
)
RECORD = (
    '{"passage": {"text": "Ann", "entities": [{"start": 0, "end": %d}]}, "idx": 0, '
    '"qas": [{"query": "@placeholder", "idx": 0, "answers": %s}]}\n'
)


@pytest.mark.parametrize(
    "task, file, content, message",
    [
        ("boolq", "BoolQ/train", "", "{0}: no lines"),
        ("boolq", "BoolQ/train", BOOLQ + "{\n", "{0}:2: not JSON (Expecting property name"),
        ("boolq", "BoolQ/train", BOOLQ + "\n" + BOOLQ, "{0}:2: not JSON (Expecting value"),
        ("boolq", "BoolQ/train", "[1]\n", "{0}:1: the line is [1]; expected an object"),
        ("boolq", "BoolQ/train", BOOLQ.replace("passage", "text"),
         "{0}:1: no field 'passage'; found question, text, idx, label"),
        ("boolq", "BoolQ/train", BOOLQ.replace('"q"', "null"),
         "{0}:1: field 'question' is null; expected a text"),
        ("boolq", "BoolQ/train", BOOLQ.replace('"q"', '"\\ud83d"'),
         '{0}:1: field \'question\' is "\\ud83d"; expected a text without halves of characters'),
        ("boolq", "BoolQ/train", BOOLQ.replace("true", '"yes"'),
         "{0}:1: field 'label' is \"yes\"; expected one of False (0), True (1)"),
        ("boolq", "BoolQ/train", BOOLQ.replace(', "label": true', ""),
         "{0}:1: no field 'label'; found question, passage, idx"),
        ("boolq", "BoolQ/train", BOOLQ.replace('"idx": 0', '"idx": true'),
         "{0}:1: field 'idx' is true; expected a whole number"),
        ("boolq", "BoolQ/train", BOOLQ.replace('"idx": 0', '"idx": 4294967296'),
         "{0}:1: field 'idx' is 4294967296; expected a whole number of 32 bits"),
        ("cb", "CB/train", '{"premise": "p", "hypothesis": "h", "idx": 0, "label": true}\n',
         "{0}:1: field 'label' is \"true\"; expected one of entailment (0), contradiction (1), "),
        ("multirc", "MultiRC/train",
         '{"idx": 0, "passage": {"text": "t", "questions": [{"question": "q", "idx": 0, '
         '"answers": [{"text": "a", "idx": 0, "label": 2}]}]}}\n',
         "{0}:1: field 'passage.questions[0].answers[0].label' is 2; expected one of"),
        ("record", "ReCoRD/train", RECORD % (3, '[{"text": "Ann"}]'),
         "{0}:1: field 'passage.entities[0].end' is 3; expected the place of a text in the "),
        ("record", "ReCoRD/train", RECORD % (2, '["Ann"]'),
         "{0}:1: field 'qas[0].answers[0]' is \"Ann\"; expected an object"),
        ("wsc", "WSC/train", WSC % ("she", 3),
         "{0}:1: field 'target.span2_text' is \"she\"; expected 'as', the text's word 3"),
        ("wsc", "WSC/train", WSC % ("she", 9),
         "{0}:1: field 'target.span2_index' is 9; expected the index of one of 6 words, not"),
        ("wsc", "WSC/train", WSC % ("he or she", 4),
         "{0}:1: field 'target.span2_text' is \"he or she\"; expected a part of the text"),
    ],
)  # fmt: skip
def test_faults_name_file_line_and_field(tmp_path, monkeypatch, task, file, content, message):
    path = tmp_path / f"{file}.jsonl"
    path.parent.mkdir()
    path.write_text(content)
    monkeypatch.setenv("SUPER_GLUE_DIR", str(tmp_path))
    source = seqio.TaskRegistry.get(f"super_glue_{task}").source
    with pytest.raises(tasks.DataError) as caught:
        source.get_dataset("train", shuffle=False)
    said = str(caught.value)
    assert said.startswith(message.replace("{0}", str(path))) and "\n" not in said


def test_faults_of_dpr_and_of_folders(tmp_path, monkeypatch):
    def said(call) -> str:
        with pytest.raises(tasks.DataError) as caught:
            call()
        return str(caught.value)

    source = seqio.TaskRegistry.get("dpr").source
    monkeypatch.delenv("SUPER_GLUE_DIR", raising=False)
    needed = "the folder that holds DPR/train.c.txt"
    assert said(source.available_splits).startswith(f"no data: set SUPER_GLUE_DIR to {needed} (an")
    monkeypatch.setenv("SUPER_GLUE_DIR", str(tmp_path / "none"))
    assert said(source.available_splits).endswith("no such folder; expected one that holds "
                                                  "DPR/train.c.txt")  # fmt: skip
    monkeypatch.setenv("SUPER_GLUE_DIR", str(tmp_path))
    path = tmp_path / "DPR" / "train.c.txt"
    assert source.available_splits() == ()
    assert said(lambda: source.get_dataset("train")) == f"{path}: no such file"
    assert (
        said(lambda: source.get_dataset("dev")) == "there is no split 'dev'; there are train, test"
    )
    path.parent.mkdir()
    path.write_text("A b.\nit\nA,b\nA\n\nA b.\nit\nA,b\nc\n")
    assert source.available_splits() == ("train",)
    assert said(lambda: source.get_dataset("train")).endswith("the candidates are 'A,b', the "
                                                              "answer 'c'")  # fmt: skip
    assert said(lambda: source.get_dataset("train")).startswith(f"{path}:6: expected a sentence")
    with pytest.raises(tasks.DataError, match="WNLI, example 0: no pronoun in 'A cat.'"):
        (tmp_path / "WNLI").mkdir()
        (tmp_path / "WNLI" / "dev.tsv").write_text("index\tsentence1\tsentence2\tlabel\n"
                                                   "0\tA cat.\tA dog.\t1\n")  # fmt: skip
        monkeypatch.setenv("GLUE_DIR", str(tmp_path))
        read("glue_wnli", "validation")


def test_identities_differ_by_file_and_split(folder):
    source = seqio.TaskRegistry.get("super_glue_cb").source
    train, dev = source.identity("train"), source.identity("validation")
    assert train["file"] == "train.jsonl" and train["sha256"] != dev["sha256"]
    assert str(folder) not in json.dumps([train, dev])


def test_files_for_glues_server(folder):
    """AX wants names of labels, WNLI class ids: 1 where the answer is the pair's noun."""
    assert tasks.glue_file("glue_ax", "test") == "AX.tsv"
    assert tasks.glue_file("glue_wnli", "test") == "WNLI.tsv"
    assert tasks.glue_file("glue_wnli", "validation") is None
    assert {"AX.tsv", "WNLI.tsv"} < set(tasks.GLUE_FILES)
    rows = tasks.glue_rows("glue_ax", "test")
    text = tasks.glue_submission("glue_ax", "test", ["contradiction", "nonsense"], rows)
    assert text == "index\tprediction\n0\tcontradiction\n1\tentailment\n"
    rows = tasks.glue_rows("glue_wnli", "test")  # The nouns are "The hair" and "Susan".
    for said, ids in ((["hair", "Jane"], "10"), (["", "Susan"], "01")):
        text = tasks.glue_submission("glue_wnli", "test", said, rows)
        assert text == f"index\tprediction\n0\t{ids[0]}\n1\t{ids[1]}\n"


def test_shards_are_disjoint_and_whole(folder):
    source = seqio.TaskRegistry.get("super_glue_record").source
    shards = [
        source.get_dataset("train", shuffle=False, shard_info=seqio.ShardInfo(i, 2))
        for i in range(2)
    ]
    parts = [[one["targets"].decode() for one in shard.as_numpy_iterator()] for shard in shards]
    whole = [one["targets"] for one in GOLDEN["examples"]["super_glue_record/train"]]
    assert parts == [whole[::2], whole[1::2]]
