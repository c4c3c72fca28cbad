"""`adalink demo`: a base that knows some words, adapted to a task of GLUE, and asked."""

import builtins
import re
import string

import jax
import pytest

import tasks
from adalink_jax import cli
from adalink_jax.checkpoints.formats import packed
from adalink_jax.models.parameters import init_base
from adalink_jax.models.t5 import T5Config
from adalink_jax.tools.english_base import vocabulary

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *string.ascii_lowercase, ".", "_", ":"]
WORDS += ["entailment", "##entailment", "not"]
WORDS += [f"##{letter}" for letter in string.ascii_lowercase]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bases") / "small"
    folder.mkdir()
    model = vocabulary.make(WORDS, {}, 200)
    (folder / "vocabulary.model").write_bytes(model)
    config = T5Config(
        vocab_size=256,
        emb_dim=16,
        num_heads=2,
        head_dim=8,
        mlp_dim=24,
        num_encoder_layers=1,
        num_decoder_layers=1,
        mlp_activations=("gelu",),
        logits_via_embedding=True,
    )
    packed.write(folder, init_base(config, jax.random.key(0)), config, {})
    return folder


def test_what_is_no_task_of_glue_is_refused(capsys):
    assert cli.main(["demo", "glue_sst"]) == 2
    said = capsys.readouterr().err
    assert "no task of GLUE" in said and "glue_sst2" in said and said.count("\n") == 1


@pytest.mark.slow
def test_a_base_is_adapted_and_asked(base, tmp_path, monkeypatch, capfd):
    glue, out = tmp_path / "glue", tmp_path / "out"
    tasks.write_glue_folder(glue)
    command = ["demo", "glue_rte", str(out), f"--base={base}", "--steps=2", "--rank=2"]
    command += [f"--gin.GLUE_DIR={glue}"]
    assert cli.main(command) == 0
    shown = capfd.readouterr().out
    assert re.search(r"1\. The base as it is scores \d+\.\d on the dev set", shown)
    assert "The adapter has 64 parameters" in shown and "of your own" not in shown
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    typed = iter(["a  dog", "no cat", ""])
    monkeypatch.setattr(builtins, "input", lambda prompt: next(typed))
    assert cli.main(command) == 0
    again = capfd.readouterr().out
    assert "3. A sentence1 and a sentence2 of your own" in again
    labels = "(entailment|not_entailment)"
    assert re.search(f"the base says {labels}; with AdaLink {labels}", again)
