"""The notebooks: as Jupyter stores them, without outputs; and their code runs."""

import json
import pathlib
import re
import signal
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
# The others train two steps: what they show is shown by tests of their own.
WHOLE = ("adapt_and_serve", "pictures", "your_method")


def cells(path: pathlib.Path) -> list[dict]:
    return json.loads(path.read_text(encoding="utf-8"))["cells"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_is_small_and_without_outputs(path):
    text = path.read_text(encoding="utf-8")
    book = json.loads(text)
    assert (book["nbformat"], book["nbformat_minor"]) == (4, 5) and len(text) < 10_000
    ids = [cell["id"] for cell in book["cells"]]
    assert len(set(ids)) == len(ids)
    for cell in book["cells"]:
        code = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            for link in re.findall(r"\]\(([^)#]+)", code):
                assert (path.parent / link).is_file(), link
        else:
            assert cell["outputs"] == [] and cell["execution_count"] is None
            compile(code, path.name, "exec")
            # It runs wherever Python does: no line is a shell's or a magic.
            assert not re.search(r"^[!%]", code, re.MULTILINE)


def test_the_readme_lists_them():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(NOTEBOOKS) == 5
    for path in NOTEBOOKS:
        assert f"(notebooks/{path.name})" in text


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_its_code_runs(path, tmp_path, monkeypatch, token_cache, capsys):
    pytest.importorskip("httpx", reason="the serve extra is not installed")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ADALINK_CACHE_DIR", str(token_cache))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    # As a module, for dataclasses look for the one that defines them.
    module = type(sys)("a_notebook")
    monkeypatch.setitem(sys.modules, "a_notebook", module)
    for cell in cells(path):
        if cell["cell_type"] == "code":
            code = "".join(cell["source"])
            if path.stem not in WHOLE:
                code = re.sub(r"\btrain_steps=\d+", "train_steps=2", code)
            exec(compile(code, path.name, "exec"), module.__dict__)
    shown = capsys.readouterr().out
    if path.stem == "adapt_and_serve":
        assert shown.count("the show was lovely -> positive") == 2
        assert "the game was bad -> negative" in shown
        assert module.server.returncode == 128 + signal.SIGTERM
    if path.stem == "compare_methods":
        assert (tmp_path / "runs/compare/report/report.html").is_file()
        assert "adalink      1,024 parameters" in shown
    if path.stem == "pictures":
        before, after = module.before, module.after
        assert all(one.startswith("this picture shows ") for one in before)
        assert not any(one.startswith("this picture") for one in after)
        assert "after:\n  " in shown and module.run.scores["mini_coco"] > 150
    if path.stem == "own_data":
        assert "spoiled.csv:" in shown and "'Negative'" in shown
