"""Mixing rates follow the examples that are there."""

import collections

import pytest
import seqio

import tasks
from tasks.mixtures import DEFAULT_CAP, proportional_rate

OFFICIAL = {
    "glue_cola": 8551,
    "glue_sst2": 67349,
    "glue_mrpc": 3668,
    "glue_qqp": 363849,
    "glue_stsb": 5749,
    "glue_mnli": 392702,
    "glue_qnli": 104743,
    "glue_rte": 2490,
}


def _rates(rate) -> dict[str, float]:
    return {name: rate(seqio.TaskRegistry.get(name)) for name in tasks.GLUE_TASKS}


def test_official_counts_without_data(monkeypatch):
    monkeypatch.delenv("GLUE_DIR", raising=False)
    assert _rates(proportional_rate()) == OFFICIAL
    assert DEFAULT_CAP > max(OFFICIAL.values())
    capped = _rates(proportional_rate(10_000))
    assert capped == {name: min(count, 10_000) for name, count in OFFICIAL.items()}
    mixture = seqio.MixtureRegistry.get("glue_proportional")
    assert {task.name: mixture.get_rate(task) for task in mixture.tasks} == OFFICIAL
    assert mixture.total_rate == sum(OFFICIAL.values())
    equal = seqio.MixtureRegistry.get("glue_equal")
    assert {equal.get_rate(task) for task in equal.tasks} == {1.0} and len(equal.tasks) == 8


def test_a_folder_of_subsets_is_counted(shared_data, monkeypatch):
    monkeypatch.setenv("GLUE_DIR", str(shared_data / "glue"))
    subsets = {"glue_qnli": 9999, "glue_mnli": 9999, "glue_qqp": 23497}
    assert _rates(proportional_rate()) == OFFICIAL | subsets


def test_unknown_counts_and_caps(monkeypatch):
    class Task:
        name = "own"
        source = None

        def num_input_examples(self, split):
            return None

    with pytest.raises(tasks.DataError, match="examples of 'own' is not known"):
        proportional_rate()(Task())
    with pytest.raises(ValueError, match="at least 1; got 0"):
        proportional_rate(0)


@pytest.mark.slow
def test_mixing_by_rates(tmp_path, monkeypatch, shared_data):
    """Draws of a folder of two-row and one-row tasks come two to one."""
    monkeypatch.setenv("VOCABULARY", str(shared_data / "vocab" / "spiece.model"))
    monkeypatch.setenv("GLUE_DIR", str(tmp_path))
    for folder, columns, rows in (
        ("RTE", "sentence1\tsentence2", 4),
        ("QNLI", "question\tsentence", 2),
    ):
        (tmp_path / folder).mkdir()
        content = f"{columns}\tlabel\n" + "a\tb\tentailment\n" * rows
        (tmp_path / folder / "train.tsv").write_text(content)
    mixture = seqio.Mixture(
        "two", ["glue_rte", "glue_qnli"], default_rate=tasks.proportional_rate()
    )
    dataset = mixture.get_dataset(
        {"inputs": 16, "targets": 8}, "train", seed=0, copy_pretokenized=True
    )
    counts = collections.Counter(
        example["inputs_pretokenized"].split()[0]
        for example in dataset.take(600).as_numpy_iterator()
    )
    # 600 draws at 2/3: four standard deviations are 46.
    assert counts[b"rte"] + counts[b"qnli"] == 600 and abs(counts[b"rte"] - 400) < 46


def test_mixtures_of_fewer_tasks_nest():
    for name, members in (
        ("glue_equal", tasks.GLUE_TASKS),
        ("mini_glue_equal", tasks.MINI_GLUE_TASKS),
    ):
        for mixture, count in ((name, 8), (f"{name}_2", 2), (f"{name}_4", 4)):
            found = seqio.MixtureRegistry.get(mixture)
            assert sorted(task.name for task in found.tasks) == sorted(members[:count])
            assert {found.get_rate(task) for task in found.tasks} == {1.0}
