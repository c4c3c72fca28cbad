"""SeqIO tasks: GLUE's eight and their mixtures, pre-training, and the embedded mini world.

Importing this package registers all tasks without reading anything: no network, TFDS metadata,
vocabulary or data file is used before a task is opened. Then environment variables give the paths:
VOCABULARY, T5's SentencePiece file; GLUE_DIR, a folder in GLUE's official layout (without it, GLUE
comes from TFDS); TEXT_FILE, a text for pre-training. The tasks also run in T5X without changes.
"""

from tasks.errors import DataError
from tasks.examples import add_examples
from tasks.glue import GLUE_FILES, GLUE_TASKS, glue_file, glue_rows, glue_submission
from tasks.mini_glue import MINI_GLUE_TASKS, write_glue_folder
from tasks.mini_instructions import INSTRUCTIONS as MINI_INSTRUCTIONS
from tasks.mini_vocabulary import VOCABULARY as MINI_VOCABULARY
from tasks.mixtures import proportional_rate
from tasks.pretraining import add_instructions, add_span_corruption
from tasks.registry import (
    EVAL_SPLITS,
    LABELS,
    PICTURES,
    UNLABELED,
    add_classification,
    available_splits,
    output_features,
    source_identity,
    text_to_text,
)
from tasks.vocabulary import UserVocabulary

__all__ = [
    "EVAL_SPLITS",
    "GLUE_FILES",
    "GLUE_TASKS",
    "LABELS",
    "MINI_GLUE_TASKS",
    "MINI_INSTRUCTIONS",
    "MINI_VOCABULARY",
    "PICTURES",
    "UNLABELED",
    "DataError",
    "UserVocabulary",
    "add_classification",
    "add_examples",
    "add_instructions",
    "add_span_corruption",
    "available_splits",
    "glue_file",
    "glue_rows",
    "glue_submission",
    "output_features",
    "proportional_rate",
    "source_identity",
    "text_to_text",
    "write_glue_folder",
]
