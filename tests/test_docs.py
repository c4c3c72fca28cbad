"""The code of docs/adaptations.md, run as it stands there."""

import pathlib
import re
import shutil

import jax
import numpy as np
import pytest

from adalink_jax import cli
from adalink_jax.adapters import load
from adalink_jax.adapters.probe import fixed_inputs
from adalink_jax.methods import METHODS
from adalink_jax.models import decoding
from adalink_jax.models.t5 import T5Config, Transformer

ROOT = pathlib.Path(__file__).resolve().parent.parent
CONFIG = T5Config(
    vocab_size=40,
    emb_dim=12,
    num_heads=2,
    num_encoder_layers=1,
    num_decoder_layers=1,
    head_dim=4,
    mlp_dim=16,
    mlp_activations=("gelu", "linear"),
)


def block(start: str) -> str:
    """The one block of Python in the document that holds a string."""
    text = (ROOT / "docs" / "adaptations.md").read_text(encoding="utf-8")
    found = [code for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if start in code]
    assert len(found) == 1
    return found[0]


@pytest.fixture(scope="module")
def base(write_base):
    return write_base(CONFIG)


@pytest.fixture(scope="module")
def inputs_embeds():
    code, names = block("def inputs_embeds"), {}
    imported = set(re.findall(r"^(?:import|from) (\w+)", code, re.MULTILINE))
    assert imported == {"json", "pathlib", "numpy", "safetensors"}
    exec(code, names)
    return names["inputs_embeds"]


@pytest.mark.parametrize("activation", ["identity", "relu", "gelu"])
def test_numpy_computes_the_encoders_embedded_input(base, write_adapter, inputs_embeds, activation):
    method = METHODS["adalink"](rank=3, activation=activation, routes=4)
    folder = write_adapter(method, base, scale=0.4)
    adaptation = load.load_adaptation(folder, base)
    seen = []

    class Spy(METHODS["adalink"]):
        def inputs(self, x, ctx):
            seen.append(super().inputs(x, ctx))
            return seen[-1]

    tokens, _ = fixed_inputs(CONFIG.vocab_size)
    routes = np.random.default_rng(0).integers(0, 4, tokens.shape).astype(np.int32)
    routes[1] = 2  # Of a padded row, so that the network leaves padding's route as it is.
    model = Transformer(CONFIG, Spy(**adaptation.adapter.settings), route_slots=4)
    model.apply(
        {"params": adaptation.params},
        tokens,
        enable_dropout=False,
        encoder_routes=routes,
        method="encode",
    )
    table = adaptation.base["token_embedder"]["embedding"]
    found = inputs_embeds(folder, table, tokens, routes)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, seen[0][0], rtol=0, atol=1e-5)
    assert np.abs(found - table[tokens]).max() > 0.1


@pytest.mark.reference
def test_transformers_runs_it_from_inputs_embeds(base, write_adapter, inputs_embeds, torch_t5):
    import torch

    folder = write_adapter(METHODS["adalink"](rank=3), base, scale=0.4)
    adaptation = load.load_adaptation(folder, base)
    tokens, targets = fixed_inputs(CONFIG.vocab_size)
    names = {
        "model": torch_t5(CONFIG, adaptation.base),
        "inputs_embeds": lambda _, *rest: inputs_embeds(folder, *rest),
        "tokens": tokens,
        "mask": torch.tensor(tokens > 0).long(),
        "targets": torch.tensor(targets).long(),
        "torch": torch,
    }
    code = block("model(inputs_embeds=")
    exec(code.replace("model(inputs", "result = model(inputs"), names)
    found = names["result"].logits.detach().numpy()
    np.testing.assert_allclose(found, adaptation.logits(0), rtol=0, atol=1e-4)


def test_a_program_runs_with_jax_alone(base, write_adapter, tmp_path, monkeypatch):
    adapter = write_adapter(METHODS["adalink"](rank=3), base)
    programs = tmp_path / "programs"
    flags = {"adapter": adapter, "base": base, "to": programs, "format": "stablehlo"}
    assert cli.main(["export", *(f"--{name}={value}" for name, value in flags.items())]) == 0
    shutil.copytree(adapter, tmp_path / "adapter")
    shutil.copytree(base, tmp_path / "base")
    monkeypatch.chdir(tmp_path)
    code, names = block("score.stablehlo"), {}
    assert set(re.findall(r"^(?:import|from) (\w+)", code, re.MULTILINE)) == {
        "jax", "numpy", "safetensors",
    }  # fmt: skip
    exec(code, names)
    adaptation = load.load_adaptation(adapter, base)
    expected = decoding.score_options(
        Transformer(CONFIG, adaptation.method),
        adaptation.params,
        names["inputs"],
        names["options"],
        names["routes"],
    )
    np.testing.assert_allclose(names["log_likelihoods"], expected, atol=1e-4)
    assert isinstance(names["log_likelihoods"], jax.Array)
