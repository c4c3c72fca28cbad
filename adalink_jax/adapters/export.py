"""Exports an adapter with its base: as one folded model, as a PEFT adapter or as programs."""

import argparse
import functools
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jax import export

from adalink_jax.adapters.load import Adaptation, largest, load_adaptation, logits
from adalink_jax.adapters.probe import fixed_images, fixed_inputs
from adalink_jax.adapters.programs import save_programs
from adalink_jax.adapters.texts import described, files_beside, opened_vocabulary
from adalink_jax.checkpoints import StoredBase, load_base, save_base
from adalink_jax.checkpoints.formats.companions import TOKENIZER, describe_tokenizer
from adalink_jax.checkpoints.formats.peft import load_peft, save_peft
from adalink_jax.errors import UserError
from adalink_jax.methods.base import merge, split
from adalink_jax.models import decoding
from adalink_jax.models.t5 import Transformer

# Largest allowed difference between the exported model's logits and the adaptation's, relative to
# the largest logit (taken to be at least 1).
TOLERANCE = 1e-4

Files = Mapping[str, bytes]

_OWN_TABLE = {
    "huggingface": (
        "the encoder has a token table of its own, encoder.embed_tokens.weight: transformers 5 "
        "keeps it apart from shared.weight; transformers 4 makes them one, see "
        "docs/howto/adapters.md"
    ),
    "t5x": (
        "the encoder has a token table of its own, encoder/token_embedder/embedding, which this "
        "project's Transformer runs, inside T5X too, and T5X's own minimal network does not know"
    ),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the adapter, its base, the folder to write and the format."""
    parser.add_argument("--adapter", required=True, help="the adapter's folder or its run's")
    parser.add_argument("--base", required=True, help="the base it was trained on")
    parser.add_argument("--to", required=True, help="the folder to write; never overwritten")
    parser.add_argument(
        "--format",
        required=True,
        choices=FORMATS,
        help="huggingface, t5x: base and adapter folded into one model; peft: PEFT's adapter; "
        "stablehlo: encode, score and greedy as programs that need only jax to run",
    )
    parser.add_argument("--route", help="the route's name, for an adapter with several")
    about = (
        "T5's SentencePiece file, or 'mini'; it is written too, and so are the labels' token ids"
    )
    parser.add_argument("--vocabulary", help=about)


def run(arguments: argparse.Namespace) -> None:
    """Writes an adapter and its base in another format, and checks the result."""
    vocabulary = opened_vocabulary(arguments.vocabulary) if arguments.vocabulary else None
    adaptation = load_adaptation(arguments.adapter, arguments.base)
    beside = files_beside(adaptation.adapter, vocabulary)
    FORMATS[arguments.format](adaptation, arguments.to, arguments.route, beside)
    print(described(beside))


def _folded(
    format_name: str, adaptation: Adaptation, to: str, route: str | None, beside: Files
) -> None:
    number = adaptation.adapter.route(route)
    config, tree = adaptation.folded(number)
    expected = adaptation.logits(number)

    def check(folder: pathlib.Path) -> None:
        _write(beside, folder)
        written, params = load_base(folder, config)
        _check_same(logits(written, params), expected, to)

    arrays: dict[str, Any] = traverse_util.flatten_dict(dict(tree), sep="/")
    folded = StoredBase(config, "folded", arrays, beside=adaptation.beside)
    save_base(to, folded, format_name, check=check)
    if format_name == "huggingface":
        print(describe_tokenizer(to))
    cast = jax.tree.map(lambda x: np.asarray(x).astype(jnp.bfloat16).astype(np.float32), tree)
    moved = largest(logits(config, cast) - expected)
    print(f"its parameters are float32; cast to bfloat16, a logit changes by up to {moved:.2g}")
    if config.separate_encoder_embedding:
        print(_OWN_TABLE[format_name])


def _peft(adaptation: Adaptation, to: str, route: str | None, beside: Files) -> None:
    number, config = adaptation.adapter.route(route), adaptation.config
    expected = adaptation.logits(number)

    def check(folder: pathlib.Path) -> None:
        _write(beside, folder)
        method, tree = load_peft(folder, config, adaptation.base)
        _check_same(logits(config, merge(adaptation.base, tree), method), expected, to)

    tree = adaptation.adapter.tree
    save_peft(to, adaptation.method, tree, number, config, adaptation.base, check)


def _programs(adaptation: Adaptation, to: str, route: str | None, beside: Files) -> None:
    if route is not None:
        raise UserError("programs take the route of each row as an argument; leave --route out")
    model = Transformer(adaptation.config, adaptation.method)
    inputs, options = fixed_inputs(model.config.vocab_size)
    images = fixed_images(model.config.image_width)
    routes = np.arange(len(inputs), dtype=np.int32) % len(adaptation.routes)
    given = inputs, options, routes
    expected = decoding.score_options(model, adaptation.params, *given, **images)
    own, frozen = split(adaptation.params, adaptation.method)
    flat = [traverse_util.flatten_dict(tree, sep="/") for tree in (frozen, own)]

    def check(folder: pathlib.Path) -> None:
        _write(beside, folder)
        score = export.deserialize(bytearray((folder / "score.stablehlo").read_bytes()))
        found = score.call(*flat, inputs, routes, options, *images.values())
        _check_same(np.asarray(found), expected, to)

    save_programs(to, adaptation.config, adaptation.method, check)


def _write(beside: Files, folder: pathlib.Path) -> None:
    """Writes files into an export that is not finished; a tokenizer that is there stays."""
    there = any((folder / name).exists() for name in TOKENIZER)
    for name, content in beside.items():
        if name not in TOKENIZER or not there:
            (folder / name).write_bytes(content)


def _check_same(actual: np.ndarray, expected: np.ndarray, to: str) -> None:
    """Raises `UserError` unless the exported model gives the same outputs on the fixed inputs."""
    change, bound = largest(np.subtract(actual, expected)), TOLERANCE * max(1, largest(expected))
    if not change <= bound:
        raise UserError(
            f"{to} is not written: what it computes is off by {change:.2g} on fixed inputs, more "
            f"than {bound:.2g}"
        )
    print(f"{to}: written, and read again: off by at most {change:.2g} on fixed inputs")


FORMATS: Mapping[str, Callable[[Adaptation, str, str | None, Files], None]] = {
    "huggingface": functools.partial(_folded, "huggingface"),
    "t5x": functools.partial(_folded, "t5x"),
    "peft": _peft,
    "stablehlo": _programs,
}
