"""adapter.py's info, verify and diff, on adapters and bases of random weights."""

import dataclasses
import functools
import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adalink_jax import cli
from adalink_jax.adapters import load
from adalink_jax.adapters.probe import fixed_inputs
from adalink_jax.checkpoints import (
    adapters,
    fingerprint,
    load_adapter,
    load_base,
    open_base,
    save_adapter,
    save_base,
)
from adalink_jax.checkpoints.adapters import write_record
from adalink_jax.methods import METHODS
from adalink_jax.models.t5 import T5Config, Transformer
from tests.tiers import mostly_slow

CONFIG = T5Config(
    vocab_size=40,
    emb_dim=12,
    num_heads=2,
    num_encoder_layers=2,
    num_decoder_layers=1,
    head_dim=4,
    mlp_dim=16,
    mlp_activations=("relu",),
    logits_via_embedding=True,
)
METHODS_ROUTED = {
    "adalink": METHODS["adalink"](rank=2, activation="relu", routes=2),
    "lora": METHODS["lora"](rank=2, stacks=("encoder", "decoder"), routes=2),
    "prompt_tuning": METHODS["prompt_tuning"](length=3, reparameterise=False, routes=2),
    "full": METHODS["full"](),
}


@pytest.fixture(scope="module")
def base(write_base):
    return write_base(CONFIG)


@pytest.fixture
def call(capsys):
    """Runs a command: (exit code, lines of output, lines of errors)."""

    def run(command, **arguments):
        code = cli.main(["adapter", command, *map(str, arguments.values())])
        out, errors = capsys.readouterr()
        return code, out.splitlines(), errors.splitlines()

    return run


@pytest.mark.parametrize("name", mostly_slow(METHODS_ROUTED, ["adalink", "full"]))
def test_verify_says_each_routes_largest_change(call, base, write_adapter, name):
    method = METHODS_ROUTED[name]
    folder = write_adapter(method, base)
    code, lines, errors = call("verify", adapter=folder, base=base)
    assert (code, errors) == (0, [])
    # The same by hand: flax's own apply on the fixed inputs.
    inputs, targets = fixed_inputs(CONFIG.vocab_size)
    _, params = load_base(base)

    @functools.partial(jax.jit, static_argnums=0)
    def logits(model, params, route):
        return model.apply(
            {"params": params}, inputs, targets, targets, enable_dropout=False,
            encoder_routes=jnp.full_like(inputs, route),
            decoder_routes=jnp.full_like(targets, route),
        )  # fmt: skip

    tree = load_adapter(folder).tree
    adapted = tree if name == "full" else load.merge(params, tree)
    plain = logits(Transformer(CONFIG), params, 0)
    assert len(lines) == 1 + method.routes
    for route, line in enumerate(lines[1:]):
        change = np.abs(logits(Transformer(CONFIG, method), adapted, route) - plain).max()
        said, value = line.rsplit(" ", 1)
        assert said == f"route task_{route}: largest change of a logit"
        assert float(value) == pytest.approx(float(change), rel=1e-3)


def test_an_adapter_is_read_once(base, write_adapter, monkeypatch):
    folder = write_adapter(METHODS_ROUTED["adalink"], base)
    read = []
    digest = adapters.file_sha256
    monkeypatch.setattr(adapters, "file_sha256", lambda path: read.append(path) or digest(path))
    load.load_adaptation(str(folder), str(base))
    assert read == [folder / "adapter.safetensors"]


def test_an_adapter_that_changes_nothing_is_not_active(call, base, write_adapter):
    def untrained(tree):
        tree["encoder"]["adalink"]["up"][1] = 0
        return tree

    folder = write_adapter(METHODS_ROUTED["adalink"], base, change=untrained)
    code, lines, errors = call("verify", adapter=folder, base=base)
    assert code == 2
    assert errors == [f"error: {folder} changes nothing on route task_1: not active"]
    assert lines[-1] == "route task_1: largest change of a logit 0"


def test_logits_that_are_not_finite_are_said(call, base, write_adapter):
    folder = write_adapter(METHODS_ROUTED["adalink"], base, scale=np.float32(np.nan))
    code, _, errors = call("verify", adapter=folder, base=base)
    assert code == 2 and "not finite" in errors[0]


def test_the_adapter_says_which_functions_an_mlp_uses(call, write_base, write_adapter, tmp_path):
    """T5X's arrays do not tell, and would be taken for ReLU's."""
    config = dataclasses.replace(CONFIG, mlp_activations=("silu",))
    native = write_base(config)
    folder = write_adapter(METHODS_ROUTED["adalink"], native)
    save_base(tmp_path / "t5x", open_base(native), "t5x")
    assert load_base(tmp_path / "t5x")[0].mlp_activations == ("relu",)
    _, lines, _ = call("verify", adapter=folder, base=native)
    code, same, _ = call("verify", adapter=folder, base=tmp_path / "t5x")
    assert code == 0 and same[1:] == lines[1:]


def test_what_does_not_fit_is_said_in_one_line(call, base, write_adapter, write_base, tmp_path):
    folder = write_adapter(METHODS_ROUTED["adalink"], base)
    other = tmp_path / "other"
    loaded = load_adapter(base)
    moved = jax.tree.map(lambda x: x + np.float32(1e-3), loaded.tree)
    arguments = {
        "method_name": "full",
        "settings": {},
        "architecture": CONFIG,
        "base_fingerprint": "",
        "route_names": ["all"],
        "metadata": {},
    }
    save_adapter(other, moved, **arguments)
    wide = write_base(dataclasses.replace(CONFIG, mlp_dim=20))
    found = load_adapter(folder)
    arguments |= {"method_name": "adalink", "base_fingerprint": found.base_fingerprint}
    arguments |= {"settings": {**found.settings, "rank": 3}, "route_names": found.route_names}
    save_adapter(tmp_path / "rank", found.tree, **arguments)
    # No command writes such a record.
    names = pathlib.Path(shutil.copytree(folder, tmp_path / "names"))
    record = json.loads((names / "adapter.json").read_text())
    del record["record_sha256"]
    write_record(names, {**record, "route_names": ["a", "b", "c"]})
    for arguments, words in [
        ({"adapter": folder, "base": other}, "was trained on another base: fingerprint"),
        (
            {"adapter": folder, "base": wide},
            "was trained on another base: mlp_dim 16, this base's is 20",
        ),
        ({"adapter": folder, "base": tmp_path / "no"}, "does not exist"),
        ({"adapter": tmp_path / "no", "base": base}, "no such folder"),
        ({"adapter": tmp_path / "rank", "base": base}, "mismatched (2): encoder/adalink/down"),
        ({"adapter": tmp_path / "names", "base": base}, "3 names of routes"),
    ]:
        code, lines, errors = call("verify", **arguments)
        assert (code, lines, len(errors)) == (2, [], 1)
        assert words in errors[0]


def test_info_says_what_it_is(base, write_adapter, capsys):
    folder = write_adapter(METHODS_ROUTED["adalink"], base)
    assert cli.main(["adapter", "info", str(folder), "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["method"] == "adalink"
    assert record["settings"] == {
        "rank": 2, "activation": "relu", "routes": 2, "stacks": ["encoder"],
        "bias": False, "dropout_rate": 0.0,
    }  # fmt: skip
    assert record["routes"] == ["task_0", "task_1"]
    assert record["parameters"] == 2 * 2 * 12 * 2
    assert record["bytes"] == (folder / "adapter.safetensors").stat().st_size
    assert record["base"]["fingerprint"] == fingerprint(load_base(base)[1])
    assert record["base"]["architecture"]["emb_dim"] == 12
    assert record["metadata"]["scores"] == {"rte": 61.0}
    assert record["tensors"]["encoder/adalink/down"] == [2, 12, 2]
    # A run's folder is as good as its adapter's.
    assert cli.main(["adapter", "info", str(folder.parent)]) == 0
    lines = capsys.readouterr().out.splitlines()
    for line in ("method: adalink", "routes: task_0, task_1", "parameters: 96",
                 "metadata.scores.rte: 61.0"):  # fmt: skip
        assert line in lines


def test_info_counts_the_layers_that_are_alike(call, base, write_adapter):
    method = METHODS["lora"](rank=2)
    folder = write_adapter(method, base)
    _, text, _ = call("info", adapter=folder)
    _, full, _ = call("info", adapter=folder, as_json="--json")
    tensors = json.loads("\n".join(full))["tensors"]
    shown = [line for line in text if line.startswith("tensors.")]
    assert len(shown) < len(tensors)
    counted = 0
    for line in shown:
        count, _, shape = line.rpartition(": ")[2].partition(" of ")
        counted += int(count) if shape else 1
    assert counted == len(tensors)


def test_diff_names_what_differs(call, base, write_adapter):
    method = METHODS["adalink"](rank=2)
    first = write_adapter(method, base, seed=1)
    same = write_adapter(method, base, seed=1)
    assert call("diff", first=first, second=same) == (0, [f"{first} and {same} hold the same"], [])

    def moved(tree):
        tree["encoder"]["adalink"]["up"][0, 1, 3] += 0.25
        return tree

    code, lines, _ = call("diff", first=first, second=write_adapter(
        method, base, seed=1, change=moved))  # fmt: skip
    assert code == 1
    assert [line.split(":")[0] for line in lines] == ["fingerprint", "encoder/adalink/up"]
    assert lines[1] == "encoder/adalink/up: differs by at most 0.25"

    wider = METHODS["adalink"](rank=3, activation="gelu")
    code, lines, _ = call("diff", first=first, second=write_adapter(wider, base, routes=["x"]))
    assert code == 1
    assert "settings.rank: 2 | 3" in lines
    assert "settings.activation: identity | gelu" in lines
    assert "route_names: task_0 | x" in lines
    assert "encoder/adalink/down: [1, 12, 2] | [1, 12, 3]" in lines

    code, lines, _ = call("diff", first=first, second=write_adapter(METHODS["full"](), base))
    assert "encoder/adalink/down: [1, 12, 2] | (absent)" in lines
    assert "method_name: adalink | full" in lines


def test_an_empty_folder_is_no_base(call, base, write_adapter, tmp_path):
    folder = write_adapter(METHODS["adalink"](rank=2), base)
    code, lines, errors = call("verify", adapter=folder, base=tmp_path)
    assert (code, lines) == (2, [])
    assert errors == [f"error: base checkpoint {tmp_path} is an empty folder"]
