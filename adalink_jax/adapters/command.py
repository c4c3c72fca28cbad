"""The command line of adapters on disk."""

import sys
from collections.abc import Callable
from typing import Any

from adalink_jax.adapters.inspect import diff, info, verify
from adalink_jax.adapters.routes import import_peft, split_routes, stack
from adalink_jax.errors import UserError

COMMANDS: dict[str, Callable[..., int]] = {
    "info": info,
    "verify": verify,
    "diff": diff,
    "import": import_peft,
    "stack": stack,
    "split": split_routes,
}


def main(command: str, **arguments: Any) -> int:
    """Runs one of `COMMANDS`; returns the exit code, 2 for a user's mistake."""
    try:
        return COMMANDS[command](**arguments)
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
