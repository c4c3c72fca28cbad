"""Reports of made-up runs, whose tables are computed here a second time."""

import csv
import html.parser
import json
import pathlib
import re
import statistics
import subprocess
import sys

import pytest

from adalink_jax import cli
from adalink_jax.methods import METHODS
from adalink_jax.models.t5 import T5Config
from adalink_jax.tools.cost.counts import stored_parameters
from adalink_jax.tools.report import page

ARCHITECTURE = {
    "vocab_size": 32, "emb_dim": 8, "num_heads": 2, "num_encoder_layers": 2,
    "num_decoder_layers": 1, "head_dim": 4, "mlp_dim": 16, "mlp_activations": ["gelu", "linear"],
    "logits_via_embedding": False, "separate_encoder_embedding": False,
    "relpos_bias_per_layer": False,
}  # fmt: skip
CONFIG = T5Config(**{**ARCHITECTURE, "mlp_activations": ("gelu", "linear")})
TASKS = ("mini_a", "mini_b", "mini_c")


def score(method, settings, mixture_size, task, seed):
    """Any number that depends on all of them."""
    size = settings.get("rank", settings.get("length", 50))
    return 50 + 3 * size + 7 * TASKS.index(task) - 2 * mixture_size + seed + len(method) / 10


def write_run(folder, method, settings, tasks, seed, base="bases/tuned", rate=0.01):
    """A finished run's files, as train.py writes them."""
    tasks = list(tasks)
    scores = {task: score(method, settings, len(tasks), task, seed) for task in tasks}
    name = tasks[0] if len(tasks) == 1 else "mini_mixture"
    (folder / "adapter").mkdir(parents=True)
    files = {
        "run.json": {
            "base": {"fingerprint": "abcdef0123456789"},
            "configuration": {
                "batch_size": 4, "initial_checkpoint_path": base, "seed": seed,
                "learning_rate": {"base_learning_rate": rate},
            },
            "data": {
                "name": name,
                "lengths": {"inputs": 16, "targets": 4},
                "tasks": [{"name": task} for task in tasks],
            },
            "starts": [
                {"command": f"scripts/train.py --gin.SEED={seed} | tee <log>", "seconds": 20 + seed}
            ],
        },
        "results.json": {
            "step": 30,
            "tasks": {
                t: {"score": s, "splits": {"validation": {"metrics": {f"f1_{t}": s / 2}}}}
                for t, s in scores.items()
            },
        },
        "adapter/adapter.json": {
            "method": method, "settings": settings, "architecture": ARCHITECTURE,
            "tensors": {"all": {"shape": [stored_parameters(CONFIG, METHODS[method](**settings))]}},
        },
    }  # fmt: skip
    for file, content in files.items():
        (folder / file).write_text(json.dumps(content))
    (folder / "adapter" / "adapter.safetensors").write_bytes(b"x" * 321)
    lines = [
        {"step": step, **{f"eval/{t}/score": s - 30 + step for t, s in scores.items()}}
        for step in (10, 20, 30)
    ]
    text = "\n".join(json.dumps(line) for line in [{"step": 5, "train/loss": 1.0}, *lines])
    (folder / "metrics.jsonl").write_text(text + "\n")


def write_evaluation(folder, adapter_path, in_context=0):
    """What eval.py writes of three tasks."""
    folder.mkdir(parents=True)
    record = {
        "base": {"fingerprint": "abcdef0123456789"},
        "configuration": {
            "adapter_path": adapter_path, "initial_checkpoint_path": "bases/tuned", "seed": 0,
            "in_context": in_context,
        },
        "data": {"name": "mini_mixture"},
        "starts": [{"command": "scripts/eval.py"}],
    }  # fmt: skip
    tasks = {t: {"score": 40.0 + in_context, "splits": {}} for t in TASKS}
    (folder / "run.json").write_text(json.dumps(record))
    (folder / "results.json").write_text(json.dumps({"tasks": tasks}))


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
    header, _, *lines = table((report / "report.md").read_text(), "One task at a time")
    assert header == ["base", "method", "stored", *TASKS, "mean"]
    by_method = {line[1]: line for line in lines}
    assert set(by_method) == {
        "adalink, rank 2",
        "adalink, rank 4",
        "full",
        "prompt_tuning, length 4",
        "the frozen base, no examples in context",
        "the frozen base, 4 examples in context",
    }
    assert by_method["the frozen base, 4 examples in context"][2:] == [
        "0",
        *["44.0 (1)"] * 3,
        "44.0",
    ]
    line = by_method["adalink, rank 4"]
    assert line[0] == "tuned (abcdef)" and line[2] == "64"
    expected = [[score("adalink", {"rank": 4}, 1, t, s) for s in (0, 1)] for t in TASKS]
    cells = [f"{statistics.fmean(v):.1f} ± {statistics.stdev(v):.1f}" for v in expected]
    assert line[3:6] == cells
    assert line[6] == f"{statistics.fmean(map(statistics.fmean, expected)):.1f}"
    assert by_method["full"][4] == f"{score('full', {}, 1, 'mini_b', 0):.1f} (1)"


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
    for line in table(text, "Rank × number of tasks: interference")[2:]:
        gains = line[4:]
        if line[1] == "full":
            assert gains[0] == gains[2] == "-4.0" and gains[1] == "-3.5"  # A seed is missing.
        else:
            assert set(gains) == {"-4.0"}


def test_ranks_and_equal_parameters(report):
    text = (report / "report.md").read_text()
    lines = [line for line in table(text, "Rank")[2:] if line[1] == "mini_a"]
    assert [line[4] for line in lines] == ["2", "4"] and {line[2] for line in lines} == {"adalink"}
    equal = table(text, "Equal parameters")[2:]
    # 2 · 8 · 2 of AdaLink are 4 · 8 of a prompt.
    assert {line[2] for line in equal} == {"adalink, rank 2", "prompt_tuning, length 4"}
    assert {line[4] for line in equal} == {"32"}


def test_what_a_method_costs_stands_beside_its_score(report):
    lines = table((report / "report.md").read_text(), "Cost and score")
    assert lines[0][4:] == ["parameters", "bytes", "operations a step", "seconds", "score"]
    by_key = {(line[1], line[2]): line for line in lines[2:]}
    line = by_key["each task alone", "adalink, rank 4"]
    assert line[4:6] == ["64", "321"] and line[7] == "20" and "±" in line[8]
    alone = by_key["mini_mixture", "the frozen base, no examples in context"]
    assert alone[4:] == ["0", "0", "", "", "40.0"]


def test_every_number_has_its_command_and_every_image_its_file(report, runs):
    text = (report / "report.md").read_text()
    assert len(table(text, "Runs")[2:]) == len(list(runs.glob("run*"))) == 33
    images = re.findall(r"!\[.*?\]\((.*?)\)", text)
    assert set(images) == {"ranks.png", "cost.png", "learning.png", "interference.png"}
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
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def test_the_page_needs_no_other_file(report):
    parser = _Page()
    parser.feed((report / "report.html").read_text())
    assert not parser.open and len(parser.references) == 4
    assert all(reference.startswith("data:image/png;base64,") for reference in parser.references)
    assert "scripts/train.py --gin.SEED=0 | tee <log>" in parser.texts


def test_markdown_keeps_its_columns():
    text = page.markdown([page.Table(["a", "b"], [["x | y", "1"]], 1)])
    assert text == "| a | b |\n| --- | ---: |\n| x \\| y | 1 |\n"


def test_mistakes_are_one_line(tmp_path, capsys):
    def error(*runs):
        assert cli.main(["report", *map(str, runs), f"--to={tmp_path / 'to'}"]) == 2
        (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error: ")]
        assert not (tmp_path / "to").exists()
        return line

    assert "holds no finished run" in error(tmp_path / "nothing")
    write_run(tmp_path / "a", "adalink", {"rank": 2}, TASKS[:1], 0)
    (tmp_path / "a" / "run.json").write_text("{")
    assert "damaged" in error(tmp_path)
    (tmp_path / "a" / "run.json").write_text("{}")
    assert "not the record of a run" in error(tmp_path)


def test_the_script(runs, tmp_path):
    root = pathlib.Path(__file__).resolve().parents[3]
    line = [sys.executable, "scripts/report.py", str(runs), f"--to={tmp_path / 'out'}"]
    done = subprocess.run(line, cwd=root, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "not finished, left out" in done.stderr
    assert "the evaluation of an adapter, left out" in done.stderr
    assert done.stdout.splitlines()[-1].startswith("33 runs")
    assert "adalink, rank 4" in done.stdout  # The tables, on the terminal too.


def test_the_rate_with_the_best_mean_is_chosen(tmp_path, capsys):
    """`score` counts a seed as a point, which here tells the rates apart."""
    for rate, seeds in ((0.001, (5, 5)), (0.01, (9, 1)), (0.1, (0, 8))):
        for task, seed in zip(TASKS, seeds, strict=False):
            folder = tmp_path / "adalink" / str(rate) / task
            write_run(folder, "adalink", {"rank": 2}, [task], seed, rate=rate)
    assert cli.main(["learning-rates", str(tmp_path)]) == 0
    assert capsys.readouterr().out == "0.001\n"  # 10, 10 and 8 points; the smaller of two equal.
    write_run(tmp_path / "full" / "0.1", "full", {}, TASKS[:1], 0, rate=0.1)
    assert cli.main(["learning-rates", str(tmp_path)]) == 2
    assert (
        "several bases or methods: tuned (abcdef), adalink, rank 2; tuned"
        in capsys.readouterr().err
    )
    assert cli.main(["learning-rates", str(tmp_path), f"--to={tmp_path / 'rates.md'}"]) == 0
    lines = (tmp_path / "rates.md").read_text().splitlines()
    assert [line for line in lines if "chosen" in line and "adalink" in line][0].split(" | ")[
        2
    ] == "0.001"
    write_run(tmp_path / "adalink" / "1", "adalink", {"rank": 2}, TASKS[:1], 0, rate=1.0)
    assert cli.main(["learning-rates", str(tmp_path / "adalink")]) == 2
    assert "no run of mini_b at rate 1.0" in capsys.readouterr().err
