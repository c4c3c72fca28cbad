"""Makes the data that `adalink pretrain-english` trains on, from files of the user's own.

adalink english-data runs/english_data --text=english.txt --teacher=MINILM --wordnet=WORDNET \
    --vader=VADER --glue=GLUE

OUT can be copied to another machine: it has token arrays, the vocabulary and the teacher.
"""

import argparse
import dataclasses
import pathlib

from adalink_jax.tools.english_base import prepare

_HELP = {
    "text": "a text file, a paragraph a line",
    "teacher": "a folder with model.safetensors, config.json and tokenizer.json of a BERT",
    "wordnet": "the folder of WordNet 3's files: data.noun, index.noun and so on",
    "vader": "the folder of VADER's sources, with additional_resources unpacked",
    "glue": "the folder with GLUE's folders",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the folder, the sources and the amounts."""
    parser.add_argument("out", metavar="OUT", help="the folder to write")
    for name, text in _HELP.items():
        parser.add_argument(f"--{name}", type=pathlib.Path, required=True, help=text)
    for field in dataclasses.fields(prepare.Amounts):
        parser.add_argument(
            f"--{field.name}", type=int, default=field.default, help=_MADE[field.name]
        )
    parser.add_argument("--seed", type=int, default=0, help="seed of all choices")


_MADE = {
    "paragraphs": "lines of the text to read; all by default",
    "changed": "sentences to change",
    "asked": "questions about texts",
    "defined": "words with their meanings",
    "judged": "sentences to judge by mood",
}


def run(arguments: argparse.Namespace) -> None:
    """Writes the folder."""
    values = vars(arguments)
    sources = prepare.Sources(**{name: values[name] for name in _HELP})
    amounts = prepare.Amounts(**{name: values[name] for name in _MADE})
    prepare.make(pathlib.Path(arguments.out), sources, amounts, arguments.seed)
