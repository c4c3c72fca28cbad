"""train.py as two hosts: one run, the numbers of one host."""

import json
import os
import pathlib
import socket
import subprocess
import sys

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]


def start(folder, base, cache, **environment: str) -> subprocess.Popen:
    flags = {
        "MODEL_DIR": folder,
        "INITIAL_CHECKPOINT_PATH": base,
        "TRAIN_STEPS": 4,
        "BATCH_SIZE": 4,
        "CHECKPOINT_PERIOD": 2,
        "runs.train.log_period": 1,
        "runs.train.eval_limit": 8,
        "runs.train.eval_batch_size": 8,
    }
    return subprocess.Popen(
        [
            sys.executable,
            str(ROOT / "scripts" / "train.py"),
            "--gin_file=experiments/mini_adalink.gin",
            *(f"--gin.{name}={value}" for name, value in flags.items()),
        ],
        env={**os.environ, "ADALINK_CACHE_DIR": str(cache), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finished(process: subprocess.Popen) -> str:
    output, errors = process.communicate(timeout=900)
    assert process.returncode == 0, errors[-3000:]
    return output


def losses(folder: pathlib.Path) -> list[float]:
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [line["train/loss"] for line in lines if "train/loss" in line]


@pytest.mark.slow
def test_two_hosts_train_as_one(tmp_path, mini_base, token_cache):
    one = tmp_path / "one"
    finished(start(one, mini_base, token_cache))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    hosts = [
        start(
            tmp_path / "two",
            mini_base,
            token_cache,
            JAX_COORDINATOR_ADDRESS=address,
            JAX_NUM_PROCESSES="2",
            JAX_PROCESS_ID=str(index),
        )
        for index in range(2)
    ]
    outputs = [finished(host) for host in hosts]
    assert "trainable" in outputs[0] and "trainable" not in outputs[1]  # One of them speaks.
    two = tmp_path / "two"
    assert len(losses(two)) == 4
    np.testing.assert_allclose(losses(two), losses(one), rtol=1e-5)
    assert json.loads((two / "adapter" / "adapter.json").read_text())["method"] == "adalink"
    scores = [json.loads((run / "results.json").read_text())["tasks"] for run in (one, two)]
    assert scores[0] == scores[1]
