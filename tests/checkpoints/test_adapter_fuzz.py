"""Damaged and lying adapters: refused in one line or loaded right, never a crash.

Bytes are flipped, cut and put in; values of the JSON are replaced, dropped and added; and the
tensors' file is altered with its hash put right, so that the checks behind the hash are reached.
"""

import contextlib
import dataclasses
import hashlib
import io
import json

import numpy as np
import pytest
from flax import traverse_util
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adalink_jax import cli
from adalink_jax.adapters import load
from adalink_jax.checkpoints import load_adapter, save_adapter
from adalink_jax.checkpoints.formats.peft import load_peft, save_peft
from adalink_jax.errors import UserError
from adalink_jax.methods.lora import LoRA
from tests.chaos.alterations import altered_bytes, altered_json, altered_tensors

PRINT = "f" * 64


@pytest.fixture(scope="module")
def method():
    return LoRA(rank=2, linears=("attention/query", "mlp/wo"), layers=(0,))


@pytest.fixture(scope="module")
def tree():
    def pair(width, features):
        rng = np.random.default_rng(width)
        return {
            "down": rng.standard_normal((1, width, 2), np.float32),
            "up": rng.standard_normal((1, 2, features), np.float32),
        }

    # The widths of the tiny T5 of this folder's conftest.
    return {
        "encoder": {
            "layers_0": {
                "attention": {"query": {"lora": pair(6, 8)}},
                "mlp": {"wo": {"lora": pair(10, 6)}},
            }
        }
    }


@pytest.fixture(scope="module")
def intact(tmp_path_factory, tiny, method, tree):
    """The two files' contents, and a folder to write altered ones to."""
    folder = tmp_path_factory.mktemp("fuzz") / "adapter"
    save_adapter(
        folder,
        tree,
        method_name="lora",
        settings=dataclasses.asdict(method),
        architecture=tiny,
        base_fingerprint=PRINT,
        route_names=["rte"],
        metadata={"scores": {"rte": 0.5}, "text": "RANK = 2\n"},
    )
    return folder, *(
        (folder / name).read_bytes() for name in ("adapter.json", "adapter.safetensors")
    )


@pytest.fixture(scope="module")
def peft_intact(tmp_path_factory, tiny, method, tree):
    """As `intact`, of PEFT's files."""
    folder = tmp_path_factory.mktemp("fuzz") / "peft"
    save_peft(folder, method, tree, 0, tiny, {})
    return folder, *(
        (folder / name).read_bytes()
        for name in ("adapter_config.json", "adapter_model.safetensors")
    )


def refused_or(load):
    """What `load` returns, or None where it refuses in one line."""
    try:
        return load()
    except UserError as error:
        assert "\n" not in str(error), str(error)
        str(error).encode()  # A lone surrogate could not be printed.
        return None


def same_arrays(one, other):
    one, other = (dict(traverse_util.flatten_dict(t, sep="/")) for t in (one, other))
    assert one.keys() == other.keys()
    for name, array in one.items():
        np.testing.assert_array_equal(array, other[name])


def attack(data, intact, tiny, method, tree, fit):
    folder, record, tensors = intact
    kind = data.draw(st.sampled_from(["json", "json bytes", "bytes", "tensors"]))
    new_record, new_tensors = record, tensors
    if kind == "json":
        new_record = json.dumps(altered_json(data.draw, json.loads(record))).encode()
    elif kind == "json bytes":
        new_record = altered_bytes(data.draw, record)
    elif kind == "bytes":
        new_tensors = altered_bytes(data.draw, tensors)
    else:
        new_tensors = altered_tensors(data.draw, tensors)
        described = json.loads(record)
        described["sha256"] = hashlib.sha256(new_tensors).hexdigest()
        if data.draw(st.booleans()):
            described["tensors"] = altered_json(data.draw, described["tensors"])
        new_record = json.dumps(described).encode()
    (folder / "adapter.json").write_bytes(new_record)
    (folder / "adapter.safetensors").write_bytes(new_tensors)

    refused_or(lambda: load_adapter(folder))
    found = refused_or(lambda: load_adapter(folder, architecture=tiny, base_fingerprint=PRINT))
    if found is None:
        return
    hash(found.method)
    if kind != "tensors":
        same_arrays(found.tree, tree)
    if fit:
        with contextlib.redirect_stdout(io.StringIO()) as out:
            assert cli.main(["adapter", "info", str(folder)]) == 0
            assert cli.main(["adapter", "info", str(folder), "--json"]) == 0
        out.getvalue().encode()
        if found.method != method or kind == "tensors":
            refused_or(lambda: load.check_adapter(tiny, found.method, found.tree, str(folder)))


FUZZ = {
    "deadline": None,
    "derandomize": True,
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large],
}


@settings(max_examples=150, **FUZZ)
@given(data=st.data())
def test_altered_adapters_are_refused_or_right(data, intact, tiny, method, tree):
    attack(data, intact, tiny, method, tree, fit=False)


@pytest.mark.slow
@settings(max_examples=2500, **FUZZ)
@given(data=st.data())
def test_altered_adapters_fit_or_are_refused(data, intact, tiny, method, tree):
    attack(data, intact, tiny, method, tree, fit=True)


def attack_peft(data, peft_intact, tiny, tree):
    folder, record, tensors = peft_intact
    new_record, new_tensors = record, tensors
    if data.draw(st.booleans()):
        new_record = json.dumps(altered_json(data.draw, json.loads(record))).encode()
    else:
        new_tensors = altered_tensors(data.draw, tensors)
    (folder / "adapter_config.json").write_bytes(new_record)
    (folder / "adapter_model.safetensors").write_bytes(new_tensors)
    found = refused_or(lambda: load_peft(folder, tiny, {}))
    if found is not None and new_tensors == tensors:
        same_arrays(found[1], tree)


@settings(max_examples=150, **FUZZ)
@given(data=st.data())
def test_altered_peft_adapters_are_refused_or_read(data, peft_intact, tiny, tree):
    attack_peft(data, peft_intact, tiny, tree)


@pytest.mark.slow
@settings(max_examples=1000, **FUZZ)
@given(data=st.data())
def test_more_altered_peft_adapters_are_refused_or_read(data, peft_intact, tiny, tree):
    attack_peft(data, peft_intact, tiny, tree)
