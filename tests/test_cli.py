"""The command `adalink`: its table, its help and what becomes of mistakes."""

import os
import subprocess
import sys

import pytest

from adalink_jax import __main__, cli, pages
from adalink_jax.cli import COMMANDS, Command, GinCommand
from adalink_jax.errors import UserError

HEAVY = ("gin", "jax", "matplotlib", "numpy", "seqio", "tensorflow")


def test_help_lists_every_command_with_a_line(capsys):
    assert cli.main(["--help"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert all(len(line) <= 100 for line in printed)
    for name, command in COMMANDS.items():
        assert any(line.split() == [name, *command.help.split()] for line in printed)
        assert f"  {name} " in "\n".join(printed)


@pytest.mark.parametrize("argv", [["--help"], ["trian"], ["train", "--help"], []])
def test_nothing_heavy_is_imported_before_the_command_is_known(argv):
    code = (
        f"import sys; from adalink_jax import cli; code = cli.main({argv});"
        f"print(code, *(set({HEAVY}) & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == ("0" if "--help" in argv else "2")


def test_a_mistyped_command_gets_the_nearest(capsys):
    assert cli.main(["rank_sweep"]) == 2
    assert capsys.readouterr().err == (
        "error: no command 'rank_sweep'; did you mean 'rank-sweep'? adalink --help lists them\n"
    )


@pytest.mark.parametrize("name", [n for n, c in COMMANDS.items() if isinstance(c, Command)])
def test_every_command_has_help_and_refuses_unknown_flags(name, capsys):
    assert cli.main([name, "--help"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"usage: adalink {name}") and "Adds " not in printed
    assert cli.main([name, "--no_such_flag"]) == 2
    assert capsys.readouterr().err.splitlines()[-1].partition("error: ")[1]


def test_help_says_each_default(capsys):
    assert cli.main(["cost", "--help"]) == cli.main(["adapter", "compress", "--help"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "rows of a batch (default: 32)" in said and "compile for this device --memory" in said
    assert "several the best is taken (default: 0.05 0.1 0.2 0.3 0.5)" in said
    assert said.count("(default: cost)") == 1  # Where the help says it itself.


@pytest.mark.parametrize("name", [n for n, c in COMMANDS.items() if isinstance(c, GinCommand)])
def test_gins_commands_list_their_macros_with_what_they_mean(name, capsys):
    assert cli.main([name, "--gin_file=no.gin", "--help"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert f"usage: adalink {name} --gin_file=FILE" in printed
    for part in ("--gin.NAME=VALUE", "glue_adalink", "INITIAL_CHECKPOINT_PATH: ", "GLUE_DIR: "):
        assert part in printed
    assert ("RANK: 4 (methods/adalink.gin" in printed) == (name != "eval")
    assert ("BATCH_SIZE: 32 (runs/finetune.gin) Rows of a step" in printed) == (name == "train")
    assert ("--json" in printed) == (name == "describe")


@pytest.fixture
def broken(monkeypatch):
    """A command that fails as it is told."""

    def make(error):
        def run(arguments):
            raise error

        module = type(sys)("broken")
        module.add_arguments, module.run = lambda parser: None, run
        monkeypatch.setitem(sys.modules, "broken", module)
        monkeypatch.setitem(COMMANDS, "broken", Command("Fails.", "broken", {"FOR_IT": "1"}))

    return make


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (UserError("rank is 0"), "error: rank is 0"),
        (FileNotFoundError(2, "No such file", "a"), "error: [Errno 2] No such file: 'a'"),
        (ModuleNotFoundError("No module", name="qwix.more"), "error: qwix, which adalink broken"),
    ],
)
def test_a_users_mistake_is_one_line_and_exit_code_two(broken, capsys, error, line):
    broken(error)
    assert cli.main(["broken"]) == 2
    (printed,) = capsys.readouterr().err.splitlines()
    assert printed.startswith(line)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (
            "export --adapter none --base mini --to out --format t5x --vocabulary mini",
            "adapter none: no such folder",
        ),
        ("ood none --base mini --task mini_cola --other mini_rte", "adapter none: no such folder"),
        ("demo glue_sst", "TASK=glue_sst: no task of GLUE; did you mean 'glue_sst2'? there are "),
    ],
)
def test_a_mistake_is_one_line_though_tensorflow_is_loaded_first(argv, line, tmp_path):
    command = [sys.executable, "-m", "adalink_jax", *argv.split()]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: {line}") and done.stderr.count("\n") == 1


@pytest.mark.parametrize("error", [ValueError("a defect"), ModuleNotFoundError(name="tasks.no")])
def test_a_defect_keeps_its_traceback(broken, error, monkeypatch):
    broken(error)
    monkeypatch.delenv("FOR_IT", raising=False)
    with pytest.raises(type(error)):
        cli.main(["broken"])


def test_errors_of_the_data_are_mistakes_too(broken, capsys):
    tasks = pytest.importorskip("tasks", reason="SeqIO is not installed")
    broken(tasks.DataError("train.tsv:3: no label"))
    assert cli.main(["broken"]) == 2
    assert capsys.readouterr().err == "error: train.tsv:3: no label\n"


def test_the_users_folder_comes_last_and_hides_nothing(tmp_path, monkeypatch):
    """As `python -m` puts it first, with a tasks.py of the user's and a module of his own."""
    (tmp_path / "tasks.py").write_text("raise SystemExit('the wrong tasks')\n")
    (tmp_path / "mine.py").write_text("")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from adalink_jax import cli;"
        "cli._order_path(); import importlib.util as u;"
        "print(u.find_spec('tasks').origin); print(u.find_spec('mine').origin)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found, mine = done.stdout.split()
    assert found.endswith("tasks/__init__.py") and mine == str(tmp_path / "mine.py")


@pytest.mark.slow
def test_it_is_installed_and_run_as_a_module(tmp_path):
    command = [sys.executable, "-m", "adalink_jax", "--help"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, cli.help_text() + "\n")


@pytest.mark.parametrize(
    ("words", "given", "offered", "restarts"),
    [
        (["train"], None, "always [madvise] never", True),
        (["train"], "", "always [madvise] never", False),
        (["train"], "glibc.malloc.hugetlb=1", "[always] madvise never", False),
        (["train"], None, "always madvise [never]", False),
        (["train"], None, None, False),
        (["report"], None, "always [madvise] never", False),
    ],
)
def test_a_training_starts_anew_with_huge_pages_once(
    tmp_path, monkeypatch, words, given, offered, restarts
):
    started = []
    if offered:
        (tmp_path / "enabled").write_text(offered + "\n")
    monkeypatch.setattr(pages, "_OFFERED", tmp_path / "enabled")
    monkeypatch.setattr(os, "execve", lambda *given: started.append(given))
    monkeypatch.setattr(cli, "main", lambda: 7)
    monkeypatch.setattr(sys, "argv", ["adalink", *words])
    monkeypatch.setattr(sys, "orig_argv", ["python", "-X", "dev", "-m", "adalink_jax", *words])
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    if given is not None:
        monkeypatch.setenv("GLIBC_TUNABLES", given)
    assert __main__.main() == 7  # What stands in for execve comes back.
    environment = {**os.environ, **pages.HUGE}
    assert started == [(sys.executable, sys.orig_argv, environment)] * restarts


@pytest.mark.skipif(sys.platform != "linux", reason="huge pages are Linux's")
def test_a_restarted_training_is_the_same_process(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    command = [sys.executable, "-X", "utf8", "-m", "adalink_jax", "train", "--gin_file=none.gin"]
    done = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    _, errors = done.communicate(timeout=120)
    assert done.returncode == 2 and errors.count("error: ") == 1 and "none.gin" in errors
