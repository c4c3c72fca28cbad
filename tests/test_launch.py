"""The launch files: rendered and read without a cluster, with programs of clouds played by shells.

Each training that they start is resolved to its last setting, as a run does it before it loads
anything; and local.sh is at work.
"""

import argparse
import os
import pathlib
import re
import runpy
import shlex
import subprocess
import sys

import pytest
import setuptools

from adalink_jax.config import gin_files
from adalink_jax.config.flags import parse
from adalink_jax.tools.serving import serve

ROOT = pathlib.Path(__file__).resolve().parent.parent
LAUNCH = ROOT / "scripts" / "launch"
LOCAL = str(LAUNCH / "local.sh")
GLUE = ("--gin_file=experiments/glue_adalink.gin", "--gin.MODEL_DIR='/runs/a b'")
ON_GLUE = (
    *("--gin.MIXTURE_OR_TASK_NAME=glue_rte", "--gin.INITIAL_CHECKPOINT_PATH=/flan"),
    *("--gin.GLUE_DIR=/glue", "--gin.VOCABULARY=/spiece.model"),
)


def resolved(command: list[str]) -> dict:
    """The arguments of a training, as a run resolves them; nothing that it needs is left out."""
    assert command[:2] == ["adalink", "train"]
    given = parse(command[2:], {})
    found = gin_files.read(
        "adalink_jax.runs.train", given.gin_files, given.bindings, supplied=("configuration",)
    )
    assert found.environment.keys() >= {"GLUE_DIR", "VOCABULARY"}
    return found.values


@pytest.fixture(scope="module")
def extras() -> set[str]:
    """The extras of setup.py."""
    with pytest.MonkeyPatch.context() as patch:
        captured = {}
        patch.setattr(setuptools, "setup", lambda **given: captured.update(given))
        runpy.run_path(str(ROOT / "setup.py"))
    return set(captured["extras_require"])


@pytest.fixture
def played(tmp_path):
    """A function that runs a command while shell code plays programs: returns their calls."""
    programs, log = tmp_path / "programs", tmp_path / "log"
    programs.mkdir()

    def play(command, codes, **variables):
        for name, code in codes.items():
            (programs / name).write_text(
                f"#!/bin/bash\nprintf '%s\\0' {name} \"$@\" $'\\n' >>{log}\n{code}\n"
            )
            (programs / name).chmod(0o755)
        path = f"{programs}:{os.environ['PATH']}"
        done = subprocess.run(
            list(map(str, command)),
            env=os.environ | {"PATH": path} | variables,
            cwd=variables.get("PWD", tmp_path),
            capture_output=True,
            text=True,
        )
        calls = log.read_text(encoding="utf-8").split("\0\n\0") if log.exists() else []
        return done, [call.split("\0") for call in calls if call]

    return play


def local(hosts: str, code: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [LOCAL, hosts, sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.parametrize("path", sorted(LAUNCH.glob("*.s[hb]*")), ids=lambda path: path.name)
def test_the_shell_reads_it(path):
    done = subprocess.run(["bash", "-n", str(path)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def rendered(name: str, **values: str) -> list[dict]:
    """A launch file's documents with what stands in <> filled in; nothing else does."""
    yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")
    text = (LAUNCH / name).read_text(encoding="utf-8")
    code = re.sub(r"#.*", "", text)
    assert set(re.findall(r"<(\w*)>", code)) == set(values)
    for word, value in values.items():
        text = text.replace(f"<{word}>", value)
    return list(yaml.safe_load_all(text))


def test_gke_starts_trainings_that_lack_nothing():
    # A token of digits alone is still a text.
    secret, *sets = rendered("gke.yaml", IMAGE="there/image:1", CLAIM="claim", TOKEN="0123456789")
    assert secret["kind"] == "Secret" and secret["stringData"] == {"token": "0123456789"}
    assert [one["kind"] for one in sets] == ["JobSet", "JobSet"]
    layouts = {}
    for one in sets:
        (hosts,) = one["spec"]["replicatedJobs"]
        job = hosts["template"]["spec"]
        assert job["parallelism"] == job["completions"]
        pod = job["template"]["spec"]
        (container,) = pod["containers"]
        values = resolved(container["command"] + container["args"])
        (volume,) = pod["volumes"]
        (mounted,) = container["volumeMounts"]
        assert mounted["name"] == volume["name"]
        given = parse(container["args"], {}).bindings
        paths = [text.split("=", 1)[1].strip("'") for text in given if "/" in text]
        assert len(paths) == 4 and all(p.startswith(mounted["mountPath"] + "/") for p in paths)
        ((chips, count),) = container["resources"]["limits"].items()
        assert values["layout"]["devices"] == job["parallelism"] * int(count)
        layouts[chips] = values["layout"]["devices"]
        environment = {item["name"]: item for item in container["env"]}
        token = environment["ADALINK_HOSTS_TOKEN"]["valueFrom"]["secretKeyRef"]
        assert token == {"name": secret["metadata"]["name"], "key": "token"}
    assert layouts == {"google.com/tpu": 32, "nvidia.com/gpu": 16}
    assert environment["JAX_NUM_PROCESSES"]["value"] == str(job["parallelism"])
    # The first pod of the job, as JobSet names it: set-job-0-0.set.
    name = one["metadata"]["name"]
    address = f"{name}-{hosts['name']}-0-0.{name}:8476"
    assert environment["JAX_COORDINATOR_ADDRESS"]["value"] == address


def test_slurm_starts_a_training_that_lacks_nothing(played, tmp_path):
    flags = (*GLUE, "--gin_file=hardware/gpu_16.gin", *ON_GLUE)
    done, calls = played(["bash", LAUNCH / "slurm.sbatch", *flags], {"srun": "env"})
    assert done.returncode == 2 and "no .venv" in done.stderr and not calls
    (tmp_path / ".venv/bin").mkdir(parents=True)
    (tmp_path / ".venv/bin/activate").write_text("export VIRTUAL_ENV=here\n")
    done, calls = played(["bash", LAUNCH / "slurm.sbatch", *flags], {"srun": "env"})
    assert done.returncode == 0, done.stderr
    assert re.search(r"^ADALINK_HOSTS_TOKEN=[0-9a-f]{32}$", done.stdout, re.MULTILINE)
    assert "VIRTUAL_ENV=here" in done.stdout
    (call,) = calls
    values = resolved([word for word in call[1:] if word not in ("--label", _KILL)])
    assert values["model_dir"] == "/runs/a b" and values["layout"]["devices"] == 16
    said = (LAUNCH / "slurm.sbatch").read_text(encoding="utf-8")
    of = {n: int(v) for n, v in re.findall(r"^#SBATCH --([\w-]+)=(\d+)$", said, re.MULTILINE)}
    assert of["nodes"] * of["gpus-per-node"] == of["nodes"] * of["ntasks-per-node"] == 16


_KILL = "--kill-on-bad-exit=1"
# A Python that makes environments with copies of itself, and an environment's pip that only logs.
_PYTHON = """
case "$1 $2" in
    "-m venv")
        mkdir -p "$3/bin"
        cp "$0" "$3/bin/python"
        echo 'export ACTIVE=yes' >"$3/bin/activate" ;;
esac"""
# gcloud with one host, whose home is $HOST.
_GCLOUD = """
cd "$HOST"
case "$4" in
    scp) cp "$5" . ;;
    ssh) for word; do [[ $word == --command=* ]] && exec bash -c "${word#--command=}"; done ;;
esac"""


def test_a_tpu_pod_gets_its_environment_then_runs(played, tmp_path):
    if not (ROOT / ".git").exists():
        pytest.skip("what is sent is a commit, and this is no repository")
    host = tmp_path / "host"
    host.mkdir()
    codes = {"gcloud": _GCLOUD, "python3.11": _PYTHON, "sudo": "exit 1"}
    done, calls = played(["bash", LAUNCH / "tpu_setup.sh", "pod", "zone-a"], codes, HOST=str(host))
    assert done.returncode == 0, done.stderr
    assert (host / "adalink_jax/scripts/environment.sh").is_file()
    sent = [call for call in calls if call[0] == "gcloud"]
    assert [call[4] for call in sent] == ["scp", "ssh"]
    assert all({"--zone=zone-a", "--worker=all"} <= set(call) for call in sent)
    (install,) = [call[1:] for call in calls if "pip" in call]
    assert install[:3] == ["-m", "pip", "install"] and install[-2:] == ["--editable", ".[tpu]"]
    assert install[install.index("--constraint") + 1] == "requirements.lock"
    show = ["bash", "-c", 'echo "$PWD|$ACTIVE|${#ADALINK_HOSTS_TOKEN}|$1"', "_", "a b'c"]
    done, _ = played(["bash", LAUNCH / "tpu_pod.sh", "pod", "zone-a", *show], codes, HOST=str(host))
    assert done.stdout == f"{host}/adalink_jax|yes|32|a b'c\n", done.stderr


@pytest.mark.parametrize("script", ["tpu_pod.sh", "tpu_setup.sh"])
def test_a_pod_needs_a_name_and_a_zone(script):
    done = subprocess.run(["bash", LAUNCH / script, "pod"], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("usage: ")


def test_commands_in_the_launch_files_lack_nothing():
    """Those that their comments show."""
    for path in LAUNCH.iterdir():
        text = re.sub(r" \\\n#\s*", " ", path.read_text(encoding="utf-8"))
        for line in re.findall(r"^#  +(\S.*gin_file=.*)$", text, re.MULTILINE):
            flags = shlex.split(line.partition("--gin_file=")[2])
            flags = [f for f in ("--gin_file=" + flags[0], *flags[1:]) if f != "…"]
            resolved(["adalink", "train", *flags, *(ON_GLUE if "…" in line else ())])


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's instructions with their arguments, continued lines joined."""
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [(one.partition(" ")[0], one.partition(" ")[2].strip()) for one in joined.splitlines()]


def test_the_image_is_of_files_that_there_are(extras):
    found = instructions()
    assert [name for name, _ in found] == [
        "FROM", "ARG", "ENV", "WORKDIR", "COPY", "COPY", "COPY", "COPY", "RUN", "WORKDIR", "CMD",
    ]  # fmt: skip
    (image,) = [value for name, value in found if name == "FROM"]
    assert re.fullmatch(r"python:3\.1[123]-slim", image)
    copied = {source for name, value in found if name == "COPY" for source in value.split()[:-1]}
    assert all((ROOT / source).exists() for source in copied)
    # What is not copied cannot be needed: tests/test_packaging.py builds a wheel of just this.
    from tests import test_packaging

    assert copied == {*test_packaging.SOURCES, *test_packaging.FILES, "requirements.lock"}
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert {line[1:] for line in ignored if line.startswith("!")} == copied and "*" in ignored
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    named = {e for group in re.findall(r"EXTRAS=([\w,]+)", text) for e in group.split(",")}
    named |= set(re.findall(r"environment\.sh (\w+)", (LAUNCH / "slurm.sbatch").read_text()))
    assert named and named <= extras


@pytest.mark.parametrize("given, installed", [("", "."), ("cuda12,int8", ".[cuda12,int8]")])
def test_the_image_installs_the_extras(played, given, installed):
    (code,) = [value for name, value in instructions() if name == "RUN"]
    done, calls = played(["sh", "-ec", code], {"python": "", "adalink": ""}, EXTRAS=given)
    assert done.returncode == 0, done.stderr
    (python, adalink) = calls
    assert python[1:4] == ["-m", "pip", "install"] and python[-1] == installed
    assert python[-3:-1] == ["--constraint", "requirements.lock"]
    assert adalink == ["adalink", "--help"]


def test_the_deployment_is_of_flags_and_paths_that_there_are():
    filled = {"IMAGE": "a", "TOKEN": "1", "BASE": "flan", "MODELS": "m", "ADAPTERS": "a"}
    secret, deployment, service = rendered("gke_serve.yaml", **filled, CACHE="c")
    assert [one["kind"] for one in (secret, deployment, service)] == [
        "Secret", "Deployment", "Service"
    ]  # fmt: skip
    pods = deployment["spec"]["template"]
    assert deployment["spec"]["selector"]["matchLabels"] == pods["metadata"]["labels"]
    assert service["spec"]["selector"] == pods["metadata"]["labels"]
    (container,) = pods["spec"]["containers"]
    assert container["command"] == ["adalink", "serve"]
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
