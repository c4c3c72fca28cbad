"""SeqIO tasks → token arrays → batches: deterministic, packed or bucketed by length.

Importing this package imports NumPy alone; SeqIO and TensorFlow come in when a task is first read.
"""

from adalink_jax.data.batches import EvalExamples, TrainBatches, prefetch
from adalink_jax.data.corpus import Tokens, tokens

__all__ = ["EvalExamples", "Tokens", "TrainBatches", "prefetch", "tokens"]
