"""Scoring of tasks: rank classification, generation, and the report of the results.

Importing this package imports neither SeqIO nor TensorFlow; they come in with an `Evaluator`.
"""

from adalink_jax.evaluation.evaluator import MODES, Evaluator
from adalink_jax.evaluation.results import (
    Prediction,
    Results,
    SplitResult,
    TaskResult,
    print_table,
    report,
    scalars,
    write,
)

__all__ = [
    "MODES",
    "Evaluator",
    "Prediction",
    "Results",
    "SplitResult",
    "TaskResult",
    "print_table",
    "report",
    "scalars",
    "write",
]
