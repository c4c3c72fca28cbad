"""Parses the flags of command lines that gin configures; `gin_files` reads their values."""

import contextlib
import dataclasses
import os
import pathlib
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence

from adalink_jax import shipped
from adalink_jax.config.macros import macros
from adalink_jax.errors import UserError, nearest

# T5X's flags for the hosts of a run -> the variables that `adalink_jax.distributed.hosts` reads.
_HOSTS = {
    "coordinator_address": "JAX_COORDINATOR_ADDRESS",
    "process_count": "JAX_NUM_PROCESSES",
    "process_index": "JAX_PROCESS_ID",
}
# The flags with a value, except --gin.NAME.
VALUED = ("gin_file", "gin_search_paths", *_HOSTS)
# Flags for a table of the user's own -> the field of `adalink_jax.data.own.Table` that they set,
# and whether it takes a list.
TABLE = {
    "data": ("path", False),
    "dev": ("dev", False),
    "input": ("inputs", True),
    "target": ("target", False),
    "labels": ("labels", True),
}
# Names of tables that say what is done with them, and not what they are.
_SPLITS = ("train", "training", "dev", "valid", "validation", "test")
_TABLE_HELP = """
  --data=FILE                 a table of your own: .csv, .tsv, .jsonl, .parquet, or a folder of
                              datasets; the task is named after it
  --dev=FILE                  the examples to score, or the name of the folder's split (a tenth)
  --input=COLUMN[,COLUMN]     the columns of the input; and of the target, with --target=COLUMN
  --labels=A,B                the possible targets; --gin.Table.NAME=VALUE sets all else of it"""


@dataclasses.dataclass
class Flags:
    """A parsed command line.

    Attributes:
      gin_files: gin files in order.
      search_paths: more folders to search for gin files.
      bindings: ``NAME=VALUE`` bindings in order.
      environment: environment variables set by flags.
      switches: flags without a value.
    """

    gin_files: list[str] = dataclasses.field(default_factory=list)
    search_paths: list[str] = dataclasses.field(default_factory=list)
    bindings: list[str] = dataclasses.field(default_factory=list)
    environment: dict[str, str] = dataclasses.field(default_factory=dict)
    switches: set[str] = dataclasses.field(default_factory=set)


def parse(argv: Sequence[str], switches: Mapping[str, str]) -> Flags:
    """Parses a command line.

    Args:
      argv: the arguments.
      switches: the allowed flags without a value, with their help.

    Raises:
      UserError: an unknown flag, or a flag without its value.
    """
    flags, rest = Flags(), list(argv)
    while rest:
        argument = rest.pop(0)
        flag, equals, value = argument.partition("=")
        name = flag.removeprefix("--")
        if flag.startswith("--gin."):
            if not equals:
                raise UserError(f"{flag} needs a value: {flag}=…")
            flags.bindings.append(argument.removeprefix("--gin."))
        elif flag.startswith("--") and name in (*VALUED, *TABLE):
            if not equals:
                if not rest:
                    raise UserError(f"{flag} needs a value: {flag}=…")
                value = rest.pop(0)
            if name == "gin_file":
                flags.gin_files.append(value)
            elif name == "gin_search_paths":
                flags.search_paths += value.split(",")
            elif name in TABLE:
                flags.bindings += _of_table(name, value, flags.bindings)
            else:
                flags.environment[_HOSTS[name]] = value
        elif name in switches and argument == f"--{name}":
            flags.switches.add(name)
        elif argument.startswith("-"):
            known = [f"--{each}" for each in (*VALUED, *TABLE, *switches)]
            meant = nearest(flag, known, 0.75) or _macro_like(name, value) or ";"
            raise UserError(f"unknown flag {flag}{meant} --help lists the flags")
        else:
            raise UserError(
                f"unexpected '{argument}': a gin file is given as --gin_file={argument}"
            )
    return flags


def _macro_like(name: str, value: str) -> str:
    """Returns a question whether a macro was meant, as `nearest` does."""
    names = sorted({macro.name for macro in macros()})
    found = re.search("'(.*)'", nearest(name.upper().replace("-", "_"), names, 0.6))
    return f"; did you mean '--gin.{found[1]}={value or '…'}'?" if found else ""


def _of_table(name: str, value: str, before: Sequence[str]) -> list[str]:
    """Returns the bindings that a flag for a table stands for, after those before it."""
    field, is_list = TABLE[name]
    given = tuple(part.strip() for part in value.split(",")) if is_list else value
    bindings = [f"Table.{field}={given!r}"]
    if name == "data" and not any(one.startswith("MIXTURE_OR_TASK_NAME=") for one in before):
        bindings.append(f"MIXTURE_OR_TASK_NAME={table_name(value)!r}")
    return bindings


def table_name(path: str) -> str:
    """Returns the name of the task that a table is: its file's, or of a train.csv its folder's."""
    place = pathlib.PurePath(path)
    # Scores of a task that is called "train" would be read as those on the training examples.
    stem = place.parent.name if place.stem.lower() in _SPLITS else place.stem
    return re.sub(r"\W+", "_", stem).strip("_") or "table"


def joined(argv: Sequence[str]) -> list[str]:
    """Returns the arguments with each flag and its value as one word, ``--flag=value``."""
    words, rest = [], list(argv)
    while rest:
        word = rest.pop(0)
        takes = word.startswith("--") and word.removeprefix("--") in (*VALUED, *TABLE)
        words.append(f"{word}={rest.pop(0)}" if takes and rest else word)
    return words


@contextlib.contextmanager
def environment(values: Mapping[str, str]) -> Iterator[None]:
    """Sets environment variables for the duration of a call.

    A vocabulary's name, such as "english", becomes its path.
    """
    values = dict(values)
    if named := values.get("VOCABULARY", os.environ.get("VOCABULARY")):
        try:
            values["VOCABULARY"] = shipped.vocabulary(named)
        except UserError:
            if "VOCABULARY" in values:
                raise
            # Set for the whole shell: a call that reads no text does not need it.
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def help_text(
    program: str,
    usage: str,
    folder: pathlib.Path,
    run_file: str | None,
    switches: Mapping[str, str],
    table: bool = False,
) -> str:
    """Returns the part of ``--help`` about flags.

    Args:
      program: the program's name.
      usage: what it does, in one line.
      folder: the folder of the shipped gin files.
      run_file: a gin file that is read before the user's files.
      switches: flags without a value, with their help.
      table: whether the program reads a table of the user's own.
    """
    shipped = sorted(p.relative_to(folder).as_posix() for p in folder.glob("experiments/*.gin"))
    first = f" {run_file} is read before them." if run_file else ""
    listed = "".join(f"\n  --{name:<26}{text}" for name, text in switches.items())
    own = _TABLE_HELP if table else ""
    return f"""\
usage: {program} --gin_file=FILE [--gin_file=FILE …] [--gin.NAME=VALUE …]

{usage}

  --gin_file=FILE             read a gin file; repeatable, later files win.{first}
  --gin.NAME=VALUE            set a macro (--gin.RANK=8) or a parameter
                              (--gin.runs.train.seed=1); wins over all files
  --gin_search_paths=A,B      more folders in which gin files are looked for{listed}{own}
  --coordinator_address=A:P   of a run on several hosts, where they do not find each other by
  --process_count=N           themselves: host 0 with a free port, how many hosts there are, and
  --process_index=I           which of them this is, from 0
  --help                      print this

Files are found from the working directory, else below {folder}. Experiments there:
{textwrap.indent(textwrap.fill("  ".join(shipped), 94), "  ")}"""
