"""Arrays of a batch against SeqIO's own feature converter and against plain lists."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from adalink_jax.data import plan
from adalink_jax.data.arrays import Sequences, assemble
from adalink_jax.data.ragged import Ragged, Texts, ranges

EOS = 1
TOKENS = st.lists(st.integers(2, 90), max_size=9).map(lambda tokens: [*tokens, EOS])
EXAMPLES = st.lists(st.tuples(TOKENS, TOKENS), min_size=1, max_size=12)


def sequences(tasks, limit: int, feature: int) -> Sequences:
    """Sequences of tasks, each a list of (input, target)."""
    sizes = np.array([len(task) for task in tasks])
    data = tuple(Ragged.of([example[feature] for example in task]) for task in tasks)
    return Sequences(data, np.cumsum(sizes) - sizes, limit, EOS)


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 5)), max_size=20))
def test_ranges(pairs):
    starts, lengths = np.array(pairs, int).reshape(-1, 2).T
    expected = [i for start, length in pairs for i in range(start, start + length)]
    assert ranges(starts, lengths).tolist() == expected


def test_texts_are_read_one_by_one_and_by_slices():
    texts = Texts.of(["été".encode(), b"", b"a\tb "])
    assert list(texts) == ["été", "", "a\tb "] and len(texts) == 3
    assert texts[-1] == "a\tb " and texts[:2] == ["été", ""]
    assert list(texts.head(2)) == ["été", ""]


def converted(examples, lengths, pack) -> list[dict]:
    """What SeqIO makes of examples."""
    import seqio
    import tensorflow as tf

    def generate():
        for inputs, targets in examples:
            yield {"inputs": inputs, "targets": targets}

    spec = tf.TensorSpec((None,), tf.int32)
    dataset = tf.data.Dataset.from_generator(
        generate, output_signature={"inputs": spec, "targets": spec}
    )
    converter = seqio.EncDecFeatureConverter(pack=pack)
    return list(converter(dataset, lengths).as_numpy_iterator())


def test_unpacked_features_are_seqio_s():
    rng = np.random.default_rng(0)
    examples = [
        ([*rng.integers(2, 90, n), EOS], [*rng.integers(2, 90, m), EOS])
        for n, m in [(3, 1), (9, 4), (1, 0), (5, 5)]
    ]
    expected = converted(examples, {"inputs": 10, "targets": 6}, pack=False)
    inputs, targets = (sequences([examples], 10, 0), sequences([examples], 6, 1))
    batch = assemble(inputs, targets, np.arange(4), np.arange(4), (4, 10, 6), packed=False)
    assert set(batch) == set(expected[0]) | {"encoder_routes", "decoder_routes"}
    for name in expected[0]:
        assert np.array_equal(batch[name], [row[name] for row in expected]), name


def test_packed_features_are_seqio_s():
    rng = np.random.default_rng(1)
    examples = [
        ([*rng.integers(2, 90, n), EOS], [*rng.integers(2, 90, m), EOS])
        for n, m in rng.integers(0, 9, (40, 2))
    ]
    expected = converted(examples, {"inputs": 24, "targets": 20}, pack=True)
    inputs, targets = (sequences([examples], 24, 0), sequences([examples], 20, 1))
    starts = plan.next_fit(inputs.lengths, targets.lengths, 24, 20, 40)
    rows = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
    shape = (len(starts) - 1, 24, 20)
    batch = assemble(inputs, targets, np.arange(40), rows, shape, packed=True)
    assert len(expected) == len(starts) - 1
    assert set(batch) == set(expected[0]) | {"encoder_routes", "decoder_routes"}
    for name in expected[0]:
        assert np.array_equal(batch[name], [row[name] for row in expected]), name


def unpack(tokens, segments) -> list[list[list[int]]]:
    return [
        [tokens[b][segments[b] == s].tolist() for s in range(1, segments[b].max() + 1)]
        for b in range(len(tokens))
    ]


@settings(deadline=None)
@given(st.lists(EXAMPLES, min_size=1, max_size=3), st.integers(10, 30), st.randoms())
def test_unpacking_gives_back_what_was_packed(tasks, length, random):
    inputs, targets = sequences(tasks, length, 0), sequences(tasks, length, 1)
    everything = [example for task in tasks for example in task]
    owners = [k for k, task in enumerate(tasks) for _ in task]
    order = list(range(len(everything)))
    random.shuffle(order)
    order = np.array(order)
    starts = plan.next_fit(inputs.lengths[order], targets.lengths[order], length, length, 4)
    rows = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
    shape = (len(starts) - 1, length, length)
    batch = assemble(inputs, targets, order, rows, shape, packed=True)

    for tokens, side, feature in (
        ("encoder_input_tokens", "encoder", 0),
        ("decoder_target_tokens", "decoder", 1),
    ):
        segments, positions = batch[f"{side}_segment_ids"], batch[f"{side}_positions"]
        found = [s for row in unpack(batch[tokens], segments) for s in row]
        assert found == [everything[i][feature] for i in order]
        places = [s for row in unpack(positions, segments) for s in row]
        assert places == [list(range(len(everything[i][feature]))) for i in order]
        routes = unpack(batch[f"{side}_routes"], segments)
        assert [set(s) for row in routes for s in row] == [{owners[i]} for i in order]
        padding = segments == 0
        leaders = np.array([owners[order[start]] for start in starts[:-1]])
        assert np.array_equal(
            batch[f"{side}_routes"][padding], np.repeat(leaders, padding.sum(axis=1))
        )
        assert not batch[tokens][padding].any() and not positions[padding].any()
        assert np.count_nonzero(segments) == sum(len(example[feature]) for example in everything)

    shifted = unpack(batch["decoder_input_tokens"], batch["decoder_segment_ids"])
    expected = [[0, *everything[i][1][:-1]] for i in order]
    assert [s for row in shifted for s in row] == expected
    assert batch["decoder_loss_weights"].sum() == sum(len(e[1]) for e in everything)


def test_truncation_keeps_the_end_of_sequence_and_is_counted():
    tasks = [[([5, 6, 7, 8, EOS], [9, EOS])], [([5, 6, 7, 8], [2, 3, 4, 5, EOS]), ([5], [EOS])]]
    inputs, targets = sequences(tasks, 3, 0), sequences(tasks, 2, 1)
    batch = assemble(inputs, targets, np.arange(3), np.arange(3), (3, 4, 2), packed=False)
    # The second input had no end-of-sequence token to keep.
    assert batch["encoder_input_tokens"].tolist() == [[5, 6, EOS, 0], [5, 6, 7, 0], [5, 0, 0, 0]]
    assert batch["decoder_target_tokens"].tolist() == [[9, EOS], [2, EOS], [EOS, 0]]
    assert batch["encoder_routes"].tolist() == [[0] * 4, [1] * 4, [1] * 4]
    assert [inputs.truncated(k) for k in (0, 1)] == [1, 1]
    assert [targets.truncated(k) for k in (0, 1)] == [0, 1]


def test_dtypes():
    tasks = [[([5, EOS], [9, EOS])]]
    batch = assemble(
        sequences(tasks, 4, 0), sequences(tasks, 4, 1), np.arange(1), np.arange(1), (1, 4, 4), True
    )
    floats = {name for name, array in batch.items() if array.dtype == np.float32}
    assert floats == {"decoder_loss_weights"}
    assert all(batch[name].dtype == np.int32 for name in set(batch) - floats)
