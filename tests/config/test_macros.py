"""What the shipped gin files say of their macros, read from their comments."""

import re

import pytest

from adalink_jax.config import macros
from adalink_jax.config.macros import Macro, gin_folder


def test_every_macro_of_every_file_has_a_meaning():
    found = macros.macros()
    assert not [macro for macro in found if not macro.meaning]
    # Against a count of lines: no macro is passed over, none is there twice.
    lines = [
        (path.relative_to(gin_folder()).as_posix(), name)
        for path in gin_folder().rglob("*.gin")
        for name in re.findall(r"^([A-Z][A-Z_0-9]+) *=", path.read_text(), re.MULTILINE)
    ]
    assert sorted((m.file, m.name) for m in found if m.file) == sorted(lines)
    folders = {"GLUE_DIR", "IMAGE_DIR", "ROBUSTNESS_DIR", "SUPER_GLUE_DIR"}
    assert {m.name for m in found if not m.file} == folders | {
        *("TEMPLATE_SEED", "TEXT_FILE", "VOCABULARY")
    }


def test_names_values_and_files_are_the_files_own():
    (rank,) = (m for m in macros.macros() if (m.file, m.name) == ("methods/lora.gin", "RANK"))
    assert rank.default == "4" and not rank.required
    (folder,) = (
        m for m in macros.macros() if (m.file, m.name) == ("runs/finetune.gin", "MODEL_DIR")
    )
    assert folder.required and folder.default == ""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Gin files of their own."""
    (tmp_path / "runs").mkdir()
    (tmp_path / "experiments").mkdir()
    (tmp_path / "runs/finetune.gin").write_text(
        "# A header.\n#\n# Provides: A\nimport os\n\n# Over\n# two lines.\nAA = %gin.REQUIRED\n"
        "BB = 'x'  # Beside it.\n\n# Of the parameter, not of CC.\nf.x = %AA\nCC = [1, 2]\n"
    )
    (tmp_path / "experiments/e.gin").write_text(
        "include 'runs/finetune.gin'\n# Why it is 5.\nAA = 5\nBB = 'y'\n"
    )
    monkeypatch.setattr(macros, "gin_folder", lambda: tmp_path)
    macros._read.cache_clear()
    yield
    macros._read.cache_clear()


def test_comments_above_and_beside_are_meanings_and_experiments_take_the_run_files(folder):
    found = [macro for macro in macros.macros() if macro.file]
    assert found == [
        Macro("AA", "runs/finetune.gin", "", "Over two lines.", True),
        Macro("BB", "runs/finetune.gin", "'x'", "Beside it.", False),
        Macro("CC", "runs/finetune.gin", "[1, 2]", "", False),
        Macro("AA", "experiments/e.gin", "5", "Over two lines.", False),
        Macro("BB", "experiments/e.gin", "'y'", "Beside it.", False),
    ]
