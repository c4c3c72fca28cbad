"""The quickstart, shorter: what it promises of AdaLink holds, and every method is in its table."""

import json
import os
import re
import subprocess
import sys


def test_adalink_learns_the_format_with_a_thousandth_of_the_parameters(pytestconfig, tmp_path):
    environment = {**os.environ, "PYTHON": sys.executable, "STEPS": "100", "JOBS": "1"}
    done = subprocess.run(
        ["bash", "scripts/quickstart.sh", str(tmp_path)],
        cwd=pytestconfig.rootpath, env=environment, capture_output=True, text=True, timeout=1500,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]

    def score(name):
        results = json.loads((tmp_path / name / "results.json").read_text())
        return results["tasks"]["mini_cola"]["score"]

    # The majority class has a Matthews correlation of 0.
    assert score("adalink") >= max(score("base"), 0) + 15
    (share,) = re.findall(r"trainable 1,024 of 1,051,648 parameters \(([\d.]+)%\)", done.stdout)
    assert float(share) <= 0.5
    shown = (tmp_path / "report" / "report.md").read_text()
    for label in ("the frozen base", "adalink, rank 4", "lora, rank 4", "prompt_tuning", "full"):
        assert label in shown and label.split(",")[0] in done.stdout
    assert f"{(tmp_path / 'adalink/adapter/adapter.safetensors').stat().st_size:,}" in done.stdout
