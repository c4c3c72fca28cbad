"""SeqIO tasks: GLUE, SuperGLUE, robustness, images, pre-training, and the embedded mini world.

Importing this package registers all tasks without reading anything: no network, TFDS metadata,
vocabulary or data file is used before a task is opened. Then environment variables give the paths:
VOCABULARY, T5's SentencePiece file; GLUE_DIR, a folder in GLUE's official layout (without it, GLUE
comes from TFDS); SUPER_GLUE_DIR and ROBUSTNESS_DIR, folders of other sets; IMAGE_DIR, the folder of
data sets of images; TEXT_FILE, a text for pre-training. TEMPLATE_SEED chooses FLAN's prompts. The
tasks of text also run in T5X without changes.
"""

from tasks.errors import DataError
from tasks.examples import add_examples
from tasks.flan import FLAN_TASKS
from tasks.glue import GLUE_FIELDS, GLUE_FILES, GLUE_TASKS, glue_file, glue_rows, glue_submission
from tasks.images import CAPTION_TASKS, VQA_TASKS, add_image_task, references
from tasks.mini_glue import MINI_GLUE_TASKS, write_glue_folder
from tasks.mini_images import MINI_IMAGE_TASKS
from tasks.mini_images import VOCABULARY as MINI_IMAGE_VOCABULARY
from tasks.mini_instructions import INSTRUCTIONS as MINI_INSTRUCTIONS
from tasks.mini_vocabulary import VOCABULARY as MINI_VOCABULARY
from tasks.mixtures import proportional_rate
from tasks.pretraining import add_instructions, add_span_corruption
from tasks.registry import (
    EVAL_SPLITS,
    LABELS,
    PICTURES,
    SCORED_BY,
    UNLABELED,
    add_classification,
    available_splits,
    output_features,
    source_identity,
    text_to_text,
)
from tasks.robustness import ADV_GLUE_TASKS, ANLI_TASKS
from tasks.super_glue import SUPER_GLUE_TASKS
from tasks.vocabulary import FileVocabulary, UserVocabulary

__all__ = [
    "ADV_GLUE_TASKS",
    "ANLI_TASKS",
    "CAPTION_TASKS",
    "EVAL_SPLITS",
    "FLAN_TASKS",
    "GLUE_FIELDS",
    "GLUE_FILES",
    "GLUE_TASKS",
    "LABELS",
    "MINI_GLUE_TASKS",
    "MINI_IMAGE_TASKS",
    "MINI_IMAGE_VOCABULARY",
    "MINI_INSTRUCTIONS",
    "MINI_VOCABULARY",
    "PICTURES",
    "SCORED_BY",
    "SUPER_GLUE_TASKS",
    "UNLABELED",
    "VQA_TASKS",
    "DataError",
    "FileVocabulary",
    "UserVocabulary",
    "add_classification",
    "add_examples",
    "add_image_task",
    "add_instructions",
    "add_span_corruption",
    "available_splits",
    "glue_file",
    "glue_rows",
    "glue_submission",
    "output_features",
    "proportional_rate",
    "references",
    "source_identity",
    "text_to_text",
    "write_glue_folder",
]
