"""Meshes and processes change no result."""

import json
import os
import pathlib
import socket
import subprocess
import sys

import numpy as np
import pytest

SCRIPT = pathlib.Path(__file__).with_name("mesh_evaluation.py")


def start(devices: int, *meshes: str, **environment: str) -> subprocess.Popen:
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), *meshes],
        env={**os.environ, "XLA_FLAGS": flags, "PYTHONPATH": ".", **environment},
        cwd=SCRIPT.parents[2],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def result_of(process: subprocess.Popen) -> dict:
    output, errors = process.communicate(timeout=540)
    assert process.returncode == 0, errors[-3000:]
    return json.loads(output.splitlines()[-1])


def assert_same(found: dict, expected: dict) -> None:
    assert found.keys() == expected.keys()
    for mode, result in expected.items():
        assert found[mode]["metrics"] == result["metrics"]
        assert found[mode]["predictions"] == result["predictions"]
        for scores, others in zip(found[mode]["scores"], result["scores"], strict=True):
            np.testing.assert_allclose(scores, others, rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def meshes() -> dict:
    """What meshes of the devices of one process find, one device among them."""
    return result_of(start(8, "1x1", "2x4"))


@pytest.fixture(scope="module")
def one_device(meshes) -> dict:
    result = meshes["1x1"]
    assert len({str(s) for s in result["rank_classification"]["scores"]}) == 19
    assert len(set(result["beam"]["predictions"])) > 1
    return result


@pytest.mark.slow
def test_a_mesh_finds_what_one_device_finds(meshes, one_device):
    assert_same(meshes["2x4"], one_device)


@pytest.mark.slow
def test_a_row_for_each_device_finds_what_one_device_finds(one_device):
    found = result_of(start(8, "8x1", MODES="rank_classification beam"))["8x1"]
    assert_same(found, {mode: one_device[mode] for mode in found})


@pytest.mark.slow
def test_two_processes_find_what_one_device_finds(one_device):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    processes = [
        start(
            4,
            "4x2",
            JAX_COORDINATOR_ADDRESS=address,
            JAX_NUM_PROCESSES="2",
            JAX_PROCESS_ID=str(index),
        )
        for index in range(2)
    ]
    for found in map(result_of, processes):
        assert_same(found["4x2"], one_device)
