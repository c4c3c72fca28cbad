"""Runs on a task of pictures: what they see, that a stored feature is a fresh one, and resuming."""

import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys

import jax
import pytest

import adalink_jax as al
from adalink_jax import runs
from adalink_jax.models.parameters import init_base
from adalink_jax.runs.images import pictures_of
from adalink_jax.runs.options import Data, Evaluation, Images
from tests.data.seeing import COLORS, Eye, color, drawn, save

RANK = "rank_classification"
LENGTHS = {"inputs": 8, "targets": 8}
CONFIG = al.T5Config(
    vocab_size=264, emb_dim=32, num_heads=2, head_dim=16, mlp_dim=32, num_encoder_layers=1,
    num_decoder_layers=1, dropout_rate=0.0, image_width=6, logits_via_embedding=True,
)  # fmt: skip
NUMBERS = {"train": range(96), "validation": range(96, 126)}


def register() -> None:
    """Adds a task whose answer is the picture's color."""
    import seqio
    import tensorflow as tf

    import tasks

    def source(split, shuffle_files, seed=None):
        numbers = NUMBERS[split]
        columns = {"inputs": ["color?"] * len(numbers), "targets": [*map(color, numbers)]}
        columns["image"] = [f"drawn:{i}" for i in numbers]
        return tf.data.Dataset.from_tensor_slices(columns)

    if "colors" not in seqio.TaskRegistry.names():
        tasks.add_classification(
            "colors",
            seqio.FunctionDataSource(source, splits=tuple(NUMBERS)),
            None,
            tuple(COLORS),
            [tasks.metrics.accuracy],
            vocabulary=seqio.ByteVocabulary(),
        )
    tasks.PICTURES.setdefault("drawn", drawn)


def train(folder: pathlib.Path, stop: int = 60, **images) -> al.Result:
    """Trains all of a tiny network with random weights: it learns the colors if it sees them."""
    register()
    base = CONFIG, jax.device_get(init_base(CONFIG, jax.random.key(0)))
    options = [al.Periods(eval_period=30, checkpoint_period=30, log_period=10)]
    options += [Images(**{"encoder": Eye(), "batch_size": 8} | images)]
    return al.finetune(
        base,
        al.Full(),
        "colors",
        lengths=LENGTHS,
        model_dir=folder,
        train_steps=stop,
        batch_size=16,
        learning_rate=0.05,
        options=options,
    )


def outcome(folder: pathlib.Path) -> dict[str, bytes]:
    """What equal runs have in common, to the byte."""
    names = ("metrics.jsonl", "results.json", "adapter/adapter.safetensors")
    return {name: (folder / name).read_bytes() for name in names}


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("ADALINK_CACHE_DIR", str(folder))
        yield folder


@pytest.fixture(scope="module")
def seeing(tmp_path_factory, cache) -> al.Result:
    return train(tmp_path_factory.mktemp("seeing") / "run")


@pytest.mark.slow
def test_stored_features_and_fresh_ones_give_the_same_run(seeing, cache, tmp_path):
    fresh = Eye()
    again = train(tmp_path / "run", encoder=fresh, stored=False)
    assert outcome(again.folder) == outcome(seeing.folder)
    assert len(fresh.seen) > 60  # At least once a step.


def test_the_record_says_what_was_seen(seeing):
    record = json.loads((seeing.folder / "run.json").read_text())
    assert record["data"]["image_encoder"]["fingerprint"] == Eye().fingerprint
    assert record["data"]["tasks"][0]["images"]["pictures"] == 96
    recorded = record["configuration"]
    assert recorded["image_encoder"] == f"memory:{Eye().fingerprint[:12]}"
    assert recorded["image_batch_size"] == 8


def scored(seeing: al.Result, folder: pathlib.Path, mode: str, **images) -> float:
    runs.evaluate(
        output_dir=str(folder),
        data=Data("colors", LENGTHS),
        adapter_path=str(seeing.folder),
        images=Images(**{"encoder": Eye(), "batch_size": 8} | images),
        evaluation=Evaluation(mode=mode, batch_size=8),
    )
    return json.loads((folder / "results.json").read_text())["tasks"]["colors"]["score"]


def test_a_model_answers_by_what_it_sees(seeing, cache, tmp_path, monkeypatch):
    import tasks

    assert seeing.scores["colors"] > 95
    monkeypatch.setitem(tasks.PICTURES, "drawn", lambda index: drawn(index + 1))
    assert scored(seeing, tmp_path / "wrong", "greedy", stored=False) < 5  # All are other colors.


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["greedy", "beam", RANK])
def test_every_evaluation_sees(seeing, cache, tmp_path, mode):
    assert scored(seeing, tmp_path / "seen", mode) > 95


@pytest.mark.slow
def test_predictions_in_python_are_of_the_pictures(seeing, cache, tmp_path):
    import seqio

    save(tmp_path / "files", range(3))
    images = Images(encoder=Eye(), folder=str(tmp_path / "files"), batch_size=8)
    given = {"images": images, "vocabulary": seqio.ByteVocabulary(), "batch_size": 8}
    keys, base = ["2.png", "drawn:100", "0.png"], (CONFIG, seeing.adapter.tree)
    for labels in (tuple(COLORS), ()):
        found = al.predict(base, seeing, ["color?"] * 3, labels, pictures=keys, **given)
        assert [one.prediction for one in found] == [color(2), color(100), color(0)]
    pairs = [("color?", color(i)) for i in (2, 100, 1)]
    score = al.evaluate(base, seeing, pairs, tuple(COLORS), pictures=keys, **given)
    assert score["accuracy"] == pytest.approx(200 / 3)
    with pytest.raises(al.UserError, match="there are 3 pictures for 2 texts"):
        al.predict(base, seeing, ["color?"] * 2, (), pictures=keys, **given)


@pytest.mark.slow
def test_pairs_with_pictures_train_as_a_task_does(cache, tmp_path):
    """A user's own (text, target, image), without a task of SeqIO's."""
    import seqio

    save(tmp_path / "files", NUMBERS["train"])
    images = Images(encoder=Eye(), folder=str(tmp_path / "files"), batch_size=8)
    triples = [("color?", color(i), f"{i}.png") for i in NUMBERS["train"]]
    base = CONFIG, jax.device_get(init_base(CONFIG, jax.random.key(0)))
    given = {"vocabulary": seqio.ByteVocabulary(), "lengths": LENGTHS, "batch_size": 16}
    given |= {"train_steps": 60, "learning_rate": 0.05, "options": [images]}
    run = al.finetune(base, al.Full(), triples, model_dir=tmp_path / "run", **given)
    (score,) = run.scores.values()
    assert score > 95  # Of pictures that it was not trained on; of all 33 % are of one color.
    record = json.loads((run.folder / "run.json").read_text())["data"]["tasks"][0]
    assert record["images"]["pictures"] == 87 and record["source"]["labels"] == sorted(COLORS)
    seen = {"vocabulary": given["vocabulary"], "images": images, "batch_size": 8}
    base = CONFIG, run.adapter.tree
    assert al.evaluate(base, run, triples[:30], tuple(COLORS), **seen)["accuracy"] > 95
    turned = [(text, color(i + 1), key) for i, (text, _, key) in enumerate(triples[:30])]
    assert al.evaluate(base, run, turned, tuple(COLORS), **seen)["accuracy"] < 5


@pytest.mark.slow
def test_a_run_goes_on_with_its_own_pictures_alone(seeing, cache, tmp_path, monkeypatch):
    import tasks

    with pytest.raises(al.UserError, match="holds a run of another data: image_encoder.fingerpr"):
        train(seeing.folder, stop=70, encoder=Eye(seed=1))
    with pytest.raises(al.UserError, match="trained with another image encoder: its fingerprint"):
        scored(seeing, tmp_path / "other", RANK, encoder=Eye(seed=1))
    with pytest.raises(al.UserError, match="another configuration: image_dtype was 'float32'"):
        train(seeing.folder, stop=70, dtype="float16")
    with pytest.raises(al.UserError, match="task 'colors' has pictures, such as 'drawn:0'"):
        train(tmp_path / "run", encoder=None, batch_size=32)
    monkeypatch.setitem(tasks.PICTURES, "drawn", lambda index: drawn(index + 1))
    with pytest.raises(al.UserError, match="another data: tasks.0.images.sha256 was"):
        train(seeing.folder, stop=70)


def test_a_base_and_an_encoder_that_do_not_fit_are_refused():
    for eye, config, message in (
        (Eye(width=5), {}, "the image encoder's tokens have 5 numbers, but the base takes 6"),
        (Eye(), {"image_width": None}, "Images.encoder is set, but the base reads text alone"),
    ):
        given = dataclasses.replace(CONFIG, **config)
        with pytest.raises(al.UserError, match=message):
            pictures_of(Images(encoder=eye), given)
    with pytest.raises(al.UserError, match="Images.encoder is not set, but other settings"):
        Images(folder="pictures")


KILLED = """
import os, pathlib, signal, sys
from adalink_jax.runs.folder import RunFolder
from tests.integration.test_images import train

log = RunFolder.log

def logging(self, step, *given, **more):
    log(self, step, *given, **more)
    if step == 40:
        os.kill(os.getpid(), signal.SIGKILL)

RunFolder.log = logging
train(pathlib.Path(sys.argv[1]))
"""


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_bytes(seeing, tmp_path, monkeypatch):
    monkeypatch.setenv("ADALINK_CACHE_DIR", str(tmp_path / "cache"))
    root = pathlib.Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path / "run")],
        env={**os.environ, "PYTHONPATH": str(root)},
        cwd=root,
        capture_output=True,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    eye = Eye()
    assert outcome(train(tmp_path / "run", encoder=eye).folder) == outcome(seeing.folder)
    assert eye.seen == []  # The killed run has stored all features.
