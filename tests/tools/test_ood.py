"""adalink ood: its measures against scikit-learn, and the command on the embedded base."""

import json

import numpy as np
import pytest

from adalink_jax import cli
from adalink_jax.methods import METHODS
from adalink_jax.tools import ood


def test_areas_are_scikit_learns():
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    own, other = np.round(rng.normal(1, 1, 57), 1), np.round(rng.normal(0, 1, 44), 1)
    known = np.concatenate([np.ones(57), np.zeros(44)])
    values = np.concatenate([own, other])
    assert ood.auroc(own, other) == pytest.approx(metrics.roc_auc_score(known, values))
    false, true, _ = metrics.roc_curve(known, values, drop_intermediate=False)
    assert ood.fpr95(own, other) == pytest.approx(false[true >= 0.95][0])


def test_measures_of_known_likelihoods():
    probability, energy = ood.measures(np.log([[0.2, 0.2], [0.6, 0.2], [0.03, 0.01]]))
    np.testing.assert_allclose(probability, [0.5, 0.75, 0.75])
    np.testing.assert_allclose(np.exp(energy), [0.4, 0.8, 0.04])
    equal = np.ones(5)
    assert (ood.auroc(equal, equal), ood.fpr95(equal, equal)) == (0.5, 1.0)
    assert (ood.auroc(equal, 0 * equal), ood.fpr95(equal, 0 * equal)) == (1.0, 0.0)


@pytest.mark.slow
def test_the_command_on_the_embedded_base(mini_base, write_adapter, tmp_path, capsys):
    adapter = write_adapter(METHODS["adalink"](rank=2), mini_base, scale=0.01)
    flags = [f"--base={mini_base}", "--task=mini_rte", "--limit=24"]
    out = tmp_path / "ood.json"
    others = ["--other", "mini_sst2", "mini_rte", f"--to={out}"]
    assert cli.main(["ood", str(adapter), *flags, *others]) == 0
    found = json.loads(out.read_text())
    assert found["inputs"] == 24 and found["others"].keys() == {"mini_sst2", "mini_rte"}
    # Against the same inputs, nothing is told apart.
    same = found["others"]["mini_rte"]["energy"]
    assert same["auroc"] == 50.0 and same["fpr95"] >= 95
    assert found["others"]["mini_sst2"]["energy"]["auroc"] != 50.0
    assert "| mini_sst2 | 24 |" in capsys.readouterr().out


def test_mistakes_are_one_line(tmp_path, capsys):
    def said(task, other="mini_rte"):
        flags = ["--base=mini", f"--task={task}", f"--other={other}"]
        assert cli.main(["ood", str(tmp_path), *flags]) == 2
        return capsys.readouterr().err

    assert "mini_spans has no labels" in said("mini_spans")
    assert "mini_cole" in said("mini_rte", "mini_cole")
    assert "no file adapter.json" in said("mini_rte")
