"""The quickstart, shorter: what it promises of AdaLink holds, and what it shows is in its files."""

import builtins
import contextlib
import io
import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import tasks
from adalink_jax import cli
from adalink_jax.tools.sweep import outcomes, picture, quickstart

ROWS = ("base", "in_context_4", "in_context_16", "adalink_4", "adalink_16", "lora_16", "full_16")


def check(folder, shown: str, rows, gain: float) -> None:
    """Checks the table against the runs' own files, and that AdaLink gains over the base."""

    def score(name):
        results = json.loads((folder / name / "results.json").read_text())
        return results["tasks"]["mini_cola"]["score"]

    # The majority class has a Matthews correlation of 0.
    assert score("adalink_16") >= max(score("base"), 0) + gain
    assert "AdaLink, rank 4" in shown and re.search(r"AdaLink, rank 4 +16 +1,024 ", shown)
    scores = re.findall(r"^   \S.* {2,}(-?\d+\.\d)$", shown, re.MULTILINE)
    assert scores == [f"{score(name):.1f}" for name in rows]
    predictions = (folder / "base/predictions/mini_cola-validation.jsonl").read_text()
    before = [json.loads(line) for line in predictions.splitlines()]
    wrong = next(one for one in before if one["prediction"] != one["target"])
    assert shown.count(f"     input      {wrong['inputs']}\n") == 2
    assert f"     it says    {wrong['prediction']}\n" in shown
    report = (folder / "report" / "report.md").read_text()
    assert "the frozen base" in report and "adalink, rank 4" in report


@pytest.fixture(scope="module")
def short(token_cache):
    """The quickstart without the rows that take long."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ADALINK_CACHE_DIR", str(token_cache))
        patch.setattr(quickstart, "_CONTEXT", ())
        patch.setattr(quickstart, "_OTHERS", ())
        patch.setattr(quickstart, "_ADALINK", quickstart._ADALINK[1:])
        patch.setattr(picture, "STEPS", 10)
        yield


@pytest.fixture(scope="module")
def done(tmp_path_factory, short):
    """The folder of a short quickstart, and what it has shown."""
    folder, shown = tmp_path_factory.mktemp("quickstart"), io.StringIO()
    with contextlib.redirect_stdout(shown):
        assert cli.main(["quickstart", str(folder), "--steps=40"]) == 0
    return folder, shown.getvalue()


@pytest.mark.slow
def test_adalink_learns_the_format_from_sixteen_examples(done):
    folder, shown = done
    check(folder, shown, ("base", "adalink_16"), gain=15)
    assert "A sentence of your own" not in shown  # There is no terminal.


def test_a_picture_is_shown_with_what_was_said_of_it(done):
    folder, shown = done
    part = shown.partition("\n5. ")[2]
    runs = [folder / name for name in ("picture_base", "picture_adalink")]
    rows = [outcomes.predictions(run, "mini_coco") for run in runs]
    said = [some[0]["prediction"] for some in rows]
    assert re.findall("it says    (.*)", part) == said and said[0] != said[1]
    low, high = (outcomes.score(run, "mini_coco") for run in runs)
    right = [sum(one["prediction"] in one["references"] for one in some) for some in rows]
    words = " ".join(part.split())
    assert f"from {low:.1f} to {high:.1f}; {right[0]} were one of the five" in words
    assert f"and {right[1]} are. {folder}/report/picture.png shows" in words
    assert "2,048 parameters" in part
    drawn = np.asarray(Image.open(folder / "report/picture.png").convert("RGB"), int)
    shape, ink = tasks.PICTURES["mini_coco_validation"](0), (drawn.sum(-1) < 300).mean(0)
    assert ink[: len(ink) // 3].mean() > 0.1  # The picture is on the left, on a dark ground,
    assert 0 < ink[len(ink) // 2 :].mean() < 0.1  # and texts are on the right.
    green = drawn[:, : len(ink) // 3].reshape(-1, 3)
    brightest = shape.reshape(-1, 3)[shape.astype(int).sum(-1).argmax()]
    assert np.abs(green - brightest).sum(-1).min() < 30


@pytest.mark.slow
def test_a_terminal_can_ask(done, monkeypatch, capsys):
    """A second start, which shows what is there."""
    folder, first = done
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    typed = iter(["Few laptops quite lovely", "few books quite lovely .", ""])
    monkeypatch.setattr(builtins, "input", lambda prompt: next(typed))
    assert cli.main(["quickstart", str(folder), "--steps=40"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(first)
    asked = shown[len(first) :]
    assert "(it does not know: laptops)" in asked
    answers = re.findall(r"the base says (\w+); with AdaLink (\w+)", asked)
    assert len(answers) == 2 and {*answers[0], *answers[1]} <= {"acceptable", "unacceptable"}


def test_what_a_sentence_gets_is_what_scoring_says(done):
    folder, _ = done
    answer = quickstart.answers(
        folder / "adalink_16", "mini", "mini_cola", tasks.MINI_VOCABULARY, quickstart._LENGTH
    )
    for number, name in enumerate(("base", "adalink_16")):
        for one in outcomes.predictions(folder / name, "mini_cola")[:12]:
            assert answer(one["inputs"])[number] == one["prediction"]


def test_a_training_that_fails_ends_it_with_its_line(tmp_path, short, capsys):
    (tmp_path / "base").write_text("in the way")
    with pytest.raises(SystemExit) as ended:
        cli.main(["quickstart", str(tmp_path)])
    assert ended.value.code == 2
    assert "error: " in capsys.readouterr().err


@pytest.mark.slow
def test_the_script_shows_every_row(pytestconfig, tmp_path):
    environment = {**os.environ, "PYTHON": sys.executable, "STEPS": "100"}
    done = subprocess.run(
        ["bash", "scripts/quickstart.sh", str(tmp_path)],
        cwd=pytestconfig.rootpath, env=environment, capture_output=True, text=True, timeout=1500,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    check(tmp_path, done.stdout, ROWS, gain=40)
