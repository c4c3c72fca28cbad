"""Intervals and tests against closed formulas, scipy, and this project's metrics."""

import dataclasses
import itertools
import math
import pathlib
import types

import numpy as np
import pytest
import scipy.stats

from adalink_jax import cli
from adalink_jax.errors import UserError
from adalink_jax.tools.report import evidence, intervals, predictions
from adalink_jax.tools.report.groups import groups_of
from adalink_jax.tools.report.predictions import Answers, NoDraws
from adalink_jax.tools.report.runs import read
from tasks import metrics
from tests.tools.report.made import LABELS, seal, write_predictions, write_run

RNG = np.random.default_rng(0)
TASK = "mini_a"


@pytest.mark.parametrize(
    ("name", "classes"),
    [(name, k) for name in predictions._METRICS for k in (2, 4) if (name, k) != ("f1", 4)],
)
def test_a_metric_over_repeated_examples_is_the_projects_own(name, classes):
    labels = tuple(f"{0.5 * k:.1f}" for k in range(classes))
    targets, answers = RNG.integers(0, classes, (2, 40))
    texts = labels
    if name in ("accuracy", "f1", "matthews_corrcoef"):  # Some answers are no label.
        answers[:5], texts = [classes, classes + 1, 0, classes, 1], (*labels, "none", "nothing")
    weights = RNG.integers(0, 4, (6, 40)).astype(float)
    weights[-1] = targets == 0  # One class only.
    answered = Answers(labels, texts, targets, answers, "")
    found = predictions._METRICS[name](weights, targets, answers, answered)
    for value, counts in zip(found, weights.astype(int), strict=True):
        ids = [np.where(one < classes, one, -1) for one in (targets, answers)]
        if "corrcoef" in name and name != "matthews_corrcoef":
            ids = [[float(texts[k]) for k in one] for one in ids]
        repeated = [np.repeat(one, counts) for one in ids]
        (expected,) = getattr(metrics, name)(*repeated).values()
        assert 100 * value == pytest.approx(expected, abs=1e-9)


def made(folder, seeds, skill, count=200, targets=None, metric="accuracy", **changed):
    """Runs whose answers are right with a probability that is the seed's own."""
    targets = RNG.integers(0, 2, count) if targets is None else targets
    for seed, p in zip(range(seeds), np.broadcast_to(skill, seeds), strict=True):
        answers = np.where(RNG.random(len(targets)) < p, targets, 1 - targets)
        path = folder / f"seed{seed}"
        write_run(path, changed.get("method", "lora"), {"rank": 2}, [TASK], seed)
        (value,) = getattr(metrics, metric)(targets, answers).values()
        texts = [[LABELS[k] for k in ids] for ids in (targets, answers)]
        write_predictions(path, TASK, *texts, {metric: value})
    ((group,), _) = groups_of(map(read, sorted(folder.iterdir())))
    return group


def test_examples_are_drawn_as_the_binomial_says_and_the_same_for_all_runs(tmp_path):
    group = made(tmp_path, 2, 0.8)
    runs = list(group.by_task[TASK].values())
    drawn = predictions.drawn_scores([*runs, runs[0]], TASK)
    share = np.array([run.scores[TASK] / 100 for run in runs])
    expected = 100 * np.sqrt(share * (1 - share) / 200)
    np.testing.assert_allclose(drawn[:, :2].std(0), expected, rtol=0.03)
    np.testing.assert_allclose(drawn[:, :2].mean(0), 100 * share, atol=0.1)
    np.testing.assert_array_equal(drawn[:, 0], drawn[:, 2])
    # What both have right together says how the two vary together.
    right = [
        np.equal(a.targets, a.predictions) for a in predictions.aligned(runs, TASK, "validation")
    ]
    covariance = (np.mean(right[0] & right[1]) - share[0] * share[1]) / 200 * 1e4
    assert np.cov(drawn[:, 0], drawn[:, 1])[0, 1] == pytest.approx(covariance, abs=0.25)


def test_examples_are_not_drawn_where_the_metric_is_another(tmp_path):
    group = made(tmp_path / "a", 1, 0.8)
    run = group.first

    def why(run, *others):
        with pytest.raises(NoDraws) as error:
            predictions.drawn_scores([run, *others], TASK)
        return str(error.value)

    result = run.results[TASK]
    other = dataclasses.replace(result, metrics={"validation/accuracy": result.score / 100})
    fraction = dataclasses.replace(run, results={TASK: other})
    assert "accuracy is not what is known" in why(fraction)
    unknown = dataclasses.replace(result, metrics={"validation/bleu": 1.0})
    assert "no bootstrap for the metric bleu" in why(
        dataclasses.replace(run, results={TASK: unknown})
    )
    # Nor where the score is a metric that is not known, whatever other metrics there are.
    both = {**result.metrics, "validation/bleu": 1.0}
    named = dataclasses.replace(result, metrics=both, scored_by="bleu")
    assert "no bootstrap for the metric bleu" in why(
        dataclasses.replace(run, results={TASK: named})
    )
    named = dataclasses.replace(named, scored_by="accuracy")
    drawn = predictions.drawn_scores([dataclasses.replace(run, results={TASK: named})], TASK)
    np.testing.assert_array_equal(drawn, predictions.drawn_scores([run], TASK))
    assert "not all were scored on the same examples" in why(
        run, made(tmp_path / "b", 1, 0.8).first
    )
    path = tmp_path / "a" / "seed0" / "predictions" / f"{TASK}-validation.jsonl"
    path.unlink()
    assert "has no predictions" in why(dataclasses.replace(run))


def test_predictions_that_are_gone_are_said(tmp_path, capsys):
    group = made(tmp_path, 1, 0.8)
    seal(pathlib.Path(group.first.path))
    path = pathlib.Path(group.first.path) / "predictions" / f"{TASK}-validation.jsonl"
    path.unlink()
    assert read(path.parent.parent) is not None
    said = f"{path} is gone, so its scores have no interval over examples\n"
    assert capsys.readouterr().err == said


@pytest.mark.parametrize("text", ["{", "[]", '{"index": 0}', '{"inputs": 1}', ""])
def test_damaged_predictions_are_one_line(tmp_path, text):
    group = made(tmp_path / "runs", 1, 0.8, count=4)
    path = tmp_path / "runs" / "seed0" / "predictions" / f"{TASK}-validation.jsonl"
    whole = path.read_text()
    path.write_text("\n".join([*whole.split("\n")[:3], text]) + "\n")
    with pytest.raises(UserError, match="damaged"):
        intervals.estimate(group, (TASK,))
    path.write_text(whole.replace("no", "on"))
    with pytest.raises(UserError, match="damaged"):
        read(path.parent.parent)


def test_intervals_are_students_over_seeds_and_normal_over_examples(tmp_path):
    values = {0: 70.0, 1: 74.0, 2: 71.0, 3: 77.0}
    found, _ = intervals._estimated(values, None, "")
    mean, deviation = np.mean(list(values.values())), np.std(list(values.values()), ddof=1)
    half = scipy.stats.t.ppf(0.975, 3) * deviation / 2
    assert found.over == "seeds" and found.deviation == pytest.approx(deviation)
    np.testing.assert_allclose(found.interval, (mean - half, mean + half), atol=0.25)

    group = made(tmp_path, 1, 0.75, count=900)
    found = intervals.estimate(group, (TASK,))
    assert found.over == "examples" and found.deviation is None
    p = found.mean / 100
    half = 196 * np.sqrt(p * (1 - p) / 900)
    np.testing.assert_allclose(found.interval, (found.mean - half, found.mean + half), atol=0.2)


def test_an_interval_over_seeds_and_examples_covers_the_truth_as_often_as_it_says():
    """Scores of three seeds: 70, plus the seed's own error, plus the examples' that all share."""
    rng, covered = np.random.default_rng(1), 0
    for _ in range(400):
        shared = rng.normal(0, 1.5)
        values = {seed: 70 + shared + rng.normal(0, 2) for seed in range(3)}
        drawn = np.mean(list(values.values())) + rng.normal(0, 1.5, predictions.DRAWS)
        found, _ = intervals._estimated(values, drawn, "")
        covered += found.interval[0] <= 70 <= found.interval[1]
    assert 0.93 <= covered / 400 <= 0.99


def test_mcnemar_is_the_exact_binomial_test():
    for won, lost in itertools.product((0, 1, 5, 30), (0, 2, 17)):
        total, fewer = won + lost, min(won, lost)
        tail = sum(math.comb(total, k) for k in range(fewer + 1)) / 2**total
        assert intervals.mcnemar(won, lost) == pytest.approx(min(1.0, 2 * tail))


@pytest.mark.parametrize("right", [800, 799, 796])
def test_near_the_ceiling_a_share_has_the_interval_of_its_few_mistakes(tmp_path, right):
    """Clopper and Pearson's is wider than Jeffreys'; drawing no mistakes again gives none."""
    targets = np.zeros(800, int)
    group = _answering(tmp_path, targets, [np.arange(800) >= right])
    low, high = intervals.estimate(group, (TASK,)).interval
    exact = scipy.stats.binomtest(right, 800).proportion_ci(0.95)
    assert 100 * exact.low - 0.02 < low < 100 * exact.low + 0.25
    assert low < 100 * right / 800 - 0.2 and high <= 100 * exact.high + 0.02
    assert high >= 100 * right / 800 - 0.01


def test_few_mistakes_of_a_score_that_is_no_share_give_no_interval(tmp_path):
    targets = np.arange(100) % 2
    few, more = (
        _answering(tmp_path / str(k), targets, [np.arange(100) < k], "matthews_corrcoef")
        for k in (4, 5)
    )
    found = intervals.estimate(few, (TASK,))
    assert found.interval is None and "fewer than 5 examples have a wrong answer" in found.why
    assert intervals.estimate(more, (TASK,)).interval is not None
    # Nor have two that hardly differ; but a test.
    found = intervals.difference(more, few, (TASK,))
    assert found.estimate.interval is None and found.p == 1


def test_equal_scores_of_two_seeds_do_not_mean_that_seeds_make_no_difference(tmp_path):
    targets = np.zeros(200, int)
    wrong = [np.isin(np.arange(200), some) for some in (range(20), range(10, 30))]
    group = _answering(tmp_path, targets, wrong)
    for path in tmp_path.rglob("*-validation.jsonl"):
        path.unlink()
    found = intervals.estimate(group, (TASK,))
    assert found.deviation == 0 and found.over == "seeds"
    # A uniform distribution within steps of half a point.
    half = scipy.stats.t.ppf(0.975, 1) * 0.5 / np.sqrt(12) / np.sqrt(2)
    np.testing.assert_allclose(found.interval, (90 - half, 90 + half), atol=0.05)


def _answering(folder, targets, wrong, metric="accuracy", method="lora"):
    """A group with a run for each seed, whose answers are wrong at some places."""
    for seed, places in enumerate(wrong):
        answers = np.where(places, 1 - targets, targets)
        write_run(folder / f"seed{seed}", method, {"rank": 2}, [TASK], seed)
        (value,) = getattr(metrics, metric)(targets, answers).values()
        texts = [[LABELS[k] for k in ids] for ids in (targets, answers)]
        write_predictions(folder / f"seed{seed}", TASK, *texts, {metric: value})
    ((group,), _) = groups_of(map(read, sorted(folder.iterdir())))
    return group


@pytest.mark.parametrize(("ours", "theirs"), [(4, 0), (8, 0), (6, 1), (12, 5)])
def test_predictions_that_change_sides_test_what_mcnemar_tests(tmp_path, ours, theirs):
    targets, places = np.arange(400) % 2, np.arange(400)
    wrong = (places < theirs), (places >= 100) & (places < 100 + ours)
    first, second = (_answering(tmp_path / str(k), targets, [one]) for k, one in enumerate(wrong))
    gaps = predictions.swapped_gaps(first.first, second.first, TASK)
    as_far = np.mean(np.abs(gaps) >= 100 * abs(ours - theirs) / 400 - 1e-6)
    found = intervals.difference(first, second, (TASK,))
    assert (found.test, found.won, found.lost) == ("McNemar", ours, theirs)
    assert as_far == pytest.approx(found.p, rel=0.1, abs=0.003)


def test_a_score_that_is_no_share_is_tested_by_changing_sides(tmp_path):
    """With eight more right, and none wrong, both must be as they are or all changed: 2 / 2⁸."""
    targets, places = np.arange(400) % 2, np.arange(400)
    pair = [_answering(tmp_path / str(k), targets, [places < k], "matthews_corrcoef")
            for k in (0, 8)]  # fmt: skip
    found = intervals.difference(*pair, (TASK,))
    assert (found.test, found.won, found.lost) == ("randomization", 8, 0)
    assert found.p == pytest.approx(2 / 2**8, rel=0.3)
    again = intervals.difference(*reversed(pair), (TASK,))
    assert again.p == pytest.approx(found.p, rel=0.3)


def test_scores_of_other_examples_or_metrics_have_no_difference(tmp_path, capsys):
    targets = RNG.integers(0, 2, 60)
    first, fewer = (made(tmp_path / "runs" / method, 1, 0.8, targets=some, method=method)
                    for method, some in (("lora", targets), ("adalink", targets[:50])))  # fmt: skip
    said = "not scored on the same examples by the same metrics"
    assert intervals.incomparable(first, fewer, (TASK,)) == said
    assert intervals.difference(first, fewer, (TASK,)) is None
    f1 = made(tmp_path / "f1", 1, 0.8, targets=targets, metric="f1")
    assert intervals.incomparable(first, f1, (TASK,)) == said
    assert intervals.incomparable(first, first, (TASK,)) == ""
    assert intervals.incomparable(first, first, (TASK, "mini_b")).startswith("not the same common")

    def report(*words):
        return cli.main(["report", str(tmp_path / "runs"), f"--to={tmp_path / 'out'}", *words])

    assert report("--compare", "adalink", "lora") == 2
    assert said in capsys.readouterr().err
    # With a task that can be compared there is a row, and a note on the other.
    for method in ("lora", "adalink"):
        write_run(tmp_path / "runs" / method / "b", method, {"rank": 2}, ["mini_b"], 0)
    assert report("--compare", "adalink", "lora", "--compare", "lora", "adalink") == 0
    text = (tmp_path / "out" / "report.md").read_text().partition("## Comparisons")[2]
    text = text.partition("\n## ")[0]
    assert text.count("| mini_b |") == 1 and "| mini_a |" not in text
    assert f"No row: adalink, rank 2 and lora, rank 2, {said}: mini_a" in text
    assert report("--compare", "lora", "rank 2, lora"[-4:]) == 2
    assert "are one line" in capsys.readouterr().err


def test_holm_corrects_as_published():
    """R: p.adjust(c(0.01, 0.04, 0.03, 0.005), "holm")."""
    assert intervals.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert intervals.holm([0.9, 0.8]) == [1.0, 1.0] and intervals.holm([]) == []


def test_two_trained_models_are_compared_example_by_example(tmp_path):
    targets = RNG.integers(0, 2, 300)
    first = made(tmp_path / "a", 1, 0.9, targets=targets)
    second = made(tmp_path / "b", 1, 0.8, targets=targets)
    found = intervals.difference(first, second, (TASK,))
    right = [
        one.targets == one.predictions
        for one in predictions.aligned([first.first, second.first], TASK, "validation")
    ]
    won, lost = int(np.sum(right[0] & ~right[1])), int(np.sum(right[1] & ~right[0]))
    assert (found.won, found.lost, found.test) == (won, lost, "McNemar")
    assert found.p == pytest.approx(scipy.stats.binomtest(won, won + lost).pvalue)
    assert found.g == pytest.approx(won / (won + lost) - 0.5)
    assert found.estimate.mean == pytest.approx(100 * (won - lost) / 300)
    # The paired interval is shorter than one of two independent samples would be.
    low, high = found.estimate.interval
    half = 1.96 * np.sqrt(won + lost - (won - lost) ** 2 / 300) / 3
    assert (high - low) / 2 == pytest.approx(half, rel=0.06)
    back = intervals.difference(second, first, (TASK,))
    assert back.p == found.p and back.estimate.mean == -found.estimate.mean
    itself = intervals.difference(first, first, (TASK,))
    # Of 300 examples none has another answer: up to about one in a hundred others might.
    assert itself.p == 1 and itself.g is None
    np.testing.assert_allclose(itself.estimate.interval, (-0.75, 0.75), atol=0.12)


def test_two_methods_are_compared_over_their_common_seeds(tmp_path):
    targets = RNG.integers(0, 2, 300)
    first = made(tmp_path / "a", 4, [0.9, 0.92, 0.88, 0.5], targets=targets)
    second = made(tmp_path / "b", 3, [0.7, 0.72, 0.68], targets=targets)
    found = intervals.difference(first, second, (TASK,))
    gaps = [first.scores(TASK)[seed] - second.scores(TASK)[seed] for seed in range(3)]
    assert found.test == "bootstrap and t" and found.estimate.seeds == 3
    assert found.estimate.mean == pytest.approx(np.mean(gaps))
    assert found.estimate.over == "seeds and examples" and found.p < 0.05
    assert intervals.difference(first, second, ("mini_b",)) is None
    # Another metric than a share of right answers is never McNemar's.
    matthews = [made(tmp_path / name, 1, p, targets=targets, metric="matthews_corrcoef")
                for name, p in (("c", 0.9), ("d", 0.7))]  # fmt: skip
    assert intervals.difference(*matthews, (TASK,)).test == "randomization"


@pytest.mark.parametrize("seeds", [1, 3])
def test_equal_methods_differ_significantly_no_more_often_than_one_time_in_twenty(seeds):
    rng, significant = np.random.default_rng(seeds), 0
    for _ in range(300):
        shared = rng.normal(0, 1.5)
        gaps = {seed: shared + rng.normal(0, 2 * (seeds > 1)) for seed in range(seeds)}
        drawn = np.mean(list(gaps.values())) + rng.normal(0, 1.5, predictions.DRAWS)
        found, _ = intervals._estimated(gaps, drawn, "")
        significant += not found.interval[0] <= 0 <= found.interval[1]
    assert significant / 300 <= 0.08


def test_chance_is_the_best_constant_answer(tmp_path):
    targets = np.array([0] * 30 + [1] * 70)
    for metric in ("accuracy", "f1", "matthews_corrcoef"):
        run = made(tmp_path / metric, 1, 0.8, targets=targets, metric=metric).first
        expected = max(
            next(iter(getattr(metrics, metric)(targets, np.full(100, k)).values())) for k in (0, 1)
        )
        assert predictions.constant_score(run, TASK) == pytest.approx(expected)


def test_comparisons_are_asked_for_by_name(tmp_path, capsys):
    targets = RNG.integers(0, 2, 100)
    for method in ("lora", "adalink"):
        made(tmp_path / "runs" / method, 2, 0.9, targets=targets, method=method)

    def report(*words):
        return cli.main(["report", str(tmp_path / "runs"), f"--to={tmp_path / 'out'}", *words])

    assert report("--compare", "adalink", "lora, rank 2") == 0
    assert "Cohen's g" in capsys.readouterr().out
    text = (tmp_path / "out" / "report.md").read_text()
    line = text.partition("## Comparisons")[2].partition("mini_a |")[2].splitlines()[0]
    assert (
        line.startswith(" adalink, rank 2 | lora, rank 2 | 2 | ") and "| bootstrap and t |" in line
    )
    verdict = "adalink, rank 2 and lora, rank 2 on tuned (abcdef): not told apart on mini_a."
    assert verdict in text
    files = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert report("--compare", "adalink", "lora, rank 2") == 0
    assert files == {path: path.read_bytes() for path in files}  # Draws are the same each time.
    capsys.readouterr()
    for name, words in (("rank", "is in 2 labels"), ("adalnk, rank 2", "did you mean 'adalink, ")):
        assert report("--compare", "lora", name) == 2
        assert words in capsys.readouterr().err


def test_a_difference_is_said_where_the_corrected_test_has_it(tmp_path, capsys):
    targets = RNG.integers(0, 2, 300)
    for method, right in (("adalink", 0.95), ("lora", 0.6)):
        made(tmp_path / "runs" / method, 1, right, targets=targets, method=method)
    out = f"--to={tmp_path / 'out'}"
    for pair, verdict in ((("adalink", "lora"), "ahead"), (("lora", "adalink"), "behind")):
        assert cli.main(["report", str(tmp_path / "runs"), out, "--compare", *pair]) == 0
        said = " ".join(capsys.readouterr().out.split())
        first, second = (f"{name}, rank 2" for name in pair)
        assert f"{first} and {second} on tuned (abcdef): {verdict} on mini_a." in said


def test_a_methods_name_is_its_own_before_it_is_a_part_of_anothers():
    lines = ["adalink, rank 4", "adalink + lora, rank 4", "full"]
    groups = [types.SimpleNamespace(line=line) for line in lines]
    assert evidence._label(groups, "adalink") == lines[0]
    assert evidence._label(groups, "+") == lines[1]
    with pytest.raises(UserError, match="'rank 4' is in 2 labels"):
        evidence._label(groups, "rank 4")


def test_an_interval_ends_where_a_score_does(tmp_path):
    # Two seeds: Student's distribution would reach far over 100.
    group = made(tmp_path, 2, 0.98, count=50)
    found = intervals.estimate(group, (TASK,))
    assert found.interval[1] == 100.0 and found.interval[0] < found.mean
