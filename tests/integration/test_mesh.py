"""Meshes and processes change no loss."""

import json
import os
import pathlib
import socket
import subprocess
import sys

import numpy as np
import pytest

SCRIPT = pathlib.Path(__file__).with_name("mesh_losses.py")


def start(devices: int, *meshes: str, **environment: str) -> subprocess.Popen:
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), *meshes],
        env={**os.environ, "PYTHONPATH": str(SCRIPT.parents[2]), "XLA_FLAGS": flags, **environment},
        cwd=SCRIPT.parents[2],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def result_of(process: subprocess.Popen) -> dict:
    output, errors = process.communicate(timeout=1500)
    assert process.returncode == 0, errors[-3000:]
    return json.loads(output.splitlines()[-1])


@pytest.fixture(scope="module")
def one_device() -> dict:
    return result_of(start(1, "1x1"))["1x1"]


def assert_same(found: dict, one_device: dict) -> None:
    for mesh, methods in found.items():
        for name, losses in methods.items():
            np.testing.assert_allclose(
                losses, one_device[name], atol=1e-5, rtol=0, err_msg=f"{name} on {mesh}"
            )


def test_a_mesh_gives_the_losses_of_one_device():
    """Slices, data-parallel, fully sharded and tensor-parallel at once."""
    found = result_of(start(8, "1x1", "2x2x2f", METHODS="adalink full"))
    assert_same(found, found["1x1"])
    full = found["1x1"]["full"]
    assert full[-1] < full[0]  # It is training that is compared.


@pytest.mark.slow
def test_meshes_give_the_losses_of_one_device(one_device):
    # Fully sharded and tensor-parallel; and data-parallel, as which nothing is split.
    assert_same(result_of(start(8, "4x2f")), one_device)
    assert_same(result_of(start(8, "8x1", METHODS="lora")), one_device)


@pytest.mark.slow
def test_a_base_in_int8_is_the_same_on_a_mesh():
    """Its scales are of whole columns, which fully sharded kernels are parts of."""
    found = result_of(start(8, "1x1", "4x2f", METHODS="adalink", FROZEN_DTYPE="int8"))
    assert_same(found, found["1x1"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("hosts", "mesh", "methods"),
    [(2, "2x4", "adalink dora prefix_tuning"), (4, "8x1f", "adalink full")],
)
def test_hosts_give_the_losses_of_one_device(one_device, hosts, mesh, methods):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    processes = [
        start(
            8 // hosts,
            mesh,
            JAX_COORDINATOR_ADDRESS=address,
            JAX_NUM_PROCESSES=str(hosts),
            JAX_PROCESS_ID=str(index),
            METHODS=methods,
        )
        for index in range(hosts)
    ]
    for found in map(result_of, processes):
        assert found[mesh].keys() == set(methods.split())
        assert_same(found, one_device)
