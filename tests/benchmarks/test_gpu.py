"""The job for one GPU, at toy size on what is here; its arithmetic against closed forms."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adalink_jax.methods.base import Method
from adalink_jax.tools.cost.counts import Shape, parameters, traced_flops
from benchmarks import gpu, gpu_parts, shapes

# As published: the numbers of parameters of transformers' google/t5-v1_1-*.
PUBLISHED = {"large": 783_150_080, "xl": 2_849_757_184, "xxl": 11_135_332_352}
PARTS = {part.name: gpu.tiny(part) for part in gpu.PARTS}


@pytest.fixture(autouse=True)
def one_repetition(monkeypatch):
    """Nothing here is about time."""
    monkeypatch.setattr(gpu_parts, "SECONDS", 0.0)


def measured(name: str) -> dict:
    """What a part finds at toy size, in this process."""
    found = {}
    part = PARTS[name]
    getattr(gpu_parts, part.kind)(part.settings, found.update)
    return found


@pytest.mark.parametrize("size", PUBLISHED)
def test_architectures_are_the_published_ones(size):
    assert parameters(shapes.t5_1_1(size, 0.1), Method()).total == PUBLISHED[size]


def test_every_part_has_a_name_of_its_own_and_settings_that_are_known():
    assert len(PARTS) == len(gpu.PARTS)
    for part in gpu.PARTS:
        assert callable(getattr(gpu_parts, part.kind))
        assert set(part.like) <= set(PARTS)
        if part.kind == "step":
            config = gpu_parts.architecture(part.settings)
            assert config.dtype == jnp.bfloat16 and config.remat == part.settings["remat"]
            assert gpu_parts.method_of(part.settings).trains_base == ("full" in part.name)


@pytest.mark.slow
def test_operations_of_all_layers_follow_from_those_of_two():
    deep = dataclasses.replace(
        shapes.toy(0.1), num_encoder_layers=3, num_decoder_layers=3, scan_layers=False
    )
    method, shape = gpu_parts.method_of({"method": "lora"}), Shape(2, 8, 4)
    assert gpu_parts.model_flops(deep, method, shape) == traced_flops(deep, method, shape).train


def test_noise_has_mean_0_and_variance_1_and_no_pattern():
    first, second = (
        np.asarray(gpu_parts.noise((64, 512), jnp.dtype("float32"), i)) for i in (0, 1)
    )
    for x in (first, second):
        assert abs(x.mean()) < 0.02 and abs(x.var() - 1) < 0.02
        assert abs(np.corrcoef(x[:, :-1].ravel(), x[:, 1:].ravel())[0, 1]) < 0.02
    assert abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < 0.02


def test_the_table_says_tokens_per_second_shares_of_the_peak_and_memory():
    settings = {"batch": 4, "inputs": 60, "targets": 40, "attention": "xla", "remat": "none"}
    step = {
        "settings": settings,
        "device": "NVIDIA H100 80GB HBM3",
        "seconds": [0.5, 0.4, 0.7],
        "flops": 989e12 / 4,
        "peak_bytes": 3 * 2**30,
        "compile_seconds": 7.4,
        "xla": {
            **{"argument_size": 2**31, "output_size": 2**30, "alias_size": 2**30},
            **{"temp_size": 2**29, "peak_memory": 0},
        },
        "plan": {"peak_bytes": 5 * 2**29, "fits": True},
    }
    late = {"settings": settings, "error": "stopped after 60 s"}
    products = {"products": {"a": 500e12, "b": 700e12}, "bytes_per_second": 3e12}
    mixed = {"settings": {"batch": 8}, "calls": {"base": [1.0, 2.0], "K=1": [2.0, 2.0]}}
    peft = {
        "settings": settings,
        "variants": {"one": {"batch": 2, "seconds": [1.0]}, "two": {"batch": 4, "error": "OOM"}},
    }
    parts = {"ceilings": products, "xl_lora": step, "xl_prompt": late, "mixed": mixed}
    lines = list(gpu.table({"parts": {**parts, "xl_peft_lora": peft}}))
    cells = [line.strip("| ").split(" | ") for line in lines if line.startswith("|")]
    assert ["xl_lora", "4 x 60 + 40", "xla, none", "500", "800", "50.0%", "70.6%", "3.0", "2.5",
            "2.5", "7"] in cells  # fmt: skip
    # Half the rows in twice the time.
    assert ["one", "1000", "200", "12.5%"] == [row[:4] for row in cells if row[0] == "one"][0]
    assert ["base", "1500", "5", "0.750"] in cells and ["K=1", "2000", "4", "1.000"] in cells
    assert "* xl_prompt: stopped after 60 s" in lines
    assert any("a 500 TFLOP/s; b 700 TFLOP/s" in line for line in lines)


def test_a_step_takes_the_attention_of_the_faster_one():
    def step(attention, *seconds):
        return {"settings": {"attention": attention}, "seconds": seconds}

    part = gpu.Part("x", "step", {}, like=("a", "b"))
    both = {"a": step("xla", 3.0, 2.0, 2.0), "b": step("cudnn", 1.0, 1.9, 1.9)}
    assert gpu._faster(part, both) == {"attention": "cudnn"}
    failed = {"a": both["a"], "b": {"settings": {"attention": "cudnn"}, "error": "no cuDNN"}}
    assert gpu._faster(part, failed) == {"attention": "xla"}
    assert gpu._faster(part, {}) == gpu._faster(dataclasses.replace(part, like=()), both) == {}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["xxl_adalink_int8", "large_full"])
def test_a_step_says_its_time_memory_and_operations(name):
    found = measured(name)
    settings = PARTS[name].settings
    assert all(map(math.isfinite, found["losses"]))
    assert len(found["losses"]) == gpu_parts.WARM_UPS + len(found["seconds"])
    config, method = gpu_parts.architecture(settings), gpu_parts.method_of(settings)
    plain = dataclasses.replace(config, remat="none")
    assert found["flops"] == traced_flops(plain, method, Shape(2, 8, 4)).train
    assert found["xla"]["argument_size"] > 0 and found["device"] == jax.devices()[0].device_kind


@pytest.mark.slow
def test_the_other_parts_find_what_the_table_shows(capsys):
    parts = {}
    for name in ("ceilings", "attention", "mixed"):
        parts[name] = {"settings": PARTS[name].settings, **measured(name)}
    assert parts["ceilings"]["bytes_per_second"] > 0
    assert max(parts["attention"]["ways"]["xla"]["errors"]) < 2e-2
    assert set(parts["mixed"]["calls"]) == {"base", "K=1", "K=3"}
    lines = list(gpu.table({"parts": parts}))
    assert sum(line.startswith("| xla |") or line.startswith("| K=3 |") for line in lines) == 2


@pytest.mark.slow
@pytest.mark.reference
def test_peft_trains_with_and_without_checkpointing():
    torch = pytest.importorskip("torch")
    pytest.importorskip("peft")
    before = torch.get_default_dtype()
    try:
        found = measured("xl_peft_lora")["variants"]
    finally:
        torch.set_default_dtype(before)
    assert len(found) == 2
    for variant in found.values():
        assert all(map(math.isfinite, variant["losses"])) and variant["seconds"]


@pytest.mark.slow
def test_a_part_that_fails_says_so_and_the_others_go_on(tmp_path, capsys):
    # cuDNN's attention needs a GPU.
    flags = ["--out", str(tmp_path), "--tiny", "--parts", "ceilings,xl_adalink_cudnn"]
    assert gpu.main(flags) == 1
    file = tmp_path / "gpu.json"
    first = json.loads(file.read_text())["parts"]
    assert "error" not in first["ceilings"] and "NVIDIA" in first["xl_adalink_cudnn"]["error"]
    assert gpu.main(flags) == 1
    again = json.loads(file.read_text())["parts"]
    assert again["ceilings"] == first["ceilings"]  # It was not measured again.
    capsys.readouterr()
    assert gpu.main(["--table", str(file)]) == 0
    assert "NVIDIA" in capsys.readouterr().out


def test_unknown_parts_are_refused(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        gpu.main(["--out", str(tmp_path / "new"), "--parts", "xl_adalnk"])
    assert ended.value.code == 2 and "xl_adalnk" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
