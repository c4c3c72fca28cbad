"""A model's name on the Hugging Face Hub as a base, in the cache that the Hub's tools fill."""

import os

import numpy as np
import pytest
from flax import traverse_util

from adalink_jax.checkpoints import bases, hub, load_base
from adalink_jax.errors import UserError
from adalink_jax.models.t5 import T5Config

CONFIG = T5Config(
    vocab_size=40,
    emb_dim=12,
    num_heads=2,
    num_encoder_layers=1,
    num_decoder_layers=1,
    head_dim=4,
    mlp_dim=16,
    mlp_activations=("gelu", "linear"),
)
NAME, VERSION = "someone/flan-t5-tiny", "7bcac572ce56db69c1ea7c8af255c5d7c9672fc2"
PLACES = {  # From the documentation of huggingface_hub: each wins over those below it.
    "HF_HUB_CACHE": "a",
    "HF_HOME": "b/hub",
    "XDG_CACHE_HOME": "c/huggingface/hub",
    "HOME": "d/.cache/huggingface/hub",
}


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A working folder, and a home in which no variable names another cache."""
    for name in (*PLACES, "HUGGINGFACE_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "home"


def put(source, cache) -> str:
    """Lays a folder into a cache as its tools do: links from a version's folder to blobs."""
    model = cache / f"models--{NAME.replace('/', '--')}"
    (model / "refs").mkdir(parents=True)
    (model / "refs/main").write_text(VERSION)
    version = model / "snapshots" / VERSION
    (model / "blobs").mkdir()
    version.mkdir(parents=True)
    for number, file in enumerate(p for p in source.iterdir() if p.is_file()):
        (model / f"blobs/{number}").write_bytes(file.read_bytes())
        os.symlink(f"../../blobs/{number}", version / file.name)
    return str(version)


@pytest.mark.parametrize("number", range(len(PLACES)))
def test_the_cache_is_where_its_tools_have_it(home, monkeypatch, number):
    for name, place in list(PLACES.items())[number:]:
        first = place.split("/")[0] if name != "HF_HUB_CACHE" else place
        monkeypatch.setenv(name, str(home / first))
    assert hub.cache() == home / list(PLACES.values())[number]


def test_a_name_is_the_base_in_the_cache(home, write_base):
    written = write_base(CONFIG)
    copy = home / "copy"
    home.mkdir()
    bases.save_base(copy, bases.open_base(written), "huggingface")
    folder = put(copy, home / ".cache/huggingface/hub")
    config, params = load_base(NAME)
    assert bases.open_base(NAME).where == folder
    expected_config, expected = load_base(written)
    assert config == expected_config
    flat, wanted = (traverse_util.flatten_dict(tree, sep="/") for tree in (params, expected))
    assert flat.keys() == wanted.keys()
    for name, array in flat.items():
        np.testing.assert_array_equal(array, wanted[name])


@pytest.mark.reference
def test_its_own_tools_find_the_same_folder(home, tmp_path):
    hf = pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed")
    source = tmp_path / "source"
    source.mkdir()
    (source / "config.json").write_text("{}")
    put(source, hub.cache())
    found = hf.snapshot_download(NAME, cache_dir=hub.cache(), local_files_only=True)
    assert hub.cached(NAME) == type(home)(found)


def test_a_name_that_is_not_there_says_how_to_get_it(home):
    with pytest.raises(UserError) as caught:
        load_base(NAME)
    message = str(caught.value)
    assert message.endswith(f"pip install huggingface_hub && hf download {NAME}")
    assert str(home / ".cache/huggingface/hub") in message and "\n" not in message


@pytest.mark.parametrize("damage", ["refs/main", f"snapshots/{VERSION}"])
def test_half_a_cache_is_none(home, tmp_path, damage):
    source = tmp_path / "source"
    source.mkdir()
    put(source, hub.cache())
    place = hub.cache() / f"models--{NAME.replace('/', '--')}" / damage
    place.unlink() if place.is_file() else place.rmdir()
    assert hub.cached(NAME) is None


def test_a_path_stays_a_path(home):
    os.makedirs("checkpoints")
    for path in ("checkpoints/none", "/no/such", "a/b/c", "none", "./a/b", "gs://a/b"):
        assert not hub.is_name(path)
    with pytest.raises(UserError, match="checkpoints/none does not exist"):
        load_base("checkpoints/none")
