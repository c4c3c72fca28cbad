"""SeqIO tasks → token arrays → batches: deterministic, packed or bucketed by length.

Importing this package only imports NumPy. SeqIO and TensorFlow are imported when a task is read.
"""

from adalink_jax.data.batches import TrainBatches, prefetch
from adalink_jax.data.corpus import tokens
from adalink_jax.data.scored import EvalExamples
from adalink_jax.data.tokenized import HELD_OUT, Tokens

__all__ = ["HELD_OUT", "EvalExamples", "Tokens", "TrainBatches", "prefetch", "tokens"]
