"""Mistakes at the command line of plans, and rows that are kept; no compiler is asked."""

import json
import types

import pytest

from adalink_jax import cli
from adalink_jax.config import gin_files
from adalink_jax.distributed.sharding import Layout
from adalink_jax.methods import METHODS
from adalink_jax.models.t5 import T5Config
from adalink_jax.tools.planning import command, rows, topologies

FLAGS = ("--model=tiny", "--method=adalink", "--topology=v5e:2x2")


@pytest.fixture(autouse=True)
def without_libtpu(monkeypatch):
    """As if it were installed; whoever asks it for devices fails."""
    for module in (topologies, rows):
        monkeypatch.setattr(module, "libtpu_version", lambda: "0.0.42.1")


@pytest.fixture
def compiled(monkeypatch):
    """The cases that would be compiled; each fits."""
    cases = []

    def row(case, level):
        cases.append(case)
        answer = dict.fromkeys(
            ("parameter_bytes", "optimizer_bytes", "activation_bytes", "hardware_flops",
             "model_flops", "compile_seconds", "compute_seconds", "hbm_seconds", "ici_seconds",
             "step_seconds"), 1.0,
        )  # fmt: skip
        answer |= {"decided_at": level, "fits": True, "peak_bytes": 2, "allowed_bytes": 4}
        return rows.question(case, level) | answer | {"buffers": [], "collectives": {}, "tried": []}

    monkeypatch.setattr(command.rows, "row", row)

    def shipped(model, name, settings):
        return T5Config(vocab_size=32), METHODS[name](**({"rank": 4} if name == "adalink" else {}))

    monkeypatch.setattr(gin_files, "shipped", shipped)
    return cases


def refused(capsys, *flags) -> str:
    assert cli.main(["plan", *FLAGS, *flags]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    return line


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--topology=v5e:3x3", "no TPU slice 'v5e:3x3'; did you mean"),
        ("--batch=0", "batch is 0; it must be at least 1"),
        ("--model_parallelism=0", "model_parallelism is 0"),
        ("--optimizer=adam", "optimizer is 'adam'; it takes adafactor or adamw"),
        (
            "--frozen_dtype=float16",
            "frozen_dtype is 'float16'; it takes float32 or bfloat16 or int8",
        ),
        ("--optimization_level=1", "optimization_level is '1'; it takes default or O0"),
        ("--topology=v5e:16x16", "gin/hardware/tpu_v5e_16x16.gin, the layout of v5e:16x16"),
    ],
)
def test_a_mistake_is_one_line(capsys, tmp_path, flag, words):
    assert words in refused(capsys, flag, f"--to={tmp_path / 'plan'}")
    assert not (tmp_path / "plan").exists()


def test_rows_that_are_there_are_kept(capsys, tmp_path, compiled):
    flags = [*FLAGS, f"--to={tmp_path}"]
    assert cli.main(["plan", *flags]) == 0
    assert len(compiled) == 1
    first = (tmp_path / "plan.json").read_text()
    assert cli.main(["plan", *flags, "--optimizer=adafactor", "--json"]) == 0
    assert len(compiled) == 1 and (tmp_path / "plan.json").read_text() == first
    # Another method is compiled, and the first stays in the table; so does another batch.
    assert cli.main(["plan", *flags, "--method=full"]) == 0
    assert cli.main(["plan", *flags, "--batch=64"]) == 0
    assert [(case.label, case.shape.batch) for case in compiled] == [
        ("adalink", 128), ("full", 128), ("adalink", 64),
    ]  # fmt: skip
    assert len(json.loads((tmp_path / "plan.json").read_text())["rows"]) == 3


def test_the_preset_is_the_layout_unless_one_is_given():
    def layout(topology, **flags):
        given = {"fully_sharded": False, "model_parallelism": None} | flags
        return command._layout(topologies.find(topology), types.SimpleNamespace(**given))

    assert layout("v5e:4x8") == Layout(model_parallelism=8, fully_sharded=True)
    assert layout("v6e:1x1") == Layout()
    assert layout("v5e:4x8", model_parallelism=2) == Layout(model_parallelism=2)
    assert layout("v5e:16x16", fully_sharded=True) == Layout(fully_sharded=True)


def test_full_fine_tuning_keeps_float32_and_adapters_a_bfloat16_base(compiled):
    assert cli.main(["plan", *FLAGS, "--method=full", "--optimizer=adamw"]) == 0
    assert [(case.label, case.frozen_dtype, case.optimizer) for case in compiled] == [
        ("adalink", "bfloat16", "adamw"), ("full", "float32", "adamw"),
    ]  # fmt: skip
