"""The cost card by its script, and what stands in its four files."""

import csv
import json
import subprocess
import sys

import pytest

from adalink_jax import cli
from adalink_jax.config import gin_files
from adalink_jax.methods import METHODS
from adalink_jax.tools.cost import card

SHAPE = card.Shape(batch=2, inputs=6, targets=3)


def run(root, *flags):
    command = [sys.executable, "scripts/cost.py", *map(str, flags)]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=300)


def test_files_agree_and_say_what_was_not_measured(tmp_path):
    tiny = gin_files.shipped("tiny", "full")[0]
    candidates = [card.Candidate("tiny", tiny, "adalink", METHODS["adalink"](rank=2))]
    candidates += [card.Candidate("tiny", tiny, "full", METHODS["full"]())]
    rows = card.rows(candidates, SHAPE, compiled=False, measured=False)
    text = card.write(rows, SHAPE, tiny, tmp_path / "cost")
    assert {p.name for p in (tmp_path / "cost").iterdir()} == {
        "cost.csv", "cost.json", "cost.md", "cost.png",
    }  # fmt: skip
    record = json.loads((tmp_path / "cost" / "cost.json").read_text())
    assert record["shape"] == {"batch": 2, "inputs": 6, "targets": 3}
    assert record["rows"] == rows
    with (tmp_path / "cost" / "cost.csv").open() as file:
        assert [int(row["step_flops"]) for row in csv.DictReader(file)] == [
            row["step_flops"] for row in rows
        ]
    assert rows[1]["step_to_base_forward"] == 3.0
    assert "XLA" not in text and "p95" not in text
    assert text.count("\n| tiny |") == 2


@pytest.mark.slow
def test_script_compiles_and_measures(pytestconfig, tmp_path):
    done = run(
        pytestconfig.rootpath, "--model=mini", "--method=adalink:RANK=2", "--method=full",
        "--batch=2", "--inputs=8", "--targets=4", "--dtype=float32", "--compile", "--measure",
        f"--to={tmp_path}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    adalink, full = json.loads((tmp_path / "cost.json").read_text())["rows"]
    assert adalink["method"] == "adalink:RANK=2" and adalink["trainable"] == 2 * 128 * 2
    for row in (adalink, full):
        assert row["step_flops"] <= row["xla_flops"]
        assert row["xla_peak_bytes"] > 4 * row["parameters"]
        assert 0 < row["forward_b1_p50_s"] <= row["forward_b1_p95_s"]
    # Frozen, the base has no gradients in memory.
    assert adalink["xla_peak_bytes"] < full["xla_peak_bytes"]
    assert "| mini | adalink:RANK=2 |" in done.stdout


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--model=t5_1_1_smal",), "t5_1_1_small"),
        (("--model=mini", "--method=lorra"), "lora"),
        (("--model=mini", "--method=adalink:RNK=2"), "RANK"),
        (("--model=mini", "--batch=0"), "batch is 0"),
        (("--model=mini", "--dtype=float16"), "overflow"),
        (("--model=mini", "--budget=-3"), "budget is -3"),
    ],
)
def test_mistakes_are_one_line(tmp_path, capsys, flags, words):
    assert cli.main(["cost", *flags, f"--to={tmp_path / 'cost'}"]) == 2
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error: ")]
    assert words in line and not (tmp_path / "cost").exists()
