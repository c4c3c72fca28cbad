"""Adapt a large frozen T5 from its inputs, in JAX: ``import adalink_jax as al``.

Importing the package loads nothing. Each name loads what it needs on first use. From then on the
module `tasks` is this project's, whatever else of that name lies on Python's path.
"""

import importlib
import importlib.util
import os
import sys
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"


class _OwnTasks:
    """Finds this project's `tasks` before a user's ``tasks.py``, a common name."""

    @staticmethod
    def find_spec(name: str, path: Any = None, target: Any = None) -> Any:
        folder = os.path.join(os.path.dirname(os.path.dirname(__file__)), "tasks")
        file = os.path.join(folder, "__init__.py")
        if name != "tasks" or not os.path.isfile(file):
            return None
        return importlib.util.spec_from_file_location(
            name, file, submodule_search_locations=[folder]
        )


sys.meta_path.insert(0, _OwnTasks)  # pyright: ignore[reportArgumentType]: a class with the method


_HOMES = {
    "api": ("Result", "evaluate", "finetune", "load_result", "predict"),
    "client": ("Client", "ServerError"),
    "checkpoints": (
        *("fingerprint", "load_adapter", "load_base", "load_image_encoder", "save_adapter"),
        "save_image_encoder",
    ),
    "errors": ("UserError",),
    "methods": ("METHODS", "AdaLink", "Full", "LoRA", "Method", "PromptTuning"),
    "methods.base": ("merge",),
    "models.parameters": ("init_adapter",),
    "models.t5": ("T5Config", "Transformer"),
    "runs.options": (
        *("Batches", "Data", "Evaluation", "Layers", "Layout", "Loss", "Periods", "Precision"),
        *("Images", "Selection", "Table"),
    ),
}
_HOME_OF = {name: f"{__name__}.{home}" for home, names in _HOMES.items() for name in names}

if TYPE_CHECKING:  # The same names, for editors and type checkers.
    from adalink_jax.api import *  # noqa: F403
    from adalink_jax.checkpoints import (
        fingerprint,
        load_adapter,
        load_base,
        load_image_encoder,
        save_adapter,
        save_image_encoder,
    )
    from adalink_jax.client import Client, ServerError
    from adalink_jax.errors import UserError
    from adalink_jax.methods import *  # noqa: F403
    from adalink_jax.methods.base import merge
    from adalink_jax.models.parameters import init_adapter
    from adalink_jax.models.t5 import T5Config, Transformer
    from adalink_jax.runs.options import *  # noqa: F403


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module '{__name__}' has no attribute {name!r}")
    try:
        home = importlib.import_module(_HOME_OF[name])
    except ModuleNotFoundError as error:
        if importlib.util.find_spec("jax") is not None:
            raise
        from adalink_jax.errors import without_environment

        message = without_environment((error.name or "").partition(".")[0])
        raise ModuleNotFoundError(message, name=error.name) from None
    value = globals()[name] = getattr(home, name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME_OF})
