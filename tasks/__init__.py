"""SeqIO tasks: the eight GLUE tasks, their mixtures, and the embedded mini world.

Importing this package registers everything and reads nothing: no network, no TFDS metadata, no
vocabulary and no data file is touched before a task is opened. Two environment variables say where
things are and are read then: VOCABULARY, T5's SentencePiece file, and GLUE_DIR, a folder in GLUE's
official layout (without it GLUE comes from TFDS). The tasks run in T5X as they are.
"""

from tasks.errors import DataError
from tasks.glue import GLUE_TASKS
from tasks.mini import VOCABULARY as MINI_VOCABULARY
from tasks.mixtures import proportional_rate
from tasks.registry import (
    EVAL_SPLITS,
    LABELS,
    add_classification,
    available_splits,
    output_features,
    source_identity,
    text_to_text,
)
from tasks.vocabulary import UserVocabulary

__all__ = [
    "EVAL_SPLITS",
    "GLUE_TASKS",
    "LABELS",
    "MINI_VOCABULARY",
    "DataError",
    "UserVocabulary",
    "add_classification",
    "available_splits",
    "output_features",
    "proportional_rate",
    "source_identity",
    "text_to_text",
]
