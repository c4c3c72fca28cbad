"""The scripts, as a user calls them: from any folder."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from tests.tiers import mostly_slow

ROOT = pathlib.Path(__file__).resolve().parent.parent
ADAPTED = ("--gin_file=models/mini.gin", "--gin_file=methods/adalink.gin")


def run(script: str, *arguments: str, folder: pathlib.Path) -> subprocess.CompletedProcess:
    environment = {k: v for k, v in os.environ.items() if k != "GLUE_DIR"}
    return subprocess.run(
        [sys.executable, ROOT / "scripts" / script, *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )


SCRIPTS = sorted(path.name for path in (ROOT / "scripts").glob("*.py"))


# `chaos.py` calls the tests, and no command.
@pytest.mark.parametrize("script", mostly_slow(SCRIPTS, ["train.py", "convert.py"]))
def test_every_script_is_a_command(script, tmp_path):
    done = run(script, "--help", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    name = script.removesuffix(".py").replace("_", "-")
    assert done.stdout.startswith(f"usage: adalink {name}" if name != "chaos" else "usage: chaos")


def test_a_mistake_is_one_line(tmp_path):
    """Whatever libraries have to say at import."""
    done = run("train.py", "--gin_file=no/such.gin", folder=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[-1].startswith("error: command line: no gin file")
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_describe_prints_json_alone(tmp_path):
    done = run("describe.py", *ADAPTED, "--gin.RANK=8", "--json", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert isinstance(json.loads(done.stdout), dict)


def test_tasks_of_the_users_are_imported_from_his_folder(tmp_path):
    (tmp_path / "my_tasks.py").write_text("print('registered')\n")
    (tmp_path / "my.gin").write_text("import my_tasks\n")
    done = run("describe.py", *ADAPTED, "--gin_file=my.gin", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("registered\n")
