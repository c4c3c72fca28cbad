"""Made-up runs in folders, with the records and files that training and evaluation write."""

import json

import numpy as np

from adalink_jax import files
from adalink_jax.methods import METHODS
from adalink_jax.models.t5 import T5Config
from adalink_jax.tools.cost.counts import stored_parameters

ARCHITECTURE = {
    "vocab_size": 32, "emb_dim": 8, "num_heads": 2, "num_encoder_layers": 2,
    "num_decoder_layers": 1, "head_dim": 4, "mlp_dim": 16, "mlp_activations": ["gelu", "linear"],
    "logits_via_embedding": False, "separate_encoder_embedding": False,
    "relpos_bias_per_layer": False,
}  # fmt: skip
CONFIG = T5Config(**{**ARCHITECTURE, "mlp_activations": ("gelu", "linear")})
FINGERPRINT = "abcdef0123456789"
LABELS = ("no", "yes")


def score(method, settings, mixture_size, task, seed):
    """Any number that depends on all of them."""
    size = settings.get("rank", settings.get("length", 50))
    return 50 + 3 * size + 7 * "abc".index(task[-1]) - 2 * mixture_size + seed + len(method) / 10


def configuration(seed=0, base="bases/tuned", rate=0.01, **changed):
    """What run.json says of a training's settings, without its method."""
    return {
        "batch_size": 4, "cache_dir": None, "checkpoint_period": 10, "devices": None,
        "dropout_rate": 0.0, "dtype": "float32", "eval_batch_size": 64, "eval_limit": None,
        "eval_period": 10, "evaluation_mode": "rank_classification", "few_shot": None,
        "initial_checkpoint_path": base, "keep_checkpoints": 1, "label_smoothing": 0.0,
        "learning_rate": {"@": "optimizers.factors", "base_learning_rate": rate},
        "optimizer": {"@partial": "training.optimizers.adafactor", "factored": False},
        "remat": "none", "seed": seed, "train_steps": 30, "z_loss": 1e-4,
    } | changed  # fmt: skip


def write_run(
    folder, method, settings, tasks, seed, scores=None, steps=30, splits=None, data="d", **changed
):
    """Writes a finished run's files.

    Args:
      scores: {task: score}; by default `score`'s.
      splits: {task: {split: a split's entry in results.json}}.
      data: stands for what the tasks' examples are.
      changed: settings of `configuration`; also "time" of the start, and "name" of the mixture.
    """
    tasks, time = list(tasks), changed.pop("time", f"2026-01-01T00:00:{seed:02}+00:00")
    scores = scores or {task: score(method, settings, len(tasks), task, seed) for task in tasks}
    name = changed.pop("name", tasks[0] if len(tasks) == 1 else "mini_mixture")
    splits = splits or {t: _splits({f"f1_{t}": s / 2}) for t, s in scores.items()}
    few = changed.get("few_shot")
    chosen = {} if few is None else {"few_shot": {"of": 90, "seed": seed}, "examples": few}
    _write(
        folder,
        {
            "run.json": {
                "base": {"fingerprint": FINGERPRINT, "architecture": ARCHITECTURE},
                "configuration": configuration(seed, **changed)
                | {"model_dir": str(folder), "mixture_or_task_name": name},
                "data": {
                    "name": name,
                    "lengths": {"inputs": 16, "targets": 4},
                    "tasks": [
                        {"name": task, "sha256": f"{data}{seed if few else ''}"} | chosen
                        for task in tasks
                    ],
                },
                "starts": [
                    {
                        "command": f"scripts/train.py --gin.SEED={seed} | tee <log>",
                        "seconds": 20 + seed, "time": time, "versions": {"jax": "0.10.2"},
                    }
                ],
            },
            "results.json": {
                "step": steps,
                "tasks": {
                    t: {"score": s, "splits": splits[t]} for t, s in scores.items()
                },
            },
            "adapter/adapter.json": {
                "method": method, "settings": settings, "architecture": ARCHITECTURE,
                "tensors": {
                    "all": {"shape": [stored_parameters(CONFIG, METHODS[method](**settings))]}
                },
            },
        },
    )  # fmt: skip
    (folder / "adapter" / "adapter.safetensors").write_bytes(b"x" * 321)
    lines = [
        {"step": step, **{f"eval/{t}/score": s - 30 + step for t, s in scores.items()}}
        for step in (10, 20, 30)
    ]
    text = "\n".join(json.dumps(line) for line in [{"step": 5, "train/loss": 1.0}, *lines])
    (folder / "metrics.jsonl").write_text(text + "\n")
    seal(folder)


def write_evaluation(folder, adapter_path, in_context=0, tasks=("mini_a", "mini_b", "mini_c")):
    """Writes what ``adalink eval`` does, of a base or an adapter."""
    record = {
        "base": {"fingerprint": FINGERPRINT},
        "configuration": {
            "adapter_path": adapter_path, "initial_checkpoint_path": "bases/tuned", "seed": 0,
            "in_context": in_context, "output_dir": str(folder),
        },
        "data": {"name": "mini_mixture"},
        "starts": [{"command": "scripts/eval.py"}],
    }  # fmt: skip
    results = {t: {"score": 40.0 + in_context, "splits": _splits({})} for t in tasks}
    _write(folder, {"run.json": record, "results.json": {"tasks": results}})
    seal(folder)


def seal(folder):
    """Writes run.json again with what its files hold, as a run does when it ends."""
    record = json.loads((folder / "run.json").read_text())
    record = {name: part for name, part in record.items() if name not in ("files", files._SEAL)}
    paths = [folder / name for name in ("results.json", "metrics.jsonl")]
    below = [*folder.glob("adapter/*"), *folder.glob("predictions/*")]
    paths = [path for path in (*paths, *below) if path.exists()]
    digests = {path.relative_to(folder).as_posix(): files.digest(path) for path in paths}
    files.write_sealed(folder / "run.json", {**record, "files": digests})


def _splits(metrics):
    return {"validation": {"metrics": metrics, "examples": 10}}


def _write(folder, contents):
    for name, content in contents.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))


def write_predictions(folder, task, targets, predictions, metrics, labels=LABELS):
    """Writes a run's predictions of one task, and its metrics in percent into results.json."""
    path = folder / "predictions" / f"{task}-validation.jsonl"
    path.parent.mkdir(exist_ok=True)
    lines = [
        {"index": i, "inputs": f"text\u2028{i}", "target": target, "prediction": prediction,
         "scores": dict.fromkeys(labels, -1.0)}
        for i, (target, prediction) in enumerate(zip(targets, predictions, strict=True))
    ]  # fmt: skip
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    results = json.loads((folder / "results.json").read_text())
    entry = {"metrics": metrics, "examples": len(lines), "truncated_inputs": 0}
    score = float(np.mean(list(metrics.values())))
    results["tasks"][task] = {"score": score, "splits": {"validation": entry}}
    (folder / "results.json").write_text(json.dumps(results))
    seal(folder)
