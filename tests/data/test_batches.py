"""Training and evaluation batches of small registered tasks, and of the real data."""

import collections
import functools
import hashlib
import itertools
import json
import subprocess
import sys
import threading

import numpy as np
import pytest

from adalink_jax.data import EvalExamples, TrainBatches, batches, corpus, plan, prefetch
from adalink_jax.errors import UserError

from .conftest import EXAMPLES, byte_tokens

LENGTHS = {"inputs": 64, "targets": 16}


@functools.cache
def once(task_name, split):
    """Tokens of a task that no cache may hold."""
    return corpus.tokens(task_name, split)


@pytest.fixture
def train(byte_tasks, tmp_path, monkeypatch):
    """Makes training batches: name, then what differs from the defaults."""
    monkeypatch.setattr(batches, "tokens", lambda name, split, *_: once(name, split))

    def make(name, lengths=LENGTHS, batch_size=8, seed=0, packing=False, **given):
        return TrainBatches(name, lengths, batch_size, seed, packing, tmp_path, **given)

    return make


def seen(made) -> set:
    """The (input, target, route) of four epochs."""
    steps = -(-4 * made.epoch_size // made.batch_size)
    return {example for step in range(steps) for example in examples_in(made.batch(step))}


@pytest.mark.parametrize("packing", [False, True])
def test_few_shots_are_the_same_examples_always(train, packing):
    """More are a superset; another seed takes others; each task of a mixture has its own."""
    name = next(iter(EXAMPLES))
    four, nine = (seen(train(name, few_shot=n, packing=packing)) for n in (4, 9))
    everything = seen(train(name, packing=packing))
    assert len(four) == 4 and len(nine) == 9 and four < nine < everything
    assert seen(train(name, few_shot=4, packing=packing, batch_size=3)) == four
    assert seen(train(name, few_shot=4, packing=packing, seed=1)) != four
    whole, few = train(name).identity["tasks"][0], train(name, few_shot=4).identity["tasks"][0]
    assert few["examples"] == 4 and few["few_shot"] == {"of": whole["examples"], "seed": 0}
    assert few["sha256"] != whole["sha256"]
    made = train("bytes_proportional", few_shot=2)
    routes = collections.Counter(route for *_, route in seen(made))
    assert routes == dict.fromkeys(range(len(made.tasks)), 2)


@pytest.mark.parametrize("count", [0, 10_000])
def test_few_shots_that_are_not_there(train, count):
    with pytest.raises(UserError, match=f"^{count} of the task's"):
        train(next(iter(EXAMPLES)), few_shot=count)


def test_a_tenth_is_held_out_whatever_the_order(train):
    """By SHA-256 of the input's text, which is all that says on which side an example is."""
    examples = EXAMPLES["bytes_large"]

    def is_held(text: str) -> bool:
        return hashlib.sha256(f"held out\n{text}".encode()).hexdigest() < "33333333" + "0" * 56

    expected = {text for text, _ in examples if is_held(text)}
    assert 4 < len(expected) < 20
    assert len({text for text, _ in examples}) == len(examples) == 60
    found = [
        EvalExamples("bytes_large", split, LENGTHS, held_out=0.2) for split in ("held_out", "train")
    ]
    assert set(found[0].input_texts) == expected
    assert set(found[1].input_texts) == {text for text, _ in examples} - expected
    made = train("bytes_large", held_out=0.2)
    trained = {tuple(byte_tokens(text)) for text in found[1].input_texts}
    assert {tuple(tokens_) for tokens_ in made._data[0].inputs} == trained
    (task,) = made.identity["tasks"]
    assert task["examples"] == 60 - len(expected) and task["held_out"] == {"share": 0.2, "of": 60}
    assert "20.0% of 60 held out" in made.summary
    # Features of an example are its own, though others stand between.
    for one, text in zip(found[0].features(), found[0].input_texts, strict=True):
        assert one["inputs_pretokenized"].decode() == text
    # The few examples of a seed are those that few-shot training takes of the rest.
    few = train("bytes_large", held_out=0.2, few_shot=5)
    scored = EvalExamples("bytes_large", "train", LENGTHS, held_out=0.2, few=5, seed=few._seed)
    shown = sorted(tuple(tokens_) for tokens_ in few._data[0].inputs)
    assert shown == sorted(tuple(byte_tokens(text)) for text in scored.input_texts)
    assert len(EvalExamples("bytes_large", "validation", LENGTHS, few=10**6)) == len(examples)


@pytest.mark.parametrize(
    ("share", "message"),
    [
        (1e-9, "held_out is 1e-09: of 60 training examples none would be held out"),
        (1 - 1e-9, "held_out is 0.999999999: of 60 training examples none would be left to train"),
    ],
)
def test_held_out_shares_that_leave_nothing(train, share, message):
    with pytest.raises(UserError, match=message):
        train("bytes_large", held_out=share)


def equal(a, b) -> bool:
    return set(a) == set(b) and all(np.array_equal(a[name], b[name]) for name in a)


def examples_in(batch) -> list[tuple[tuple[int, ...], tuple[int, ...], int]]:
    """(input, target, route) of each example of a batch, packed or not."""
    found = []
    for row in range(len(batch["encoder_input_tokens"])):
        encoder, decoder = (
            batch[f"{side}_segment_ids"][row]
            if f"{side}_segment_ids" in batch
            else (batch[name][row] > 0).astype(int)
            for side, name in (
                ("encoder", "encoder_input_tokens"),
                ("decoder", "decoder_target_tokens"),
            )
        )
        for segment in range(1, encoder.max() + 1):
            routes = set(batch["encoder_routes"][row][encoder == segment].tolist())
            assert routes == set(batch["decoder_routes"][row][decoder == segment].tolist())
            (route,) = routes
            inputs = batch["encoder_input_tokens"][row][encoder == segment]
            targets = batch["decoder_target_tokens"][row][decoder == segment]
            found.append((tuple(inputs.tolist()), tuple(targets.tolist()), route))
    return found


@pytest.mark.parametrize("packing", [False, True])
def test_an_epoch_s_batches_hold_every_example_with_its_route(train, packing):
    made = train("bytes_proportional", batch_size=1, packing=packing)
    assert made.epoch_size == 87
    seen = collections.Counter()
    for step in itertools.count():
        if seen.total() >= made.epoch_size:
            break
        seen.update(examples_in(made.batch(step)))
    expected = collections.Counter(
        (tuple(byte_tokens(inputs)), tuple(byte_tokens(targets)), made.tasks.index(name))
        for name, examples in EXAMPLES.items()
        for inputs, targets in examples
    )
    if packing:
        assert seen == expected
    else:  # the first window of the next epoch is sorted together with the last of this one
        assert (seen - expected).total() <= made._first.plan.window


@pytest.mark.parametrize("packing", [False, True])
def test_the_same_seed_and_step_give_the_same_batch(train, packing):
    straight = train("bytes_equal", seed=3, packing=packing)
    resumed = train("bytes_equal", seed=3, packing=packing)
    assert equal(resumed.batch(37), straight.batch(37))
    assert all(equal(straight.batch(step), resumed.batch(step)) for step in (0, 1, 90, 4))
    assert not equal(straight.batch(0), straight.batch(1))
    assert not equal(straight.batch(0), train("bytes_equal", seed=4, packing=packing).batch(0))


@pytest.mark.parametrize("packing", [False, True])
def test_hosts_that_make_their_rows_have_the_global_batch(train, packing):
    whole = train("bytes_equal", packing=packing).batch(5)
    host = train("bytes_equal", packing=packing)
    for rows in (np.arange(4), np.arange(4, 8), np.array([1, 2, 7])):
        expected = {name: array[rows] for name, array in whole.items()}
        assert equal(host.batch(5, rows), expected)


@pytest.mark.parametrize("packing", [False, True])
def test_shapes_are_known_before_and_routes_fit_their_slots(train, packing):
    made = train("bytes_proportional", packing=packing)
    assert made.max_segments == (8 if packing else 1)
    assert made.max_routes_per_row == (3 if packing else 1)
    for step in range(30):
        batch = made.batch(step)
        shape = (batch["encoder_input_tokens"].shape[1], batch["decoder_target_tokens"].shape[1])
        assert shape in made.shapes
        for name, array in batch.items():
            assert array.shape == (8, shape[0] if name.startswith("encoder") else shape[1])
        for row in batch["encoder_routes"]:
            assert len(set(row.tolist())) <= made.max_routes_per_row


def test_fewer_lengths_hold_the_same_examples_and_are_recorded(train):
    every, few = train("bytes_proportional"), train("bytes_proportional", steps=1)
    (length,) = few.identity["padded_to"]
    assert length <= every.shapes[-1][0] and "padded_to" not in every.identity
    # The longest of all fits, and the next shorter one would not do.
    longest = min(64, max(len(byte_tokens(text)) for one in EXAMPLES.values() for text, _ in one))
    assert length == min(known for known in plan.LENGTHS if known >= longest)
    assert len(few.shapes) < len(every.shapes)
    assert few.summary.endswith(f"padded to {length} tokens, chosen by cost")
    # A later start with other steps takes what was recorded.
    again = train("bytes_proportional", padded_to=few.identity["padded_to"])
    assert again.identity == few.identity
    for step in range(9):
        assert examples_in(few.batch(step)) == examples_in(every.batch(step))
        assert equal(again.batch(step), few.batch(step))
        tokens, (rows, inputs, targets) = few.size(step)
        batch = few.batch(step)
        encoder, decoder = batch["encoder_input_tokens"], batch["decoder_target_tokens"]
        assert (rows, inputs) == encoder.shape and (rows, targets) == decoder.shape
        assert tokens == np.count_nonzero(encoder) + np.count_nonzero(decoder)


def test_packed_rows_hold_as_many_targets_as_inputs_and_that_is_recorded(train):
    made = train("bytes_proportional", lengths={"inputs": 128, "targets": 8}, packing=True)
    length = made.identity["packed_targets"]
    assert length > 8 and made.shapes == ((128, length),)
    assert f"to a row of 128 tokens and {length} of targets" in made.summary
    # A later start takes what was recorded; one of before, the length of one target.
    recorded = {"lengths": {"inputs": 128, "targets": 8}, "packing": True}
    again = train("bytes_proportional", **recorded, packed_targets=length)
    assert again.identity == made.identity and equal(again.batch(9), made.batch(9))
    before = train("bytes_proportional", **recorded, packed_targets=8)
    assert "packed_targets" not in before.identity and before.shapes == ((128, 8),)
    assert before.truncated == made.truncated  # Each target is still of 8 at most.
    per_row = [len(examples_in(one.batch(0))) for one in (before, made)]
    assert per_row[0] < per_row[1]


def test_fewer_examples_than_a_batch(train):
    for packing in (False, True):
        made = train("bytes_small", batch_size=20, packing=packing)
        seen = collections.Counter(e for step in range(7) for e in examples_in(made.batch(step)))
        assert len(seen) == 7 and max(seen.values()) - min(seen.values()) <= 7


def test_truncation_is_counted_told_and_keeps_the_end(train):
    made = train("bytes_proportional", lengths={"inputs": 12, "targets": 4})
    for name, examples in EXAMPLES.items():
        assert made.truncated[name] == {
            "inputs": sum(len(byte_tokens(text)) > 12 for text, _ in examples),
            "targets": sum(len(byte_tokens(text)) > 4 for _, text in examples),
        }
    assert "\n" not in made.summary
    for name in EXAMPLES:
        assert f"{made.truncated[name]['inputs']} of {name}" in made.summary
    assert "truncated to 12 tokens: inputs" in made.summary
    assert "truncated to 4 tokens: targets" in made.summary
    batch = made.batch(0)
    ends = (batch["encoder_input_tokens"] > 0).sum(axis=1) - 1
    assert (batch["encoder_input_tokens"][np.arange(8), ends] == 1).all()
    assert "truncated" not in train("bytes_proportional").summary


def test_the_identity_says_what_the_data_is_and_not_where(train, tmp_path):
    identity = train("bytes_equal").identity
    text = json.dumps(identity, sort_keys=True)
    assert json.loads(text) == identity and str(tmp_path) not in text and "/" not in text
    assert identity == train("bytes_equal", seed=9, batch_size=3).identity
    assert [task["name"] for task in identity["tasks"]] == sorted(EXAMPLES)
    assert [task["examples"] for task in identity["tasks"]] == [60, 20, 7]
    others = [
        train("bytes_proportional").identity,
        train("bytes_equal", packing=True).identity,
        train("bytes_equal", lengths={"inputs": 60, "targets": 16}).identity,
    ]
    assert len({json.dumps(other) for other in [identity, *others]}) == 4


def test_mistakes_are_one_line(train, tmp_path):
    for call, message in (
        (lambda: train("bytes_equl"), "unknown mixture or task 'bytes_equl'; did you mean"),
        (lambda: train("bytes_equal", batch_size=0), "BATCH_SIZE is 0"),
        (lambda: train("bytes_equal", seed=-1), "SEED must be"),
        (lambda: train("bytes_equal", lengths={"inputs": 8}), "TASK_FEATURE_LENGTHS\\) must be"),
        (lambda: train("bytes_equal", lengths={"inputs": 0, "targets": 8}), "whole numbers"),
        (lambda: train("bytes_rare"), "'bytes_small' has rate 1e-09 of 1"),
        (
            lambda: EvalExamples("bytes_small", "train", LENGTHS, limit=0, cache_dir=tmp_path),
            "at least one example",
        ),
    ):
        with pytest.raises(UserError, match=message) as raised:
            call()
        assert "\n" not in str(raised.value)


# Evaluation


@pytest.mark.parametrize("limit", [None, 13, 1000])
def test_evaluation_has_every_example_exactly_once(byte_tasks, tmp_path, limit):
    examples = EXAMPLES["bytes_large"][:limit]
    found = EvalExamples("bytes_large", "validation", LENGTHS, limit, tmp_path)
    assert len(found) == len(examples)
    assert list(zip(found.input_texts, found.target_texts, strict=True)) == examples
    assert [s.tolist() for s in found.targets] == [byte_tokens(text) for _, text in examples]
    seen = []
    for batch in found.batches(8, route=2):
        tokens, indices = batch["encoder_input_tokens"], batch["indices"]
        assert tokens.shape[0] == 8 and tokens.shape == batch["encoder_routes"].shape
        assert (tokens.dtype, set(batch["encoder_routes"].flat)) == (np.int32, {2})
        assert (tokens[indices == -1] == 0).all()
        for row in np.flatnonzero(indices >= 0):
            text = examples[indices[row]][0]
            assert np.trim_zeros(tokens[row], "b").tolist() == byte_tokens(text)
        longest = (tokens > 0).sum(axis=1).max()
        assert tokens.shape[1] == min(n for n in (16, 24, 32, 48, 64) if n >= longest)
        seen += indices[indices >= 0].tolist()
    assert sorted(seen) == list(range(len(examples)))
    assert json.loads(json.dumps(found.identity))["evaluated"] == len(examples)


def test_evaluation_truncates_and_counts_inputs_only(byte_tasks, tmp_path):
    found = EvalExamples("bytes_large", "train", {"inputs": 10, "targets": 1}, None, tmp_path)
    long = sum(len(byte_tokens(text)) > 10 for text, _ in EXAMPLES["bytes_large"])
    assert found.truncated == {"inputs": long} and long > 0
    assert found.targets[0].tolist() == byte_tokens(EXAMPLES["bytes_large"][0][1])
    for batch in found.batches(7):
        rows = batch["encoder_input_tokens"][batch["indices"] >= 0]
        assert (rows[np.arange(len(rows)), (rows > 0).sum(axis=1) - 1] == 1).all()


def test_examples_in_context_are_those_of_few_shot_training(train, tmp_path):
    name, lengths = "bytes_small", {"inputs": 512, "targets": 16}
    shown = [(i, t) for i, t, _ in seen(train(name, lengths, few_shot=3, seed=4))]
    found = EvalExamples(name, "validation", lengths, None, tmp_path, in_context=3, seed=4)
    rows = {}
    for batch in found.batches(4):
        for index, row in zip(batch["indices"], batch["encoder_input_tokens"], strict=True):
            rows[int(index)] = np.trim_zeros(row, "b").tolist()
    prefix = rows[0][: -len(byte_tokens(EXAMPLES[name][0][0]))]
    for index, (text, target) in enumerate(EXAMPLES[name]):
        # Solved examples, then the input itself; EOS once, at the end.
        assert rows[index] == prefix + byte_tokens(text) and rows[index].count(1) == 1
        assert found.input_texts[index].endswith(f" {text}")
        assert found.targets[index].tolist() == byte_tokens(target)
    pieces = [[token for part in pair for token in part if token != 1] for pair in shown]
    orders = (sum(order, []) for order in itertools.permutations(pieces))
    assert prefix in list(orders)
    again = EvalExamples(name, "validation", lengths, None, tmp_path, in_context=3, seed=5)
    assert again.identity["in_context"]["sha256"] != found.identity["in_context"]["sha256"]
    with pytest.raises(UserError, match=r"in_context is 3: .* ends after \d+ tokens or more"):
        EvalExamples(name, "validation", {"inputs": 9, "targets": 4}, None, tmp_path, in_context=3)


# Prefetching


class Counting:
    """Stands in for TrainBatches: batch(step) is the step, or an error at one of them."""

    def __init__(self, bad=None):
        self.bad, self.asked = bad, []

    def batch(self, step, rows=None):
        self.asked.append((step, threading.current_thread()))
        if step == self.bad:
            raise ValueError(f"step {step}")
        return step


def test_prefetch_is_in_order_in_one_other_thread():
    source = Counting()
    assert list(prefetch(source, 3, 20, place=lambda x: x * 10)) == list(range(30, 200, 10))
    assert [step for step, _ in source.asked] == list(range(3, 20))
    threads = {thread for _, thread in source.asked}
    assert len(threads) == 1 and threading.current_thread() not in threads
    assert not any(thread.is_alive() for thread in threads)
    assert list(prefetch(Counting(), 5, 5, place=str)) == []


def test_prefetch_raises_at_the_step_where_it_belongs():
    source = Counting(bad=6)
    made = prefetch(source, 3, 20, place=lambda x: x)
    assert [next(made) for _ in range(3)] == [3, 4, 5]
    with pytest.raises(ValueError, match="step 6"):
        next(made)
    assert not any(thread.is_alive() for _, thread in source.asked)


def test_prefetch_works_ahead():
    ahead = threading.Event()

    def place(step):
        if step == 2:
            ahead.set()
        return step

    made = prefetch(Counting(), 0, 9, place, depth=2)
    assert next(made) == 0
    assert ahead.wait(timeout=60)
    made.close()


def test_prefetch_stops_when_it_is_closed():
    source = Counting()
    made = prefetch(source, 0, 10**9, place=lambda x: x, depth=2)
    assert [next(made) for _ in range(3)] == [0, 1, 2]
    made.close()
    assert not any(thread.is_alive() for _, thread in source.asked)
    assert max(step for step, _ in source.asked) <= 4


# The whole


def test_importing_the_package_imports_no_framework():
    program = (
        "import sys, adalink_jax.data; "
        "print([n for n in ('tensorflow', 'seqio', 'jax', 'gin', 'tasks') if n in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert found.stdout.strip() == "[]", found.stderr


@pytest.mark.parametrize(
    ("name", "packing", "steps", "length", "least"),
    [
        pytest.param("glue_rte", False, None, 128, 0.80, marks=pytest.mark.slow),
        ("glue_rte", False, 20_000, 512, 0.88),
        ("glue_rte", True, None, 512, 0.85),
        ("glue_cola", False, None, 128, 0.70),
        ("glue_cola", False, 20_000, 128, 0.84),
        ("glue_cola", True, None, 512, 0.90),
    ],
)
def test_real_sentences_do_not_pay_for_padding(
    shared_data, tmp_path_factory, monkeypatch, name, packing, steps, length, least
):
    monkeypatch.setenv("GLUE_DIR", str(shared_data / "glue"))
    monkeypatch.setenv("VOCABULARY", str(shared_data / "vocab" / "spiece.model"))
    cache = tmp_path_factory.getbasetemp() / "real"
    lengths = {"inputs": length, "targets": 8}
    made = batches.TrainBatches(name, lengths, 32, 0, packing, cache, steps=steps)
    used = total = targets = 0
    for step in range(60):
        batch = made.batch(step)
        used += np.count_nonzero(batch["encoder_input_tokens"])
        total += batch["encoder_input_tokens"].size
        targets += batch["decoder_loss_weights"].sum()
        assert batch["decoder_loss_weights"].sum() == np.count_nonzero(
            batch["decoder_target_tokens"]
        )
    print(
        f"{made.summary}; measured {used / total:.1%} of input tokens used, {targets:.0f} targets"
    )
    assert used / total > least
