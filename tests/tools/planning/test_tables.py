"""A plan's files: what is kept, what is said of a partial one, what is said of a refused step."""

import csv
import json

import pytest

from adalink_jax.errors import UserError
from adalink_jax.tools.planning import tables

GIB = 2**30


def row(**changes) -> dict:
    found = {
        "model": "t5", "method": "adalink", "topology": "v5e:2x2", "chips": 4, "hosts": 1,
        "model_parallelism": 1, "fully_sharded": True, "batch": 8, "inputs": 4, "targets": 2,
        "gradient_accumulation_steps": 1, "optimizer": "adafactor", "frozen_dtype": "bfloat16",
        "remat": "full", "optimization_level": "O1", "decided_at": "O1", "fits": True,
        "peak_bytes": 3 * GIB, "allowed_bytes": 16 * GIB,
        "parameter_bytes": 2 * GIB, "optimizer_bytes": 2048, "activation_bytes": GIB,
        "hardware_flops": 3e15, "model_flops": 2e15,
        "collectives": {"all-gather": {"count": 2, "sent_bytes": GIB}},
        "buffers": [{"bytes": GIB, "shapes": "f32[4], bf16[8,2], 2×f32[], f32[5]"}],
        "compile_seconds": 40.2,
        "compute_seconds": 0.5, "hbm_seconds": 0.25, "ici_seconds": 0.125, "step_seconds": 0.5,
        "tried": [],
    }  # fmt: skip
    return found | changes


REFUSED = row(
    method="full", fits=False, peak_bytes=40 * GIB, collectives=None, least_chips=3,
    tried=[
        {"change": "a=1", "fits": False, "peak_bytes": None, "argument_bytes": 30 * GIB},
        {"change": "b=2", "fits": False, "peak_bytes": 20 * GIB, "argument_bytes": GIB},
    ],
)  # fmt: skip


def test_files_agree_and_are_read_again(tmp_path):
    rows = [row(), REFUSED]
    tables.write(rows, 0, tmp_path / "plan")
    names = {path.name for path in (tmp_path / "plan").iterdir()}
    assert names == {"plan.json", "plan.md", "plan.csv", "plan.png"}
    assert tables.stored(tmp_path / "plan") == rows
    with (tmp_path / "plan" / "plan.csv").open() as file:
        read = list(csv.DictReader(file))
    assert [int(each["peak_bytes"]) for each in read] == [3 * GIB, 40 * GIB]
    assert json.loads(read[0]["collectives"]) == rows[0]["collectives"]
    assert (tmp_path / "plan" / "plan.png").read_bytes()[:4] == b"\x89PNG"
    assert tables.stored(tmp_path / "other") == []


def test_a_partial_table_says_so():
    assert "Partial: 3 of the rows" in tables.markdown([row()], missing=3)
    assert "Partial" not in tables.markdown([row()])


def test_a_partial_plan_is_not_drawn(tmp_path):
    tables.write([row()], 1, tmp_path)
    assert not (tmp_path / "plan.png").exists()
    tables.write([row()], 0, tmp_path)
    assert (tmp_path / "plan.png").exists()


def test_only_the_same_question_is_answered():
    rows = [row(), REFUSED]
    assert tables.answered({"method": "full", "batch": 8}, rows) is REFUSED
    assert tables.answered({"method": "full", "batch": 16}, rows) is None
    assert tables.answered({"method": "full", "dtype": "bfloat16"}, rows) is None


def test_a_file_that_is_no_plan_is_refused(tmp_path):
    (tmp_path / "plan.json").write_text('{"rows": [1')
    with pytest.raises(UserError, match="is no plan"):
        tables.stored(tmp_path)
    assert (tmp_path / "plan.json").read_text() == '{"rows": [1'


def test_the_table_says_what_fits_and_on_which_slice():
    large = row(topology="v5e:4x8", chips=32, method="full")
    text = tables.markdown([large, REFUSED, row()])
    assert text.count("| FITS |") == 2 and text.count("| DOES NOT FIT |") == 1
    assert "| t5, full, adafactor | v5e:4x8 |" in text
    assert "| t5, adalink, adafactor | v5e:2x2 |" in text
    assert "| 2.00 GiB | 2.00 KiB | 1.00 GiB | 3.00 GiB | 16.00 GiB |" in text


def test_one_chip_sends_nothing_and_a_refused_step_is_not_known_to():
    alone = tables.markdown([row(collectives={}, topology="v6e:1x1")])
    assert "| 0 B | 0.5 s | 40 s | FITS |" in alone
    assert "|  |  | 40 s | DOES NOT FIT |" in tables.markdown([REFUSED])


def test_advice_claims_what_was_compiled_alone():
    assert tables.advice(REFUSED) == (
        "no change that was tried makes it fit: b=2 needs 20.00 GiB; with 1 other changes what the "
        "step is given alone does not fit; parameters and optimizer state, each held once, fill 3 "
        "such chips"
    )
    fits = {"change": "c=3", "fits": True, "peak_bytes": 9 * GIB, "argument_bytes": GIB}
    found = REFUSED | {"tried": [*REFUSED["tried"], fits]}
    assert tables.advice(found) == "fits with c=3 (9.00 GiB)"
    assert "fits with c=3" in tables.markdown([found])


def test_a_summary_has_buffers_collectives_and_the_estimate():
    assert tables.summary(row()) == [
        "buffer 1.00 GiB: bf16[8,2], f32[5] and 2 more",
        "all-gather: 2 times, 1.00 GiB sent",
        "estimate of a step, the longest of: compute 0.5 s, hbm 0.25 s, ici 0.125 s",
    ]


def test_a_peak_that_another_level_decided_has_a_star():
    assert "| 3.00 GiB |" in tables.markdown([row()])
    assert "| 3.00 GiB* |" in tables.markdown([row(decided_at="default")])
