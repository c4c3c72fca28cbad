"""The bases of adalink-jax-bases: they load, and know some English."""

import pathlib
import shutil
import subprocess
import sys
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import adalink_jax as al
from adalink_jax import shipped
from adalink_jax.adapters.texts import vocabulary_of
from adalink_jax.models.t5 import Transformer

ROOT = pathlib.Path(__file__).resolve().parents[2]
ALIKE = [
    ("A man is playing a guitar.", "Somebody plays an instrument."),
    ("The children are swimming in the lake.", "Kids swim in the water."),
    ("She was very angry at her brother.", "The woman was furious with her sibling."),
    ("The company lost a lot of money last year.", "The firm had a large financial loss."),
    ("The soup was too hot to eat.", "It burned my tongue when I tried the broth."),
]


MOODS = {
    "what a wonderful , moving film .": "positive",
    "a dull and boring mess .": "negative",
    "i love this phone , it works great .": "positive",
    "the worst product that i ever bought .": "negative",
    "the food was delicious and the people were friendly .": "positive",
    "this is a terrible waste of money .": "negative",
}


@pytest.fixture(scope="module")
def english():
    return al.load_base("english")


@pytest.fixture(scope="module")
def raw():
    return al.load_base("english_raw")


def _tokens(texts):
    vocabulary = vocabulary_of("english")
    rows = [[*vocabulary.encode(text), 1] for text in texts]
    tokens = np.zeros((len(rows), max(map(len, rows))), np.int32)
    for row, ids in zip(tokens, rows, strict=True):
        row[: len(ids)] = ids
    return tokens


def _encoded(base, texts):
    """Returns the mean of the encoder's outputs of each text, less their own mean."""
    config, params = base
    tokens = _tokens(texts)
    encoded = jax.jit(
        lambda tokens: Transformer(config).apply(
            {"params": params}, tokens, enable_dropout=False, method="encode"
        )
    )(tokens)
    weight = (tokens > 1)[..., None]
    means = np.asarray(jnp.sum(encoded * weight, 1) / weight.sum(1))
    return means - means.mean(0)


def test_the_tuned_one_answers(english):
    config, params = english
    vocabulary = vocabulary_of("english")
    tokens = _tokens([f"is this text positive or negative ? {text}" for text in MOODS])
    start = jnp.zeros((len(tokens), 1), jnp.int32)
    logits = Transformer(config).apply(
        {"params": params}, tokens, start, start + 1, enable_dropout=False
    )
    answers = [vocabulary.decode([token]) for token in np.asarray(logits)[:, 0].argmax(-1).tolist()]
    assert answers == list(MOODS.values())


def test_each_sentence_is_nearest_to_the_one_that_says_the_same(raw):
    one, two = (_encoded(raw, texts) for texts in zip(*ALIKE, strict=True))
    one, two = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (one, two))
    assert ((one @ two.T).argmax(1) == np.arange(len(ALIKE))).all()


def test_both_are_of_one_architecture_and_vocabulary(english, raw):
    config, params = raw
    assert config == english[0] and config.vocab_size == 20_480
    files = [(shipped.folder(name) / "vocabulary.model").read_bytes() for name in shipped.NAMES]
    assert files[0] == files[1]
    vocabulary = vocabulary_of("english")
    assert vocabulary.vocab_size == config.vocab_size
    for label in ("not_entailment", "3.8", "positive"):
        assert vocabulary.decode(vocabulary.encode(label)) == label
    differ = jax.tree.map(lambda a, b: bool((a != b).any()), params, english[1])
    assert all(jax.tree.leaves(differ["decoder"]))


@pytest.mark.slow
def test_the_package_has_them_and_no_file_is_large(tmp_path):
    folder, copy = ROOT / "adalink_jax_bases", tmp_path / "sources"
    shutil.copytree(folder, copy)
    command = [sys.executable, "-m", "pip", "wheel", str(copy), "--no-deps", "--no-index"]
    command += ["--no-build-isolation", "--quiet", "--wheel-dir", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (built,) = tmp_path.glob("adalink_jax_bases-*.whl")
    names = zipfile.ZipFile(built).namelist()
    for name in shipped.NAMES:
        files = [path for path in (folder / name).iterdir() if path.is_file()]
        assert {f"adalink_jax_bases/{name}/{path.name}" for path in files} <= set(names)
        assert max(path.stat().st_size for path in files) < 5_000_000
