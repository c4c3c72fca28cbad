"""The quickstart, shorter: what it promises of AdaLink holds, and every method is in its table."""

import json
import os
import re
import subprocess
import sys

import pytest

from adalink_jax import cli
from adalink_jax.tools.sweep import pool


def check(folder, output: str, gain: float) -> None:
    """Checks what the quickstart shows of AdaLink: its score, its share and its bytes."""

    def score(name):
        results = json.loads((folder / name / "results.json").read_text())
        return results["tasks"]["mini_cola"]["score"]

    # The majority class has a Matthews correlation of 0.
    assert score("adalink") >= max(score("base"), 0) + gain
    (share,) = re.findall(r"trainable 1,024 of 1,051,648 parameters \(([\d.]+)%\)", output)
    assert float(share) <= 0.5
    assert f"{(folder / 'adalink/adapter/adapter.safetensors').stat().st_size:,}" in output
    shown = (folder / "report" / "report.md").read_text()
    assert "the frozen base" in shown and "adalink, rank 4" in shown


def test_adalink_learns_the_format_with_a_thousandth_of_the_parameters(
    tmp_path, token_cache, monkeypatch, capsys
):
    """In this process, without the other methods, whose trainings are asked for all the same."""
    asked = []
    monkeypatch.setenv("ADALINK_CACHE_DIR", str(token_cache))
    monkeypatch.setattr(pool, "call", lambda *words: asked.append(cli.main(words)))
    monkeypatch.setattr(pool, "train_all", lambda commands, jobs: asked.extend(commands))
    assert cli.main(["quickstart", str(tmp_path), "--steps=40"]) == 0
    assert asked[:2] == [0, 0]
    for name, command in zip(("full", "lora", "prompt_tuning"), asked[2:], strict=True):
        assert any("MODEL_DIR" in flag and f"{tmp_path}/{name}" in flag for flag in command)
    check(tmp_path, capsys.readouterr().out, gain=15)


@pytest.mark.slow
def test_the_script_shows_every_method(pytestconfig, tmp_path):
    environment = {**os.environ, "PYTHON": sys.executable, "STEPS": "100", "JOBS": "1"}
    done = subprocess.run(
        ["bash", "scripts/quickstart.sh", str(tmp_path)],
        cwd=pytestconfig.rootpath, env=environment, capture_output=True, text=True, timeout=1500,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    check(tmp_path, done.stdout, gain=60)
    shown = (tmp_path / "report" / "report.md").read_text()
    for label in ("the frozen base", "adalink, rank 4", "lora, rank 4", "prompt_tuning", "full"):
        assert label in shown and label.split(",")[0] in done.stdout
