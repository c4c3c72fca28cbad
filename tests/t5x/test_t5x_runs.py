"""T5X's own train, eval and the shipped gin files, on GLUE's RTE and a tiny base."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from adalink_jax.checkpoints import fingerprint, load_adapter, load_base
from adalink_jax.config.gin_files import gin_folder
from adalink_jax.methods import METHODS

pytestmark = [pytest.mark.usefixtures("t5x"), pytest.mark.slow]

# A method has a gin file here where somebody trains it inside T5X.
OF_METHODS = [n for n in METHODS if (gin_folder() / f"t5x/methods/{n}.gin").is_file()]
ROOT = pathlib.Path(__file__).resolve().parents[2]
START = 1_000_000
LENGTHS = "{'inputs': 64, 'targets': 8}"
TINY = {
    "dtype": "'float32'",
    "emb_dim": 16,
    "num_heads": 2,
    "num_encoder_layers": 2,
    "num_decoder_layers": 2,
    "head_dim": 8,
    "mlp_dim": 32,
}
MIXTURE = """
import seqio
import tasks
seqio.MixtureRegistry.add("rte_and_mrpc", ["glue_rte", "glue_mrpc"], default_rate=1.0)
"""


@pytest.fixture(scope="module")
def base(t5x, tmp_path_factory) -> pathlib.Path:
    """A tiny T5 1.1 as T5X's native checkpoint, with optimizer state, at step 1,000,000."""
    import flax
    import jax
    import jax.numpy as jnp
    from t5x import adafactor, checkpoints, partitioning, train_state
    from t5x.examples.t5 import network

    sizes = {key: value for key, value in TINY.items() if key != "dtype"}
    config = network.T5Config(
        vocab_size=32128, mlp_activations=("gelu", "linear"), dropout_rate=0.0, **sizes
    )
    tokens = jnp.ones((1, 2), jnp.int32)
    variables = network.Transformer(config).init(
        jax.random.key(0), tokens, tokens, tokens, enable_dropout=False
    )
    rules = adafactor.standard_logical_factor_rules()
    optimizer = adafactor.Adafactor(logical_factor_rules=rules)
    state = train_state.FlaxOptimTrainState.create(optimizer, flax.core.freeze(variables))
    state = state.replace_step(jnp.asarray(START, jnp.int32))
    folder = tmp_path_factory.mktemp("base")
    partitioner = partitioning.PjitPartitioner(num_partitions=1)
    checkpoints.Checkpointer(state, partitioner, str(folder)).save(state)
    return folder / f"checkpoint_{START}"


@pytest.fixture(scope="module")
def launch(shared_data, tmp_path_factory):
    """Runs one of T5X's scripts with our gin files: (script, method, bindings) -> the process."""
    modules = tmp_path_factory.mktemp("modules")
    (modules / "user_mixture.py").write_text(MIXTURE)
    sizes = "\n".join(f"network.T5Config.{key} = {value}" for key, value in TINY.items())
    imports = "from __gin__ import dynamic_registration\n"
    imports += "import user_mixture\nfrom t5x.examples.t5 import network\n"
    (modules / "tiny.gin").write_text(imports + sizes + "\n")
    environment = os.environ | {
        "GLUE_DIR": str(shared_data / "glue"),
        "VOCABULARY": str(shared_data / "vocab" / "spiece.model"),
        "PYTHONPATH": f"{ROOT}{os.pathsep}{modules}",
    }

    def run(script: str, method: str, **bindings) -> subprocess.CompletedProcess:
        run_file = {"train": "finetune"}.get(script, script)
        files = ["t5x/examples/t5/t5_1_1/base.gin", str(modules / "tiny.gin")]
        files += [f"t5x/methods/{method}.gin", f"t5x/runs/{run_file}.gin", "t5x/tasks/glue.gin"]
        command = [sys.executable, "-m", f"t5x.{script}", f"--gin_search_paths={gin_folder()}"]
        command += [f"--gin_file={name}" for name in files]
        command += [f"--gin.{key.replace('__', '.')}={value}" for key, value in bindings.items()]
        return subprocess.run(
            command, cwd=modules, env=environment, capture_output=True, text=True, timeout=900
        )

    return run


@pytest.fixture(scope="module")
def trained(launch, base, tmp_path_factory):
    """Trains a method for a few steps: (method, steps) -> MODEL_DIR."""
    folders = {}

    def run(method: str, steps: int = 4, task: str = "glue_rte", **more) -> pathlib.Path:
        key = (method, task)
        folder = folders.setdefault(key, tmp_path_factory.mktemp(f"{method}_{task}"))
        if (folder / f"checkpoint_{START + steps}").is_dir():
            return folder
        done = launch(
            "train",
            method,
            MODEL_DIR=repr(str(folder)),
            MIXTURE_OR_TASK_NAME=repr(task),
            TASK_FEATURE_LENGTHS=LENGTHS,
            INITIAL_CHECKPOINT_PATH=repr(str(base)),
            TRAIN_STEPS=START + steps,
            BATCH_SIZE=8,
            EVAL_PERIOD=2,
            EVAL_STEPS=1,
            RANDOM_SEED=0,
            EVALUATOR_NUM_EXAMPLES=8,
            **{
                "utils__SaveCheckpointConfig__period": 2,
                "train/utils__DatasetConfig__seed": 0,
                "infer_eval/utils__DatasetConfig__task_feature_lengths": LENGTHS,
                "infer_eval/utils__DatasetConfig__batch_size": 8,
            },
            **more,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return folder

    return run


def parameters(checkpoint: pathlib.Path) -> dict:
    """What a checkpoint of T5X holds, by name."""
    from flax import traverse_util
    from t5x import checkpoints

    state = checkpoints.load_t5x_checkpoint(str(checkpoint))
    flat = traverse_util.flatten_dict(state["target"], sep="/")
    return {name: np.asarray(value) for name, value in flat.items()}


def scores(folder: pathlib.Path, task: str) -> list[dict]:
    (path,) = folder.rglob(f"{task}-metrics.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]


def predictions(folder: pathlib.Path, task: str, step: int) -> list:
    (path,) = folder.rglob(f"{task}-{step:06}.jsonl")
    return [json.loads(line)["prediction"] for line in path.read_text().splitlines()]


@pytest.mark.parametrize("name", OF_METHODS)
def test_training_changes_the_methods_parameters_alone(name, trained, base):
    from flax import traverse_util

    folder = trained(name)
    before = traverse_util.flatten_dict(load_base(base)[1], sep="/")
    after = parameters(folder / f"checkpoint_{START + 4}")
    first = parameters(folder / f"checkpoint_{START}")
    own = {n for n in after if name != "full" and METHODS[name].scope in n.split("/")}
    assert after.keys() - own == before.keys()
    for n in before.keys():
        same = np.array_equal(after[n], before[n])
        assert same is (name != "full") or n.endswith("scale"), n
        assert np.array_equal(first[n], before[n]), n
    assert all(not np.array_equal(after[n], first[n]) for n in own) and bool(own) is (
        name != "full"
    )
    evaluated = scores(folder, "glue_rte")
    assert [entry["step"] for entry in evaluated] == [START + 2, START + 4]
    assert all(0 <= entry["accuracy"] <= 100 for entry in evaluated)
    assert (folder / "adapter").is_dir() is (name != "full")


@pytest.mark.parametrize("name", [name for name in OF_METHODS if name != "full"])
def test_the_adapter_beside_the_checkpoints_is_this_projects(name, trained, base, tmp_path):
    """Bit for bit what the checkpoint holds, exported, and it knows its base."""
    from adalink_jax.methods.base import split
    from adalink_jax.t5x.checkpoints import extract_adapter, stored_method

    folder = trained(name)
    found = load_adapter(
        folder / "adapter",
        architecture=load_base(base)[0],
        base_fingerprint=fingerprint(load_base(base)[1]),
        method_name=name,
    )
    assert found.metadata == {"t5x_step": START + 4, "data": {"name": "glue_rte"}}
    assert stored_method(str(folder)).scope == name
    if name != "prompt_tuning":  # Its stored form has the re-parameterisation folded in.
        checkpoint = folder / f"checkpoint_{START + 4}"
        method = stored_method(str(folder))
        extract_adapter(str(checkpoint), method, str(tmp_path), "glue_rte")
        for file in ("adapter.safetensors", "adapter.json"):
            assert (tmp_path / "adapter" / file).read_bytes() == (
                folder / "adapter" / file
            ).read_bytes()
        assert split(found.tree, method)[1] == {}


@pytest.mark.parametrize("name", ["adalink", "prompt_tuning"])
def test_eval_scores_a_checkpoint_and_the_stored_adapter_alike(
    name, trained, launch, base, tmp_path
):
    """The base with the adapter's folder gives the outputs of the whole checkpoint."""
    folder = trained(name)
    common = {
        "MIXTURE_OR_TASK_NAME": "'glue_rte'",
        "TASK_FEATURE_LENGTHS": LENGTHS,
        "utils__DatasetConfig__split": "'validation'",
        "seqio__Evaluator__num_examples": 24,
    }
    whole, stored = tmp_path / "whole", tmp_path / "stored"
    done = launch(
        "eval",
        name,
        CHECKPOINT_PATH=repr(str(folder / f"checkpoint_{START + 4}")),
        EVAL_OUTPUT_DIR=repr(str(whole)),
        **common,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    done = launch(
        "eval",
        "stored",
        CHECKPOINT_PATH=repr(str(base)),
        EVAL_OUTPUT_DIR=repr(str(stored)),
        ADAPTER_PATH=repr(str(folder)),
        **common,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert 0 <= scores(whole, "glue_rte")[0]["accuracy"] <= 100
    found = predictions(stored, "glue_rte", START)
    assert found == predictions(whole, "glue_rte", START + 4) and len(found) == 24


def test_a_stopped_run_goes_on(trained):
    folder = trained("adalink")
    before = parameters(folder / f"checkpoint_{START + 4}")
    trained("adalink", 6)
    after = parameters(folder / f"checkpoint_{START + 6}")
    moved = {name for name in after if not np.array_equal(after[name], before[name])}
    assert moved == {"encoder/adalink/down", "encoder/adalink/up"}
    # The rate is 0.001, so an adapter that began anew would differ by more than two steps.
    assert all(np.abs(after[name] - before[name]).max() < 0.02 for name in moved)
    assert load_adapter(folder / "adapter").metadata["t5x_step"] == START + 6


def test_a_mixture_trains_each_tasks_module_in_packed_rows(trained):
    folder = trained("adalink", task="rte_and_mrpc", ROUTES=2)
    adapter = load_adapter(folder / "adapter")
    assert adapter.route_names == ("glue_mrpc", "glue_rte")
    up = adapter.tree["encoder"]["adalink"]["up"]
    assert up.shape[0] == 2 and all(np.abs(module).max() > 0 for module in up)
    assert not np.array_equal(*up)
    for k, task in enumerate(adapter.route_names):
        assert 0 <= scores(folder, f"{task}.route_{k}")[-1]["accuracy"] <= 100


def test_adapters_of_either_runner_score_in_the_other(trained, launch, base, shared_data, tmp_path):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    given = [
        f"--gin.GLUE_DIR={shared_data / 'glue'}",
        f"--gin.VOCABULARY={shared_data / 'vocab' / 'spiece.model'}",
        f"--gin.INITIAL_CHECKPOINT_PATH={base}",
        "--gin.MIXTURE_OR_TASK_NAME=glue_rte",
        f"--gin.TASK_FEATURE_LENGTHS={LENGTHS}",
    ]

    def ours(script: str, *flags: str) -> None:
        command = [sys.executable, str(ROOT / "scripts" / script), *flags, *given]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]

    # T5X's in this project's runner, and this project's in T5X.
    ours(
        "eval.py",
        "--gin_file=runs/eval.gin",
        f"--gin.ADAPTER_PATH={trained('adalink')}",
        f"--gin.EVAL_OUTPUT_DIR={tmp_path / 'ours'}",
        "--gin.Evaluation.limit=16",
    )
    results = json.loads((tmp_path / "ours" / "results.json").read_text())
    assert "accuracy" in json.dumps(results)
    ours(
        "train.py",
        "--gin_file=experiments/glue_adalink.gin",
        f"--gin.MODEL_DIR={tmp_path / 'run'}",
        "--gin.TRAIN_STEPS=2",
        "--gin.Evaluation.limit=8",
    )
    done = launch(
        "eval",
        "stored",
        CHECKPOINT_PATH=repr(str(base)),
        EVAL_OUTPUT_DIR=repr(str(tmp_path / "theirs")),
        ADAPTER_PATH=repr(str(tmp_path / "run")),
        MIXTURE_OR_TASK_NAME="'glue_rte'",
        TASK_FEATURE_LENGTHS=LENGTHS,
        utils__DatasetConfig__split="'validation'",
        seqio__Evaluator__num_examples=8,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert 0 <= scores(tmp_path / "theirs", "glue_rte")[0]["accuracy"] <= 100


def test_a_base_without_an_adapter_is_not_scored_as_one(launch, base, tmp_path):
    done = launch(
        "eval",
        "adalink",
        CHECKPOINT_PATH=repr(str(base)),
        EVAL_OUTPUT_DIR=repr(str(tmp_path)),
        MIXTURE_OR_TASK_NAME="'glue_rte'",
        TASK_FEATURE_LENGTHS=LENGTHS,
        utils__DatasetConfig__split="'validation'",
        seqio__Evaluator__num_examples=8,
    )
    assert done.returncode != 0
    assert "lacks 2 arrays of the adapter; give ADAPTER_PATH" in done.stderr


def test_infer_writes_outputs_of_a_stored_adapter(trained, launch, base, tmp_path):
    done = launch(
        "infer",
        "stored",
        CHECKPOINT_PATH=repr(str(base)),
        INFER_OUTPUT_DIR=repr(str(tmp_path)),
        ADAPTER_PATH=repr(str(trained("adalink"))),
        MIXTURE_OR_TASK_NAME="'glue_rte'",
        TASK_FEATURE_LENGTHS=LENGTHS,
        utils__DatasetConfig__split="'validation'",
        utils__RestoreCheckpointConfig__dtype="'float32'",
        infer__mode="'score'",
    )
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [line for path in tmp_path.glob("*.jsonl*") for line in path.read_text().splitlines()]
    assert len(lines) == 277 and all(json.loads(line)["score"] < 0 for line in lines)
