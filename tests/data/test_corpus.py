"""Tokenizing once: what is in the arrays, and when the cache may be believed."""

import functools
import logging
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from adalink_jax import notices
from adalink_jax.data import corpus
from adalink_jax.data.corpus import mixture, tokens, vocabulary_identity
from adalink_jax.errors import UserError

from .conftest import byte_tokens, register, texts


def never(*_):
    raise AssertionError("tokenized, where the cache should have been read")


def content(found) -> tuple:
    """Everything in `Tokens`, copied out of the file."""
    return (
        [sequence.tolist() for sequence in found.inputs],
        [sequence.tolist() for sequence in found.targets],
        list(found.input_texts),
        list(found.target_texts),
        found.identity,
    )


def test_a_user_s_task_is_tokenized_whole_with_its_texts(byte_tasks, tmp_path):
    examples = byte_tasks["bytes_large"]
    found = tokens("bytes_large", "train", tmp_path)
    assert len(found) == len(examples)
    assert [s.tolist() for s in found.inputs] == [byte_tokens(text) for text, _ in examples]
    assert [s.tolist() for s in found.targets] == [byte_tokens(text) for _, text in examples]
    assert found.inputs.flat.dtype == np.int32
    assert list(zip(found.input_texts, found.target_texts, strict=True)) == examples


def test_a_user_s_task_is_not_cached_and_is_identified_by_its_tokens(byte_tasks, tmp_path):
    large = tokens("bytes_large", "train", tmp_path).identity
    assert os.listdir(tmp_path) == []
    assert large["source"] is None and large["examples"] == 60 and len(large["sha256"]) == 64
    assert tokens("bytes_large", "train", tmp_path).identity == large
    assert tokens("bytes_small", "train", tmp_path).identity["sha256"] != large["sha256"]


def test_the_texts_of_tokens_without_text_are_decoded(tmp_path):
    import seqio
    import tensorflow as tf

    vocabulary = seqio.PassThroughVocabulary(size=100)
    seqio.TaskRegistry.add(
        "numbers",
        source=seqio.FunctionDataSource(
            lambda split, shuffle_files: tf.data.Dataset.from_tensor_slices(
                {"inputs": tf.constant([[5, 6], [7, 8]]), "targets": tf.constant([[9], [10]])}
            ),
            splits=["train"],
        ),
        preprocessors=[],
        output_features={
            name: seqio.Feature(vocabulary, add_eos=False) for name in ("inputs", "targets")
        },
    )
    found = tokens("numbers", "train", tmp_path)
    assert found.inputs.flat.tolist() == [5, 6, 7, 8] and found.inputs.lengths.tolist() == [2, 2]
    assert list(found.input_texts) == ["5 6", "7 8"] and list(found.target_texts) == ["9", "10"]


def test_a_preprocessor_s_random_numbers_are_the_same_each_time(tmp_path):
    import seqio
    import tensorflow as tf

    @seqio.map_over_dataset(num_seeds=1)
    def corrupt(example, seed):
        noise = tf.random.stateless_uniform((5,), seed, 3, 90, tf.int32)
        return {"inputs": noise, "targets": tf.ones((1,), tf.int32)}

    seqio.TaskRegistry.add(
        "noise",
        source=seqio.FunctionDataSource(
            lambda split, shuffle_files: tf.data.Dataset.range(9), splits=["train"]
        ),
        preprocessors=[corrupt],
        output_features={
            name: seqio.Feature(seqio.PassThroughVocabulary(size=100))
            for name in ("inputs", "targets")
        },
    )
    first, again = (tokens("noise", "train", tmp_path).inputs.flat for _ in range(2))
    assert np.array_equal(first, again) and len(np.unique(first)) > 20


def test_real_rte_is_what_sentencepiece_makes_of_the_file(shared_data, tmp_path, monkeypatch):
    import sentencepiece

    vocabulary = shared_data / "vocab" / "spiece.model"
    monkeypatch.setenv("GLUE_DIR", str(shared_data / "glue"))
    monkeypatch.setenv("VOCABULARY", str(vocabulary))
    found = tokens("glue_rte", "validation", tmp_path)
    processor = sentencepiece.SentencePieceProcessor(model_file=str(vocabulary))
    lines = (shared_data / "glue/RTE/dev.tsv").read_text(encoding="utf-8").splitlines()[1:]
    rows = [line.split("\t") for line in lines]
    assert len(found) == len(rows) == 277
    for i in (0, 1, 100, 276):
        _, first, second, label = rows[i]
        text = f"rte sentence1: {first} sentence2: {second}"
        assert found.input_texts[i] == text and found.target_texts[i] == label
        assert found.inputs[i].tolist() == [*processor.encode(text), 1]
        assert found.targets[i].tolist() == [*processor.encode(label), 1]
    (file,) = os.listdir(tmp_path)
    assert file.startswith("glue_rte.validation.") and file.endswith(".safetensors")


# The cache


def test_the_cache_is_read_instead_of_the_task(tmp_path, monkeypatch, caplog):
    with caplog.at_level(logging.WARNING):
        first = tokens("mini_cola", "validation", tmp_path)
    assert len(os.listdir(tmp_path)) == 1 and not caplog.records
    monkeypatch.setattr(corpus.reading, "tokenize", never)
    again = tokens("mini_cola", "validation", tmp_path)
    assert content(first) == content(again) and not again.inputs.flat.flags.owndata
    with pytest.raises(AssertionError, match="tokenized"):
        tokens("mini_cola", "train", tmp_path)


def test_the_cache_folder_is_the_environment_s_or_the_home_s(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("ADALINK_CACHE_DIR", raising=False)
    tokens("mini_cola", "validation")
    assert len(os.listdir(tmp_path / "home" / ".cache" / "adalink_jax")) == 1
    monkeypatch.setenv("ADALINK_CACHE_DIR", str(tmp_path / "chosen"))
    tokens("mini_cola", "validation")
    assert len(os.listdir(tmp_path / "chosen")) == 1


def test_what_is_drawn_at_random_is_not_cached(tmp_path):
    """Its cache would be another draw's, since no key has the seed."""
    found = tokens("mini_cola", "validation", tmp_path / "cache")
    ragged = {"inputs": found.inputs, "targets": found.targets}
    ragged |= {"input_texts": found.input_texts.ragged, "target_texts": found.target_texts.ragged}
    arrays = {name: one.flat for name, one in ragged.items()}
    arrays |= {f"{name}_offsets": one.offsets for name, one in ragged.items()}
    drawn = corpus._cached(tmp_path / "file", lambda: (arrays, {"drawn": {"seed": 1}}))
    assert drawn.drawn and len(drawn) == len(found) and not (tmp_path / "file").exists()


@pytest.mark.parametrize("damage", ["flipped", "cut", "empty", "unreadable"])
def test_a_damaged_cache_is_built_anew_with_a_warning(tmp_path, damage, caplog):
    first = content(tokens("mini_cola", "validation", tmp_path))
    (path,) = tmp_path.iterdir()
    stored = bytearray(path.read_bytes())
    stored[len(stored) // 2] ^= 1
    kept = {"cut": -100, "empty": 0}.get(damage, len(stored))
    path.write_bytes(stored[:kept])
    if damage == "unreadable":
        path.unlink()
        path.symlink_to("/proc/self/mem")  # Can be opened; any reading of it fails.
    with caplog.at_level(logging.WARNING):
        again = tokens("mini_cola", "validation", tmp_path)
    assert "is damaged" in caplog.text and content(again) == first
    caplog.clear()
    assert content(tokens("mini_cola", "validation", tmp_path)) == first
    assert not caplog.records and len(os.listdir(tmp_path)) == 1


def test_whatever_the_tokens_depend_on_is_in_the_key(tmp_path, monkeypatch):
    import seqio

    import tasks

    task = seqio.TaskRegistry.get("mini_cola")
    keys = [corpus._cache_key(task, "validation"), corpus._cache_key(task, "train")]
    monkeypatch.setattr(type(task.source), "identity", lambda self, split: {"version": 0})
    keys.append(corpus._cache_key(task, "validation"))
    monkeypatch.setattr(type(tasks.MINI_VOCABULARY), "identity", "other", raising=False)
    keys.append(corpus._cache_key(task, "validation"))
    monkeypatch.setattr(corpus, "FORMAT", corpus.FORMAT + 1)
    keys.append(corpus._cache_key(task, "validation"))
    monkeypatch.setattr(seqio, "__version__", "0")
    keys.append(corpus._cache_key(task, "validation"))
    (tmp_path / "edited.py").write_text("# a task's code, edited")
    monkeypatch.setattr(tasks, "__file__", str(tmp_path / "__init__.py"))
    keys.append(corpus._cache_key(task, "validation"))
    (tmp_path / "mini_images").mkdir()
    (tmp_path / "mini_images/edited.py").write_text("# code in a folder")
    keys.append(corpus._cache_key(task, "validation"))
    assert None not in keys and len({repr(key) for key in keys}) == len(keys)


def test_preprocessors_that_could_change_unseen_are_not_cached():
    import seqio

    import tasks

    known = [seqio.preprocessors.tokenize, seqio.preprocessors.append_eos_after_trim]
    format_classes = tasks.glue.format_classes
    assert corpus._steps([*known, functools.partial(format_classes, prefix="a")]) != corpus._steps(
        [*known, functools.partial(format_classes, prefix="b")]
    )
    for own in (
        lambda dataset: dataset,
        never,
        seqio.map_over_dataset(lambda example: example),
        functools.partial(format_classes, prefix=object()),
    ):
        assert corpus._steps([own, *known]) is None


def test_a_cache_folder_that_cannot_be_written_is_one_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="set ADALINK_CACHE_DIR to a folder") as raised:
        tokens("mini_cola", "validation", tmp_path / "file" / "cache")
    assert "\n" not in str(raised.value)


BUILDER = """
import sys
from adalink_jax.data import tokens
print(tokens("mini_cola", "validation", sys.argv[1]).identity["sha256"])
"""


@pytest.mark.slow
def test_two_processes_that_tokenize_at_once_both_succeed(tmp_path):
    root = pathlib.Path(corpus.__file__).parents[2]
    builders = [
        subprocess.Popen(
            [sys.executable, "-c", BUILDER, str(tmp_path)], cwd=root, stdout=subprocess.PIPE
        )
        for _ in range(2)
    ]
    printed = [builder.communicate(timeout=300)[0] for builder in builders]
    assert [builder.returncode for builder in builders] == [0, 0]
    expected = tokens("mini_cola", "validation", tmp_path).identity["sha256"]
    assert [line.decode().strip() for line in printed] == [expected] * 2
    assert len(os.listdir(tmp_path)) == 1


# Mixtures and mistakes


def test_routes_are_alphabetical_and_rates_are_the_mixture_s(byte_tasks):
    found = mixture("bytes_proportional")
    assert found.tasks == ("bytes_large", "bytes_middle", "bytes_small")
    assert found.rates == (60.0, 20.0, 7.0)
    single = mixture("bytes_small")
    assert (single.tasks, single.rates) == (("bytes_small",), (1.0,))


def test_vocabularies_of_equal_content_are_one(byte_tasks):
    import seqio

    assert vocabulary_identity(seqio.ByteVocabulary()) == vocabulary_identity(
        mixture("bytes_small").vocabulary
    )
    assert vocabulary_identity(seqio.ByteVocabulary()) != vocabulary_identity(
        seqio.PassThroughVocabulary(size=300)
    )


def test_mistakes_are_one_line(byte_tasks, tmp_path):
    import seqio

    two = {
        "inputs": seqio.Feature(seqio.ByteVocabulary()),
        "targets": seqio.Feature(seqio.ByteVocabulary(extra_ids=5)),
    }
    register("bytes_two_vocabularies", texts(2, 0), **two)
    register("bytes_no_inputs", texts(2, 0), targets=two["inputs"])
    seqio.MixtureRegistry.add("bytes_zero", ["bytes_small"], default_rate=0.0)
    seqio.MixtureRegistry.add("bytes_negative", ["bytes_small"], default_rate=-1.0)
    seqio.MixtureRegistry.add("bytes_none", ["bytes_small"], default_rate=lambda task: None)
    for call, message in (
        (lambda: mixture("bytes_larg"), "unknown mixture or task 'bytes_larg'; did you mean"),
        (lambda: tokens("bytes_larg", "train", tmp_path), "did you mean 'bytes_large'"),
        (
            lambda: tokens("bytes_large", "test", tmp_path),
            "no split 'test'; it has train, validation",
        ),
        (lambda: mixture("bytes_two_vocabularies"), "2 vocabularies"),
        (lambda: mixture("bytes_no_inputs"), r"has the features \['targets'\]"),
        (lambda: mixture("bytes_zero"), "all its mixing rates are 0"),
        (lambda: mixture("bytes_negative"), "task 'bytes_small' has rate -1.0"),
        (lambda: mixture("bytes_none"), "rate of task 'bytes_small' cannot be computed"),
    ):
        with pytest.raises(UserError, match=message) as raised:
            call()
        assert "\n" not in str(raised.value)


def test_a_split_without_examples_is_an_error(tmp_path):
    import seqio
    import tensorflow as tf

    spec = {name: tf.TensorSpec((), tf.string) for name in ("inputs", "targets")}
    empty = tf.data.Dataset.from_generator(lambda: iter(()), output_signature=spec)
    seqio.TaskRegistry.add(
        "bytes_empty",
        source=seqio.FunctionDataSource(lambda split, shuffle_files: empty, splits=["train"]),
        preprocessors=[seqio.preprocessors.tokenize],
        output_features={name: seqio.Feature(seqio.ByteVocabulary()) for name in spec},
    )
    with pytest.raises(UserError, match="'bytes_empty', split 'train': there are no examples"):
        tokens("bytes_empty", "train", tmp_path)


ROOT = pathlib.Path(corpus.__file__).resolve().parents[2]


def first_mixture(folder, before: str = "", after: str = "") -> subprocess.CompletedProcess:
    """What a user's script beside other files sees of this project's tasks, in that folder."""
    script = folder / "script.py"
    script.write_text(
        f"{before}\n"
        "from adalink_jax.data.corpus import mixture\n"
        "from adalink_jax.errors import UserError\n"
        "try:\n"
        "    print(mixture('mini_sst2').tasks)\n"
        f"    {after}\n"
        "except UserError as error:\n"
        "    print(error)\n"
    )
    return subprocess.run(
        [sys.executable, str(script)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("name", ["tasks.py", "tasks/__init__.py"])
def test_a_users_module_named_tasks_is_named_where_it_was_imported(tmp_path, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("")
    done = first_mixture(tmp_path, before="import tasks")
    theirs, ours = tmp_path / name.partition("/")[0], ROOT / "tasks"
    assert done.stdout == (
        f"Python imports {theirs} as 'tasks', which hides the tasks of adalink_jax in {ours}; "
        "give it another name\n"
    ), done.stderr


@pytest.mark.slow
def test_a_users_module_named_tasks_hides_nothing(tmp_path):
    (tmp_path / "tasks.py").write_text("raise SystemExit('the wrong tasks')\n")
    done = first_mixture(tmp_path)
    assert done.stdout == "('mini_sst2',)\n", done.stderr


@pytest.mark.slow
def test_tensorflows_notice_is_left_out_as_it_says_it(tmp_path):
    """Fails where TensorFlow says it in other words; where it finds CUDA, it says nothing."""
    tokenized = (
        "from adalink_jax.data.corpus import tokens; tokens('mini_sst2', 'validation', 'new')"
    )
    done = first_mixture(tmp_path, after=tokenized)
    assert (done.stdout, done.stderr) == ("('mini_sst2',)\n", "")


def test_what_else_libraries_write_while_they_load_is_passed_on(capfd):
    lines = (
        b"WARNING: All log messages before absl::InitializeLog() is called are written to STDERR\n"
        b"I0000 00:00:17.5 1 cudart_stub.cc:31] Could not find cuda drivers on your machine, GPU"
        b" will not be used.\n"
        b"I0000 00:00:17.6 1 port.cc:153] oneDNN custom operations are on. You may see slightly"
        b" different numerical results due to floating-point round-off errors from different"
        b" computation orders. To turn them off, set the environment variable"
        b" `TF_ENABLE_ONEDNN_OPTS=0`.\n"
        b"E0000 00:00:17.9 1 cuda_platform.cc:52] failed call to cuInit: INTERNAL: CUDA error\n"
    )
    with pytest.raises(ImportError), notices.without_notices():
        os.write(2, lines + b"E0000 real trouble\n")
        raise ImportError
    assert capfd.readouterr().err == "E0000 real trouble\n"
