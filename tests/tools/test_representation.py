"""adalink representation: its measure against NumPy's SVD, and the command against transformers."""

import json

import numpy as np
import pytest

from adalink_jax import cli
from adalink_jax.checkpoints import load_adapter, load_base
from adalink_jax.methods import METHODS
from adalink_jax.tools.representation import effective_rank


def by_svd(rows):
    values = np.linalg.svd(rows.astype(np.float64), compute_uv=False)
    shares = values / values.sum()
    return np.exp(-sum(p * np.log(p) for p in shares if p > 1e-12))


def test_effective_rank_is_that_of_the_singular_values():
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((50, 6)) @ (rng.standard_normal((6, 20)) * np.arange(20))
    assert effective_rank(rows.T @ rows) == pytest.approx(by_svd(rows), rel=1e-5)
    # Of k equal singular values it is k, whatever their size, and lower where one is the largest.
    basis = np.linalg.qr(rng.standard_normal((20, 20)))[0][:7]
    assert effective_rank(9 * basis.T @ basis) == pytest.approx(7, rel=1e-4)
    assert effective_rank(np.diag([1.0, 0, 0])) == 1
    assert effective_rank(np.diag([4.0, 1, 1])) == pytest.approx(2**1.5)


@pytest.mark.slow
@pytest.mark.reference
def test_the_command_on_the_embedded_base(mini_base, write_adapter, torch_t5, tmp_path, capsys):
    """A prompt is no token of the input; the encoder with the adapter is one with other weights."""
    import torch

    from adalink_jax.data.scored import EvalExamples

    config, base = load_base(mini_base)
    lora = write_adapter(METHODS["lora"](rank=2), mini_base, routes=["mine"], scale=0.5)
    prompt = write_adapter(METHODS["prompt_tuning"](length=3), mini_base)
    out = tmp_path / "ranks.json"
    flags = [f"--base={mini_base}", "--limit=24", f"--to={out}"]
    assert cli.main(["representation", str(lora), "--task", "mini_rte", "mini_spans", *flags]) == 0
    found = json.loads(out.read_text())
    assert found["dimensions"] == 16 and found["tasks"].keys() == {"mini_rte", "mini_spans"}
    assert "| mini_rte | 24 |" in capsys.readouterr().out
    loaded = load_adapter(lora)
    folded = loaded.method.fold(base, loaded.tree, 0)
    examples = EvalExamples("mini_rte", "validation", {"inputs": 512, "targets": 64}, 24)
    for name, params in (("base", base), ("adapted", folded)):
        encoder = torch_t5(config, params).encoder
        rows = []
        for batch in examples.batches(5):
            tokens = torch.tensor(batch["encoder_input_tokens"]).long()
            with torch.no_grad():
                given = encoder(input_ids=tokens, attention_mask=(tokens > 0).long())
            rows.append(given.last_hidden_state[tokens > 0].numpy())
        expected = by_svd(np.concatenate(rows))
        assert found["tasks"]["mini_rte"][name] == pytest.approx(expected, rel=1e-4)
        assert found["tasks"]["mini_rte"]["tokens"] == len(np.concatenate(rows))
    ours = found["tasks"]["mini_rte"]
    assert abs(ours["base"] - ours["adapted"]) > 0.01
    assert cli.main(["representation", str(prompt), "--task=mini_rte", *flags]) == 0
    assert json.loads(out.read_text())["tasks"]["mini_rte"]["tokens"] == ours["tokens"]


def test_mistakes_are_one_line(tmp_path, capsys):
    flags = [str(tmp_path), "--base=mini"]
    assert cli.main(["representation", *flags, "--task=mini_cole"]) == 2
    assert "mini_cole" in capsys.readouterr().err
    assert cli.main(["representation", *flags, "--task=mini_rte"]) == 2
    said = "no file adapter.json in it; give an adapter's folder or its run's"
    assert f"{said}\n" in capsys.readouterr().err
    (tmp_path / "a/run/adapter").mkdir(parents=True)
    (tmp_path / "a/run/adapter/adapter.json").write_text("{}")
    assert cli.main(["representation", *flags, "--task=mini_rte"]) == 2
    assert f"{said}, such as {tmp_path / 'a/run/adapter'}\n" in capsys.readouterr().err
