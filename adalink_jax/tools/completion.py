"""Prints a shell script that completes commands, flags and macros.

adalink completion bash > ~/.local/share/bash-completion/completions/adalink
adalink completion zsh > ~/.zfunc/_adalink      (~/.zfunc is in fpath, before compinit)

The script lists this installation's commands. Print it again after an update.
"""

import argparse
import importlib
from typing import Any

import shtab

from adalink_jax import cli
from adalink_jax.config import flags, macros


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the shell's name."""
    parser.add_argument("shell", choices=("bash", "zsh"))


def run(arguments: argparse.Namespace) -> None:
    """Prints the script."""
    print(shtab.complete(whole_parser(), shell=arguments.shell))


def whole_parser() -> argparse.ArgumentParser:
    """Returns one parser with all commands. Commands whose packages are missing get no flags."""
    parser = argparse.ArgumentParser(prog="adalink")
    commands = parser.add_subparsers()
    for name, command in cli.COMMANDS.items():
        added = commands.add_parser(name, help=command.help)
        if isinstance(command, cli.GinCommand):
            _add_gin(added, command.switches, command.table)
            continue
        try:
            importlib.import_module(command.module).add_arguments(added)
        except ModuleNotFoundError:
            continue
        if added.get_default("flags") is not None:
            _add_gin(added, {}, table=True)
    return parser


def _add_gin(parser: argparse.ArgumentParser, switches: Any, table: bool) -> None:
    """Adds the flags of gin commands, and one flag per macro."""
    own = {name for action in parser._actions for name in action.option_strings}
    for name in (*flags.VALUED, *(flags.TABLE if table else ())):
        if f"--{name}" in own:
            continue
        action = parser.add_argument(f"--{name}")
        if name in ("gin_file", "data", "dev"):
            action.complete = shtab.FILE  # pyright: ignore[reportAttributeAccessIssue]: shtab's way
    for name, text in switches.items():
        parser.add_argument(f"--{name}", action="store_true", help=text)
    known = {macro.name: macro for macro in macros.macros() if not macro.file.startswith("t5x/")}
    for name, macro in known.items():
        parser.add_argument(f"--gin.{name}", help=macro.meaning.replace("%", "%%"))
