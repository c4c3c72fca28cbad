"""The cost card by its script, and what stands in its four files."""

import csv
import dataclasses
import json
import subprocess
import sys

import pytest

from adalink_jax import cli
from adalink_jax.config import gin_files
from adalink_jax.errors import UserError
from adalink_jax.methods import METHODS
from adalink_jax.models.config import REMATS
from adalink_jax.tools.cost import card, programs

SHAPE = card.Shape(batch=2, inputs=6, targets=3)


def run(root, *flags):
    command = [sys.executable, "scripts/cost.py", *map(str, flags)]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_files_agree_and_say_what_was_not_measured(tmp_path):
    tiny = gin_files.shipped("tiny", "full")[0]
    candidates = [card.Candidate("tiny", tiny, "adalink", METHODS["adalink"](rank=2))]
    candidates += [card.Candidate("tiny", tiny, "full", METHODS["full"]())]
    short = METHODS["position_offsets"](rank=1, max_length=5)
    candidates += [card.Candidate("tiny", tiny, "position_offsets", short, asked=False)]
    *rows, left_out = every = card.rows(candidates, SHAPE, False, False, False)
    reason = "PositionOffsets.max_length is 5, but an input has 6 tokens"
    assert left_out == {"model": "tiny", "method": "position_offsets", "left_out": reason}
    for alone in (candidates[-1], dataclasses.replace(candidates[-1], asked=True)):
        with pytest.raises(UserError, match=reason):
            card.rows([alone], SHAPE, False, False, False)
    text = card.write(every, SHAPE, tiny, tmp_path / "cost")
    assert text.endswith(f"\n* Left out: position_offsets on tiny: {reason}.\n")
    assert {p.name for p in (tmp_path / "cost").iterdir()} == {
        "cost.csv", "cost.json", "cost.md", "cost.png",
    }  # fmt: skip
    record = json.loads((tmp_path / "cost" / "cost.json").read_text())
    assert record["shape"] == {"batch": 2, "inputs": 6, "targets": 3}
    assert record["rows"] == every
    with (tmp_path / "cost" / "cost.csv").open() as file:
        *counted, last = csv.DictReader(file)
    assert [int(row["step_flops"]) for row in counted] == [row["step_flops"] for row in rows]
    assert last["left_out"] == reason
    assert rows[1]["step_to_base_forward"] == 3.0
    assert "XLA" not in text and "p95" not in text and "remat" not in text
    assert text.count("\n| tiny |") == 2
    peaks = {f"peak_bytes_remat_{remat}": 2**30 * i for i, remat in enumerate(REMATS, 1)}
    text = card.markdown([rows[0] | peaks, rows[1]], SHAPE, tiny)
    assert " | remat none | remat minimal | remat full |\n" in text
    assert " | 1.00 GiB | 2.00 GiB | 3.00 GiB |\n" in text and " |  |  |  |\n" in text
    assert "`Layers.remat`" in text


@pytest.mark.slow
def test_nothing_is_compiled_before_every_method_takes_the_shape(monkeypatch):
    tiny = gin_files.shipped("tiny", "full")[0]
    short = METHODS["position_offsets"](rank=1, max_length=5)
    methods = {"adalink": METHODS["adalink"](rank=2), "position_offsets": short}
    candidates = [card.Candidate("tiny", tiny, name, method) for name, method in methods.items()]
    monkeypatch.setattr(card.programs, "peaks", lambda *_: pytest.fail("compiled"))
    with pytest.raises(UserError, match="an input has 6 tokens"):
        card.rows(candidates, SHAPE, False, True, False)


def test_full_remat_keeps_the_input_of_each_layer_alone():
    """One [B,T,D] of activations more for each layer of the encoder, beside its parameters."""
    tiny, method = gin_files.shipped("tiny", "adalink", ["RANK=2"])
    shape = card.Shape(batch=8, inputs=128, targets=4)
    found = {}
    for layers in (4, 8):
        changes = {"dtype": "float32", "num_encoder_layers": layers, "dropout_rate": 0.0}
        config = dataclasses.replace(tiny, **changes)
        found[layers] = programs.peaks(config, method, shape)
        assert list(found[layers]) == list(REMATS)
        none, minimal, full = found[layers].values()
        assert none > minimal > full > programs.state_bytes(config, method)
    attention, mlp, norms = 4 * 128 * 4 * 32, 3 * 128 * 256, 2 * 128
    expected = 4 * (attention + mlp + norms) + 4 * 8 * 128 * 128
    assert found[8]["full"] - found[4]["full"] == 4 * expected


@pytest.mark.slow
def test_script_compiles_and_measures(pytestconfig, tmp_path):
    done = run(
        pytestconfig.rootpath, "--model=mini", "--method=adalink:RANK=2", "--method=full",
        "--batch=2", "--inputs=8", "--targets=4", "--dtype=float32", "--compile", "--memory",
        "--measure", f"--to={tmp_path}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    adalink, full = json.loads((tmp_path / "cost.json").read_text())["rows"]
    assert adalink["method"] == "adalink:RANK=2" and adalink["trainable"] == 2 * 128 * 2
    for row in (adalink, full):
        assert row["step_flops"] <= row["xla_flops"]
        for name in ("xla_peak_bytes", *(f"peak_bytes_remat_{remat}" for remat in REMATS)):
            assert row[name] > 4 * row["parameters"]
        assert 0 < row["forward_b1_p50_s"] <= row["forward_b1_p95_s"]
    # Frozen, the base has no gradients in memory.
    assert adalink["xla_peak_bytes"] < full["xla_peak_bytes"]
    assert "| mini | adalink:RANK=2 |" in done.stdout
    assert done.stdout.endswith(f"\n{tmp_path}: cost.md, cost.csv, cost.json, cost.png\n")


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
