"""config.py on a small module: what a mistake says, in one line, with exit code 2."""

import pathlib
import sys
import types

import pytest

from adalink_jax.config import gin_files


def mistake(capsys, *arguments: str, entry: str = "toy.train") -> str:
    """Runs a command that must fail in the agreed way; returns its message."""
    assert gin_files.main(entry, list(arguments)) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1
    return captured.err.removeprefix("error: ").strip()


MISTAKES = {
    "misspelt macro": (["--gin.RNAK=8"], "command line: nothing reads RNAK; did you mean 'RANK'?"),
    "lower case": (["--gin.rank=8"], "command line: nothing reads rank; did you mean 'RANK'?"),
    "unread binding": (
        ["--gin.toy.Strict.rank=8"],
        "command line: nothing reads toy.Strict.rank",
    ),
    "undefined macro": (
        ["--gin.RANK=%STEP"],
        "command line: %STEP is defined nowhere; did you mean 'STEPS'?",
    ),
    "required macro": (
        [],
        "MODEL_DIR is required: set it with --gin.MODEL_DIR=… (declared in base.gin:6)",
    ),
    "unknown module": (
        ["--gin.METHOD=@tyo.Method()"],
        "command line: 'tyo.Method': nothing named 'tyo' is imported; did you mean 'toy'?",
    ),
    "unknown function": (
        ["--gin.toy.trian.seed=1"],
        "command line: 'toy.trian': there is no 'trian'; did you mean 'train'?",
    ),
    "unknown parameter": (
        ["--gin.toy.train.sed=1"],
        "command line: toy.train has no parameter 'sed'; did you mean 'seed'?",
    ),
    "no function": (
        ["--gin.METHOD=@toy.RECEIVED"],
        "command line: 'toy.RECEIVED' is no function or class that gin can configure",
    ),
    "open bracket": (
        ["--gin.RANK={1"],
        "--gin.RANK={1: '{1' is no gin value; quote a string as \"'…'\"",
    ),
    "a break in the line": (
        ["--gin.RANK={1\n2"],
        "--gin.RANK={1 2: '{1 2' is no gin value; quote a string as \"'…'\"",
    ),
    "no value": (["--gin.RANK"], "--gin.RANK needs a value: --gin.RANK=…"),
    "empty value": (["--gin.RANK="], "--gin.RANK=: '' is no gin value; quote a string as \"'…'\""),
    "no name": (["--gin.=3"], "--gin.=3: expected --gin.NAME=VALUE"),
    "refused by the class": (
        ["--gin.MODEL_DIR=x", "--gin.RANK=four"],
        "Method.rank is 'four'; it must be an integer (RANK, command line)",
    ),
    "refused by the class with an error of Python": (
        ["--gin.MODEL_DIR=@toy.Strict()", "--gin.toy.Strict.rank=0"],
        "Strict.rank is 0 (toy.Strict.rank, command line)",
    ),
    "refused by the function": (
        ["--gin.MODEL_DIR=x", "--gin.toy.train.seed=13"],
        "seed 13 is unlucky (toy.train.seed, command line)",
    ),
    "macro of itself": (
        ["--gin.RANK=%STEPS", "--gin.STEPS=[%RANK]"],
        "command line: RANK refers to itself",
    ),
    "path that is no string": (
        ["--gin.MODEL_DIR=x", "--gin.GLUE_DIR=3"],
        "command line: GLUE_DIR is 3; it takes a path, with names of at most 255 bytes",
    ),
    "unknown flag": (
        ["--gin_fle=x"],
        "unknown flag --gin_fle; did you mean '--gin_file'? --help lists the flags",
    ),
    "positional": (["x.gin"], "unexpected 'x.gin': a gin file is given as --gin_file=x.gin"),
    "flag at the end": (["--gin_file"], "--gin_file needs a value: --gin_file=…"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_on_the_command_line(toy, capsys, name):
    arguments, message = MISTAKES[name]
    assert mistake(capsys, "--gin_file=base.gin", *arguments) == message


FILE_MISTAKES = {
    "syntax": ("RANK = = 3", "more.gin:3: Unable to parse value."),
    "open bracket": ("RANK = {", "more.gin:3: a bracket or a string is left open"),
    "bad token": ("RANK = 3x", "more.gin:3: "),
    "twice in one file": ("RANK = 3\nRANK = 4", "more.gin:4: RANK is already set at more.gin:3"),
    "missing include": (
        "include 'bsae.gin'",
        "more.gin:3: no gin file 'bsae.gin' below ., ",
    ),
    "cycle": ("include 'loop.gin'", "loop.gin:3: 'more.gin' includes itself"),
    "missing module": (
        "import no_such_module",
        "more.gin:3: cannot import 'no_such_module': No module named 'no_such_module'",
    ),
    "name of another file's import": (
        "import toy as t\npathlib.Path.x = 3",
        "more.gin:4: 'pathlib.Path': nothing named 'pathlib' is imported",
    ),
    "unread macro": ("UNREAD = 3", "more.gin:3: nothing reads UNREAD"),
    "undefined macro": (
        "toy.train.seed = %SEDE\nSEED = 1",
        "more.gin:3: %SEDE is defined nowhere; did you mean 'SEED'?",
    ),
    "unknown parameter in a block": (
        "toy.Method:\n    rnk = 4",
        "more.gin:4: toy.Method has no parameter 'rnk'; did you mean 'rank'?",
    ),
    "required parameter": (
        "toy.train.seed = %gin.REQUIRED",
        "toy.train.seed is required: set it with --gin.toy.train.seed=… (declared in more.gin:3)",
    ),
    "argument without default or binding": (
        "toy.train.optimizer = @toy.optimizer()",
        "toy.optimizer.learning_rate is required: set it with --gin.toy.optimizer.learning_rate=…",
    ),
}


@pytest.mark.parametrize("name", FILE_MISTAKES)
def test_mistakes_in_files(toy, capsys, name):
    text, message = FILE_MISTAKES[name]
    toy.write("more.gin", text + "\n")
    toy.write("loop.gin", "include 'more.gin'\n")
    said = mistake(capsys, "--gin_file=base.gin", "--gin.MODEL_DIR=x", "--gin_file=more.gin")
    assert said.startswith(message)


def test_several_required_values_are_named_at_once(toy, capsys):
    toy.write("more.gin", "toy.train.seed = %SEED\nSEED = %gin.REQUIRED\n")
    assert mistake(capsys, "--gin_file=base.gin", "--gin_file=more.gin") == (
        "MODEL_DIR, SEED are required: set them with --gin.MODEL_DIR=… --gin.SEED=… "
        "(declared in base.gin:6, more.gin:4)"
    )


def test_missing_file_names_the_nearest_shipped_one(toy, capsys):
    said = mistake(capsys, "--gin_file=methods/adalnk.gin")
    assert said.endswith("did you mean 'methods/adalink.gin'?")


def test_no_file_at_all(toy, capsys):
    assert mistake(capsys).startswith("no gin file: give --gin_file=FILE")


def test_unreadable_file(toy, capsys):
    pathlib.Path("binary.gin").write_bytes(b"\xff\xfe\x00")
    assert mistake(capsys, "--gin_file=binary.gin") == "binary.gin: the file is not UTF-8 text"


def test_errors_of_tasks_are_the_users(toy, capsys, monkeypatch):
    tasks = types.ModuleType("tasks")
    tasks.DataError = type("DataError", (ValueError,), {})
    monkeypatch.setitem(sys.modules, "tasks", tasks)
    monkeypatch.setattr(toy.Method, "__post_init__", lambda self: None)

    def refuse(**arguments):
        raise tasks.DataError("dev.tsv:3: no label")

    monkeypatch.setattr(toy, "train", refuse)
    toy.write("none.gin", "")
    assert mistake(capsys, "--gin_file=none.gin") == "dev.tsv:3: no label"


def test_a_defect_of_the_program_keeps_its_traceback(toy, monkeypatch):
    monkeypatch.setattr(toy, "schedule", None)

    def broken(**arguments):
        raise ZeroDivisionError

    monkeypatch.setattr(toy, "train", broken)
    toy.write("none.gin", "")
    with pytest.raises(ZeroDivisionError):
        gin_files.main("toy.train", ["--gin_file=none.gin"])
