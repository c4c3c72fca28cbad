"""Evaluation on tasks: rank classification, generation, and the report of the results.

Importing this package imports neither SeqIO nor TensorFlow; making an `Evaluator` does.
"""

from adalink_jax.evaluation.evaluator import BEAM_SIZE, MODES, Evaluator
from adalink_jax.evaluation.results import (
    Prediction,
    Results,
    SplitResult,
    TaskResult,
    chosen,
    print_table,
    report,
    scalars,
    write,
)

__all__ = [
    "BEAM_SIZE",
    "MODES",
    "Evaluator",
    "Prediction",
    "Results",
    "SplitResult",
    "TaskResult",
    "chosen",
    "print_table",
    "report",
    "scalars",
    "write",
]
