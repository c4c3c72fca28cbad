"""The two sources of GLUE: what they deliver, and what they say of broken folders."""

import hashlib
import json

import numpy as np
import pytest
import seqio
import tensorflow as tf

import tasks
from tasks import tsv

HEADER = "index\tsentence1\tsentence2\tlabel\n"


@pytest.fixture
def rte(tmp_path, monkeypatch):
    """A GLUE folder whose RTE/train.tsv the test writes."""
    (tmp_path / "RTE").mkdir()
    monkeypatch.setenv("GLUE_DIR", str(tmp_path))
    return tmp_path / "RTE" / "train.tsv"


def _source(name="glue_rte"):
    return seqio.TaskRegistry.get(name).source


def _error(call) -> str:
    with pytest.raises(tasks.DataError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    return message


def _load(split="train", name="glue_rte"):
    return lambda: _source(name).get_dataset(split, shuffle=False)


@pytest.mark.parametrize(
    "content, message",
    [
        ("", "{0}: no rows"),
        (HEADER, "{0}: no rows"),
        ("index\tsentence1\tlabel\n0\ta\tentailment\n",
         "{0}:1: no column 'sentence2'; found index, sentence1, label"),
        ("index\tsentence1\tsentence2\n0\ta\tb\n",
         "{0}:1: no column 'label'; found index, sentence1, sentence2"),
        (HEADER + "0\ta\tb\tentailment\n1\ta\tb\tmaybe\n",
         "{0}:3: label 'maybe'; expected one of entailment (0), not_entailment (1)"),
        (HEADER + "0\ta\tentailment\n",
         "{0}:2: 3 columns; expected 4 (index, sentence1, sentence2, label)"),
    ],
)  # fmt: skip
def test_broken_files(rte, content, message):
    rte.write_text(content)
    assert _error(_load()) == message.format(rte)


def _examples(split="train", name="glue_rte"):
    return list(_load(split, name)().as_numpy_iterator())


def test_rows_that_lack_columns_are_left_out_and_counted(tmp_path, monkeypatch, caplog):
    """As TFDS reads QQP, whose official files have such rows; `idx` is the row in the file."""
    (tmp_path / "QQP").mkdir()
    path = tmp_path / "QQP" / "train.tsv"
    header = "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n"
    path.write_text(f'{header}0\t1\t2\ta\tb\t0\n"\tWas it?\t0\n\n2\t5\t6\tc\td\t1\n')
    monkeypatch.setenv("GLUE_DIR", str(tmp_path))
    assert [int(one["idx"]) for one in _examples(name="glue_qqp")] == [0, 3]
    assert f"{path}: 2 of 4 rows lack columns and are left out, the first in line 3" in caplog.text
    assert _source("glue_qqp").num_input_examples("train") == 2


def test_cells_that_look_quoted_are_read_as_they_stand_and_said(rte, caplog):
    rte.write_text(HEADER + '0\t"He said ""no""."\tb\t1\n1\t"Half a\tquote" and "b"\t0\n')
    assert _examples()[0]["sentence1"] == b'"He said ""no""."'
    assert f"{rte}: cells in 1 lines look quoted, the first in line 2" in caplog.text
    caplog.clear()
    rte.write_text(HEADER + '0\t"Half a\tquote", ""so""\t1\n')
    _examples()
    assert not caplog.records


def test_a_test_file_has_no_labels(rte, tmp_path, caplog):
    test = rte.parent / "test.tsv"
    test.write_text("index\tsentence1\tsentence2\n0\ta\tb\n1\tc\td\n")
    assert [int(one["label"]) for one in _examples("test")] == [-1, -1]
    task = seqio.TaskRegistry.get("glue_rte")
    (one, _) = task.preprocessors[0](_load("test")()).as_numpy_iterator()
    assert one["targets"] == tasks.UNLABELED.encode() and one["inputs"].endswith(b"sentence2: b")
    # Every row is predicted, so none may be left out.
    test.write_text("index\tsentence1\tsentence2\n0\ta\tb\n1\tc\n")
    assert _error(_load("test")) == (
        f"{test}:3: 2 columns; expected 3 (index, sentence1, sentence2)"
    )
    # CoLA's has a header, its other files none. STS-B's labels are numbers.
    for folder, text in (
        ("CoLA", "index\tsentence\n0\ta\n"),
        ("STS-B", "index\tsentence1\tsentence2\n0\ta\tb\n"),
    ):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "test.tsv").write_text(text)
    assert _examples("test", "glue_cola")[0]["sentence"] == b"a"
    assert _source("glue_cola").num_input_examples("test") == 1
    scores = seqio.TaskRegistry.get("glue_stsb").preprocessors[0](_load("test", "glue_stsb")())
    assert next(scores.as_numpy_iterator())["targets"] == tasks.UNLABELED.encode()


def test_broken_encoding(rte):
    rte.write_bytes((HEADER + "0\tcaf\xe9\tb\tentailment\n").encode("latin-1"))
    assert _error(_load()) == f"{rte}:2: not UTF-8 text"


@pytest.mark.parametrize("score", ["5.1", "-0.2", "nan", "high", ""])
def test_broken_scores(tmp_path, monkeypatch, score):
    (tmp_path / "STS-B").mkdir()
    path = tmp_path / "STS-B" / "dev.tsv"
    path.write_text(f"sentence1\tsentence2\tscore\na\tb\t1.0\na\tb\t{score}\n")
    monkeypatch.setenv("GLUE_DIR", str(tmp_path))
    expected = f"{path}:3: label '{score}'; expected a number from 0 to 5"
    assert _error(_load("validation", "glue_stsb")) == expected


def test_missing_folders_and_files(rte, tmp_path, monkeypatch):
    rte.write_text(HEADER + "0\ta\tb\tentailment\n")
    folder = rte.parent
    assert _error(_load("validation")) == (
        f"{folder}/dev.tsv: no such file for split 'validation' of glue_rte; {folder} holds "
        "train.tsv"
    )
    assert _error(_load("dev")) == "glue_rte has no split 'dev'; it has train, validation, test"
    assert f"no folder {tmp_path}/CoLA" in _error(_load(name="glue_cola"))
    monkeypatch.setenv("GLUE_DIR", "no/where")
    assert _error(_load()) == (
        "GLUE_DIR=no/where: no folder no/where; expected the official GLUE layout, "
        "no/where/RTE/train.tsv and so on; docs/howto/files.md says where to get it"
    )
    assert "no folder" in _error(lambda: tasks.available_splits("glue_rte"))


def test_an_error_leaves_a_task_unwrapped(rte, shared_data, monkeypatch):
    monkeypatch.setenv("VOCABULARY", str(shared_data / "vocab" / "spiece.model"))
    rte.write_text(HEADER + "0\ta\tb\tmaybe\n")
    task = seqio.get_mixture_or_task("glue_rte")
    assert _error(lambda: task.get_dataset(None, "train")).startswith(f"{rte}:2: label 'maybe'")


def test_class_labels_by_name_or_number(rte):
    rte.write_text(HEADER + "0\ta\tb\t1\n1\tc\td\tentailment\n")
    labels = [int(example["label"]) for example in _load()().as_numpy_iterator()]
    assert labels == [1, 0]


def test_types_are_those_of_tfds(tmp_path, monkeypatch):
    from tensorflow_datasets.text import glue

    (tmp_path / "STS-B").mkdir()
    (tmp_path / "STS-B" / "train.tsv").write_text("score\tsentence1\tsentence2\n3.8\ta\tb\n")
    (tmp_path / "CoLA").mkdir()
    (tmp_path / "CoLA" / "train.tsv").write_text("s\t1\t\ta\n")
    monkeypatch.setenv("GLUE_DIR", str(tmp_path))
    for name in ("stsb", "cola"):
        builder = glue.Glue(config=name, data_dir=str(tmp_path / "tfds"))
        expected = {k: v.dtype for k, v in builder.info.features.get_tensor_info().items()}
        spec = _source(f"glue_{name}").get_dataset("train").element_spec
        got = {k: v.dtype.as_numpy_dtype for k, v in spec.items()}
        strings = {k for k, v in spec.items() if v.dtype == tf.string}
        assert set(got) == set(expected)
        assert all(got[k] == expected[k] for k in set(got) - strings)


def test_shards_and_shuffling(rte):
    rows = "".join(f"{i}\ts{i}\tt\tentailment\n" for i in range(50))
    rte.write_text(HEADER + rows)

    def order(**arguments):
        dataset = _source().get_dataset("train", **arguments)
        return [int(example["idx"]) for example in dataset.as_numpy_iterator()]

    assert order(shuffle=False) == list(range(50))
    shuffled = order(shuffle=True, seed=1)
    assert shuffled == order(shuffle=True, seed=1) != order(shuffle=True, seed=2)
    assert sorted(shuffled) == list(range(50)) != shuffled
    shards = [order(seed=i, shard_info=seqio.ShardInfo(i, 3)) for i in range(3)]
    assert sorted(sum(shards, [])) == list(range(50))
    assert shards[1] != sorted(shards[1])
    # SeqIO hands shards on to this source, however many, instead of reading all and dropping.
    assert _source().supports_arbitrary_sharding
    assert len(_source().list_shards("train")) == 1


def test_available_splits(tmp_path, monkeypatch):
    monkeypatch.delenv("GLUE_DIR", raising=False)
    assert tasks.available_splits("glue_mnli") == (
        "train", "validation_matched", "validation_mismatched", "test_matched", "test_mismatched",
    )  # fmt: skip
    (tmp_path / "MNLI").mkdir()
    (tmp_path / "MNLI" / "dev_matched.tsv").touch()
    monkeypatch.setenv("GLUE_DIR", str(tmp_path))
    assert tasks.available_splits("glue_mnli") == ("validation_matched",)
    assert tasks.available_splits("mini_sst2") == ("train", "validation")


def test_identity(rte, tmp_path, monkeypatch):
    rte.write_text(HEADER + "0\ta\tb\tentailment\n")
    identity = tasks.source_identity("glue_rte", "train")
    assert identity == {
        "kind": "file",
        "file": "train.tsv",
        "sha256": hashlib.sha256(rte.read_bytes()).hexdigest(),
    }
    assert str(tmp_path) not in json.dumps(identity)
    monkeypatch.delenv("GLUE_DIR")
    assert tasks.source_identity("glue_mnli", "validation_matched") == {
        "kind": "tfds",
        "name": "glue/mnli",
        "version": "2.0.0",
        "split": "validation_matched",
    }
    generated = tasks.source_identity("mini_sst2", "train")
    assert generated["kind"] == "generated" and {"version", "seed"} <= set(generated)


class _FakeBuilder:
    """Stands for TFDS, which has the data once they are prepared: RTE with three examples."""

    data_path, prepared = "its/folder", False

    def is_prepared(self):
        return self.prepared

    def download_and_prepare(self):
        self.prepared = True


def test_tfds_is_prepared_then_asked(monkeypatch):
    monkeypatch.delenv("GLUE_DIR", raising=False)
    source = _source()
    builder = _FakeBuilder()
    rows = {"sentence1": ["a"], "sentence2": ["b"], "label": [1], "idx": [0]}
    calls = []

    def get_dataset(split, shuffle, seed, shard_info):
        assert builder.is_prepared()
        calls.append((split, shuffle, seed, shard_info))
        return tf.data.Dataset.from_tensor_slices(rows)

    monkeypatch.setitem(seqio.LazyTfdsLoader._MEMOIZED_BUILDERS, ("glue/rte:2.0.0", None), builder)
    monkeypatch.setattr(source._tfds, "get_dataset", get_dataset)
    shard = seqio.ShardInfo(0, 2)
    dataset = source.get_dataset("validation", shuffle=False, seed=3, shard_info=shard)
    task = seqio.TaskRegistry.get("glue_rte")
    (example,) = task.preprocessors[0](dataset).as_numpy_iterator()
    assert example["inputs"] == b"rte sentence1: a sentence2: b"
    assert example["targets"] == b"not_entailment"
    assert calls == [("validation", False, 3, shard)]
    assert not source.supports_arbitrary_sharding
    assert tuple(source.splits) == ("train", "validation", "test")


def test_rows_of_a_submission(monkeypatch, rte):
    """TFDS's examples are not in the order of the file's rows, which the server goes by."""
    (rte.parent / "test.tsv").write_text("index\tsentence1\tsentence2\n0\ta\tb\n1\tc\td\n")
    assert tasks.glue_rows("glue_rte", "test") == (0, 1)
    assert tasks.glue_rows("glue_rte", "validation") is None
    monkeypatch.delenv("GLUE_DIR")
    columns = {"sentence1": ["a"] * 3, "sentence2": ["b"] * 3, "label": [-1] * 3, "idx": [2, 0, 1]}
    memoized = seqio.LazyTfdsLoader._MEMOIZED_BUILDERS
    monkeypatch.setitem(memoized, ("glue/rte:2.0.0", None), _FakeBuilder())
    given = tf.data.Dataset.from_tensor_slices(columns)
    monkeypatch.setattr(_source()._tfds, "get_dataset", lambda *_: given)
    rows = tasks.glue_rows("glue_rte", "test")
    assert rows == (2, 0, 1)
    text = tasks.glue_submission("glue_rte", "test", ["entailment", "not_entailment", "?"], rows)
    assert text == "index\tprediction\n0\tnot_entailment\n1\tentailment\n2\tentailment\n"


# Rows of the server's test sets.
TESTS = {"cola": 1063, "sst2": 1821, "mrpc": 1725, "stsb": 1379, "qnli": 5463, "rte": 3000}


@pytest.mark.parametrize("name", TESTS)
def test_rows_of_the_real_test_files(shared_data, monkeypatch, name):
    monkeypatch.setenv("GLUE_DIR", str(shared_data / "glue"))
    assert tasks.glue_rows(f"glue_{name}", "test") == tuple(range(TESTS[name]))
    assert tasks.glue_file(f"glue_{name}", "test") in tasks.GLUE_FILES


class _OfflineBuilder:
    """Stands for TFDS where there is no network: how long that takes to fail is the machine's."""

    data_path = "its/folder"

    def is_prepared(self):
        return False

    def download_and_prepare(self):
        raise OSError("Connection refused\nand forty lines more")


@pytest.mark.parametrize("call", ["get_dataset", "num_input_examples", "list_shards"])
def test_tfds_without_data_says_what_to_do(call, monkeypatch, capsys):
    monkeypatch.delenv("GLUE_DIR", raising=False)
    source = _source()
    monkeypatch.setattr(source, "_said", False)  # It says that once.
    memoized = seqio.LazyTfdsLoader._MEMOIZED_BUILDERS
    monkeypatch.setitem(memoized, ("glue/rte:2.0.0", None), _OfflineBuilder())
    assert list(source.splits) == ["train", "validation", "test"]
    with pytest.raises(tasks.DataError) as caught:
        getattr(source, call)("train")
    assert str(caught.value) == (
        "TFDS's glue/rte:2.0.0 is not prepared and could not be downloaded (OSError: Connection "
        "refused); set GLUE_DIR to a folder in GLUE's official layout, or run 'tfds build "
        "glue/rte' where there is a network"
    )
    said = "GLUE_DIR is not set: glue/rte:2.0.0 is read by TensorFlow Datasets"
    assert capsys.readouterr().err == f"{said}\nit downloads to its/folder\n"


def _add_own_task(name, source, **keywords):
    try:
        return tasks.add_classification(
            name, source, None, ("no", "yes"), [lambda targets, predictions: {}],
            vocabulary=tasks.MINI_VOCABULARY, **keywords,
        )  # fmt: skip
    except BaseException:
        seqio.TaskRegistry.remove(name)
        raise


@pytest.fixture
def forget():
    """Removes tasks that a test registers."""
    names = []
    yield names.append
    for name in names:
        seqio.TaskRegistry.remove(name)
        tasks.LABELS.pop(name, None)
        tasks.EVAL_SPLITS.pop(name, None)


def test_a_task_of_ones_own(forget):
    forget("own_task")
    texts = {"inputs": ["is the film good ?", "the film"], "targets": ["yes", "no"]}

    def read(split, shuffle_files, seed=None):
        return tf.data.Dataset.from_tensor_slices(texts)

    source = seqio.FunctionDataSource(read, splits=("train", "dev"))
    task = _add_own_task("own_task", source, eval_splits=("dev",))
    assert tasks.LABELS["own_task"] == ("no", "yes")
    assert tasks.EVAL_SPLITS["own_task"] == ("dev",)
    assert tasks.available_splits("own_task") == ("train", "dev")
    examples = list(task.get_dataset(None, "dev", shuffle=False).as_numpy_iterator())
    assert examples[0]["targets"].tolist() == [*tasks.MINI_VOCABULARY.encode("yes"), 1]
    assert task.postprocess_fn("yes") == 1 and task.postprocess_fn("perhaps") == -1
    before = tasks.source_identity("own_task", "dev")
    assert before == tasks.source_identity("own_task", "dev")
    texts["inputs"][1] = "the song"
    assert before != tasks.source_identity("own_task", "dev")  # content, not name


def test_labels_must_differ(forget):
    forget("own_task")
    for labels in (("yes",), ("yes", "no", "yes")):
        with pytest.raises(ValueError, match="two or more different labels"):
            tasks.add_classification("own_task", _source(), None, labels, [])
    assert "own_task" not in tasks.LABELS


def test_rows_match_python_csv(shared_data):
    import csv

    path = shared_data / "glue" / "STS-B" / "train.tsv"
    with path.open(encoding="utf-8-sig", newline="\n") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    columns = ("sentence2", "score", "sentence1")
    ours = [cells for _, cells in tsv.read_rows(str(path), columns)]
    assert ours == [tuple(row[column] for column in columns) for row in rows]
    assert np.asarray([float(score) for _, score, _ in ours], np.float32).max() == 5
