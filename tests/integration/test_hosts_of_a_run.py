"""train.py on several hosts: one run, whatever hosts and meshes it goes through."""

import json
import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest

from adalink_jax import cli, files

ROOT = pathlib.Path(__file__).resolve().parents[2]
LOCAL = ROOT / "scripts" / "launch" / "local.sh"
TRAIN = ROOT / "scripts" / "train.py"
KILLED = ROOT / "tests" / "integration" / "killed_host.py"


@pytest.fixture
def arguments(tmp_path, mini_base):
    """The flags of a run by its name, number of steps and layout."""

    def flags(name: str, steps: int, **layout) -> list[str]:
        values = {
            "MODEL_DIR": tmp_path / name,
            "INITIAL_CHECKPOINT_PATH": mini_base,
            "TRAIN_STEPS": steps,
            "BATCH_SIZE": 8,
            "CHECKPOINT_PERIOD": 2,
            "EVAL_PERIOD": 100,
            "Periods.log_period": 1,
            "Evaluation.limit": 8,
            "Evaluation.batch_size": 8,
            # What is copied and chosen is the same on all hosts.
            **{"KEEP": "best", "PATIENCE": 9, "EMA_DECAY": 0.5, "Data.held_out": 0.1},
            **{f"Layout.{key}": value for key, value in layout.items()},
        }
        values = [f"--gin.{key}={value}" for key, value in values.items()]
        return ["--gin_file=experiments/mini_adalink.gin", *values]

    return flags


@pytest.fixture
def train(arguments, token_cache):
    """Runs the command on hosts of so many devices; returns what came of it."""

    def run(name, steps, devices=1, hosts=None, command=(TRAIN,), flags=arguments, **layout):
        started = [sys.executable, *map(str, command), *flags(name, steps, **layout)]
        environment = {
            **os.environ,
            "ADALINK_CACHE_DIR": str(token_cache),
            "PYTHONPATH": str(ROOT),
            "DEVICES": str(devices),
        }
        if hosts is None:
            environment["XLA_FLAGS"] = (
                f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
            )
        return subprocess.run(
            [str(LOCAL), str(hosts), *started] if hosts else started,
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=900,
        )

    return run


def succeeded(done: subprocess.CompletedProcess) -> str:
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def losses(folder: pathlib.Path) -> list[float]:
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [line["train/loss"] for line in lines if "train/loss" in line]


def ended_naming(
    done: subprocess.CompletedProcess,
    victim: int,
    others: tuple[int, ...],
    fate: str = "ended without a word",
) -> None:
    """All hosts ended within a minute of the victim's death or stop, and said which one it was.

    local.sh kills those that live a minute longer than the first that failed: exit code 137.
    """
    assert done.returncode != 0
    assert f"[local.sh] host {victim} ended with exit code 137" in done.stderr
    for host in others:
        pattern = rf"^\[host {host}\] error: host {victim} \(.*\) {fate}.*all hosts end$"
        assert re.search(pattern, done.stderr, re.M), done.stderr[-3000:]
        assert f"[local.sh] host {host} ended with exit code 1\n" in done.stderr


@pytest.mark.slow
def test_where_a_host_is_killed_the_others_end_and_one_host_goes_on(
    tmp_path, arguments, train, token_cache, monkeypatch, capsys
):
    ended_naming(train("moved", 4, hosts=2, command=(KILLED, "KILL", 1, 2)), victim=1, others=(0,))
    assert not (tmp_path / "moved" / "results.json").exists()
    monkeypatch.setenv("ADALINK_CACHE_DIR", str(token_cache))
    assert cli.main(["train", *arguments("moved", 4)]) == 0
    assert "going on from step 2" in capsys.readouterr().out
    assert cli.main(["train", *arguments("straight", 4)]) == 0
    assert len(losses(tmp_path / "straight")) == 4
    np.testing.assert_allclose(losses(tmp_path / "moved"), losses(tmp_path / "straight"), atol=1e-5)


ASKED = """
import sys, jax
from adalink_jax import cli
from adalink_jax.checkpoints.training_state import Store
from tests.integration.asking import ask_to_stop
save = Store.save
def save_and_ask(store, step, tree):
    save(store, step, tree)
    if jax.process_index() == 1 and step == 2:
        ask_to_stop()
Store.save = save_and_ask
sys.exit(cli.main(["train", *sys.argv[1:]]))
"""


@pytest.mark.slow
def test_a_signal_to_one_host_stops_all_after_the_same_step(tmp_path, train):
    done = train("stopped", 8, hosts=2, command=("-c", ASKED))
    for host in (0, 1):
        assert f"[host {host}] stopped at step 3; the same command goes on\n" in done.stderr
        assert f"[local.sh] host {host} ended with exit code 143\n" in done.stderr
    assert "error:" not in done.stderr and not (tmp_path / "stopped" / ".lock").exists()
    assert "[host 0] going on from step 3" in succeeded(train("stopped", 8, hosts=2))
    succeeded(train("straight", 8, hosts=2))
    for name in ("metrics.jsonl", "results.json", "adapter/adapter.safetensors"):
        stopped, straight = (tmp_path / run / name for run in ("stopped", "straight"))
        assert stopped.read_bytes() == straight.read_bytes(), name


@pytest.mark.slow
def test_hosts_hold_a_folder_together_and_a_second_run_is_refused(tmp_path, train):
    with files.held(tmp_path / "run", "MODEL_DIR"):
        done = train("run", 2, hosts=2)
    assert done.returncode != 0
    assert re.search(
        rf"^\[host 0\] error: MODEL_DIR .* by process {os.getpid()} on", done.stderr, re.M
    )
    assert "[host 1] error: host 0" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_run_goes_through_hosts_and_meshes_and_survives_a_killed_host(
    tmp_path, arguments, train, token_cache, monkeypatch, capsys
):
    """Saved on one mesh or number of hosts, it goes on with another, and with the same data."""
    monkeypatch.setenv("ADALINK_CACHE_DIR", str(token_cache))
    assert cli.main(["train", *arguments("straight", 8)]) == 0
    succeeded(train("moved", 2, devices=8, fully_sharded=True))

    # Four hosts of two devices. One dies after a checkpoint; the others end by themselves, naming
    # it.
    broken = train(
        "moved", 8, devices=2, hosts=4, command=(KILLED, "KILL", 2, 4), fully_sharded=True
    )
    ended_naming(broken, victim=2, others=(0, 1, 3))
    results = json.loads((tmp_path / "moved" / "results.json").read_text())
    assert results["step"] == 2  # Those of before: the broken run has none.

    # The same command goes on; here with two hosts of four devices, which split the matrices.
    output = succeeded(train("moved", 6, devices=4, hosts=2, model_parallelism=2))
    assert "[host 0] going on from step 4" in output
    assert "trainable" in output and "[host 1] trainable" not in output  # One of them speaks.
    assert cli.main(["train", *arguments("moved", 8)]) == 0
    assert "going on from step 6" in capsys.readouterr().out

    straight, moved = tmp_path / "straight", tmp_path / "moved"
    assert len(losses(straight)) == 8
    np.testing.assert_allclose(losses(moved), losses(straight), atol=1e-5)
    scores = [json.loads((run / "results.json").read_text())["tasks"] for run in (straight, moved)]
    assert scores[0] == scores[1]
    assert json.loads((moved / "adapter" / "adapter.json").read_text())["method"] == "adalink"


@pytest.mark.slow
def test_a_host_that_is_stopped_is_named_in_one_line(train):
    """Host 0, to which all others report; the watcher's own tests stop each host."""
    victim = 0
    done = train("stopped", 4, devices=2, hosts=2, command=(KILLED, "STOP", victim, 2))
    ended_naming(done, victim, others=(1 - victim,), fate="was stopped at .*, by a signal")
    errors = [line for line in done.stderr.splitlines() if "] error:" in line]
    assert len(errors) == 2 and "Traceback" not in done.stderr and "@ " not in done.stderr


@pytest.mark.slow
def test_hosts_that_do_not_mean_the_same_do_not_begin(tmp_path, train):
    # Each host reads its own gin file of this name.
    for host, seed in enumerate((0, 7)):
        (tmp_path / f"seed{host}.gin").write_text(f"SEED = {seed}\n")
    command = ["bash", "-c", f'exec "$@" --gin_file={tmp_path}/seed$JAX_PROCESS_ID.gin', "-"]
    done = subprocess.run(
        [str(LOCAL), "2", *command, sys.executable, str(TRAIN)]
        + ["--gin_file=experiments/mini_adalink.gin", f"--gin.MODEL_DIR={tmp_path / 'run'}"]
        + ["--gin.INITIAL_CHECKPOINT_PATH=nowhere"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 2
    assert "host 1" in done.stderr and "has another configuration than host 0" in done.stderr
    assert "seed is 7 there and 0 here" in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_two_hosts_see_what_one_sees(tmp_path, train, token_cache, monkeypatch, capsys):
    """Both want the features of the same pictures; one waits while the other computes them."""

    def flags(name: str, steps: int) -> list[str]:
        values = {
            "MODEL_DIR": tmp_path / name,
            "INITIAL_CHECKPOINT_PATH": "mini_images",
            "TRAIN_STEPS": steps,
            "BATCH_SIZE": 8,
            "EVAL_PERIOD": 100,
            "Periods.log_period": 1,
            "Batches.few_shot": 40,
            "Evaluation.limit": 8,
            "Evaluation.batch_size": 8,
        }
        given = [f"--gin.{key}={value}" for key, value in values.items()]
        files = ("experiments/mini_images.gin", "methods/adalink_by_modality.gin")
        return [*(f"--gin_file={file}" for file in files), *given]

    succeeded(train("two", 4, hosts=2, flags=flags))
    monkeypatch.setenv("ADALINK_CACHE_DIR", str(token_cache))
    assert cli.main(["train", *flags("one", 4)]) == 0
    said = capsys.readouterr()
    assert "pictures to encode" not in said.out + said.err  # They are those of the hosts.
    one, two = tmp_path / "one", tmp_path / "two"
    assert len(losses(one)) == 4
    np.testing.assert_allclose(losses(two), losses(one), atol=1e-5)
    said = [(run / "predictions/mini_coco-validation.jsonl").read_bytes() for run in (one, two)]
    assert said[0] == said[1]
