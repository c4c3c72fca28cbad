"""The launch scripts: what can be said of them without a cluster, and local.sh at work."""

import argparse
import pathlib
import subprocess
import sys

import pytest

from adalink_jax.tools.serving import serve

LAUNCH = pathlib.Path(__file__).resolve().parent.parent / "scripts" / "launch"
LOCAL = str(LAUNCH / "local.sh")


def local(hosts: str, code: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [LOCAL, hosts, sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.parametrize("name", ["local.sh", "slurm.sbatch", "tpu_pod.sh"])
def test_the_shell_reads_it(name):
    done = subprocess.run(["bash", "-n", str(LAUNCH / name)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_gke_reads_it():
    yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")
    documents = list(yaml.safe_load_all((LAUNCH / "gke.yaml").read_text(encoding="utf-8")))
    assert [d["kind"] for d in documents] == ["JobSet", "JobSet"]
    for document in documents:
        (hosts,) = document["spec"]["replicatedJobs"]
        job = hosts["template"]["spec"]
        assert job["parallelism"] == job["completions"]
        (container,) = job["template"]["spec"]["containers"]
        (hardware,) = (a for a in container["args"] if a.startswith("--gin_file=hardware/"))
        assert (LAUNCH.parents[1] / "gin" / hardware.partition("=")[2]).is_file()
    environment = {item["name"]: item.get("value") for item in container["env"]}
    assert environment["JAX_NUM_PROCESSES"] == str(job["parallelism"])
    # The first pod of the job, as JobSet names it: set-job-0-0.set.
    name = document["metadata"]["name"]
    address = f"{name}-{hosts['name']}-0-0.{name}:8476"
    assert environment["JAX_COORDINATOR_ADDRESS"] == address


def test_the_deployment_is_of_flags_and_paths_that_there_are():
    yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")
    text = (LAUNCH / "gke_serve.yaml").read_text(encoding="utf-8")
    secret, deployment, service = yaml.safe_load_all(text)
    assert [one["kind"] for one in (secret, deployment, service)] == [
        "Secret", "Deployment", "Service"
    ]  # fmt: skip
    pods = deployment["spec"]["template"]
    assert deployment["spec"]["selector"]["matchLabels"] == pods["metadata"]["labels"]
    assert service["spec"]["selector"] == pods["metadata"]["labels"]
    (container,) = pods["spec"]["containers"]
    parser = argparse.ArgumentParser()
    serve.add_arguments(parser)
    flags = parser.parse_args(container["args"])
    (port,) = container["ports"]
    assert port["containerPort"] == flags.port and flags.host == "0.0.0.0"
    assert service["spec"]["ports"][0]["targetPort"] == port["name"]
    assert pods["spec"]["terminationGracePeriodSeconds"] > serve._DRAIN
    (key,) = secret["stringData"]
    token = container["env"][0]["valueFrom"]["secretKeyRef"]
    assert token == {"name": secret["metadata"]["name"], "key": key}
    mounted = {one["name"] for one in container["volumeMounts"]}
    assert mounted == {one["name"] for one in pods["spec"]["volumes"]}
    probes = {container[f"{kind}Probe"]["httpGet"]["path"] for kind in ("startup", "readiness")}
    assert probes == {"/healthz", "/readyz"}


def test_local_hosts_know_their_places():
    names = ("JAX_PROCESS_ID", "JAX_NUM_PROCESSES", "JAX_COORDINATOR_ADDRESS", "XLA_FLAGS")
    done = local("3", f"import os; print(*(os.environ[name] for name in {names}))")
    assert done.returncode == 0, done.stderr
    lines = sorted(done.stdout.splitlines())
    assert [line.split()[:4] for line in lines] == [
        ["[host", f"{i}]", str(i), "3"] for i in range(3)
    ]
    (address,) = {line.split()[4] for line in lines}
    assert address.startswith("127.0.0.1:")
    assert all("--xla_force_host_platform_device_count=1" in line for line in lines)


def test_the_first_failure_is_reported():
    code = "import os, sys; sys.exit(7 if os.environ['JAX_PROCESS_ID'] == '1' else 0)"
    done = local("2", code)
    assert done.returncode == 7
    assert "[local.sh] host 1 ended with exit code 7" in done.stderr.splitlines()


def test_a_number_of_hosts_is_needed():
    done = subprocess.run([LOCAL, "python"], capture_output=True, text=True)
    assert done.returncode == 2 and "usage" in done.stderr
