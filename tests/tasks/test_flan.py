"""FLAN's prompts against FLAN's own code, whose results the golden file holds."""

import collections
import json
import pathlib

import numpy as np
import pytest
import seqio
import tensorflow as tf

import tasks
from tasks import flan, metrics
from tasks.flan_templates import TEMPLATES

GOLDEN = json.loads(
    (pathlib.Path(__file__).parents[1] / "golden/flan_prompts.json").read_text(encoding="utf-8")
)
NAMES = [name for name in GOLDEN if name != "note"]


@pytest.mark.parametrize("name", NAMES)
def test_prompts_are_flans(name):
    rows, expected = GOLDEN[name]["rows"], GOLDEN[name]["prompts"]
    assert len(expected) == len(TEMPLATES[name])
    numbers = np.repeat(np.arange(len(expected), dtype=np.int32), len(rows))
    kind = {str: object, int: np.int64, float: np.float32}
    columns = {
        field: np.array([row[field] for row in rows] * len(expected), kind[type(rows[0][field])])
        for field in rows[0]
    }
    columns |= {"template": numbers, "idx": np.arange(len(numbers), dtype=np.int32)}
    dataset = flan.format_prompts(tf.data.Dataset.from_tensor_slices(columns), name=name)
    found = [
        [one["inputs"].decode(), one["targets"].decode()] for one in dataset.as_numpy_iterator()
    ]
    assert found == [pair for prompts in expected for pair in prompts]
    assert {target for _, target in found} <= set(tasks.LABELS[f"flan_{name}"])


@pytest.fixture
def rte(tmp_path, monkeypatch):
    """A GLUE folder with RTE of 200 training and 3 dev examples."""
    (tmp_path / "RTE").mkdir()
    header = "index\tsentence1\tsentence2\tlabel\n"
    for file, count in (("train", 200), ("dev", 3)):
        rows = "".join(f"{i}\tp{i}\th{i}\tnot_entailment\n" for i in range(count))
        (tmp_path / "RTE" / f"{file}.tsv").write_text(header + rows)
    (tmp_path / "RTE" / "test.tsv").write_text("index\tsentence1\tsentence2\n0\tp\th\n")
    monkeypatch.setenv("GLUE_DIR", str(tmp_path))
    monkeypatch.delenv("TEMPLATE_SEED", raising=False)
    return monkeypatch


def read(split: str, name: str = "flan_rte") -> list[dict]:
    task = seqio.TaskRegistry.get(name)
    dataset = task.preprocessors[0](task.source.get_dataset(split, shuffle=False))
    return list(dataset.as_numpy_iterator())


def test_without_a_seed_dev_is_asked_in_all_templates_and_train_in_one(rte):
    source = seqio.TaskRegistry.get("flan_rte").source
    dev = [(int(one["idx"]), int(one["template"])) for one in read("validation")]
    assert dev == [(i, t) for i in range(3) for t in range(9)]
    assert source.num_input_examples("validation") == 27
    train = read("train")
    assert [int(one["idx"]) for one in train] == list(range(200))
    assert source.num_input_examples("train") == source.train_examples() == 200
    counts = collections.Counter(int(one["template"]) for one in train)
    assert set(counts) == set(range(9)) and max(counts.values()) < 50  # 22 of each, about.
    # A template is the example's own, whatever else is there.
    shard = seqio.ShardInfo(1, 20)
    shard = source.get_dataset("train", shuffle=False, shard_info=shard).as_numpy_iterator()
    assert [one["template"] for one in shard] == [one["template"] for one in train[1::20]]
    assert source.identity("train")["templates"] == "all"
    assert {one["targets"].decode() for one in read("test")} == {tasks.UNLABELED}
    assert tasks.glue_file("flan_rte", "test") is None


def test_a_seed_chooses_one_template_for_all(rte):
    source, chosen = seqio.TaskRegistry.get("flan_rte").source, set()
    for seed in range(30):
        rte.setenv("TEMPLATE_SEED", str(seed))
        chosen.add(source.identity("train")["templates"])
    assert chosen == set(TEMPLATES["rte"])
    numbers = {int(one["template"]) for one in (*read("train"), *read("validation"))}
    assert {TEMPLATES["rte"][number] for number in numbers} == {
        source.identity(split)["templates"] for split in ("train", "validation")
    }
    assert len(numbers) == 1 and source.num_input_examples("validation") == 3
    rte.setenv("TEMPLATE_SEED", "one")
    with pytest.raises(tasks.DataError, match="TEMPLATE_SEED=one: expected a whole number from 0"):
        read("train")


def test_metrics_are_means_over_templates():
    rng = np.random.default_rng(0)
    groups, labels = np.repeat(np.arange(3), 20), rng.integers(0, 2, 60)
    said = rng.integers(-1, 2, 60)
    targets = [
        {"value": int(label), "group": int(group)}
        for label, group in zip(labels, groups, strict=True)
    ]
    predictions = [{"value": int(one)} for one in said]
    for metric, name in ((metrics.f1, "f1"), (metrics.matthews_corrcoef, "matthews_corrcoef")):
        each = [metric(labels[groups == g], said[groups == g])[name] for g in range(3)]
        found = flan.over_templates(metric)(targets, predictions)
        assert found == {f"mean_{name}": pytest.approx(np.mean(each))}
        # Those of one template have the name of the metric, which reports know.
        assert flan.over_templates(metric)(targets[:20], predictions[:20]) == {
            name: pytest.approx(each[0])
        }


def test_scores_are_compared_with_those_of_the_example():
    example = {"label": np.float32(3.6), "template": np.int32(2)}
    settings = {"labels": tasks.LABELS["flan_stsb"], "numbers": True, "example": example}
    found = flan.value("4", **settings, is_target=True)
    assert found == {"value": pytest.approx(3.6), "group": 2}
    assert flan.value("4", **settings) == {"value": 4.0}
    settings = {"labels": ("yes", "no"), "numbers": False, "example": example}
    assert flan.value("no", **settings, is_target=True) == {"value": 1, "group": 2}
    assert flan.value("maybe", **settings) == {"value": -1}


def test_tasks_and_mixtures_are_glues():
    assert tasks.FLAN_TASKS == tuple(f"flan_{n.removeprefix('glue_')}" for n in tasks.GLUE_TASKS)
    for task in tasks.FLAN_TASKS:
        glue = task.replace("flan", "glue")
        assert tasks.EVAL_SPLITS[task] == tasks.EVAL_SPLITS[glue]
    mixtures = (("flan_glue_proportional", 8), ("flan_glue_equal", 8), ("flan_glue_equal_4", 4))
    for name, count in mixtures:
        assert len(seqio.MixtureRegistry.get(name).tasks) == count
