"""Runs: from settings to an adapter, its scores and a record of both.

`train`, `evaluate` and `describe` are the functions that gin files bind.
"""

from adalink_jax.runs.description import describe
from adalink_jax.runs.scoring import evaluate
from adalink_jax.runs.training import train

__all__ = ["describe", "evaluate", "train"]
