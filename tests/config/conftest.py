"""A module to configure, in a working directory of its own."""

import importlib
import pathlib
import types

import pytest

from adalink_jax.config import gin_files


@pytest.fixture
def toy(tmp_path, monkeypatch) -> types.ModuleType:
    """The module `toy`, importable, with its `base.gin` in an otherwise empty working directory."""
    monkeypatch.syspath_prepend(pathlib.Path(__file__).parent)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("GLUE_DIR", "VOCABULARY"):
        monkeypatch.delenv(name, raising=False)
    module = importlib.import_module("toy")
    pathlib.Path("base.gin").write_text(module.BASE)
    module.RECEIVED.clear()
    yield module
    gin_files.gin.clear_config()
