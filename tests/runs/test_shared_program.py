"""Runs of one process share the traced step where they make the same one, and only there."""

import jax
import pytest

from adalink_jax.config import gin_files
from adalink_jax.errors import UserError
from adalink_jax.runs import training
from adalink_jax.tools.sweep import pool


@pytest.fixture
def same(monkeypatch, tmp_path, mini_base, token_cache):
    """Starts a run with some flags, up to its first step; returns what says its step's program."""
    runs = []

    def compiled(step_of, state, seed, rate, same):
        runs.append((same, rate))
        raise UserError("far enough")

    def start(*flags):
        usual = (
            f"INITIAL_CHECKPOINT_PATH={mini_base}",
            f"Data.cache_dir={token_cache}",
            "TRAIN_STEPS=9",
        )
        flags = [f"--gin.{flag}" for flag in (*usual, *flags)]
        folder = f"--gin.MODEL_DIR={tmp_path}/{len(runs)}"
        files = ["--gin_file=experiments/mini_adalink.gin", "--gin_file=optimizers/adamw.gin"]
        gin_files.main("adalink_jax.runs.train", [*files, *flags, folder])
        return runs[-1]

    monkeypatch.setattr(training, "compiled", compiled)
    return start


def test_the_step_of_another_seed_rate_or_task_is_the_same(same):
    first = same("SEED=0", "LEARNING_RATE=0.1", "MIXTURE_OR_TASK_NAME=mini_rte")
    other = same("SEED=1", "LEARNING_RATE=0.2", "MIXTURE_OR_TASK_NAME=mini_cola", "BATCH_SIZE=8")
    assert first[0] == other[0]
    assert first[1].func == other[1].func and first[1].args != other[1].args


@pytest.mark.parametrize(
    "flags",
    [
        ["RANK=3"],
        ["DROPOUT_RATE=0.3"],
        ["optimizers.adamw.weight_decay=0.3"],
        ["OPTIMIZER=@optimizers.sgd"],
        ["Loss.label_smoothing=0.1"],
        ["Batches.gradient_accumulation_steps=2"],
        ["train.clip_norm=1.0"],
        ["train.ema_decay=0.9"],
        ["Layers.remat='full'"],
        ["Layout.fully_sharded=True"],
        ["Precision.dtype='bfloat16'"],
    ],
    ids=" ".join,
)
def test_the_step_of_another_setting_is_another(same, flags):
    assert same()[0] != same(*flags)[0]


def test_another_schedule_is_another_program(same):
    plain, falling = (
        same(),
        same("optimizers.factors.factors='linear_decay'", "optimizers.factors.decay_steps=9"),
    )
    assert plain[0] == falling[0] and plain[1].func != falling[1].func


@pytest.mark.slow
def test_a_run_after_another_in_its_process_ends_with_the_bytes_of_one_alone(
    tmp_path, mini_base, token_cache
):
    def train(name, seed):
        flags = [
            "--gin_file=experiments/mini_adalink.gin", f"--gin.INITIAL_CHECKPOINT_PATH={mini_base}",
            f"--gin.Data.cache_dir={token_cache}", f"--gin.MODEL_DIR={tmp_path / name}",
            f"--gin.SEED={seed}", "--gin.TRAIN_STEPS=5", "--gin.Evaluation.limit=8",
        ]  # fmt: skip
        code, said = pool.captured("train", "adalink_jax.runs.train", flags)
        assert code == 0, said
        return (tmp_path / name / "adapter/adapter.safetensors").read_bytes()

    train("other", seed=0)
    after = train("after", seed=1)
    jax.clear_caches()
    assert train("alone", seed=1) == after
