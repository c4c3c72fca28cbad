"""How hosts find their places, compare themselves, and end together."""

import os
import pathlib
import socket
import subprocess
import sys

import pytest

from adalink_jax.distributed import hosts
from adalink_jax.errors import UserError

VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (("node:1", "two", "0"), "JAX_NUM_PROCESSES is 'two' and .* must be whole numbers"),
        (("node:1", "2", None), "--process_index.*; JAX_PROCESS_ID is not set"),
        ((None, "2", "0"), "--coordinator_address.*; JAX_COORDINATOR_ADDRESS is not set"),
        (("node:1", "2", "2"), "JAX_PROCESS_ID is 2; with JAX_NUM_PROCESSES=2 it must be from 0"),
        (("node", "2", "0"), "JAX_COORDINATOR_ADDRESS is 'node'; it must be like"),
        (("node:65536", "2", "0"), "JAX_COORDINATOR_ADDRESS is 'node:65536'; it must be like"),
        (("node:²", "2", "0"), "JAX_COORDINATOR_ADDRESS is 'node:²'; it must be like"),
        (("node:1", "2" * 5000, "0"), "JAX_NUM_PROCESSES is '2222.* must be whole numbers"),
        (("node:1", "2", "²"), "JAX_PROCESS_ID '²'; both must be whole numbers"),
    ],
)
def test_a_host_that_is_not_well_described(monkeypatch, values, expected):
    for name, value in zip(VARIABLES, values, strict=True):
        if value is not None:
            monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=expected), hosts.joined():
        raise AssertionError("nothing was joined")


@pytest.mark.parametrize("limit", ["soon", "nan", "1e999", "-1"])
def test_a_limit_that_is_no_number(monkeypatch, limit):
    for name, value in zip(VARIABLES, ("127.0.0.1:1", "2", "0"), strict=True):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("ADALINK_HOSTS_WAIT_SECONDS", limit)
    with (
        pytest.raises(UserError, match=f"ADALINK_HOSTS_WAIT_SECONDS is '{limit}'"),
        hosts.joined(),
    ):
        raise AssertionError("nothing was joined")


def test_one_host_needs_no_other(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    with hosts.joined():
        hosts.agree(code={"version": 1})
        assert hosts.gather("x") == ["x"]


def test_hosts_of_a_slurm_job(monkeypatch):
    for name, value in {
        "SLURM_JOB_ID": "4096",
        "SLURM_STEP_NODELIST": "gpu[07,09]",
        "SLURM_NTASKS": "16",
        "SLURM_PROCID": "9",
        "SLURM_LOCALID": "1",
    }.items():
        monkeypatch.setenv(name, value)
    # JAX's port: 2^12 of the highest, by the number of the job.
    assert hosts._place() == (f"gpu07:{65535 - 2**12 + 1}", 16, 9)


def test_hosts_of_a_tpu_slice_under_gke(monkeypatch):
    from jax._src.clusters import cloud_tpu_cluster

    monkeypatch.setattr(cloud_tpu_cluster, "running_in_cloud_tpu_vm", True)
    for name, value in {
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_WORKER_HOSTNAMES": "127.0.0.1,127.0.0.2",
        "TPU_WORKER_ID": "1",
        "MEGASCALE_COORDINATOR_ADDRESS": "127.0.0.1",
        "MEGASCALE_NUM_SLICES": "2",
        "MEGASCALE_SLICE_ID": "1",
    }.items():
        monkeypatch.setenv(name, value)
    assert hosts._place() == ("127.0.0.1:8482", 4, 3)


@pytest.fixture
def three_hosts(monkeypatch):
    """Says what the hosts would answer: values -> what `agree` raises."""

    def call(*records):
        class Joined:
            def gather(self, value):
                return [{"configuration": record} for record in records]

            def label(self, index):
                return f"{index} (n{index})"

        monkeypatch.setattr(hosts, "_joined", Joined())
        with pytest.raises(UserError) as raised:
            hosts.agree(configuration=records[0])
        return str(raised.value)

    return call


def test_a_host_that_differs_is_named_with_what_differs(three_hosts):
    same, other = {"seed": 0, "model": {"rank": 4}}, {"seed": 0, "model": {"rank": 8}}
    message = three_hosts(same, same, other)
    assert "host 2 (n2) has another configuration than host 0 (n0)" in message
    assert "model.rank is 8 there and 4 here" in message
    # The odd one is the one that differs from the most, be it the first.
    assert "host 0 (n0) has another configuration than host 1 (n1)" in three_hosts(
        other, same, same
    )


ROOT = pathlib.Path(__file__).resolve().parents[2]
FATE = """
import os, sys
import jax
from adalink_jax.distributed import hosts
from adalink_jax.errors import UserError

with hosts.joined():
    index = jax.process_index()
    if index == 1:
        {fate}
    jax.experimental.multihost_utils.sync_global_devices("never")
"""


def fate_of_two(fate: str) -> list[tuple[int, str]]:
    """Exit code and errors of two hosts with JAX, of which one meets its fate."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    code = "import jax.experimental.multihost_utils\n" + FATE.format(fate=fate)
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env={**os.environ, **dict(zip(VARIABLES, (address, "2", str(index)), strict=True))},
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]
    return [(p.communicate(timeout=300)[1], p.returncode)[::-1] for p in processes]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fate", "code", "expected"),
    [
        (
            "raise ValueError('no such thing')",
            1,
            "failed: ValueError: no such thing; all hosts end",
        ),
        ("raise UserError('RANK is 0')", 2, "failed: RANK is 0; all hosts end"),
    ],
)
def test_an_exception_on_one_host_ends_the_other(fate, code, expected):
    (other, told), (own, said) = fate_of_two(fate)
    assert other == 1 and own == code
    assert f"error: host 1 ({socket.gethostname()}) {expected}" in told
    assert fate.split("'")[1] in said
