"""Converting: what is kept, what is not, and what is said."""

import pathlib
import subprocess
import sys

import numpy as np
import pytest

from adalink_jax.adapters import probe
from adalink_jax.checkpoints import StoredBase, fingerprint, load_base, open_base, save_base
from adalink_jax.errors import UserError
from adalink_jax.models.t5 import Transformer
from adalink_jax.tools import convert as converting
from adalink_jax.tools.convert import convert

ROOT = pathlib.Path(__file__).resolve().parents[2]


def run(*arguments, folder) -> subprocess.CompletedProcess:
    command = [sys.executable, ROOT / "scripts" / "convert.py", *map(str, arguments)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)


def logits(path):
    config, params = load_base(path)
    inputs, targets = probe.fixed_inputs(config.vocab_size)
    found = Transformer(config).apply(
        {"params": params}, inputs, targets, targets, enable_dropout=False
    )
    return np.asarray(found)


@pytest.mark.slow
def test_the_command_converts_and_says_what_it_compared(mini_base, tmp_path):
    done = run("--from", mini_base, "--to", "hf", "--format", "huggingface", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert "differ from the source's by at most 0" in done.stderr
    other = "the logits of transformers differ" if probe.has_transformers() else "not comp"
    assert other in done.stderr
    assert done.stderr.splitlines()[-1].endswith(fingerprint(load_base(mini_base)[1]))
    np.testing.assert_array_equal(logits(tmp_path / "hf"), logits(mini_base))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["hf"]


@pytest.mark.slow
def test_mistakes_are_one_line_and_exit_code_2(mini_base, tmp_path):
    for source, target, words in (
        ("none", "new", ["none", "does not exist"]),
        (mini_base, tmp_path, ["exists"]),
    ):
        done = run("--from", source, "--to", target, "--format", "t5x", folder=tmp_path)
        assert (done.returncode, done.stdout) == (2, "")
        assert "Traceback" not in done.stderr
        assert done.stderr.splitlines()[-1].startswith("error: ")
        assert all(word in done.stderr for word in words)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def answers(monkeypatch):
    """Computes the logits here, without processes; returns how often each was asked for."""
    asked = []

    def logits_of(path, framework, images=True):
        asked.append((pathlib.Path(path).name, framework))
        if framework == "transformers":
            return logits(path), ""
        return probe.base_logits(str(path), images)

    monkeypatch.setattr(probe, "logits_of", logits_of)
    monkeypatch.setattr(probe, "has_transformers", lambda: True)
    return asked


def test_transformers_is_asked_where_a_side_is_its_folder(mini_base, tmp_path, answers):
    convert(str(mini_base), str(tmp_path / "hf"), "huggingface")
    assert answers[-1] == (".hf.partial", "transformers")
    convert(str(tmp_path / "hf"), str(tmp_path / "native"), "native")
    assert answers[-1] == ("hf", "transformers")
    del answers[:]
    convert(str(tmp_path / "native"), str(tmp_path / "t5x"), "t5x")
    assert not any(framework == "transformers" for _, framework in answers)


def test_a_copy_says_whether_it_has_a_tokenizer(mini_base, tmp_path, answers, capsys):
    convert(str(mini_base), str(tmp_path / "hf"), "huggingface")
    assert "no tokenizer was written" in capsys.readouterr().err
    (tmp_path / "hf" / "spiece.model").write_bytes(b"pieces")
    convert(str(tmp_path / "hf"), str(tmp_path / "copy"), "huggingface")
    assert "its tokenizer is the source's: spiece.model" in capsys.readouterr().err
    assert (tmp_path / "copy" / "spiece.model").read_bytes() == b"pieces"


@pytest.mark.parametrize("change", [2e-4, np.nan])
@pytest.mark.parametrize("liar", ["adalink_jax", "transformers"])
def test_other_logits_leave_nothing(mini_base, tmp_path, answers, monkeypatch, change, liar):
    honest = probe.logits_of

    def logits_of(path, framework, images=True):
        found, theirs = honest(path, framework, images)
        if framework == liar and ".partial" in str(path):
            found = found.copy()
            found[1, 2, 3] += change
        return found, theirs

    monkeypatch.setattr(probe, "logits_of", logits_of)
    with pytest.raises(UserError, match="not kept"):
        convert(str(mini_base), str(tmp_path / "hf"), "huggingface")
    assert not list(tmp_path.iterdir())


def test_a_copy_of_other_bits_is_not_kept(mini_base, tmp_path, answers, monkeypatch):
    """A row of the table that the fixed inputs do not use: equal logits would not show it."""
    honest = save_base

    def lossy(path, base, format_name, check):
        class Lossy(StoredBase):
            def read(self, name, index=...):
                array = base.read(name, index).copy()
                if name == "token_embedder/embedding":
                    size = base.config.vocab_size
                    unused = set(range(size)) - set(
                        np.concatenate([a.ravel() for a in probe.fixed_inputs(size)])
                    )
                    array[min(unused)] += 1e-3
                return array

        honest(path, Lossy(base.config, base.where, base.arrays), format_name, check)

    monkeypatch.setattr(converting, "save_base", lossy)
    with pytest.raises(UserError, match="bits"):
        convert(str(mini_base), str(tmp_path / "copy"), "t5x")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_processes_answer_for_bases_and_say_why_not(mini_base, tmp_path):
    found, theirs = probe.logits_of(mini_base, "adalink_jax")
    np.testing.assert_allclose(found, logits(mini_base), atol=1e-5)
    assert theirs == fingerprint(load_base(mini_base)[1])
    with pytest.raises(UserError, match="does not exist") as caught:
        probe.logits_of(tmp_path / "none", "adalink_jax")
    assert "\n" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.reference
def test_transformers_answers_for_its_folders(mini_base, tmp_path):
    pytest.importorskip("transformers", reason="transformers is the reference")
    save_base(tmp_path / "hf", open_base(mini_base), "huggingface")
    found, _ = probe.logits_of(tmp_path / "hf", "transformers")
    np.testing.assert_allclose(found, logits(mini_base), atol=1e-4)


@pytest.mark.slow
def test_a_base_of_text_gets_a_projection(mini_base, tmp_path):
    """Its text is as before, bit for bit; images are seen, by a projection of the seed."""
    convert(str(mini_base), str(tmp_path / "one"), "native", image_width=5, seed=3)
    (before, old), (after, new) = load_base(mini_base), load_base(tmp_path / "one")
    assert (before.image_width, after.image_width) == (None, 5)
    projection = new["encoder"].pop("image_projection")
    assert fingerprint(new) == fingerprint(old)
    # Variance 1 / width, as of T5's other kernels; no bias.
    assert 0.3 < np.sqrt(5) * projection["kernel"].std() < 1.2 and not projection["bias"].any()
    again = converting._with_projection(open_base(mini_base), 5, 3)
    np.testing.assert_array_equal(
        again.read("encoder/image_projection/kernel"), projection["kernel"]
    )
    with pytest.raises(UserError, match="takes images already"):
        convert(str(tmp_path / "one"), str(tmp_path / "two"), "native", image_width=5)
    with pytest.raises(UserError, match="no place for their projection"):
        convert(str(mini_base), str(tmp_path / "three"), "huggingface", image_width=5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one"]


def test_widths_and_seeds_of_a_projection_are_checked(mini_base):
    base = open_base(mini_base)
    with pytest.raises(UserError, match="image_width"):
        converting._with_projection(base, 0, 0)
    with pytest.raises(UserError, match="--seed is -1"):
        converting._with_projection(base, 5, -1)
