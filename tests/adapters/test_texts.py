"""What an export takes along to be used on texts."""

import json
import os
import types

import numpy as np
import pytest

import tasks
from adalink_jax import cli
from adalink_jax.adapters.texts import files_beside
from adalink_jax.checkpoints import AdapterRecord
from adalink_jax.errors import UserError
from adalink_jax.methods import METHODS
from adalink_jax.models.t5 import T5Config

CONFIG = T5Config(
    vocab_size=tasks.MINI_VOCABULARY.vocab_size,
    emb_dim=8,
    num_heads=2,
    num_encoder_layers=1,
    num_decoder_layers=1,
    head_dim=4,
    mlp_dim=8,
    mlp_activations=("gelu", "linear"),
)
FORMATS = ("t5x", "huggingface", "peft")


@pytest.mark.parametrize("format", FORMATS)
def test_labels_go_along_in_the_order_of_their_ids(
    write_base, write_adapter, tmp_path, capsys, format
):
    base = write_base(CONFIG)
    method = METHODS["lora"](rank=2) if format == "peft" else METHODS["adalink"](rank=2, routes=2)
    names = ["mini_rte", "mini_stsb"][: method.routes]
    adapter = write_adapter(method, base, routes=names)
    flags = [f"--adapter={adapter}", f"--base={base}", f"--format={format}", "--route=mini_rte"]
    assert cli.main(["export", *flags, f"--to={tmp_path / 'to'}", "--vocabulary=mini"]) == 0
    assert "mini_rte: entailment, not_entailment" in capsys.readouterr().out
    record = json.loads((tmp_path / "to/labels.json").read_text())
    assert record["routes"].keys() == set(names)
    found = record["routes"]["mini_rte"]
    assert tuple(found["labels"]) == tasks.LABELS["mini_rte"]
    for label, ids in zip(found["labels"], found["token_ids"], strict=True):
        assert ids == [*tasks.MINI_VOCABULARY.encode(label), 1]
    assert (record["eos_id"], record["pad_id"]) == (1, 0)
    assert record["vocabulary"] == tasks.MINI_VOCABULARY.identity


def test_another_vocabulary_than_the_adapters_is_refused(monkeypatch):
    def adapter(**data):
        task = {"name": "mine", "source": {"labels": ["yes", "no"]}}
        data |= {"tasks": [task]}
        return AdapterRecord("lora", {}, ("all",), {"data": data}, CONFIG, "")

    same = adapter(vocabulary=tasks.MINI_VOCABULARY.identity)
    assert set(files_beside(same, tasks.MINI_VOCABULARY)) == {"labels.json"}
    assert b"token_ids" not in files_beside(same, None)["labels.json"]
    with pytest.raises(UserError, match="trained with another vocabulary, 0123456789ab…"):
        files_beside(adapter(vocabulary="0123456789abcdef"), tasks.MINI_VOCABULARY)
    larger = types.SimpleNamespace(vocab_size=10**6, eos_id=1, encode=lambda text: [len(text)])
    with pytest.raises(UserError, match="only .* rows: it is not this base's vocabulary"):
        files_beside(adapter(), larger)


def test_a_vocabulary_that_is_none_writes_nothing(write_base, write_adapter, tmp_path, capsys):
    base = write_base(CONFIG)
    adapter = write_adapter(METHODS["adalink"](rank=2), base)
    flags = [f"--adapter={adapter}", f"--base={base}", "--format=t5x", f"--to={tmp_path / 'to'}"]
    (tmp_path / "none.model").write_bytes(b"no model")
    before = os.environ.get("VOCABULARY")
    for name, words in {"gone.model": "no such file", "none.model": "not a Sentence"}.items():
        assert cli.main(["export", *flags, f"--vocabulary={tmp_path / name}"]) == 2
        said = capsys.readouterr().err
        assert words in said and f"vocabulary {tmp_path / name}: " in said
    assert not (tmp_path / "to").exists()
    assert os.environ.get("VOCABULARY") == before


@pytest.mark.slow
@pytest.mark.reference
def test_transformers_reads_texts_with_the_tokenizer(
    write_base, write_adapter, tmp_path, shared_data
):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    import dataclasses

    base = write_base(dataclasses.replace(CONFIG, vocab_size=32128))
    adapter = write_adapter(METHODS["adalink"](rank=2), base, routes=["glue_rte"])
    model = shared_data / "vocab/spiece.model"
    flags = [f"--adapter={adapter}", f"--base={base}", "--format=huggingface"]
    done = cli.main(["export", *flags, f"--to={tmp_path / 'to'}", f"--vocabulary={model}"])
    assert done == 0 and (tmp_path / "to/spiece.model").read_bytes() == model.read_bytes()
    found = json.loads((tmp_path / "to/labels.json").read_text())["routes"]["glue_rte"]
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "to")
    for label, ids in zip(found["labels"], found["token_ids"], strict=True):
        assert tokenizer(label).input_ids == ids
    np.testing.assert_array_equal(tokenizer("<extra_id_0>").input_ids, [32099, 1])
