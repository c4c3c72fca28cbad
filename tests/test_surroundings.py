"""The command among a user's own files, and run by a Python that lacks its packages."""

import os
import pathlib
import subprocess
import sys

import pytest

from adalink_jax import cli
from adalink_jax.data import corpus
from adalink_jax.errors import UserError

ROOT = pathlib.Path(__file__).resolve().parent.parent
DESCRIBE = ("describe", "--gin_file=models/mini.gin", "--gin_file=methods/adalink.gin", "--json")


def call(*command, folder, path=ROOT) -> subprocess.CompletedProcess:
    """Runs Python from a folder, with what is on its path."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (path, ROOT)))}
    return subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )


@pytest.fixture
def full(tmp_path) -> pathlib.Path:
    """A folder whose modules have the names of ours, and of packages."""
    for name in ("tasks.py", "gin/__init__.py", "numpy.py", "jax/__init__.py"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"raise SystemExit('the wrong {name}')\n")
    (tmp_path / "gin/mine.gin").write_text("RANK = 2\n")
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("start", [("-m", "adalink_jax"), (ROOT / "scripts/describe.py",)])
def test_files_of_the_users_hide_nothing(full, start):
    arguments = DESCRIBE if start[0] == "-m" else DESCRIBE[1:]
    done = call(*start, *arguments, "--gin_file=gin/mine.gin", folder=full)
    assert done.returncode == 0 and '"rank": 2' in done.stdout, done.stderr


@pytest.mark.slow
def test_tasks_of_the_users_hide_none_of_ours(full):
    flags = ("--method", "adalink", "--model", "mini", "--task", "mini_cola")
    done = call("-m", "adalink_jax", "new", "a.gin", *flags, folder=full)
    assert done.returncode == 0 and (full / "a.gin").is_file(), done.stderr


def test_a_module_that_is_not_read_is_said(full, monkeypatch):
    monkeypatch.chdir(full)
    with pytest.raises(UserError, match="unknown mixture or task 'my_tweets'.* tasks.py is not"):
        corpus.check_registered("my_tweets")


@pytest.mark.parametrize(
    ("command", "package"),
    [("train", "gin-config"), ("describe", "gin-config"), ("cost", "jax"), ("adapter", "jax")],
)
@pytest.mark.parametrize("start", [("-m", "adalink_jax"), (ROOT / "scripts",)])
def test_a_python_without_the_packages_gets_one_line(tmp_path, command, package, start):
    """-S leaves out the packages of the environment; a folder gin/ is on the path all the same."""
    start = start if start[0] == "-m" else (start[0] / f"{command}.py",)
    rest = (command,) if start[0] == "-m" else ()
    done = call("-S", *start, *rest, "--gin_file=models/mini.gin", folder=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert f" is not installed for {sys.executable}; " in line
    assert line.endswith(f"{sys.executable} -m pip install -e {ROOT}")
    assert line.startswith(f"error: {package}" if package != "jax" else "error: ")


def test_the_api_without_the_packages_says_what_installs_them(tmp_path):
    done = call("-S", "-c", "import adalink_jax as al; al.finetune", folder=tmp_path)
    said = done.stderr.splitlines()[-1]
    assert said.startswith("ModuleNotFoundError: ") and " is not installed for " in said
    assert said.endswith(f"{sys.executable} -m pip install -e {ROOT}")


@pytest.mark.parametrize("name", ["gin.py", "gin/__init__.py"])
def test_a_module_that_hides_gin_is_named(tmp_path, name):
    path = tmp_path / "on_the_path" / name
    path.parent.mkdir(parents=True)
    path.write_text("")
    done = call("-m", "adalink_jax", *DESCRIBE, folder=tmp_path, path=tmp_path / "on_the_path")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"error: Python imports {path} as 'gin', which hides gin-config; give it another name\n"
    )


def test_the_environment_of_the_checkout_is_named(monkeypatch, tmp_path):
    from adalink_jax import errors

    monkeypatch.setattr(errors, "_ROOT", tmp_path)
    assert errors.without_environment("jax").endswith("-m pip install adalink_jax")
    (tmp_path / "setup.py").touch()
    (tmp_path / ".venv/bin").mkdir(parents=True)
    (tmp_path / ".venv/bin/adalink").touch()
    assert f"run {tmp_path}/.venv/bin/adalink, or " in errors.without_environment("jax")


def test_an_old_python_gets_one_line(tmp_path):
    code = (
        "import runpy, sys; sys.version_info = (3, 8); sys.argv = ['adalink'];"
        "runpy.run_module('adalink_jax', run_name='__main__')"
    )
    done = call("-S", "-c", code, folder=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: adalink_jax needs Python 3.11 or later, and this is ")


def test_a_package_that_is_missing_is_named_with_what_says_more(monkeypatch, capsys):
    """Parquet files need pyarrow, where the rest is there."""
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    module = type(sys)("reads_a_table")

    def run(arguments):
        from adalink_jax.data import tables

        tables.read("a.parquet")

    module.add_arguments, module.run = lambda parser: None, run
    monkeypatch.setitem(sys.modules, "reads_a_table", module)
    monkeypatch.setitem(cli.COMMANDS, "table", cli.Command("Reads.", "reads_a_table"))
    monkeypatch.setattr(pathlib.Path, "exists", lambda path: True)
    assert cli.main(["table"]) == 2
    assert capsys.readouterr().err.startswith("error: pyarrow, which adalink table needs, is not")
