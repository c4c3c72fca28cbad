"""What a line of a report stands for: made-up runs, grouped a second time by ten lines here."""

import dataclasses
import itertools
import json
import re
import shutil
import statistics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adalink_jax.methods import METHODS
from adalink_jax.runs.folder import RunFolder
from adalink_jax.tools.report import sections
from adalink_jax.tools.report.groups import basic_label, groups_of
from adalink_jax.tools.report.page import Table
from adalink_jax.tools.report.runs import Scored, read
from adalink_jax.tools.report.scores import measures, tasks_of
from tests.tools.report.made import seal, write_evaluation, write_run

TASKS = ("mini_a", "mini_b", "mini_c")


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    folder = tmp_path_factory.mktemp("one") / "run"
    write_run(folder, "lora", {"rank": 2}, TASKS[:1], 0)
    return read(folder)


def scored(score, examples=10):
    return Scored(score, {}, {"validation": examples}, {"validation": 0}, ())


# (rank, steps, dtype): a configuration; then task, seed, start, score.
CONFIGURATIONS = st.tuples(st.sampled_from([2, 4]), st.sampled_from([20, 40]),
                           st.sampled_from(["float32", "bfloat16"]))  # fmt: skip
MADE = st.tuples(CONFIGURATIONS, st.sampled_from(TASKS), st.integers(0, 2), st.integers(0, 1),
                 st.floats(0, 100))  # fmt: skip


def run_of(one, number, made):
    (rank, steps, dtype), task, seed, start, score = made
    return dataclasses.replace(
        one,
        path=f"runs/{number}",
        digest=str(made),
        started=str(start),
        method=METHODS["lora"](rank=rank),
        mixture=task,
        tasks=(task,),
        seed=seed,
        steps=steps,
        results={task: scored(score)},
        settings=one.settings
        | {"method.rank": str(rank), "steps": str(steps), "dtype": json.dumps(dtype)},
        data={task: "data"},
    )


@settings(deadline=None, max_examples=150)
@given(st.data(), st.lists(MADE, min_size=1, max_size=20))
def test_groups_are_configurations_whatever_the_order_and_the_copies(one, data, made):
    # Equal in all but the score are a run that cannot be: of these the first stays.
    made = list({row[:4]: row for row in reversed(made)}.values())
    copies = data.draw(st.lists(st.sampled_from(made), max_size=5))
    runs = [run_of(one, number, row) for number, row in enumerate([*made, *copies])]
    expected = {}
    for configuration, task, seed, _, score in sorted(made, key=lambda row: row[3]):
        expected.setdefault(configuration, {}).setdefault(task, {})[seed] = score

    groups, _ = groups_of(data.draw(st.permutations(runs)))
    found = {
        (g.first.method.rank, g.first.steps, json.loads(g.settings["dtype"])): {
            task: g.scores(task) for task in g.by_task
        }
        for g in groups
    }
    assert found == expected and len(groups) == len(expected)
    assert len({group.label for group in groups}) == len(groups)
    for tasks in itertools.chain.from_iterable(itertools.combinations(TASKS, n) for n in (1, 2, 3)):
        for group, scores in zip(groups, found.values(), strict=True):
            seeds = {tuple(sorted(scores.get(task, {}))) for task in tasks}
            means = group.means(tasks)
            if len(seeds) > 1 or seeds == {()}:
                assert means is None
            else:
                assert means == {s: statistics.fmean(scores[t][s] for t in tasks) for s in means}
                assert tuple(means) in seeds


@settings(deadline=None, max_examples=40)
@given(st.data(), st.lists(MADE, min_size=2, max_size=30))
def test_all_tables_show_the_same_number_for_the_same_thing(one, data, made):
    made = list({row[:3]: row for row in made}.values())
    runs = [run_of(one, number, row) for number, row in enumerate(made)]
    groups, _ = groups_of(runs)
    tasks = tasks_of(groups)
    blocks = [*sections.single_task(groups), *sections.by_size(groups), *sections.learning(groups)]
    blocks += [sections.cost_table(measure) for measure in measures(groups)]
    shown = {}
    for table in (block for block in blocks if isinstance(block, Table)):
        names = list(table.header)
        for row in table.texts:
            label = row[names.index("method")]
            if "rank" in names:  # The rank stands in a column of its own.
                parts = label.split(", ")
                label = ", ".join([parts[0], f"rank {row[names.index('rank')]}", *parts[1:]])
                cells = {row[1]: row[-1]}
            else:
                cells = dict(zip(names, row, strict=True))
            cells = {
                f"mean of {len(tasks)} tasks" if n == "mean" else n: c for n, c in cells.items()
            }
            for name in (*tasks, f"mean of {len(tasks)} tasks"):
                if name in cells:
                    shown.setdefault((label, name), set()).add(
                        re.sub(r" \(\d+\)|[ᵃᵇᶜ]", "", cells[name])
                    )
    assert shown and all(len(cells) == 1 for cells in shown.values()), shown


@pytest.mark.parametrize(
    ("change", "plain", "label"),
    [
        ({"steps": 20}, ", 30 steps", ", 20 steps"),
        ({"dtype": "bfloat16"}, ", dtype float32", ", dtype bfloat16"),
        ({"label_smoothing": 0.1}, ", label_smoothing 0.0", ", label_smoothing 0.1"),
        ({"rate": 0.02}, ", learning rate 0.01", ", learning rate 0.02"),
        (
            {"optimizer": {"@partial": "optax.adamw"}},
            ", optimizer adafactor",
            ", optimizer adamw",
        ),
        ({"eval_limit": 16}, "", ", eval_limit 16"),
        ({"few_shot": 4}, "", ", 4 examples"),
        ({"a_setting_of_tomorrow": 3}, "", ", a_setting_of_tomorrow 3"),
        ({"adapter": {"dropout_rate": 0.1}}, "", ", dropout_rate 0.1"),
    ],
)
def test_what_changes_a_result_is_a_line_of_its_own(tmp_path, change, plain, label):
    for seed in (0, 1, 2):
        write_run(tmp_path / f"plain{seed}", "lora", {"rank": 2}, TASKS[:1], seed)
    write_run(tmp_path / "other", "lora", {"rank": 2}, TASKS[:1], 0, **change)
    groups, notes = groups_of(map(read, tmp_path.iterdir()))
    assert {group.label.removeprefix("lora, rank 2"): len(group.runs) for group in groups} == {
        plain: 3,
        label: 1,
    }
    assert not notes
    # Where most lines have one value, only the others say theirs.
    write_run(tmp_path / "third", "lora", {"rank": 4}, TASKS[:1], 0)
    labels = {group.label for group in groups_of(map(read, tmp_path.iterdir()))[0]}
    assert labels == {"lora, rank 2", f"lora, rank 2{label}", "lora, rank 4"}


@pytest.mark.parametrize(
    "change",
    [
        {"keep_checkpoints": 3}, {"eval_period": 5}, {"remat": "full"}, {"devices": 4},
        {"cache_dir": "/elsewhere"}, {"base": "/copied/t5"},
    ],
)  # fmt: skip
def test_what_changes_no_result_does_not(tmp_path, change):
    write_run(tmp_path / "a", "lora", {"rank": 2}, TASKS[:1], 0)
    write_run(tmp_path / "b", "lora", {"rank": 2}, TASKS[:1], 1, **change)
    ((group,), notes) = groups_of(map(read, tmp_path.iterdir()))
    assert len(group.scores("mini_a")) == 2 and group.label == "lora, rank 2" and not notes


def test_other_data_under_one_name_is_a_line_of_its_own(tmp_path):
    for seed, data in ((0, "old"), (1, "old"), (2, "new")):
        write_run(tmp_path / f"{seed}", "lora", {"rank": 2}, TASKS[:1], seed, data=data)
    write_run(tmp_path / "b", "lora", {"rank": 2}, TASKS[1:2], 0, data="other")
    groups, _ = groups_of(map(read, tmp_path.iterdir()))
    assert sorted(len(group.runs) for group in groups) == [1, 1, 2]
    assert all("data " in group.label for group in groups if "mini_a" in group.by_task)


def test_records_that_a_run_folder_writes_today_are_one_line(tmp_path):
    for seed in (0, 1):
        made, path = tmp_path / "made" / f"{seed}", tmp_path / "runs" / f"{seed}"
        write_run(made, "lora", {"rank": 2}, TASKS[:1], seed)
        record = json.loads((made / "run.json").read_text())
        folder = RunFolder(path)
        for part in ("configuration", "base", "data"):
            folder.claim(part, record[part])
        folder.start("", 0)
        folder.log(10, {"eval/mini_a/score": 1.0 + seed})
        for name in ("results.json", "adapter"):
            (made / name).rename(path / name)
        folder.record_seconds()
        folder.record_outcome()
        folder.close()
    ((group,), notes) = groups_of(map(read, (tmp_path / "runs").iterdir()))
    assert list(group.scores("mini_a")) == [0, 1] and group.label == "lora, rank 2" and not notes


def test_few_examples_of_other_seeds_are_one_line(tmp_path):
    for seed in (0, 1, 2):
        write_run(tmp_path / f"{seed}", "lora", {"rank": 2}, TASKS[:1], seed, few_shot=4)
    ((group,), _) = groups_of(map(read, tmp_path.iterdir()))
    assert list(group.scores("mini_a")) == [0, 1, 2] and group.label == "lora, rank 2, 4 examples"


def test_a_run_that_is_also_scored_on_other_tasks_is_no_run_of_these(tmp_path):
    write_run(tmp_path / "b", "lora", {"rank": 2}, TASKS[1:2], 0, {"mini_b": 50.0})
    both = {"mini_a": 60.0, "mini_b": 10.0}
    write_run(tmp_path / "a", "lora", {"rank": 2}, TASKS[:1], 0, both, name="mixed", time="2027")
    groups, _ = groups_of(map(read, tmp_path.iterdir()))
    assert {group.mixture: group.scores("mini_b") for group in groups} == {
        "": {0: 50.0},
        "mixed": {0: 10.0},
    }


def test_data_that_a_seed_draws_is_one_line(tmp_path):
    for seed in (0, 1):
        write_run(tmp_path / f"{seed}", "lora", {"rank": 2}, TASKS[:1], seed, data=f"of {seed}")
        path = tmp_path / f"{seed}" / "run.json"
        record = json.loads(path.read_text())
        record["data"]["tasks"][0]["drawn"] = {"seed": seed, "anew_every_steps": 7 + seed}
        path.write_text(json.dumps(record))
        seal(path.parent)
    ((group,), _) = groups_of(map(read, tmp_path.iterdir()))
    assert len(group.scores("mini_a")) == 2


def test_a_run_counts_once_however_often_it_is_found(tmp_path):
    write_run(tmp_path / "a", "lora", {"rank": 2}, TASKS[:1], 0, time="2026-01-01")
    shutil.copytree(tmp_path / "a", tmp_path / "copy")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    # The same training again, elsewhere and later: no other seed.
    write_run(tmp_path / "z", "lora", {"rank": 2}, TASKS[:1], 0, {"mini_a": 7.0}, time="2026-01-02")
    ((group,), notes) = groups_of(map(read, [*tmp_path.iterdir()]))
    assert group.scores("mini_a") == {0: 7.0} and [run.path for run in group.runs] == [
        (tmp_path / "z").as_posix()
    ]
    assert sum("a copy of" in note for note in notes) == 1
    assert sum("left out, though its scores are others" in note for note in notes) == 1


def test_of_copies_one_with_predictions_counts(tmp_path):
    write_run(tmp_path / "a", "lora", {"rank": 2}, TASKS[:1], 0)
    shutil.copytree(tmp_path / "a", tmp_path / "copy")
    (tmp_path / "copy" / "predictions").mkdir()
    ((group,), (note,)) = groups_of(map(read, [*tmp_path.iterdir()]))
    assert [run.path for run in group.runs] == [(tmp_path / "copy").as_posix()]
    assert note == f"{tmp_path / 'a'}: a copy of {tmp_path / 'copy'}, left out"


def test_scores_of_different_metrics_are_not_averaged(tmp_path):
    for seed, metric in enumerate(("accuracy", "accuracy", "f1")):
        entry = {"mini_a": {"validation": {"metrics": {metric: 1.0}, "examples": 9}}}
        write_run(tmp_path / str(seed), "lora", {"rank": 2}, TASKS[:1], seed, splits=entry)
    groups, _ = groups_of(map(read, tmp_path.iterdir()))
    assert sorted(len(group.runs) for group in groups) == [1, 2]


def test_seeds_of_several_versions_of_the_code_are_said(tmp_path):
    for seed, version in ((0, "0.9.0"), (1, "0.10.2")):
        write_run(tmp_path / f"{seed}", "lora", {"rank": 2}, TASKS[:1], seed)
        path = tmp_path / f"{seed}" / "run.json"
        path.write_text(path.read_text().replace("0.10.2", version))
        seal(path.parent)
    (_, (note,)) = groups_of(map(read, tmp_path.iterdir()))
    assert note == "tuned (abcdef), lora, rank 2: runs of 2 versions of the code"


def test_a_method_of_methods_is_called_by_these(one):
    adalink = METHODS["adalink"](rank=19, activation="relu")
    prompt = METHODS["prompt_tuning"](length=60, reparameterise=False)
    method = METHODS["compose"](parts=(adalink, prompt))
    label = basic_label(dataclasses.replace(one, method_name="compose", method=method))
    assert label == "adalink, rank 19, activation relu + prompt_tuning, length 60"


@pytest.mark.parametrize(
    ("split", "start", "title"),
    [("validation", (0, 40.0), "mini_a"), ("held_out", (10, 1.0), "mini_a, on held_out")],
)
def test_a_curve_of_another_split_is_named_and_has_no_start_of_the_reported_one(
    tmp_path, split, start, title
):
    write_run(tmp_path / "run", "lora", {"rank": 2}, ["mini_a"], 0)
    scored = f"eval/mini_a/{split}/accuracy"
    lines = [{"step": s, scored: s / 10, "eval/mini_a/score": s / 10} for s in (10, 20, 30)]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "run/metrics.jsonl").write_text(text)
    seal(tmp_path / "run")
    write_evaluation(tmp_path / "base", None, tasks=("mini_a",))
    runs = [read(tmp_path / name) for name in ("run", "base")]
    (panel,) = sections.learning(groups_of([one for one in runs if one])[0])[-1].panels
    (series,) = panel.series
    assert (series.points[0].x, series.points[0].y) == start
    assert panel.title == title and bool(panel.levels) == (split == "validation")
