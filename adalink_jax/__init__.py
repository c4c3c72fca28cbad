"""Adapt a large frozen T5 from its inputs, in JAX: ``import adalink_jax as al``.

Importing the package loads nothing. Each name loads what it needs on first use.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

_HOMES = {
    "api": ("Result", "evaluate", "finetune", "load_result", "predict"),
    "client": ("Client", "ServerError"),
    "checkpoints": ("fingerprint", "load_adapter", "load_base", "save_adapter"),
    "errors": ("UserError",),
    "methods": ("METHODS", "AdaLink", "Full", "LoRA", "Method", "PromptTuning"),
    "methods.base": ("merge",),
    "models.parameters": ("init_adapter",),
    "models.t5": ("T5Config", "Transformer"),
    "runs.options": (
        *("Batches", "Data", "Evaluation", "Layers", "Layout", "Loss", "Periods", "Precision"),
        "Selection",
    ),
}
_HOME_OF = {name: f"{__name__}.{home}" for home, names in _HOMES.items() for name in names}

if TYPE_CHECKING:  # The same names, for editors and type checkers.
    from adalink_jax.api import *  # noqa: F403
    from adalink_jax.checkpoints import fingerprint, load_adapter, load_base, save_adapter
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
    value = globals()[name] = getattr(importlib.import_module(_HOME_OF[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME_OF})
