"""What scoring reads before it computes anything."""

import jax
import numpy as np
import pytest

from adalink_jax.checkpoints import save_adapter
from adalink_jax.methods import METHODS
from adalink_jax.models.parameters import abstract_params
from adalink_jax.models.t5 import T5Config
from adalink_jax.runs import scoring
from adalink_jax.runs.options import Data

CONFIG = T5Config(
    vocab_size=16, emb_dim=8, num_heads=1, num_encoder_layers=1, num_decoder_layers=1,
    head_dim=8, mlp_dim=8,
)  # fmt: skip


class Reached(Exception):
    """The base would be read now."""


def test_a_fully_fine_tuned_model_is_read_as_a_base_only(tmp_path, monkeypatch):
    shapes, _ = abstract_params(CONFIG, METHODS["full"]())
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes)
    save_adapter(
        tmp_path / "model",
        params,
        method_name="full",
        settings={},
        architecture=CONFIG,
        base_fingerprint="",
        route_names=["all"],
        metadata={},
    )

    def prepared_base(path, *_):
        raise Reached(path)

    def load_adapter(*_, **__):
        raise AssertionError("the model was read as an adapter")

    monkeypatch.setattr(scoring, "prepared_base", prepared_base)
    monkeypatch.setattr(scoring, "load_adapter", load_adapter)
    with pytest.raises(Reached, match="model"):
        scoring.evaluate(
            output_dir=str(tmp_path / "out"),
            data=Data("mini_sst2", {"inputs": 8, "targets": 4}),
            adapter_path=str(tmp_path / "model"),
        )
