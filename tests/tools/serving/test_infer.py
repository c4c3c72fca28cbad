"""Mixed batches against each adapter alone, and a stream that bad lines do not stop."""

import dataclasses
import functools
import io
import json
import re
import shutil
import sys

import jax
import numpy as np
import pytest

import tasks
from adalink_jax import cli
from adalink_jax.adapters import pack
from adalink_jax.checkpoints import fingerprint, save_adapter
from adalink_jax.errors import UserError
from adalink_jax.methods import METHODS
from adalink_jax.models import decoding
from adalink_jax.models.parameters import init_adapter
from adalink_jax.models.t5 import Transformer
from adalink_jax.tools.serving import service as service_module
from adalink_jax.tools.serving import shelf, warming
from adalink_jax.tools.serving.command import _batches
from adalink_jax.tools.serving.programs import Programs
from adalink_jax.tools.serving.requests import Request
from adalink_jax.tools.serving.service import Limits
from tests.methods.toys import Stabilised, example
from tests.tiers import mostly_slow
from tests.tools.serving.served import LABELS, METHODS_OF, TEXTS, alone, served, write, written


@pytest.fixture(scope="module")
def adapters(base, tmp_path_factory):
    """A folder of adapters with random values; name → (method, tree)."""
    folder = tmp_path_factory.mktemp("adapters")
    return folder, written(base, folder, METHODS_OF)


@pytest.fixture(scope="module")
def service(mini_base, adapters):
    folder, _ = adapters
    return served(mini_base, folder)


# Several sizes, activations, lengths of prompts and routes; in the short tier some of each method.
EVERY = [n for n, m in METHODS_OF.items() if m.routes == 1]
EVERY += ["adalink_many:r0", "adalink_many:r2", "prompt_other:r1"]
SOME = ["adalink_3", "adalink_many:r2", "lora_some", "prompt_other:r1"]


@pytest.mark.parametrize("names", mostly_slow([SOME, EVERY], [SOME]), ids=["some", "every"])
def test_a_batch_of_all_adapters_answers_as_each_alone(base, adapters, service, names):
    _, trees = adapters
    names = [None, *names]
    requests = [
        Request(i + 1, TEXTS[names.index(name) % len(TEXTS)], name, LABELS, id=f"n{i}")
        for i, name in enumerate([*names, *reversed(names)])
    ]
    found = list(service.answers(requests))
    assert [one["line"] for one in found] == [r.line for r in requests]
    for request, one in zip(requests, found, strict=True):
        expected = alone(base, trees, request.text, request.adapter)
        np.testing.assert_allclose(list(one["scores"].values()), expected, atol=1e-4, rtol=1e-5)
        assert one["prediction"] == LABELS[int(np.argmax(expected))]
        assert one["adapter"] == request.adapter and one["id"] == request.id


@pytest.mark.slow
def test_every_method_answers_in_a_batch_as_alone(base, mini_base, tmp_path):
    """Two adapters of each method, of two sizes where zeros fill up the smaller."""
    methods = {}
    for name in METHODS:
        method = example(name)
        if method.routed:
            size = method.size if method.size is None else method.size + method.widens
            other = method if size is None else method.resized(size)
            methods |= {f"{name}_a": method, f"{name}_b": other}
    trees = written(base, tmp_path, methods)
    service = served(mini_base, tmp_path)
    names = list(methods)
    requests = [
        Request(i + 1, TEXTS[i % len(TEXTS)], name, LABELS) for i, name in enumerate(names * 2)
    ]
    for request, one in zip(requests, service.answers(requests), strict=True):
        expected = alone(base, trees, request.text, request.adapter, methods)
        found = list(one["scores"].values())
        np.testing.assert_allclose(found, expected, atol=1e-4, rtol=1e-5, err_msg=request.adapter)


def test_adapters_give_way_and_come_back(base, adapters, service, tmp_path):
    folder, trees = adapters
    ask = ("adalink_2", "adalink_3", "adalink_9", "adalink_many:r0", "adalink_many:r1",
           "adalink_many:r2")  # fmt: skip
    (first,) = service.answers([Request(1, TEXTS[0], "adalink_2", LABELS)])
    # Six of a kind fill the bank; a seventh takes the place of the one unused for longest.
    method = METHODS_OF["adalink_2"]
    write(folder / "seventh", base, method, trees["adalink_2"])
    for name in (*ask, "seventh", "adalink_2"):
        (last,) = service.answers([Request(1, TEXTS[0], name, LABELS)])
        assert "error" not in last
    assert last["scores"] == pytest.approx(first["scores"], rel=1e-5)
    # Written anew, it is read anew.
    doubled = jax.tree.map(lambda x: 2 * x, trees["adalink_2"])
    write(folder / "seventh", base, method, doubled, changed=True)
    (changed,) = service.answers([Request(1, TEXTS[0], "seventh", LABELS)])
    assert changed["scores"] != pytest.approx(first["scores"], rel=1e-3)


@pytest.mark.parametrize("beam_size", [1, 3])
def test_without_labels_it_generates(base, mini_base, beam_size):
    config, params = base
    (found,) = served(mini_base, None).answers([Request(1, TEXTS[0], beam_size=beam_size)])
    tokens = np.asarray([[*tasks.MINI_VOCABULARY.encode(TEXTS[0]), 1]], np.int32)
    model = Transformer(dataclasses.replace(config, dropout_rate=0.0))
    ids = np.asarray(decoding.beam_search(model, params, tokens, 16, beam_size=beam_size))[0]
    ids = ids.tolist()
    ids = ids[: ids.index(1)] if 1 in ids else ids
    assert found["prediction"] == tasks.MINI_VOCABULARY.decode(ids) and "scores" not in found


def test_within_a_batch_an_adapter_stays_what_it_was(base, mini_base, adapters, service, tmp_path):
    """It is deleted and written anew, of another method, while the batch's texts are encoded."""
    _, trees = adapters

    class Meddling:
        eos_id, pad_id, vocab_size = 1, 0, tasks.MINI_VOCABULARY.vocab_size

        def encode(self, text):
            if text == TEXTS[1]:
                shutil.rmtree(tmp_path / "mine")
                write(tmp_path / "mine", base, METHODS_OF["lora"], trees["lora"])
            return tasks.MINI_VOCABULARY.encode(text)

    write(tmp_path / "mine", base, METHODS_OF["adalink_2"], trees["adalink_2"])
    meddled = served(mini_base, tmp_path, Meddling())
    for method in ("adalink_2", "lora"):
        expected, found = (
            [one["scores"] for one in answers([Request(i, t, name, LABELS) for i, t in texts])]
            for texts in [list(enumerate(TEXTS))]
            for answers, name in ((service.answers, method), (meddled.answers, "mine"))
        )
        assert found == [pytest.approx(scores, rel=1e-5) for scores in expected]


def test_an_adapter_that_is_replaced_while_it_is_read_is_read_again(
    base, mini_base, adapters, tmp_path, monkeypatch
):
    _, trees = adapters
    honest, mine = pack.load_adapter, (base, METHODS_OF["lora"], trees["lora"])
    write(tmp_path / "mine", *mine)

    def load_adapter(*arguments, **checks):
        monkeypatch.undo()
        write(tmp_path / "mine", *mine, anew=True)
        raise UserError("the record's arrays are others")

    monkeypatch.setattr(pack, "load_adapter", load_adapter)
    reader = shelf.Shelf(str(tmp_path), base[0], fingerprint(base[1]), None, {}, 2**20, 32)
    assert reader.read("mine").modules["all"].kind.scope == "lora"
    assert pack.load_adapter is honest
    # The old one's folder has been renamed, the new one's not yet.
    (tmp_path / "mine").rename(tmp_path / ".mine.previous")
    assert reader.read("mine").modules["all"].kind.scope == "lora"


def test_one_tenants_numbers_that_are_not_finite_are_no_others(base, adapters, service):
    folder, trees = adapters
    huge = jax.tree.map(lambda x: np.full_like(x, 1e30), trees["adalink_2"])
    write(folder / "huge", base, METHODS_OF["adalink_2"], huge)
    for labels in (LABELS, ()):
        requests = [Request(1, TEXTS[0], "huge", labels), Request(2, TEXTS[0], "adalink_2", labels)]
        bad, good = service.answers(requests)
        assert "adapter 'huge' computes numbers here that are not finite" in bad["error"]
        assert "prediction" in good, good


def test_shapes_are_few_and_programs_are_freed(service):
    words = tasks.MINI_VOCABULARY.decode(range(20, 25)).split()
    shapes = {
        service._options(tuple(" ".join([word] * length) for word in words[:count])).shape
        for length in range(1, 8) for count in range(1, 6)
    }  # fmt: skip
    assert shapes == {(count, length) for count in (1, 2, 4, 8) for length in (4, 8)}

    @functools.partial(jax.jit, static_argnames=("model", "power"))
    def raised(model, params, tokens, *, more, power):
        return params * tokens**power + more

    live = jax.devices()[0].client.live_executables
    programs, before = Programs(2), len(live())
    for size in (1, 2, 3, 1, 2, 3, 3, 2):
        for power in (2, 3):
            tokens = np.arange(size)
            static = {"power": power}
            found = programs.run(raised, 5, 7, tokens=tokens, more=tokens, static=static)
            np.testing.assert_array_equal(found, 7 * np.arange(size) ** power + np.arange(size))
            assert len(programs) <= 2 and len(live()) <= before + 2


def test_rows_are_divided_by_the_times_of_calls(mini_base, monkeypatch):
    """Once all sizes were timed; a first call compiles, which is no time."""
    service, clock = served(mini_base, None, limits=Limits(inputs=16)), [0.0]
    seconds = {1: 1.0, 4: 1.0, 16: 1.0, 64: 2.5}  # A call of 17 as fast as 16 and 1, nearly.

    def ran(rows, count, modules):
        compiles = 100.0 * ((rows[0].group, count) not in service._fastest)
        clock[0] += seconds[count] + compiles
        return np.zeros((count, 2))

    monkeypatch.setattr(service, "_ran", ran)
    monkeypatch.setattr(service_module.time, "perf_counter", lambda: clock[0])
    rows = [service.row(Request(i, "the dog", None, LABELS)) for i in range(64)]

    def sizes(count):
        return [len(part) for part in service.parts(rows[:count])]

    assert sizes(18) == [16, 2] and sizes(40) == [16, 16, 4, 4]
    for size in (1, 4, 16, 64):
        assert len(service.run(rows[:size])) == size
    assert sizes(40) == [16, 16, 4, 4]
    for size in (1, 4, 16, 64):
        service.run(rows[:size])
    assert sizes(18) == [16, 2] and sizes(40) == [40]
    assert [row for part in service.parts(rows[:61]) for row in part] == rows[:61]


ASK = '"labels": ["positive", "negative"]}'
STREAM = [
    ('\ufeff{"text": "the dog", "adapter": "adalink_2", ' + ASK, None),
    ("garbage", "no JSON: Expecting value: column 1"),
    (b"\xff\xfe", "no UTF-8"),
    ("", "no JSON"),
    ("[1, 2]", "expected an object"),
    ('{"text": 3}', "'text' is missing or no string"),
    ('{"text": "   "}', "the text is empty"),
    ('{"txt": "a"}', "'txt'"),
    ('{"text": "a", "text": "b"}', "'text' stands in one object twice"),
    ('{"text": "half \\ud83d"}', r"half of a character, '\ud83d'"),
    ('{"text": "a", "id": ["\\ud83d"]}', "half of a character"),
    ('{"text": "a", "labels": ["\\udc00", "b"]}', "half of a character"),
    ('{"text": "a", "adapter": "\\ud83d"}', "half of a character"),
    ('{"\\ud83d": "a"}', "half of a character"),
    ('{"text": "a", "id": NaN}', "no JSON"),
    ('{"text": "a", "id": {"x": [1e999]}}', "no JSON"),
    ('{"text": "a", "id": %s}' % ("9" * 5000), "no JSON"),
    ('{"text": "a", "id": %s}' % ("[" * 5000 + "]" * 5000), "no JSON"),
    ('{"text": "a", "id": %s}' % ("[" * 32 + "]" * 32), "more than 32 brackets"),
    ('{"text": "a", "id": %s, ' % ("[" * 31 + "]" * 31) + ASK, None),
    ('{"text": "%s"}' % ("a" * 2**21), "longer than 1,048,576 bytes"),
    (json.dumps({"text": "a", "labels": [str(i) for i in range(1001)]}), "1,001 labels"),
    ('{"text": "a", "labels": ["%s", "b"]}' % ("dog " * 8000), "a label has 8,001 tokens"),
    ('{"text": "a", "labels": ["{", "}"]}', "'{' and '}' are the same tokens"),
    ('{"text": "a", "labels": ["dog", "dog"]}', "'dog' and 'dog' are the same tokens"),
    ('{"text": "a", "labels": "dog"}', "no list of strings"),
    ('{"text": "a", "labels": {}}', "no list of strings"),
    ('{"text": "a", "adapter": ""}', "'adapter' is empty"),
    ('{"text": "a", "adapter": "adalink_4"}', "no adapter 'adalink_4'"),
    ('{"text": "a", "adapter": "../adalink_2"}', "no adapter"),
    ('{"text": "a", "adapter": ".."}', "no adapter '..'"),
    ('{"text": "a", "adapter": ".adalink_2.previous"}', "no adapter"),
    ('{"text": "a", "adapter": "a\\u0000b"}', "no adapter"),
    ('{"text": "a", "adapter": "%s"}' % ("a" * 5000), "name has 5,000 characters"),
    ('{"text": "a", "adapter": "adalink_many"}', "has several"),
    ('{"text": "a", "adapter": "adalink_many:r7"}', "no route 'r7'"),
    ('{"text": "a", "adapter": "foreign"}', "another base"),
    ('{"text": "a", "adapter": "broken"}', "no file"),
    ('{"text": "a", "adapter": "whole"}', "cannot share a batch"),
    ('{"text": "a", "adapter": "three"}', "3 names of routes"),
    ('{"text": "the dog", "adapter": "linked", ' + ASK, None),
    ('{"text": "the dog", "adapter": "odd_1", ' + ASK, None),
    ('{"text": "the dog", "adapter": "odd_2", ' + ASK, None),
    ('{"text": "%s", "labels": ["positive", "negative"]}' % ("dog " * 100_000), None),
    ('{"text": "the end", "id": {"n": 7}, "labels": ["positive"]}', None),
]  # fmt: skip


@pytest.mark.slow
def test_a_scale_that_depends_on_the_rank_stays_what_it_is(base, mini_base, tmp_path, monkeypatch):
    """rsLoRA of ranks 8 and 16, from two tenants of one service."""
    monkeypatch.setitem(METHODS, "stabilised", Stabilised)
    trees, methods = {}, {f"rank_{rank}": Stabilised(rank=rank) for rank in (8, 16)}
    for number, (name, method) in enumerate(methods.items()):
        monkeypatch.setitem(METHODS_OF, name, method)
        tree = init_adapter(base[0], method, base[1], jax.random.key(number))
        rng = np.random.default_rng(number)
        trees[name] = jax.tree.map(lambda x, r=rng: r.normal(0, 0.2, x.shape).astype("f4"), tree)
        write(tmp_path / name, base, method, trees[name])
    service = served(mini_base, tmp_path)
    requests = [Request(i + 1, TEXTS[0], name, LABELS) for i, name in enumerate(methods)]
    for request, one in zip(requests, service.answers(requests), strict=True):
        expected = alone(base, trees, request.text, request.adapter)
        np.testing.assert_allclose(list(one["scores"].values()), expected, atol=1e-4, rtol=1e-5)


def test_the_stream_goes_on(base, adapters, mini_base, tmp_path, monkeypatch, capsys):
    folder, trees = adapters
    config, params = base
    other = {**params, "extra": {"x": np.ones(1, np.float32)}}
    write(folder / "foreign", (config, other), METHODS_OF["adalink_2"], trees["adalink_2"])
    (folder / "broken").mkdir(exist_ok=True)
    full = METHODS["full"]()
    save_adapter(
        folder / "whole", params, method_name="full", settings={}, architecture=config,
        base_fingerprint=fingerprint(params), route_names=["all"], metadata={},
    )  # fmt: skip
    assert full.trains_base
    for link in (".adalink_2.previous", "linked"):
        (folder / link).symlink_to("adalink_2")
    write(folder / "three", base, METHODS_OF["adalink_2"], trees["adalink_2"])
    record = folder / "three" / "adapter.json"
    record.write_text(record.read_text().replace('"all"', '"a", "b", "c"'))
    write(folder / "odd_1", base, METHODS_OF["adalink_2"], trees["adalink_2"], data=5)
    write(folder / "odd_2", base, METHODS_OF["adalink_2"], trees["adalink_2"], data={"tasks": [5]})
    lines = [line if isinstance(line, bytes) else line.encode() for line, _ in STREAM]
    command = [
        "infer", f"--base={mini_base}", f"--adapters={folder}",
        "--vocabulary=mini", "--inputs=32", "--batch_size=4", "--targets=4",
    ]  # fmt: skip
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\n".join(lines) + b"\n")))
    assert cli.main(command) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [one["line"] for one in found] == list(range(1, len(STREAM) + 1))
    for one, (line, words) in zip(found, STREAM, strict=True):
        if words is None:
            assert one["prediction"] in one["scores"], one
        else:
            assert words in one["error"], (line, one)
            assert str(tmp_path) not in one["error"]
    assert found[-2]["truncated_tokens"] == 100_000 - 31
    assert found[-1]["id"] == {"n": 7}

    requests = tmp_path / "requests.tsv"
    requests.write_text("the dog is good\tadalink_2\na\tb\tc\td\nthe cat\n")
    answers = tmp_path / "answers.jsonl"
    command += [f"--input={requests}", f"--output={answers}"]
    assert cli.main(command) == 0
    first, second, third = map(json.loads, answers.read_text().splitlines())
    assert first["adapter"] == "adalink_2" and "4 columns" in second["error"]
    assert third["adapter"] is None and "prediction" in third
    assert cli.main(command) == 2
    assert re.fullmatch("error: .*answers.jsonl.*\n", capsys.readouterr().err)
    assert cli.main([*command, "--batch_size=1000000"]) == 2
    requests.write_text("the dog is good\tnobody\na\tb\tc\td\n")  # None can be answered.
    assert cli.main([*command, f"--output={tmp_path / 'none.jsonl'}"]) == 1
    assert (
        "--batch_size is 1000000; it takes a whole number from 1 to 1,024"
        in capsys.readouterr().err
    )


def test_a_source_that_fails_is_an_error_and_no_wait():
    class Failing(io.RawIOBase):
        parts = [b"one\n", b"two"]

        def readable(self):
            return True

        def readinto(self, buffer):
            if not self.parts:
                raise OSError("the disk is gone")
            part = self.parts.pop(0)
            buffer[: len(part)] = part
            return len(part)

    found = []
    with pytest.raises(OSError, match="the disk is gone"):
        for batch in _batches(io.BufferedReader(Failing(), 4), 8):
            found += batch
    assert found == [(1, b"one")]


def test_a_method_of_few_positions_answers_what_fits_and_refuses_the_rest(
    base, mini_base, tmp_path
):
    """Rows are padded to more than it has; DePT's offsets stand alone and beside a prompt."""
    offsets = METHODS["position_offsets"](rank=2, max_length=20)
    prompt = METHODS["prompt_tuning"](length=3, reparameterise=False)
    methods = {"offsets": offsets, "dept": METHODS["compose"](parts=(offsets, prompt))}
    trees = written(base, tmp_path, methods)
    service = served(mini_base, tmp_path)
    encode = tasks.MINI_VOCABULARY.encode
    text = next(t for n in range(1, 40) if 17 <= len(encode(t := "a fine film " * n)) < 20)
    for name in methods:
        requests = [
            Request(1, text, name, LABELS), Request(2, text * 2, name, LABELS),
            Request(3, text * 2, None, LABELS),
        ]  # fmt: skip
        fits, refused, other = service.answers(requests)
        expected = alone(base, trees, text, name, methods)
        np.testing.assert_allclose(list(fits["scores"].values()), expected, atol=1e-5)
        assert f"adapter '{name}' takes inputs of up to 20 tokens" in refused["error"]
        assert other["scores"]
    examples = warming.examples(service, 9)
    assert len(examples) == 3
    for call in warming.steps(service, examples):
        call()


def test_an_adapter_of_another_vocabulary_is_refused(base, mini_base, tmp_path):
    method = METHODS["adalink"](rank=1)
    tree = init_adapter(base[0], method, base[1], jax.random.key(0))
    write(tmp_path / "other", base, method, tree, data={"vocabulary": "0" * 64})
    (answer,) = served(mini_base, tmp_path).answers([Request(1, TEXTS[0], "other", LABELS)])
    assert "adapter 'other' was trained with another vocabulary, 000000000000…" in answer["error"]
