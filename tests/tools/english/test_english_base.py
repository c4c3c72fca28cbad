"""`adalink english-data` and `pretrain-english`: what is made of text, and trainings that go on."""

import json
import pathlib
import random
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adalink_jax import cli
from adalink_jax.checkpoints import load_base
from adalink_jax.models.t5 import EncoderLayer, Transformer
from adalink_jax.tools import stages
from adalink_jax.tools.english_base import (
    command,
    corpus,
    examples,
    instructions,
    packed,
    scoring,
    teacher,
    texts,
    training,
    transplant,
    variants,
    vocabulary,
    wordnet,
)
from tests.tools.english import sources


@pytest.fixture(scope="module")
def net(tmp_path_factory):
    return wordnet.read(sources.wordnet(tmp_path_factory.mktemp("sources") / "wordnet"))


def test_wordnet_says_what_can_stand_in_place_of_a_word(net):
    assert net.synonyms == {"dog": ["hound"]}
    assert net.broader["dog"] == ["animal"] and net.siblings["cat"] == ["dog"]
    assert net.opposites == {"good": ["bad"], "bad": ["good"]}
    assert net.senses["n00000001"].examples == ["the animal ran"]
    assert net.senses["a00000001"].gloss == "of high quality"


@pytest.mark.parametrize(
    ("way", "before", "after"),
    [
        (variants.opposite, "a good cat .", "a bad cat ."),
        (variants.synonym, 'the "dog" ran', {'the "hound" ran', 'the "dog" ran'}),
        (variants.broader, "the dog ran", "the animal ran"),
        (variants.negated, "he is here", "he is not here"),
        (variants.negated, "he is not here", "he is here"),
        (variants.dropped, "dogs of Rome", "dogs Rome"),
        (variants.inflected, "He walks", "He walk"),
        (variants.swapped_names, "so Mary saw Peter", "so Peter saw Mary"),
        (variants.number, "it was two", None),
    ],
)
def test_changes_do_what_they_say(net, way, before, after):
    changed = " ".join(way(before.split(), net, random.Random(0)))
    if after is None:  # Another number, whichever.
        assert changed != before and changed.startswith("it was ")
    else:
        assert changed in ({after} if isinstance(after, str) else after)


def test_texts_are_cut_between_sentences_and_what_repeats_a_dev_set_is_known():
    text = 'It rained. "Go home!" he said. Was it 3.5 miles? Yes.'
    assert texts.sentences(text) == [
        "It rained.",
        '"Go home!"',
        "he said.",
        "Was it 3.5 miles?",
        "Yes.",
    ]
    seen = texts.Seen(["one two three four five six seven eight nine", "Dull film ."])
    assert "And TWO three four, five six seven eight nine!" in seen
    assert "two three four five six seven" not in seen
    assert "Well. Dull film." in seen and "a dull film" not in seen


def test_questions_and_moods():
    assert instructions.question("Mary Smith wrote the book.") == "who wrote the book ?"
    assert instructions.question("The war was over in 1918.") == "in what year the war was over ?"
    assert instructions.question("The cat slept.") is None
    moods = {"good": 2.0}
    assert instructions.mood_of("a good film", moods) == pytest.approx(2 / np.sqrt(19))
    assert instructions.mood_of("not a good film", moods) < 0


def test_hidden_spans_and_ends_can_be_put_back():
    """Inputs with their sentinels replaced by the targets' spans are the rows that were."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(30, corpus.ROW, 40)
    tokens = np.where(np.arange(corpus.ROW) < lengths[:, None], rng.integers(3, 900, (40, 96)), 0)
    tokens[np.arange(40), lengths - 1] = 1
    prefix = np.arange(40) % 2 == 0
    got = corpus.corrupt(jnp.asarray(tokens), jax.random.key(0), jnp.asarray(prefix), 1000)
    whole = 0
    for row, ends, inputs, origin, targets in zip(
        tokens, prefix, *map(np.asarray, got), strict=True
    ):
        row, inputs = row[row > 0].tolist(), inputs[inputs > 0].tolist()
        targets = targets[targets > 0].tolist()
        kept = origin[origin < corpus.ROW]
        assert [row[i] for i in kept] == [t for t in inputs[: len(origin)] if t < 900][: len(kept)]
        if ends:
            assert inputs[-1] == 1
            assert (inputs[:-1] + targets)[: len(row)] == row[: len(inputs) - 1 + corpus.HIDDEN]
        elif len(targets) < corpus.HIDDEN:
            assert targets[-1] == 1
            spans = {}
            for token in targets[:-1]:
                if token > 900:
                    span = spans.setdefault(token, [])
                else:
                    span.append(token)
            assert list(spans) == list(range(999, 999 - len(spans), -1))
            back = [t for token in inputs for t in spans.get(token, [token])]
            assert back == row
            whole += 1
    assert whole > 10


def test_rows_are_full_of_pieces_and_each_has_its_end(tmp_path):
    pieces = [np.arange(3, 3 + n, dtype=np.uint16) for n in (40, 40, 12, 62, 62, 5)]
    packed.write(tmp_path / "pieces.npz", packed.ragged("tokens", pieces))
    (tmp_path / "data.json").write_text(json.dumps({"counts": {"of_text": 3}}))
    got = corpus.load(tmp_path)
    wanted = [(0, 1, 2), (3,), (4, 5)]
    for row, numbers in zip(got.rows, wanted, strict=True):
        tokens = np.concatenate([[*pieces[i], 1] for i in numbers])
        assert row.tolist() == tokens.tolist() + [0] * (corpus.ROW - len(tokens))
    assert got.of_text == 1
    drawn = corpus.batch(got, (2, 50), np.random.default_rng(0))
    assert drawn.shape == (2, 50, corpus.ROW)
    first = (drawn == got.rows[0]).all(-1).mean()
    assert 0.7 < first < 0.9  # 0.7 of the text, which is one row, and a third of the rest.


_WHOLE = "[PAD] [UNK] [CLS] [SEP] [MASK] the film un ##lik ##ely not entailment don".split()
WORDS = [*_WHOLE, *"'.,!_3825tse", *(f"##{letter}" for letter in "abcdeilmnt3825")]


def test_the_vocabulary_cuts_as_the_teacher_does():
    """By the package tokenizers; and labels are read back as they were written."""
    tokenizers = pytest.importorskip("tokenizers")
    sentencepiece = pytest.importorskip("sentencepiece")
    theirs = tokenizers.BertWordPieceTokenizer(vocab={word: i for i, word in enumerate(WORDS)})
    ours = sentencepiece.SentencePieceProcessor(
        model_proto=vocabulary.make(WORDS, {"film": 5, "the": 9}, 200)
    )
    rows = vocabulary.teacher_rows(ours, WORDS, 100)
    assert [WORDS[row] for row in rows[:3]] == ["[PAD]", "[SEP]", "[UNK]"]
    assert [WORDS[row] for row in rows[-2:]] == ["[MASK]", "[CLS]"]
    assert len(rows) == ours.get_piece_size() + 101
    for text in ("The film, unlikely!", "Don't  THE\nfilm .", "caf\u00e9 3!", "the \u2014 film"):
        wanted = theirs.encode(text, add_special_tokens=False).tokens
        got = [WORDS[rows[i]] for i in ours.encode(text)]
        if "caf" not in text and "\u2014" not in text:
            assert got == wanted
        else:  # What has no piece is unknown: BERT's whole word, our character.
            assert "[UNK]" in got and "[UNK]" in wanted and got[-1] == wanted[-1]
    for label in ("3.8", "2.5", "not_entailment"):
        assert ours.decode(ours.encode(label)) == label
    few = vocabulary.make(WORDS, {"film": 5, "the": 9}, 34)
    few = sentencepiece.SentencePieceProcessor(model_proto=few)
    assert few.get_piece_size() == 34 and 2 not in few.encode("film the")
    assert 2 not in few.encode("un")  # Letter by letter.


def _bert(seed: int, layers: int = 2, width: int = 32) -> dict[str, jax.Array]:
    """Returns the weights of a BERT that does something: large kernels, gains, biases, places."""
    rng = np.random.default_rng(seed)
    shapes = {"word": (60, width), "position": (60, width), "token_type": (2, width)}
    tree = {f"embeddings.{n}_embeddings.weight": rng.normal(0, 1, s) for n, s in shapes.items()}
    tree["embeddings.position_embeddings.weight"] *= 0.3
    norms = ["embeddings"]
    for i in range(layers):
        name = f"encoder.layer.{i}"
        dense = dict.fromkeys(("query", "key", "value"), (width, width))
        dense = {f"attention.self.{part}": shape for part, shape in dense.items()}
        dense |= {"attention.output.dense": (width, width), "intermediate.dense": (64, width)}
        dense |= {"output.dense": (width, 64)}
        for part, shape in dense.items():
            tree[f"{name}.{part}.weight"] = rng.normal(0, 0.7 / np.sqrt(shape[1]), shape)
            tree[f"{name}.{part}.bias"] = rng.normal(0, 0.2, shape[0])
        norms += [f"{name}.attention.output", f"{name}.output"]
    for name in norms:
        tree[f"{name}.LayerNorm.weight"] = rng.uniform(0.7, 1.3, width)
        tree[f"{name}.LayerNorm.bias"] = rng.normal(0, 0.2, width)
    return {name: jnp.asarray(array, jnp.float32) for name, array in tree.items()}


def test_the_encoder_begins_as_the_teacher():
    """On other rows than it was fitted on; and the plain blocks of the fit are the network's."""
    weights = _bert(0)
    rng = np.random.default_rng(1)
    fitted, others = rng.integers(3, 59, (2, 64, 24))
    config, tree, learned = training.begun(weights, 2, fitted, seed=0)
    assert config.vocab_size == 59 and config.emb_dim == 64
    encoded = Transformer(config).apply(
        {"params": tree["model"]}, jnp.asarray(others), enable_dropout=False, method="encode"
    )
    _, outputs = teacher.blocks(weights, 2, teacher.wrapped(weights, others))
    wanted = np.asarray(outputs[:, 1:] - learned.places[-1])
    got = np.asarray(transplant.viewed(encoded, tree["head"]["1"]))
    spread = np.square(wanted - wanted.mean((0, 1))).mean()
    near = 1 - np.square(got - wanted).mean() / spread
    assert near > 0.8, near
    layer = jax.tree.map(np.asarray, tree["model"]["encoder"]["layers_0"])
    s = np.asarray(tree["model"]["token_embedder"]["embedding"])[others]
    s = s + transplant._run_attention(config, layer, s)
    s = s + transplant._run_mlp(config, layer, s)
    _, streams = Transformer(config).apply(
        {"params": tree["model"]}, jnp.asarray(others), enable_dropout=False, method="encode",
        capture_intermediates=lambda module, _: isinstance(module, EncoderLayer),
    )  # fmt: skip
    np.testing.assert_allclose(
        s, streams["intermediates"]["encoder"]["layers_0"]["__call__"][0], atol=2e-5
    )


def test_what_a_distance_adds_to_the_logits_is_found():
    """Places whose products depend on the distance alone: cos(wi)cos(wj) + sin(wi)sin(wj)."""
    at, speeds, size = np.arange(8), np.array([0.3, 1.1]), np.array([2.0, 1.0])
    angles = at[:, None] * speeds
    waves = np.concatenate([size * np.cos(angles), size * np.sin(angles)], 1)
    name = "encoder.layer.0.attention.self"
    weights = {f"{name}.{part}.weight": jnp.eye(4) for part in ("query", "key")}
    weights |= {f"{name}.{part}.bias": jnp.zeros(4) for part in ("query", "key")}
    got = transplant._distance_biases(weights, 1, 0, np.broadcast_to(waves, (8, 8, 4)), waves)[0]
    wanted = (np.square(size) * np.cos(at[:, None] * speeds)).sum(1) / np.sqrt(4)
    for buckets in (got[:8], [got[0], *got[17:24]]):  # Keys before the query, and behind it.
        np.testing.assert_allclose(buckets, wanted - wanted[0], atol=2e-3)
    assert (got[8:16] == got[7]).all() and (got[24:] == got[23]).all()  # No row has those.


@pytest.mark.reference
def test_the_teacher_is_transformers_bert(tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=24, max_position_embeddings=20,
    )  # fmt: skip
    bert = transformers.BertModel(config, add_pooling_layer=False).eval()
    bert.save_pretrained(tmp_path)
    kept = np.arange(50)[::-1]
    teacher.compress(tmp_path, tmp_path / "teacher.npz", kept)
    weights, heads = teacher.load(tmp_path / "teacher.npz", jnp.float32)
    table = bert.embeddings.word_embeddings.weight.detach().numpy()[kept]
    step = np.abs(table).max(1, keepdims=True) / 127
    assert (np.abs(weights["embeddings.word_embeddings.weight"] - table) <= step * 0.501).all()
    bert.load_state_dict({n: torch.tensor(np.array(a)) for n, a in weights.items()}, strict=False)
    ids = np.array([[2, 9, 11, 3, 0, 0], [2, 7, 8, 9, 10, 3]])
    with torch.no_grad():
        theirs = bert(torch.tensor(ids), torch.tensor(ids > 0), output_hidden_states=True)
    blocks, last = teacher.blocks(weights, heads, jnp.asarray(ids))
    ours = [*(block.stream for block in blocks[2::2]), last]
    for got, wanted in zip(ours, theirs.hidden_states[1:], strict=True):
        np.testing.assert_allclose(got[1], wanted[1], atol=1e-5)
        np.testing.assert_allclose(got[0, :4], wanted[0, :4], atol=1e-5)
    mean = theirs.last_hidden_state[0, :4].numpy().mean(0)
    embeddings = teacher.embedding(last, jnp.asarray(ids > 0))
    np.testing.assert_allclose(embeddings[0], mean / np.linalg.norm(mean), atol=1e-5)


def test_rows_are_scored_in_their_own_order():
    rng = np.random.default_rng(0)
    lengths = rng.permutation([*rng.integers(1, 33, 256), *rng.integers(33, 129, 44)])
    rows = np.where(np.arange(128) < lengths[:, None], rng.integers(3, 90, (300, 128)), 0)
    widths = set()

    def sums(some):
        widths.add(some.shape)
        return some.sum(1, keepdims=True)

    assert (scoring._batched(sums, rows)[:, 0] == rows.sum(1)).all()
    assert widths == {(256, 32), (256, 128)}


def test_instructions_of_like_length_are_drawn_together():
    rows = object.__new__(examples.Examples)
    lengths = np.repeat([10, 40, 90], [60, 30, 10])
    rows.inputs = (np.arange(96) < lengths[:, None]).astype(np.uint16)
    rows.targets = np.repeat(np.arange(100, dtype=np.uint16)[:, None], 8, 1)
    kind = np.arange(100) % 2
    rows._weigh(np.array([3.0, 1.0])[kind], kind, 2)
    rng = np.random.default_rng(0)
    drawn = np.zeros(100)
    for _ in range(2000):
        batch = rows.batch((2, 4), rng)
        steps, count, width = batch["inputs"].shape
        assert steps == 2 and count * width == 4 * 96 and width in examples.WIDTHS
        # Nothing is cut off, and a smaller width would not do.
        numbers = batch["targets"][..., 0].ravel()
        assert (batch["inputs"].reshape(-1, width).sum(1) == lengths[numbers]).all()
        assert (lengths[numbers] > width - 33).all()
        drawn += np.bincount(numbers, minlength=100)
    shares = drawn / drawn.sum()
    np.testing.assert_allclose(shares[kind == 0].sum(), 0.75, atol=0.02)
    np.testing.assert_allclose([shares[:60].sum(), shares[60:90].sum()], [0.6, 0.3], atol=0.02)


def test_mistakes_are_one_line(tmp_path, capsys):
    data, out = tmp_path / "data", tmp_path / "out"
    assert cli.main(["pretrain-english", str(data), str(out)]) == 2
    assert "is not a folder that `adalink english-data` wrote" in capsys.readouterr().err
    assert cli.main(["pretrain-english", str(data), str(out), "--rows=1"]) == 2
    assert "--rows 4 or more" in capsys.readouterr().err
    assert cli.main(["pretrain-english", str(data), str(out), "--seed=-1"]) == 2
    assert "--seed 0 or more" in capsys.readouterr().err
    none = [
        f"--{name}={tmp_path / 'none'}" for name in ("text", "teacher", "wordnet", "vader", "glue")
    ]
    assert cli.main(["english-data", str(data), *none]) == 2
    assert f"--text={tmp_path / 'none'}: not there" in capsys.readouterr().err
    assert not out.exists() and not data.exists()


def _log(out: pathlib.Path) -> list[dict]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_a_stopped_training_goes_on(tmp_path, monkeypatch, capsys):
    """Both commands on tiny sources; each stage is stopped once."""
    pytest.importorskip("tokenizers")
    monkeypatch.setattr(packed, "VOCABULARY_SIZE", 300)
    monkeypatch.setattr(command, "_CALIBRATED", 16)
    monkeypatch.setattr(scoring, "_LENGTHS", {"sst2": 50, "stsb": 50})
    data, out = tmp_path / "data", tmp_path / "out"
    make = ["english-data", str(data), *sources.flags(tmp_path), "--judged=20"]
    assert cli.main(make) == 0 and cli.main(make) == 2
    assert "has data already" in capsys.readouterr().err
    about = json.loads((data / "data.json").read_text())
    assert all(about["made"][kind] for kind in ("grammar", "logic", "same", "sentiment", "defined"))
    assert about["counts"]["left_out"] > 0  # What stands in the dev set.
    train = ["pretrain-english", str(data), str(out), "--seconds=9", "--rows=4", "--steps=1"]
    train += ["--score_seconds=60"]
    monkeypatch.setattr(command, "_SAVED_EVERY", 0.0)
    saved, stopped = stages.save, set()

    def stopping(path, *state):
        saved(path, *state)
        if path not in stopped:
            stopped.add(path)
            raise KeyboardInterrupt

    monkeypatch.setattr(stages, "save", stopping)
    for _ in command.STAGES:
        assert cli.main(train) != 0
    shutil.rmtree(out / "raw")  # As of a run that was killed before it wrote this base.
    assert cli.main(train) == 0 and len(stopped) == 4
    events = _log(out)
    done = [event["stage"] for event in events if event["event"] == "stage was done"]
    assert done == ["spans", "spans", "prefix", "spans", "prefix", "answers"]
    steps = [e for e in events if e["event"] == "step" and e["stage"] == "spans"]
    assert np.isfinite(
        [value for e in steps for value in e.values() if not isinstance(value, str)]
    ).all()
    assert steps[-1]["spent"] >= 3 and steps[-1]["words"] < steps[0]["words"]
    assert events[-1]["base"] == "raw" and -100 <= events[-1]["sst2"] <= 100
    (raw, tuned) = (load_base(str(out / name))[1] for name in ("raw", "tuned"))
    changed = jax.tree.map(lambda a, b: bool((np.asarray(a) != np.asarray(b)).any()), raw, tuned)
    assert any(jax.tree.leaves(changed["decoder"]))  # By as much as bfloat16 can tell.
    record = json.loads((out / "tuned" / "packed.json").read_text())
    assert record["metadata"]["data"]["text"] == about["text_sha256"]
    # Neither another seed nor other data go on with what is there.
    assert cli.main([*train, "--seed=200"]) == 2
    assert "was begun from other parameters or data" in capsys.readouterr().err
