"""Bases in few bytes: rounded matrices in small files, and the names of those that are shipped."""

import json
import os
import shutil

import jax
import numpy as np
import pytest

from adalink_jax import shipped
from adalink_jax.adapters.texts import opened_vocabulary
from adalink_jax.checkpoints import load_base, open_base
from adalink_jax.checkpoints.formats import packed
from adalink_jax.config import flags
from adalink_jax.errors import UserError
from adalink_jax.models.parameters import init_base
from adalink_jax.models.t5 import T5Config

CONFIG = T5Config(
    vocab_size=1024,
    emb_dim=32,
    num_heads=2,
    head_dim=16,
    mlp_dim=40,
    num_encoder_layers=1,
    num_decoder_layers=1,
    mlp_activations=("gelu",),
    logits_via_embedding=True,
    relpos_bias_per_layer=True,
)


@pytest.fixture(scope="module")
def params():
    return jax.tree.map(np.array, init_base(CONFIG, jax.random.key(0)))


@pytest.fixture
def folder(params, tmp_path, monkeypatch):
    monkeypatch.setattr(packed, "_PART_BYTES", 20_000)
    packed.write(tmp_path, params, CONFIG, {"seed": 3})
    return tmp_path


def test_what_is_written_is_read_but_for_the_rounding(params, folder):
    assert len(list(folder.glob("packed.[0-9]*"))) > 2
    config, read = load_base(str(folder))
    assert config == CONFIG
    table, written = read["token_embedder"]["embedding"], params["token_embedder"]["embedding"]
    step = np.abs(written).max(1, keepdims=True) / 31
    assert 0 < np.abs(table - written).max() and (np.abs(table - written) <= step * 0.501).all()
    read["token_embedder"]["embedding"] = written
    for got, wanted in zip(jax.tree.leaves(read), jax.tree.leaves(params), strict=True):
        np.testing.assert_array_equal(got, wanted)  # Small arrays are whole.
    part = open_base(str(folder)).read("token_embedder/embedding", (slice(3, 7),))
    np.testing.assert_array_equal(part, table[3:7])


def test_equal_arguments_give_equal_bytes(params, folder, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    packed.write(other, params, CONFIG, {"seed": 3})
    for path in folder.iterdir():
        assert path.read_bytes() == (other / path.name).read_bytes()


def test_damage_is_one_line(folder):
    def refused(said: str) -> None:
        with pytest.raises(UserError, match=said) as error:
            load_base(str(folder))
        assert "\n" not in str(error.value)

    record = (folder / "packed.json").read_text()
    part = folder / "packed.1"
    content = part.read_bytes()
    part.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    refused("truncated or altered")
    part.unlink()
    refused("packed.1")
    part.write_bytes(content)
    fields = json.loads(record)
    for name, value, said in (
        ("version", 2, "version 2"),
        ("tensors", {"decoder/decoder_norm/scale": [32]}, "no array"),
        ("tensors", 3, "damaged"),
        ("parts", "two", "damaged"),
        ("architecture", {**fields["architecture"], "num_heads": 4}, "num_heads is 4"),
    ):
        (folder / "packed.json").write_text(json.dumps({**fields, name: value}))
        refused(said)
    shapes = {**fields["tensors"], "token_embedder/embedding": [2048, 32]}
    wider = {**fields["architecture"], "vocab_size": 2048}
    (folder / "packed.json").write_text(
        json.dumps({**fields, "tensors": shapes, "architecture": wider})
    )
    refused("bytes of arrays, but packed.json lists")
    (folder / "packed.json").write_text(record[:-9])
    refused("damaged")


def test_a_shipped_base_has_a_name_and_its_vocabulary(folder, monkeypatch, tmp_path_factory):
    """In a package that is installed, or beside this one in a checkout; a folder comes first."""
    monkeypatch.setattr(shipped, "_PACKAGE", "some_bases")
    monkeypatch.chdir(tmp_path_factory.mktemp("work"))
    for call in (lambda: load_base("english"), lambda: opened_vocabulary("english")):
        with pytest.raises(UserError, match="is a base of the package adalink-jax-bases"):
            call()
    root = tmp_path_factory.mktemp("site") / "some_bases"
    shutil.copytree(folder, root / "english")
    (root / "__init__.py").touch()
    (root / "english/vocabulary.model").touch()
    monkeypatch.syspath_prepend(str(root.parent))
    assert load_base("english")[0] == CONFIG
    with flags.environment({"VOCABULARY": "english"}):
        assert os.environ["VOCABULARY"] == str(root / "english/vocabulary.model")
    monkeypatch.setenv("VOCABULARY", str(root / "english"))
    with flags.environment({}):
        assert os.environ["VOCABULARY"] == str(root / "english/vocabulary.model")
    os.mkdir("english")  # A folder of the user's with that name.
    with pytest.raises(UserError, match="is an empty folder"):
        load_base("english")
    assert shipped.vocabulary("english") == "english"
