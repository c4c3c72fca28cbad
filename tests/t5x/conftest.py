"""Fixtures for tests inside T5X, which is on no package registry: skipped where it is absent."""

import pytest

from tests.t5x.recorded import KINDS, TINY


@pytest.fixture(scope="session")
def t5x():
    """The package; skips where it, or one of the packages it needs, is not installed."""
    t5x = pytest.importorskip("t5x", reason="T5X is not installed (it is on no package registry)")
    pytest.importorskip("t5x.train", reason="a package that T5X needs is not installed")
    return t5x


@pytest.fixture(scope="session")
def network(t5x):
    """T5X's minimal T5: (kind, "1.0" or "1.1") -> its module."""
    from t5x.examples.t5 import network

    def build(kind: str):
        return network.Transformer(network.T5Config(**TINY, **KINDS[kind]))

    return build


@pytest.fixture(scope="session")
def model(network):
    """Our network in our model: (kind, method, fields of T5X's model) -> model."""
    import seqio
    from t5x import adafactor, models, optimizers

    from adalink_jax.models.t5 import Transformer
    from adalink_jax.t5x.models import EncoderDecoderModel, t5_config

    def build(kind, method=None, optimizer=None, plain=False, **fields):
        vocabulary = seqio.PassThroughVocabulary(TINY["vocab_size"], eos_id=1)
        module = network(kind)
        optimizer = optimizer or adafactor.Adafactor(
            logical_factor_rules=adafactor.standard_logical_factor_rules()
        )
        assert isinstance(optimizer, optimizers.OptimizerDef)
        given = {
            "input_vocabulary": vocabulary,
            "output_vocabulary": vocabulary,
            "optimizer_def": optimizer,
            **fields,
        }
        if plain:
            return models.EncoderDecoderModel(module, **given)
        config = t5_config(module.config)
        return EncoderDecoderModel(Transformer(config, *([method] if method else [])), **given)

    return build


@pytest.fixture(scope="session")
def examples():
    """Deterministic examples, (number, seed) -> list of {"inputs", "targets"} of token lists."""
    import numpy as np

    def make(count: int, seed: int = 0):
        rng = np.random.default_rng(seed)
        return [
            {
                "inputs": [*rng.integers(3, 64, rng.integers(2, 7)).tolist(), 1],
                "targets": [*rng.integers(3, 64, rng.integers(1, 4)).tolist(), 1],
            }
            for _ in range(count)
        ]

    return make


@pytest.fixture(scope="session")
def perturbed():
    """A tree of parameters with random values in place of an adapter's zeros."""
    import jax

    def perturb(params, method, seed=3):
        from adalink_jax.methods.base import merge, split

        own, base = split(params, method)
        leaves, structure = jax.tree.flatten(own)
        keys = jax.random.split(jax.random.key(seed), len(leaves))
        pairs = zip(keys, leaves, strict=True)
        leaves = [0.3 * jax.random.normal(key, leaf.shape) for key, leaf in pairs]
        return merge(base, jax.tree.unflatten(structure, leaves))

    return perturb


@pytest.fixture(scope="session")
def padded(examples):
    """A padded batch of examples under T5X's names."""
    import numpy as np

    def pad(count: int, seed: int = 0, lengths=(8, 6)):
        rows = examples(count, seed)
        inputs, targets = (np.zeros((count, length), np.int32) for length in lengths)
        for i, row in enumerate(rows):
            inputs[i, : len(row["inputs"])] = row["inputs"]
            targets[i, : len(row["targets"])] = row["targets"]
        shifted = np.zeros_like(targets)
        shifted[:, 1:] = targets[:, :-1]
        return {
            "encoder_input_tokens": inputs,
            "decoder_input_tokens": shifted,
            "decoder_target_tokens": targets,
            "decoder_loss_weights": (targets > 0).astype(np.int32),
        }

    return pad


def pytest_collection_modifyitems(config, items):
    """What is recorded anew is recorded before it is read."""
    if config.getoption("--update-goldens"):
        items.sort(key=lambda item: "update_goldens" not in item.fixturenames)
