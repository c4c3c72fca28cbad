"""Training that starts from an adapter."""

import json
import pathlib
import types

import jax
import numpy as np
import optax
import pytest
from flax import traverse_util

from adalink_jax.checkpoints import fingerprint, load_adapter, save_adapter
from adalink_jax.config import gin_files
from adalink_jax.distributed import sharding
from adalink_jax.errors import UserError
from adalink_jax.methods import METHODS
from adalink_jax.models.parameters import init_adapter
from adalink_jax.runs import setup
from adalink_jax.training import optimizers


@pytest.fixture
def start(tiny, tmp_path):
    """Saves an adapter, then starts training a method from it; returns base and adapter."""
    config, params, _ = tiny
    base = setup.Base(config, params, fingerprint(params))

    def run(saved, trained, names=("all",), **changes):
        tree = init_adapter(config, saved, params, jax.random.key(1))
        exported, tree = saved.export(tree)
        entry = {"architecture": config, "base_fingerprint": base.fingerprint, **changes}
        save_adapter(
            tmp_path / "run/adapter",
            tree,
            method_name=saved.scope,
            settings=exported.settings(),
            route_names=names,
            **entry,
        )
        return setup.with_adapter(base, str(tmp_path / "run"), trained)

    return run


def lora(**changes):
    return METHODS["lora"](**{"rank": 2, "alpha": 8.0, **changes})


def test_the_adapter_takes_the_place_of_a_new_one(start, tmp_path):
    base = start(lora(), lora(dropout_rate=0.5))  # Only training reads the dropout.
    saved = load_adapter(tmp_path / "run/adapter").tree
    assert base.identity["initial_adapter"] == fingerprint(saved)
    flat, expected = (traverse_util.flatten_dict(tree) for tree in (base.adapter.tree, saved))
    assert flat.keys() == expected.keys()
    assert all(np.array_equal(flat[name], expected[name]) for name in flat)


def test_an_adapter_fills_its_part_of_several(start):
    """As PT-PEFT does: a trained prefix, then the prefix with LoRA beside it."""
    both = METHODS["compose"](parts=(METHODS["translation"](), lora()))
    base = start(lora(), both)
    batches = types.SimpleNamespace(tasks=("mini_sst2",), vocabulary=None)
    rule = optimizers.per_module(optax.sgd(0.1), both)
    mesh = sharding.make_mesh()
    with sharding.on_mesh(mesh):
        state = setup.initial_state(base, both, batches, rule, 0, mesh, sharding.WHOLE, "float32")
    found = traverse_util.flatten_dict(jax.device_get(state.trainable), sep="/")
    saved = traverse_util.flatten_dict(base.adapter.tree, sep="/")
    assert found.keys() == {*saved, "encoder/translation/bias"}
    assert all(np.array_equal(found[name], saved[name]) for name in saved)


@pytest.mark.parametrize(("rank", "said"), [(4, False), (2000, True)])
def test_an_adapter_larger_than_its_base_is_remarked(tiny, capsys, rank, said):
    """A slip in a rank, say."""
    config, params, _ = tiny
    base, method = setup.Base(config, params, fingerprint(params)), METHODS["adalink"](rank=rank)
    batches = types.SimpleNamespace(tasks=("mini_sst2",), vocabulary=None)
    rule, mesh = optimizers.per_module(optax.sgd(0.1), method), sharding.make_mesh()
    with sharding.on_mesh(mesh):
        setup.initial_state(base, method, batches, rule, 0, mesh, sharding.WHOLE, "float32")
    text = "the adapter has more parameters than the base: is its rank meant?"
    assert (text in "".join(capsys.readouterr())) == said


@pytest.mark.parametrize(
    ("saved", "trained", "changes", "message"),
    [
        (lora(), lora(rank=3), {}, "LoRA.rank is 3, but 2 in the adapter"),
        (lora(alpha=16.0), lora(), {}, "LoRA.alpha is 8.0, but 16.0 in the adapter"),
        (lora(), lora(routes=2), {}, "LoRA.routes is 2, but 1 in the adapter"),
        (lora(), METHODS["adalink"](rank=2), {}, "of method 'lora', expected 'adalink'"),
        (lora(), METHODS["full"](), {}, "INITIAL_ADAPTER_PATH is .*, but Full trains the base"),
        (lora(), lora(), {"base_fingerprint": "a" * 64}, "another base"),
        (
            METHODS["prompt_tuning"](length=2, bottleneck=3),
            METHODS["prompt_tuning"](length=2, bottleneck=3),
            {},
            "arrays missing .*; training can .* with PromptTuning.reparameterise = False",
        ),
    ],
)
def test_another_method_setting_or_base_is_refused(start, saved, trained, changes, message):
    with pytest.raises(UserError, match=message):
        start(saved, trained, **changes)


def test_routes_are_the_tasks_in_their_order(start):
    base = start(lora(routes=2), lora(routes=2), names=("a", "b"))
    batches = types.SimpleNamespace(
        tasks=("a", "b"), name="both", vocabulary=types.SimpleNamespace(vocab_size=4)
    )
    setup.check_fit(lora(routes=2), base, batches)
    batches.tasks = ("b", "a")
    with pytest.raises(UserError, match="the routes of the adapter .* are a, b, but the tasks"):
        setup.check_fit(lora(routes=2), base, batches)


@pytest.mark.slow
def test_without_learning_training_ends_where_it_starts(mini_base, token_cache, tmp_path):
    def train(folder: str, *more: str) -> int:
        argv = ["--gin_file=experiments/mini_lora.gin", f"--gin.MODEL_DIR={tmp_path / folder}"]
        argv += [f"--gin.INITIAL_CHECKPOINT_PATH={mini_base}", "--gin.TRAIN_STEPS=2"]
        argv += ["--gin.BATCH_SIZE=4", "--gin.Evaluation.limit=4", *more]
        argv += [f"--gin.Data.cache_dir={token_cache}"]
        return gin_files.main("adalink_jax.runs.train", argv)

    first = tmp_path / "first"
    onward = (f"--gin.INITIAL_ADAPTER_PATH={first}", "--gin.MIXTURE_OR_TASK_NAME=mini_cola")
    assert train("first") == 0
    assert train("again", *onward, "--gin.LEARNING_RATE=0") == 0
    trees = [load_adapter(tmp_path / name / "adapter").tree for name in ("first", "again")]
    jax.tree.map(np.testing.assert_array_equal, *trees)
    record = json.loads(pathlib.Path(tmp_path / "again/run.json").read_text())
    assert record["base"]["initial_adapter"] == fingerprint(trees[0])
    # Set back, the run is known as finished; with a new adapter it is another run.
    assert train("again", *onward, "--gin.LEARNING_RATE=0") == 0
    assert train("again", "--gin.MIXTURE_OR_TASK_NAME=mini_cola", "--gin.TRAIN_STEPS=3") == 2
