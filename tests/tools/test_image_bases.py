"""`adalink pretrain-images`: names of patches, stages that go on where they stopped, its files."""

import dataclasses
import json
import sys

import jax
import numpy as np
import pytest
import seqio

import tasks
from adalink_jax import cli
from adalink_jax.adapters.texts import vocabulary_of
from adalink_jax.checkpoints import load_base
from adalink_jax.checkpoints.bases import EMBEDDED, EMBEDDED_FOLDER
from adalink_jax.checkpoints.encoders import EMBEDDED_ENCODER, load_image_encoder
from adalink_jax.checkpoints.fingerprint import file_sha256
from adalink_jax.errors import UserError
from adalink_jax.tools import stages
from adalink_jax.tools.image_bases import command, examples
from tasks.mini_images import raw, tuned
from tasks.mini_images.drawing import NOISE
from tests.tasks import mini_seeing

_READ = "mini_image_read"
FLAGS = ("--encoder_steps=3", "--raw_steps=3", "--tuned_steps=2")


def test_patches_are_called_what_is_seen_there():
    things, colors, places = examples.classes()
    album = raw.SOURCES["mini_image_alt"].albums["train"]
    for index in range(40):
        labels = examples.patches(album.meaning(index)).reshape(3, 4, 4)
        assert labels[2, 1, 3] == places["1 3"] and len(set(labels[2].ravel())) == len(places)
        seen = mini_seeing.scene(album.picture(index))
        for number, place in enumerate(mini_seeing.PLACES):
            row, column = (2 * side for side in divmod(number, 2))
            thing, color = labels[:2, row : row + 2, column : column + 2].reshape(2, 4)
            words = seen.get(place, "").split()
            name, ink = "", ""
            if len(words) == 3:
                name, ink = f"{words[0]} {words[2]}", words[1]
            elif words:
                ink, name = words
            assert set(thing) == {things[name]} and set(color) == {colors[ink]}
    album = raw.SOURCES["mini_image_read"].albums["train"]
    lines = [i for i in range(40) if hasattr(album.meaning(i), "lines")]
    for index in lines:
        labels = examples.patches(album.meaning(index)).reshape(3, 4, 4)
        read = mini_seeing.document(album.picture(index))
        expected = [[things[field]] * 2 + [things[word]] * 2 for field, word in read]
        np.testing.assert_array_equal(labels[0], expected)
        assert (labels[1] == -1).all()
    assert len(lines) > 5


@pytest.fixture
def small(monkeypatch, tmp_path):
    """A tiny network and few examples, which no other training may find in its cache."""
    monkeypatch.setenv("ADALINK_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(command, "_AT_ONCE", 1)
    monkeypatch.setattr(
        command, "VISION", dataclasses.replace(command.VISION, width=8, depth=1, mlp_dim=8)
    )
    tiny = {"emb_dim": 8, "head_dim": 2, "mlp_dim": 8, "image_width": 8}
    tiny |= {"num_encoder_layers": 1, "num_decoder_layers": 1}
    monkeypatch.setattr(command, "TEXT", dataclasses.replace(command.TEXT, **tiny))
    sources = (*raw.SOURCES.values(), *tuned.SOURCES.values(), raw.TEXTS)
    for source in sources:
        monkeypatch.setattr(source, "_sizes", {"train": 20, "validation": 5})
        monkeypatch.setattr(source, "_made", {})


@pytest.mark.slow
def test_examples_of_a_mixture_come_at_its_rates(small, tmp_path):
    found = examples.load("mini_image_raw", "train", tmp_path)
    assert len(found.arrays["inputs"]) == 120
    drawn = found.arrays["task"][found.rows(4_000, np.random.default_rng(0))]
    for number, name in enumerate(found.tasks):
        rate = seqio.MixtureRegistry.get("mini_image_raw").get_rate(seqio.TaskRegistry.get(name))
        assert abs((drawn == number).mean() - rate / 7.5) < 0.03
    blind = found.tasks.index("mini_image_text")
    np.testing.assert_array_equal(found.arrays["seen"], found.arrays["task"] != blind)
    pixels = found.arrays["pixels"][found.arrays["task"] == found.tasks.index("mini_image_read")]
    shown = tasks.PICTURES["mini_image_read_train"](3).astype(int)
    assert 0 < abs(pixels[3] - shown).max() <= found.noise == NOISE
    held_out = examples.load("mini_image_raw", "validation", tmp_path)
    pixels = held_out.arrays["pixels"][held_out.arrays["task"] == held_out.tasks.index(_READ)]
    np.testing.assert_array_equal(pixels[3], tasks.PICTURES["mini_image_read_validation"](3))
    assert held_out.noise == 0
    decode = tasks.MINI_IMAGE_VOCABULARY.decode
    texts = raw.SOURCES["mini_image_read"].columns("train")["targets"]
    rows = found.arrays["targets"][found.arrays["task"] == found.tasks.index("mini_image_read")]
    assert [decode(row.tolist()) for row in rows] == texts.tolist()


@pytest.mark.slow
def test_a_stopped_training_ends_as_one_that_was_not(small, tmp_path, monkeypatch, capsys):
    assert cli.main(["pretrain-images", str(tmp_path / "whole"), *FLAGS]) == 0
    monkeypatch.setattr(command, "_SAVED_EVERY", 0.0)
    saved = stages.save

    def stopping(path, begun, progress, *trees):
        saved(path, begun, progress, *trees)
        if progress["step"] == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(stages, "save", stopping)
    for _ in range(3):  # Each stage is stopped once; the last one ends with its second step.
        assert cli.main(["pretrain-images", str(tmp_path / "parts"), *FLAGS]) != 0
    assert cli.main(["pretrain-images", str(tmp_path / "parts"), *FLAGS]) == 0
    for name in ("encoder/image_encoder.safetensors", "raw/adapter.safetensors",
                 "tuned/adapter.safetensors"):  # fmt: skip
        whole, parts = ((tmp_path / run / name).read_bytes() for run in ("whole", "parts"))
        assert whole == parts
    assert "right: alt" in capsys.readouterr().out
    told = [json.loads(line) for line in (tmp_path / "whole/log.jsonl").read_text().splitlines()]
    assert [(one["stage"], one["step"]) for one in told][-1] == ("tuned", 2)
    assert told[-1]["without_pictures"] != told[-1]["held_out"] > 0
    encoder = load_image_encoder(tmp_path / "whole/encoder")
    assert (encoder.tokens, encoder.width) == (16, 8)
    config, params = load_base(str(tmp_path / "whole/tuned"))
    assert config.image_width == 8 and "image_projection" in params["encoder"]
    # The tuned base has the raw one's encoder, and other weights.
    _, before = load_base(str(tmp_path / "whole/raw"))
    changed = jax.tree.map(lambda a, b: bool((a != b).any()), params, before)
    # Two steps move few numbers by as much as bfloat16 can tell.
    assert any(jax.tree.leaves(changed["decoder"]))
    record = json.loads((tmp_path / "whole/tuned/adapter.json").read_text())
    assert record["metadata"]["data"]["vocabulary"] == tasks.MINI_IMAGE_VOCABULARY.identity


@pytest.mark.slow
def test_drawn_examples_are_trained_on_without_tensorflow(small, tmp_path, monkeypatch):
    assert cli.main(["pretrain-images", str(tmp_path), "--draw_only", *FLAGS]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "examples"]

    def absent(mixture, split):
        raise AssertionError("examples were drawn again")

    monkeypatch.setattr(examples, "_drawn", absent)
    for name in ("seqio", "tensorflow", "gin", "tasks"):
        monkeypatch.setitem(sys.modules, name, None)  # An import of it fails.
    assert cli.main(["pretrain-images", str(tmp_path), *FLAGS]) == 0
    kept = next((tmp_path / "examples").glob("mini_image_raw.train.*"))
    kept.write_bytes(kept.read_bytes()[:-100])
    with pytest.raises(UserError, match="is damaged; remove it"):
        examples.load("mini_image_raw", "train", tmp_path / "examples")


def test_steps_are_counted_from_one(tmp_path, capsys):
    assert cli.main(["pretrain-images", str(tmp_path), "--encoder_steps=0"]) == 2
    assert "--encoder_steps is 0; expected 1 or more" in capsys.readouterr().err
    assert cli.main(["pretrain-images", str(tmp_path), "--seed=-1"]) == 2
    assert "--seed is -1; expected 0 or more" in capsys.readouterr().err


def test_what_comes_with_the_package_is_found_by_name():
    encoder = load_image_encoder("mini_images_encoder")
    assert (encoder.tokens, encoder.width) == (16, 128)
    for name in ("mini_images", "mini_images_raw"):
        config, _ = load_base(name)
        assert dataclasses.replace(config, dtype=command.TEXT.dtype) == command.TEXT
        for path in (name, str(EMBEDDED_FOLDER / name)):
            assert vocabulary_of(path) is tasks.MINI_IMAGE_VOCABULARY
        record = json.loads((EMBEDDED_FOLDER / name / "adapter.json").read_text())
        data = record["metadata"]["data"]
        assert data["vocabulary"] == tasks.MINI_IMAGE_VOCABULARY.identity
        assert vocabulary_of("elsewhere", data) is tasks.MINI_IMAGE_VOCABULARY
        stages = {stage.mixture: stage for stage in command.STAGES if "text" in stage.trains}
        assert stages[data["name"]].steps == record["metadata"]["train_steps"]
    assert vocabulary_of("mini_raw") is tasks.MINI_VOCABULARY
    cards = {folder.name: folder / "README.md" for folder in EMBEDDED_FOLDER.iterdir()}
    assert set(cards) == {*EMBEDDED, EMBEDDED_ENCODER}
    for name, card in cards.items():
        file = next((EMBEDDED_FOLDER / name).glob("*.safetensors"))
        assert file_sha256(file) in card.read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_shipped_bases_see(tmp_path, monkeypatch):
    for source in (*raw.SOURCES.values(), *tuned.SOURCES.values(), raw.TEXTS):
        monkeypatch.setattr(source, "_sizes", {"train": 1, "validation": 40})
        monkeypatch.setattr(source, "_made", {})
    monkeypatch.setenv("ADALINK_CACHE_DIR", str(tmp_path / "cache"))
    vision = load_image_encoder("mini_images_encoder").params
    loss = jax.jit(command.text_loss)
    for name, mixture, seen in (
        ("mini_images_raw", "mini_image_raw", {"mini_image_read", "mini_image_look"}),
        ("mini_images", "mini_image_instructions", {"mini_image_long", "mini_image_story"}),
    ):
        found = examples.load(mixture, "validation", tmp_path)
        params = {"vision": vision, "text": load_base(name)[1]}
        for looks in (True, False):
            hidden = {} if looks else {"seen": np.zeros_like(found.arrays["seen"])}
            right = np.asarray(loss(params, {**found.arrays, **hidden})[1])
            for task in seen:
                share = right[found.arrays["task"] == found.tasks.index(task)].mean()
                assert share >= 0.9 if looks else share <= 0.4
