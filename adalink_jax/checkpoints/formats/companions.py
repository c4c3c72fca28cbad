"""What lies beside the weights in a Hugging Face folder: special ids, tokenizer, generation.

Arrays do not say which id ends a text, and no other format has a place for it or for a tokenizer. A
copy in the same format keeps these files. Ids other than T5's are refused, as the network here
starts the decoder with id 0 and masks it as padding, and a copy would say other ids.
"""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from adalink_jax.checkpoints.storage import Folder
from adalink_jax.errors import UserError

GENERATION = "generation_config.json"
TOKENIZER = (
    "spiece.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
)
#: The special ids of every T5, by their names in a folder's settings.
IDS = {"decoder_start_token_id": 0, "eos_token_id": 1, "pad_token_id": 0}

# Settings that the weights do not show and that are a matter of training or of use.
_KEPT = ("dropout_rate", "initializer_factor", "task_specific_params")


def check_ids(settings: Mapping[str, Any], where: str) -> None:
    """Raises `UserError` if settings give a special id another value than T5's.

    Args:
      settings: the content of ``config.json`` or ``generation_config.json``.
      where: the file's path.
    """
    for name, value in IDS.items():
        given = settings.get(name)
        if given is not None and value not in (given if isinstance(given, list) else [given]):
            raise UserError(
                f"{where}: {name} is {given!r}; here it is {value}, as in T5, FLAN-T5 and mT5, and "
                "a model of other ids would start, end or pad its texts wrongly"
            )


def keep(source: Folder, config: Mapping[str, Any], target: pathlib.Path) -> dict[str, Any]:
    """Copies the files that lie beside a source's weights.

    Args:
      source: the Hugging Face folder that is copied.
      config: its ``config.json``.
      target: the new folder.

    Returns:
      The settings of the source that the copy's ``config.json`` keeps.
    """
    for name in {*TOKENIZER, GENERATION}.intersection(source.children()):
        (target / name).write_bytes(source.read(name))
    return {name: config[name] for name in _KEPT if name in config}


def read_settings(folder: Folder, name: str) -> dict[str, Any]:
    """Returns the JSON object in a file of the folder.

    Raises:
      UserError: there is no such file, or it holds something else.
    """
    try:
        content = json.loads(folder.read(name))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{folder / name}: no JSON; truncated or damaged") from error
    if not isinstance(content, dict):
        raise UserError(f"{folder / name}: not one JSON object")
    return content


def describe_tokenizer(folder: str) -> str:
    """Returns a line that says which tokenizer a written Hugging Face folder has."""
    there = [name for name in TOKENIZER if (pathlib.Path(folder) / name).is_file()]
    if there:
        return f"its tokenizer is the source's: {', '.join(there)}"
    return (
        "no tokenizer was written, as none lies beside the source's weights; put its files there "
        "(for T5 spiece.model), or transformers makes one up without a word"
    )
