"""Reports of made-up runs, whose tables are computed here a second time."""

import csv
import html.parser
import json
import re
import shlex
import statistics

import pytest

from adalink_jax import cli
from adalink_jax.methods import METHODS
from adalink_jax.tools.cost.counts import stored_parameters
from adalink_jax.tools.report import page, web
from tests.tools.report.made import CONFIG, score, seal, write_evaluation, write_run

TASKS = ("mini_a", "mini_b", "mini_c")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Single tasks and mixtures, three methods, two ranks, two seeds (one run is missing)."""
    root, number = tmp_path_factory.mktemp("runs"), 0
    for seed in (0, 1):
        for method, settings in (
            ("adalink", {"rank": 2}), ("adalink", {"rank": 4}), ("full", {}),
            ("prompt_tuning", {"length": 4, "reparameterise": False, "initialisation": "random"}),
        ):  # fmt: skip
            for tasks in (*((task,) for task in TASKS), TASKS):
                number += 1
                if (method, seed, tasks) == ("full", 1, ("mini_b",)):
                    continue
                more = {"routes": 3} if method == "adalink" and len(tasks) > 1 else {}
                write_run(root / f"run{number:02}", method, settings | more, tasks, seed)
    write_evaluation(root / "run_alone0", None)
    write_evaluation(root / "run_alone4", None, in_context=4)
    write_evaluation(root / "an_adapter_again", "run01")
    (root / "unfinished").mkdir()
    (root / "unfinished" / "run.json").write_text("{}")
    return root


@pytest.fixture(scope="module")
def report(runs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    assert cli.main(["report", str(runs), f"--to={folder}", "--title=Made up"]) == 0
    return folder


def table(text, heading):
    """The lines of the table below a heading, as lists of cells."""
    part = text.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    lines = [line for line in part.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def test_single_tasks_have_mean_spread_and_what_is_missing(report):
    text = (report / "report.md").read_text()
    header, _, *lines = table(text, "One task at a time")
    assert header == ["base", "method", "stored", "seeds", *TASKS, "mean"]
    by_method = {line[1]: line for line in lines}
    assert set(by_method) == {
        "adalink, rank 2",
        "adalink, rank 4",
        "full",
        "prompt_tuning, length 4",
        "the frozen base, no examples in context",
        "the frozen base, 4 examples in context",
    }
    assert by_method["the frozen base, 4 examples in context"][2:] == ["0", "1", *["44.0"] * 4]
    line = by_method["adalink, rank 4"]
    assert line[0] == "tuned (abcdef)" and line[2:4] == ["64", "2"]
    expected = [[score("adalink", {"rank": 4}, 1, t, s) for s in (0, 1)] for t in TASKS]
    cells = [f"{statistics.fmean(v):.1f} ± {statistics.stdev(v):.1f}" for v in expected]
    assert line[4:7] == cells
    means = [statistics.fmean(values) for values in zip(*expected, strict=True)]
    assert line[7] == f"{statistics.fmean(means):.1f} ± {statistics.stdev(means):.1f}"
    # One seed of one task is missing: no mean, and it is said why.
    assert by_method["full"][5] == f"{score('full', {}, 1, 'mini_b', 0):.1f} (1)ᵃ"
    assert by_method["full"][7] == ""
    assert "ᵃ Trained with different seeds than other lines: 0 rather than 0, 1." in text
    assert "No mean over all 3 tasks: no seed 1 of mini_b (tuned (abcdef), full)." in text


def test_mixtures_say_what_is_shared_and_what_mixing_costs(report):
    text = (report / "report.md").read_text()
    lines = table(text, "Several tasks at once")[2:]
    sharing = {line[2]: line[3] for line in lines}
    assert sharing == {
        "adalink, rank 2": "per task", "adalink, rank 4": "per task", "full": "shared",
        "prompt_tuning, length 4": "shared",
    }  # fmt: skip
    stored = {line[2]: int(line[4].replace(",", "")) for line in lines}
    assert stored["adalink, rank 4"] == 3 * 2 * 8 * 4
    assert stored["full"] == stored_parameters(CONFIG, METHODS["full"]())
    # Three tasks in one mixture cost 2 · (3 - 1) points by construction, whatever the seed.
    header, _, *lines = table(text, "Interference")
    assert header[4:] == ["steps", *TASKS, "mean"] and len(lines) == 4
    for line in lines:
        assert line[4] == "30" and line[5:8] == ["-4.0"] * 3
        assert line[8] == ("" if line[2] == "full" else "-4.0")  # A seed is missing.


def test_ranks_and_equal_parameters(report):
    text = (report / "report.md").read_text()
    lines = [line for line in table(text, "Rank")[2:] if line[1] == "mini_a"]
    assert [line[3] for line in lines] == ["2", "4"] and {line[2] for line in lines} == {"adalink"}
    equal = table(text, "Equal parameters")[2:]
    # 2 · 8 · 2 of AdaLink are 4 · 8 of a prompt.
    assert {line[2] for line in equal} == {"adalink, rank 2", "prompt_tuning, length 4"}
    assert {line[4] for line in equal} == {"32"}


def test_what_a_method_costs_stands_beside_its_score(report):
    lines = table((report / "report.md").read_text(), "Cost and score")
    columns = ["parameters", "bytes", "operations a step", "seconds", "seeds"]
    assert lines[0][4:] == [*columns, "mean of 3 tasks"]
    by_key = {(line[1], line[2]): line for line in lines if len(line) > 4}
    line = by_key["each task alone", "adalink, rank 4"]
    assert line[4:6] == ["64", "321"] and line[7] == "20" and "±" in line[9]
    alone = by_key["each task alone", "the frozen base, no examples in context"]
    assert alone[4:] == ["0", "0", "", "", "1", "40.0"]
    # As in the table of scores; and no time, as tasks take different times.
    assert by_key["each task alone", "full"][9] == by_key["each task alone", "full"][7] == ""


def test_every_number_has_its_command_and_every_image_its_file(report, runs):
    text = (report / "report.md").read_text()
    assert len(table(text, "Runs")[2:]) == len(list(runs.glob("run*"))) == 33
    images = re.findall(r"!\[.*?\]\((.*?)\)", text)
    names = ("ranks", "cost", "operations", "learning", "interference")
    assert set(images) == {f"{name}.png" for name in names}
    for image in images:
        assert (report / image).read_bytes().startswith(b"\x89PNG")
    with (report / "runs.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 31 - 8 + 8 * 3 + 2 * 3
    rows = [row for row in rows if row["steps"] != "0"]
    assert all(int(row["step_flops"]) > 0 and "SEED" in row["command"] for row in rows)
    for row in rows:
        found = {n: v for n, v in row.items() if n.startswith("validation/") and v}
        assert found == {f"validation/f1_{row['task']}": str(float(row["score"]) / 2)}


class _Page(html.parser.HTMLParser):
    """Collects what an HTML page refers to, and checks that its tags close."""

    def __init__(self):
        super().__init__()
        self.open, self.references, self.texts = [], [], []

    def handle_starttag(self, tag, attrs):
        self.references += [value for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def test_the_page_needs_no_other_file(report):
    parser = _Page()
    text = (report / "report.html").read_text()
    parser.feed(text)
    assert not parser.open and set(map(urls, parser.references)) <= {""}
    assert "scripts/train.py '--gin.SEED=0 | tee <log>'" in parser.texts
    # An SVG a panel: ranks of three tasks, their mean and the mixture, two of each cost, four
    # curves, one map.
    assert text.count("<svg") == 5 + 2 + 2 + 4 + 1
    ids = re.findall(r' id="([^"]+)"', text)
    assert len(ids) == len(set(ids))


def urls(reference):
    return "" if reference.startswith("#") else reference


@pytest.mark.parametrize(
    "words",
    [
        ["adalink", "train", "--gin_file=a.gin", "--gin.SEED=1"],
        ["adalink", "train", "--gin_file=my runs/a.gin", "--gin.X={'inputs': 4, 'targets': 2}"],
        ["scripts/train.py", "--gin.NAME='it''s'", "--gin.Y=(1, 2)"],
    ],
)
def test_a_command_is_shown_as_a_shell_takes_it(words):
    assert shlex.split(page.quoted(" ".join(words))) == words  # As records of before have it.
    assert shlex.split(page.quoted(shlex.join(words))) == words


def test_markdown_keeps_its_columns():
    text = page.markdown([page.Table(["a", "b"], [["x | y", "1"]], 1, "name", ("below",))])
    assert text == "| a | b |\n| --- | ---: |\n| x \\| y | 1 |\n\nbelow\n"


def test_every_table_is_there_as_csv_and_latex(report):
    text = (report / "report.md").read_text()
    header, _, *lines = table(text, "One task at a time")
    with (report / "tables" / "single.csv").open() as file:
        assert list(csv.reader(file)) == [header, *lines]
    latex = (report / "tables" / "single.tex").read_text()
    assert latex.startswith("\\begin{tabular}{llrrrrrr}\n\\toprule\nbase & method & stored")
    assert r"prompt\_tuning, length 4 & 32 & 2 &" in latex and r"$\pm$" in latex
    names = {path.stem for path in (report / "tables").iterdir()}
    assert {"single", "mixture-mini_mixture", "intervals", "rank", "equal", "commands"} <= names
    assert len(list((report / "tables").iterdir())) == 2 * len(names)


def test_a_run_without_scores_is_in_the_report(tmp_path, capsys):
    write_run(tmp_path / "a", "adalink", {"rank": 2}, TASKS[:1], 0)
    results = json.loads((tmp_path / "a" / "results.json").read_text())
    results["tasks"]["mini_a"]["score"] = None
    (tmp_path / "a" / "results.json").write_text(json.dumps(results))
    lines = (tmp_path / "a" / "metrics.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "a" / "metrics.jsonl").write_text(lines[0])
    seal(tmp_path / "a")
    assert cli.main(["report", str(tmp_path / "a"), f"--to={tmp_path / 'to'}"]) == 0
    text = (tmp_path / "to" / "report.md").read_text()
    assert table(text, "One task at a time")[2] == ["tuned (abcdef)", "adalink, rank 2", "32", "0"]
    assert len(table(text, "Runs")) == 3
    assert cli.main(["learning-rates", str(tmp_path / "a")]) == 2
    assert "have no scores to choose by" in capsys.readouterr().err


def test_what_a_score_does_not_cover_stands_beside_it(tmp_path):
    for method, limit, cut, examples in (
        ("lora", 100, 0, 40),  # All are scored.
        ("adalink", None, 3, 40),
        ("prompt_tuning", 16, 0, 16),
    ):
        entry = {"metrics": {}, "examples": examples, "truncated_inputs": cut}
        settings = {"length" if method == "prompt_tuning" else "rank": 2}
        folder, splits = tmp_path / "runs" / method, {"mini_a": {"validation": entry}}
        scores = {"mini_a": 50.0}
        write_run(folder, method, settings, TASKS[:1], 0, scores, splits=splits, eval_limit=limit)
        if method == "lora":
            results = json.loads((folder / "results.json").read_text())
            results["tasks"]["mini_a"]["absent_splits"] = ["other"]
            (folder / "results.json").write_text(json.dumps(results))
            seal(folder)
    assert cli.main(["report", str(tmp_path / "runs"), f"--to={tmp_path / 'to'}"]) == 0
    text = (tmp_path / "to" / "report.md").read_text()
    cells = {line[1]: line[4] for line in table(text, "One task at a time")[2:]}
    assert cells == {
        "adalink, rank 2": "50.0ᵃ",
        "lora, rank 2": "50.0ᵇ",
        "prompt_tuning, length 2": "50.0ᶜᵈ",
    }
    for note in (
        "ᵃ Inputs longer than the configured length are cut: mini_a 3 of 40.",
        "ᵇ Splits that were not there: mini_a other.",
        "ᶜ Only the first examples of each split are scored: mini_a 16.",
        "ᵈ Scored on different examples than other lines: mini_a 16 rather than 40.",
    ):
        assert note in text


def test_runs_that_keep_the_best_step_say_what_it_was_chosen_on(tmp_path):
    """Those that stopped early at different steps are seeds of one line; how often tells apart."""
    chosen = {"keep": "best", "patience": 2, "held_out": 0.1, "few_shot": None}
    for seed, steps in ((0, 10), (1, 20)):
        folder = tmp_path / "runs" / str(seed)
        write_run(folder, "adalink", {"rank": 2}, TASKS[:1], seed, steps=steps, **chosen)
        results = json.loads((folder / "results.json").read_text())
        (folder / "results.json").write_text(json.dumps({**results, "stopped_early": True}))
        seal(folder)
    often = {**chosen, "eval_period": 5}
    write_run(tmp_path / "runs/often", "adalink", {"rank": 2}, TASKS[:1], 0, steps=30, **often)
    write_run(tmp_path / "runs/last", "adalink", {"rank": 2}, TASKS[:1], 0, eval_period=5)
    write_run(tmp_path / "runs/dev", "adalink", {"rank": 2}, TASKS[:1], 0, keep="best")
    assert cli.main(["report", str(tmp_path / "runs"), f"--to={tmp_path / 'to'}"]) == 0
    text = (tmp_path / "to" / "report.md").read_text()
    rows = table(text, "One task at a time")[2:]
    assert len(rows) == 4 and sum("±" in cell for row in rows for cell in row) >= 1
    for note in (
        "A share of the training examples is held out: mini_a 10.0%.",
        "The adapter is that of the best step: mini_a chosen on ",
        "mini_a chosen on held_out",
        "mini_a chosen on the examples that are scored",
    ):
        assert note in text


def test_a_folder_without_runs_is_named_beside_one_with(runs, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    given = [str(tmp_path / "empty"), str(runs), str(runs)]
    assert cli.main(["report", *given, f"--to={tmp_path / 'to'}"]) == 0
    said = capsys.readouterr()
    assert said.err.count(f"'{tmp_path / 'empty'}' holds no finished run") == 1
    assert "an_adapter_again" in said.err
    assert (
        f"'{tmp_path / 'empty'}' holds no finished run" in (tmp_path / "to/report.md").read_text()
    )


def test_where_all_is_left_out_there_is_no_report(tmp_path, capsys):
    write_evaluation(tmp_path / "an_adapter_again", "run01")
    assert cli.main(["report", str(tmp_path), f"--to={tmp_path / 'to'}"]) == 2
    assert "error: the evaluation of an adapter, left out: " in capsys.readouterr().err
    assert not (tmp_path / "to").exists()


def test_what_all_rows_share_stands_once_above_a_table():
    rows = [["mini", "a", "1", ""], ["mini", "b", "2", ""], ["", "chance", "", ""]]
    text = web.page([page.Table(["base", "method", "score", "empty"], rows, 2, "x")])
    assert "<caption>base: mini</caption>" in text and "<td" in text
    cells = re.findall(r"<t[dh]\b[^>]*>([^<]*)<", text)
    assert cells == ["method", "score", "a", "1", "b", "2", "chance", ""]
    # One row alone keeps what names it; two bases stay a column.
    text = web.page([page.Table(["base", "method", "score"], [["mini", "a", "1"]], 2, "x")])
    assert re.findall(r"<td[^>]*>([^<]*)<", text) == ["a", "1"]
    rows[1][0] = "raw"
    text = web.page([page.Table(["base", "method", "score", "empty"], rows, 2, "x")])
    assert "<caption>" not in text and text.count("mini") == text.count("raw") == 1


def test_a_mistyped_flag_has_a_suggestion(capsys):
    assert cli.main(["report", "runs", "--to=x", "--tensorbord"]) == 2
    assert "--tensorbord; did you mean '--tensorboard'?" in capsys.readouterr().err


def test_mistakes_are_one_line(tmp_path, capsys):
    def error(*runs):
        assert cli.main(["report", *map(str, runs), f"--to={tmp_path / 'to'}"]) == 2
        (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error: ")]
        assert not (tmp_path / "to").exists()
        return line

    assert f"there is no folder '{tmp_path / 'nothing'}'" in error(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    assert "holds no finished run" in error(tmp_path / "empty")
    write_run(tmp_path / "a", "adalink", {"rank": 2}, TASKS[:1], 0)
    (tmp_path / "a" / "run.json").write_text("{")
    assert "damaged" in error(tmp_path)
    for text in ("{}", '{"configuration": []}', '{"configuration": {}, "base": 1}'):
        (tmp_path / "a" / "run.json").write_text(text)
        assert "not the record of a run" in error(tmp_path)
    (tmp_path / "a" / "run.json").write_text("[]")
    assert "damaged" in error(tmp_path)
    write_run(tmp_path / "b", "adalink", {"rank": 2}, TASKS[:1], 0)
    path = tmp_path / "b" / "results.json"
    path.write_text(path.read_text().replace('"score": ', '"score": "much", "x": '))
    seal(path.parent)
    assert "not the record of a run" in error(tmp_path / "b")
    write_run(tmp_path / "c", "adalink", {"rank": 2}, TASKS[:1], 0)
    (tmp_path / "c" / "adapter" / "adapter.safetensors").write_bytes(b"x" * 192)
    assert "is damaged: 192 bytes, where 321 were made" in error(tmp_path / "c")


def test_the_command(tmp_path, capsys):
    runs = tmp_path / "runs"
    write_run(runs / "a", "adalink", {"rank": 4}, TASKS[:1], 0)
    write_evaluation(runs / "again", "a")
    (runs / "unfinished").mkdir()
    (runs / "unfinished" / "run.json").write_text("{}")
    write_run(runs / "partial", "adalink", {"rank": 4}, TASKS[:1], 1)
    (runs / "partial" / "run.json").unlink()
    assert cli.main(["report", str(runs), f"--to={tmp_path / 'out'}"]) == 0
    output, errors = capsys.readouterr()
    assert f"not finished, left out: {runs / 'unfinished'}" in errors
    assert f"without its run.json, left out: {runs / 'partial'}" in errors
    assert "the evaluation of an adapter, left out" in errors
    assert output.splitlines()[-1].startswith("1 runs")
    assert "adalink, rank 4" in output  # The tables, on the terminal too.
    report = (tmp_path / "out" / "report.md").read_text().partition("## Runs")[2]
    assert f"not finished, left out: {runs / 'unfinished'}" in report
    assert f"without its run.json, left out: {runs / 'partial'}" in report
    assert cli.main(["learning-rates", str(runs)]) == 0
    assert "not finished, left out" in capsys.readouterr().err


def test_lines_of_different_seeds_and_metrics_say_so(tmp_path):
    """The seed chooses the examples and the order, for every method alike."""
    for method, seeds, metrics in (
        ("lora", (0, 1), {"f1": 1.0, "accuracy": 1.0}),
        ("full", (0, 1), {"f1": 1.0, "accuracy": 1.0}),
        ("adalink", (1, 2), {"f1": 1.0}),
    ):
        for seed in seeds:
            entry = {"validation": {"metrics": metrics, "examples": 9}}
            settings = {} if method == "full" else {"rank": 2}
            folder = tmp_path / "runs" / f"{method}{seed}"
            write_run(folder, method, settings, TASKS[:1], seed, splits={"mini_a": entry})
    assert cli.main(["report", str(tmp_path / "runs"), f"--to={tmp_path / 'to'}"]) == 0
    text = (tmp_path / "to" / "report.md").read_text()
    cells = {line[1]: line[4][-2:] for line in table(text, "One task at a time")[2:]}
    assert cells["adalink, rank 2"] == "ᵃᵇ" and not cells["full"].endswith("ᵇ")
    for note in (
        "ᵃ Scored by different metrics than other lines: mini_a f1 rather than accuracy + f1.",
        "ᵇ Trained with different seeds than other lines: 1, 2 rather than 0, 1.",
    ):
        assert note in text


def test_the_rate_with_the_best_mean_is_chosen(tmp_path, capsys):
    for rate, scores in ((0.001, (5, 5)), (0.01, (9, 1)), (0.1, (0, 8))):
        for task, reached in zip(TASKS, scores, strict=False):
            folder = tmp_path / "adalink" / str(rate) / task
            write_run(folder, "adalink", {"rank": 2}, [task], 0, {task: reached}, rate=rate)
    assert cli.main(["learning-rates", str(tmp_path)]) == 0
    assert capsys.readouterr().out == "0.001\n"  # 10, 10 and 8 points; the smaller of two equal.
    write_run(tmp_path / "full" / "0.1", "full", {}, TASKS[:1], 0, rate=0.1)
    assert cli.main(["learning-rates", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "several bases or methods: tuned (abcdef), adalink, rank 2; tuned" in error
    assert cli.main(["learning-rates", str(tmp_path), f"--to={tmp_path / 'rates.md'}"]) == 0
    lines = (tmp_path / "rates.md").read_text().splitlines()
    assert lines[2].startswith("Percent on the split validation, after the same number of steps")
    (chosen,) = [line for line in lines if "chosen" in line and "adalink" in line]
    assert chosen.split(" | ")[2] == "0.001"


def test_cider_is_averaged_with_no_other_score(tmp_path, capsys):
    """It goes on beyond 100, so it would decide a mean with accuracies by itself."""
    entry = {"examples": 8, "truncated_inputs": 0}
    for rate, cider, accuracy in ((0.01, 300.0, 50.0), (0.1, 280.0, 90.0)):
        reached = {"mini_a": ("cider", cider), "mini_b": ("accuracy", accuracy)}
        for task, (metric, value) in reached.items():
            folder = tmp_path / "rates" / str(rate) / task
            splits = {task: {"validation": {"metrics": {metric: value}, **entry}}}
            run = (folder, "adalink", {"rank": 2}, [task], 0, {task: value})
            write_run(*run, splits=splits, rate=rate)
    assert cli.main(["learning-rates", str(tmp_path / "rates")]) == 0
    assert capsys.readouterr().out == "0.1\n"  # 100 and 56 percent of the best; 93 and 100.
    to = tmp_path / "rates.md"
    assert cli.main(["learning-rates", str(tmp_path / "rates"), f"--to={to}"]) == 0
    text = to.read_text()
    assert "CIDEr and other scores have no common scale" in text
    means = [line.split(" | ")[5] for line in text.splitlines() if line.startswith("| tuned")]
    assert means == ["77.8", "96.7"]
    runs, out = tmp_path / "rates" / "0.1", tmp_path / "out"
    assert cli.main(["report", str(runs), f"--to={out}"]) == 0
    text = (out / "report.md").read_text()
    assert "mean of 2 tasks" not in text and "185.0" not in text
    assert "No mean over all 2 tasks: CIDEr and other scores have no common scale" in text


@pytest.mark.parametrize(
    ("tasks", "seed", "changed", "words"),
    [
        (TASKS[:1], 0, {}, "no run of mini_b at rate 1.0"),
        (TASKS[:2], 1, {}, "no seed 1 of mini_a at rate 0.01"),
        (TASKS[:2], 0, {"steps": 9}, "differ in more than their rate: steps is 30 and 9"),
        (TASKS[:2], 0, {"dtype": "bfloat16"}, "dtype is bfloat16 and float32"),
    ],
)
def test_rates_that_cannot_be_compared_are_refused(tmp_path, capsys, tasks, seed, changed, words):
    for rate in (0.01, 0.1):
        for task in TASKS[:2]:
            write_run(tmp_path / f"{rate}{task}", "adalink", {"rank": 2}, [task], 0, rate=rate)
    for task in tasks:
        write_run(tmp_path / task, "adalink", {"rank": 2}, [task], seed, rate=1.0, **changed)
    assert cli.main(["learning-rates", str(tmp_path)]) == 2
    assert words in capsys.readouterr().err
