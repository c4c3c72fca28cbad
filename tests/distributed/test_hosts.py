"""How hosts find each other, and what they say of one that is missing, differs, fails or dies."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import pytest

from adalink_jax.distributed import hosts, watcher
from adalink_jax.errors import UserError

# In how many seconds everything here must have happened by itself.
PATIENCE = 60
VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (("node:1", "two", "0"), "JAX_NUM_PROCESSES is 'two' and .* must be whole numbers"),
        (("node:1", "2", None), "--process_index.*; JAX_PROCESS_ID is not set"),
        ((None, "2", "0"), "--coordinator_address.*; JAX_COORDINATOR_ADDRESS is not set"),
        (("node:1", "2", "2"), "JAX_PROCESS_ID is 2; with JAX_NUM_PROCESSES=2 it must be from 0"),
        (("node", "2", "0"), "JAX_COORDINATOR_ADDRESS is 'node'; it must be like"),
    ],
)
def test_a_host_that_is_not_well_described(monkeypatch, values, expected):
    for name, value in zip(VARIABLES, values, strict=True):
        if value is not None:
            monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=expected), hosts.joined():
        raise AssertionError("nothing was joined")


def test_a_limit_that_is_no_number(monkeypatch):
    for name, value in zip(VARIABLES, ("127.0.0.1:1", "2", "0"), strict=True):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("ADALINK_HOSTS_WAIT_SECONDS", "soon")
    with pytest.raises(UserError, match="ADALINK_HOSTS_WAIT_SECONDS is 'soon'"), hosts.joined():
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


class Host:
    """A host without JAX: the process beside it, and its pipes in the test's hands."""

    def __init__(
        self, address: str, index: int, count: int, wait: float = PATIENCE, token: str = "secret"
    ):
        self.address = address
        # What would be the run; it is killed if it does not end by itself.
        self.run = subprocess.Popen(
            [sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE
        )
        self.watcher = subprocess.Popen(
            [sys.executable, "-I", watcher.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self.say(
            address=address,
            index=index,
            count=count,
            wait=wait,
            token=token,
            name=f"n{index}",
            pid=self.run.pid,
        )

    def say(self, **message) -> None:
        self.watcher.stdin.write(watcher.line(**message))
        self.watcher.stdin.flush()

    def hear(self) -> dict:
        return json.loads(self.watcher.stdout.readline())

    def die(self) -> None:
        self.watcher.stdin.close()

    def close(self) -> None:
        for process in (self.run, self.watcher):
            process.kill()
            process.wait()
            for pipe in filter(None, (process.stdin, process.stdout, process.stderr)):
                pipe.close()

    def last_words(self) -> str:
        """What stands on the terminal when all is over, by itself."""
        self.watcher.wait(timeout=PATIENCE)
        return self.watcher.stderr.read().decode()


@pytest.fixture
def start():
    """Starts hosts of one run: (indices, count) -> hosts."""
    started = []

    def call(indices, count, wait=PATIENCE):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        started.extend(Host(address, index, count, wait) for index in indices)
        return started[-len(indices) :]

    yield call
    for host in started:
        host.close()


def all_here(group) -> None:
    for host in group:
        assert host.hear()["here"]["names"] == [f"n{i}" for i in range(len(group))]


def test_hosts_gather_and_end_together(start):
    group = start((2, 0, 1), 3)
    group = [group[1], group[2], group[0]]
    all_here(group)
    for index, host in enumerate(group):
        host.say(gather={"index": index})
    for host in group:
        assert host.hear() == {"gathered": [{"index": 0}, {"index": 1}, {"index": 2}]}
    for host in group:
        host.say(done=True)
    for host in group:
        assert host.hear() == {"over": True}
        assert host.last_words() == ""
        assert host.run.poll() is None


def test_missing_hosts_are_named(start):
    for host in start((0, 2), 4, wait=1):
        assert host.hear() == {"end": "of 4 hosts, 1, 3 did not come in 1 s; here: 0 (n0), 2 (n2)"}
        host.die()
        assert host.last_words() == ""  # The run says it.


@pytest.mark.parametrize(("index", "count"), [(1, 3), (5, 2)])
def test_a_host_of_another_run_is_refused(start, index, count):
    (host,) = start((0,), 2, wait=PATIENCE)
    stranger = Host(host.address, index, count)
    try:
        expected = f"n{index} came as host {index} of {count}, but this run has 2 hosts"
        assert stranger.hear() == {"end": expected}
    finally:
        stranger.close()
    assert host.watcher.poll() is None


@pytest.mark.parametrize("token", ["", "secre", "secret2", "\ud83d"])
def test_a_stranger_without_the_token_is_refused(start, token):
    (host,) = start((0,), 2)
    stranger = Host(host.address, 1, 2, token=token)
    try:
        expected = "n1 came with another ADALINK_HOSTS_TOKEN than host 0 has"
        assert stranger.hear() == {"end": expected}
    finally:
        stranger.close()
    # It has taken nobody's place.
    late = Host(host.address, 1, 2)
    try:
        all_here((host, late))
    finally:
        late.close()


def test_what_speaks_another_language_is_refused(start):
    (host,) = start((0,), 2)
    for words in (b"GET / HTTP/1.1\r\n\r\n", b'{"hello": {"index": 1, "count": 2, "name": "x"}}\n'):
        for _ in range(PATIENCE * 5):
            try:
                stranger = socket.create_connection(watched(host.address), timeout=PATIENCE)
                break
            except ConnectionRefusedError:
                time.sleep(0.2)  # The watcher is a process that does not say when it listens.
        with stranger:
            stranger.sendall(words)
            assert stranger.recv(100) == b""
    assert host.watcher.poll() is None


def watched(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host, int(port)


def test_host_0_listens_on_the_coordinators_interface_only(start):
    """All of 127/8 is this machine's, on one interface; what is bound to one answers no other."""
    (host,) = start((0,), 2)
    other = Host(host.address, 1, 2)
    try:
        all_here((host, other))
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.2", watched(host.address)[1]), timeout=PATIENCE)
    finally:
        other.close()


@pytest.mark.parametrize(
    ("host", "resolved", "expected"),
    [
        ("127.0.0.1", "127.0.0.1", "127.0.0.1"),
        ("localhost", "127.0.0.1", "127.0.0.1"),
        ("node-0", "127.0.1.1", ""),  # Debian's own name for itself; it is another for the others.
        ("balancer", "192.0.2.1", ""),  # Of no machine (RFC 5737).
        ("not-yet", None, ""),
    ],
)
def test_the_interface_that_a_name_stands_for(monkeypatch, host, resolved, expected):
    def getaddrinfo(*_, **__):
        if resolved is None:
            raise socket.gaierror("Name or service not known")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (resolved, 0))]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    assert watcher.own_interface(host) == expected


def test_a_missing_coordinator_is_named(start):
    (host,) = start((1,), 2, wait=0.5)
    assert "host 0 did not answer at 127.0.0.1:" in host.hear()["end"]


def test_two_hosts_of_one_place(start):
    group = start(range(2), 2)
    all_here(group)
    late = Host(group[0].address, 1, 2)
    try:
        assert late.hear() == {"end": "n1 came as host 1 of 2, but so did n1"}
    finally:
        late.close()
    assert all(host.watcher.poll() is None for host in group)


@pytest.mark.parametrize("victim", [0, 2])
def test_a_host_that_dies_is_named_and_ends_the_others(start, victim):
    group = start(range(3), 3)
    all_here(group)
    group[victim].die()
    group[victim].run.kill()
    for index, host in enumerate(group):
        if index != victim:
            assert f"host {victim} (n{victim}) ended without a word" in host.hear()["end"]
            # A run that hangs in a collective is killed.
            assert host.run.wait(timeout=PATIENCE) == -signal.SIGKILL
            host.die()
        assert f"error: host {victim} (n{victim}) ended without a word" in host.last_words()


def test_a_host_whose_watcher_dies_is_named(start):
    group = start(range(2), 2)
    all_here(group)
    group[1].watcher.kill()
    assert "host 1 (n1) ended without a word" in group[0].hear()["end"]


def test_a_failure_is_told_and_its_consequences_are_not(start):
    group = start(range(3), 3)
    all_here(group)
    group[1].say(mistaken="RANK is 0")
    group[1].die()
    for host in (group[0], group[2]):
        assert host.hear() == {"end": "host 1 (n1) failed: RANK is 0; all hosts end"}
        # Too late to be a reason.
        host.say(failed="RuntimeError: Connection closed by peer")
        host.die()
        assert host.last_words() == "error: host 1 (n1) failed: RANK is 0; all hosts end\n"
    assert group[1].last_words() == ""  # That host's own line says it.


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
