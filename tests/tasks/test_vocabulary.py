"""The user's vocabulary: lazily opened, by path, with one-line errors."""

import copy
import hashlib
import json
import pickle

import pytest
import sentencepiece
import seqio
import tensorflow as tf

import tasks
from tasks.vocabulary import say_added_tokens

SENTENCE = "translate English to German: That is good."
IDS = [13959, 1566, 12, 2968, 10, 466, 19, 207, 5]


@pytest.fixture
def t5_file(shared_data, monkeypatch):
    path = shared_data / "vocab" / "spiece.model"
    monkeypatch.setenv("VOCABULARY", str(path))
    return path


def _train(path, words, pad_id=0, eos_id=1, unk_id=2):
    special = {"pad_id": pad_id, "eos_id": eos_id, "unk_id": unk_id, "bos_id": -1}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([" ".join(words)] * 10),
        model_prefix=str(path.with_suffix("")),
        model_type="word",
        vocab_size=len(words) + sum(i >= 0 for i in special.values()),
        minloglevel=2,
        **special,
    )
    return path


def test_t5_ids(t5_file):
    vocabulary = tasks.UserVocabulary()
    assert vocabulary.encode(SENTENCE) == IDS
    assert vocabulary.encode_tf(tf.constant(SENTENCE)).numpy().tolist() == IDS
    assert vocabulary.decode([*IDS, 1, 5, 5]) == SENTENCE
    assert vocabulary.decode_tf(tf.constant([IDS])).numpy()[0].decode() == SENTENCE
    assert (vocabulary.vocab_size, vocabulary.eos_id, vocabulary.unk_id) == (32_100, 1, 2)
    assert vocabulary.encode("<extra_id_0> and <extra_id_99>") == [32_099, 11, 32_000]


def test_same_as_seqio(t5_file):
    theirs = seqio.SentencePieceVocabulary(str(t5_file), extra_ids=100)
    ours = tasks.UserVocabulary()
    assert ours.sp_model == theirs.sp_model
    assert ours.encode("Wie geht 's ? <extra_id_7>") == theirs.encode("Wie geht 's ? <extra_id_7>")


def test_identity_is_the_file_hash(t5_file):
    digest = hashlib.sha256(t5_file.read_bytes()).hexdigest()
    assert tasks.UserVocabulary().identity == digest


def test_tokens_added_beside_the_model_are_said(tmp_path, caplog):
    model = _train(tmp_path / "spiece.model", ["apple", "pear"])  # 5 pieces, then the sentinels.
    known = [{"id": 0, "content": "<pad>"}, {"id": 6, "content": "<extra_id_0>"}]
    tokenizer = sentencepiece.SentencePieceProcessor()
    tokenizer.LoadFromSerializedProto(
        seqio.SentencePieceVocabulary(str(model), extra_ids=2).sp_model
    )

    def said(name, content):
        (tmp_path / name).write_text(content)
        caplog.clear()
        say_added_tokens(str(model), tokenizer)
        (tmp_path / name).unlink()
        return caplog.messages

    assert not said("tokenizer.json", json.dumps({"added_tokens": known}))
    sep = {"id": 7, "content": "<sep>"}
    (line,) = said("tokenizer.json", json.dumps({"added_tokens": [*known, sep]}))
    assert "1 added tokens that are not known here, such as '<sep>' (id 7)" in line
    assert "<sep>" in said("added_tokens.json", json.dumps({"<sep>": 7}))[0]
    other = {"added_tokens_decoder": {"3": {"content": "plum"}}}
    assert "'plum' (id 3)" in said("tokenizer_config.json", json.dumps(other))[0]
    for damaged in ("{", "[]", '{"added_tokens": [{"id": "x"}]}'):
        assert "cannot be read" in said("tokenizer.json", damaged)[0]


def test_pickles_and_copies_before_and_after_use(t5_file):
    for use in (False, True):
        vocabulary = tasks.UserVocabulary()
        if use:
            vocabulary.encode(SENTENCE)
        for other in (copy.deepcopy(vocabulary), pickle.loads(pickle.dumps(vocabulary))):
            assert other == vocabulary and other.encode(SENTENCE) == IDS


def test_one_process_can_change_files(tmp_path, monkeypatch):
    vocabulary = tasks.UserVocabulary(extra_ids=0)
    first = _train(tmp_path / "first.model", ["apple", "pear"])
    second = _train(tmp_path / "second.model", ["plum", "fig", "kiwi"])
    identities = set()
    for path, word, size in ((first, "pear", 5), (second, "kiwi", 6), (first, "apple", 5)):
        monkeypatch.setenv("VOCABULARY", str(path))
        assert vocabulary.vocab_size == size
        assert vocabulary.unk_id not in vocabulary.encode(word)
        identities.add(vocabulary.identity)
    assert len(identities) == 2
    first.write_bytes(second.read_bytes())  # another file under the same path
    assert vocabulary.vocab_size == 6


def _error(vocabulary=None) -> str:
    with pytest.raises(tasks.DataError) as caught:
        (vocabulary or tasks.UserVocabulary()).encode("a")
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_errors_are_one_line_and_name_the_path(tmp_path, monkeypatch):
    monkeypatch.delenv("VOCABULARY", raising=False)
    assert "set VOCABULARY" in _error()
    monkeypatch.setenv("VOCABULARY", "nowhere/spiece.model")
    assert _error() == "VOCABULARY=nowhere/spiece.model: no such file"
    monkeypatch.setenv("VOCABULARY", str(tmp_path))
    assert "a folder" in _error()
    for content in (b"", b"not a model", b"\x00\xff" * 50):
        path = tmp_path / "bad.model"
        path.write_bytes(content)
        monkeypatch.setenv("VOCABULARY", str(path))
        assert _error() == f"VOCABULARY={path}: not a SentencePiece model"
    path = _train(tmp_path / "llama.model", ["apple", "pear"], pad_id=-1, eos_id=2, unk_id=0)
    monkeypatch.setenv("VOCABULARY", str(path))
    assert "has pad -1, eos 2, unk 0" in _error()


def test_a_task_reports_the_vocabulary_in_one_line(tmp_path, monkeypatch):
    folder = tmp_path / "glue" / "RTE"
    folder.mkdir(parents=True)
    (folder / "dev.tsv").write_text("index\tsentence1\tsentence2\tlabel\n0\ta\tb\tentailment\n")
    monkeypatch.setenv("GLUE_DIR", str(tmp_path / "glue"))
    monkeypatch.setenv("VOCABULARY", "nowhere")
    with pytest.raises(tasks.DataError) as caught:
        seqio.get_mixture_or_task("glue_rte").get_dataset(None, "validation", shuffle=False)
    assert str(caught.value) == "VOCABULARY=nowhere: no such file"
