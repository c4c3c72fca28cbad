"""Tiny SeqIO tasks over bytes, whose tokens anyone can compute: byte + 3, end of sequence 1."""

import pytest

WORDS = "a bb ccc dddd eeeee ffffff ggggggg hhhhhhhh".split()


def texts(n: int, salt: int) -> list[tuple[str, str]]:
    """Examples of 1 to 8 words, as (input, target); all differ."""
    return [
        (f"{salt}.{i} " + " ".join(WORDS[: 1 + (i * 5 + salt) % 8]), WORDS[(i + salt) % 4])
        for i in range(n)
    ]


def byte_tokens(text: str) -> list[int]:
    return [byte + 3 for byte in text.encode()] + [1]


EXAMPLES = {"bytes_large": texts(60, 0), "bytes_small": texts(7, 3), "bytes_middle": texts(20, 5)}


def register(name: str, examples, **features) -> None:
    """Adds a task as a user would: a function as its source, no identity."""
    import seqio
    import tensorflow as tf

    def source(split, shuffle_files):
        inputs, targets = zip(*examples, strict=True)
        return tf.data.Dataset.from_tensor_slices(
            {"inputs": list(inputs), "targets": list(targets)}
        )

    seqio.TaskRegistry.add(
        name,
        source=seqio.FunctionDataSource(
            source,
            splits=["train", "validation"],
            num_input_examples={"train": len(examples), "validation": len(examples)},
        ),
        preprocessors=[seqio.preprocessors.tokenize, seqio.preprocessors.append_eos],
        output_features=features
        or {name: seqio.Feature(seqio.ByteVocabulary()) for name in ("inputs", "targets")},
    )


@pytest.fixture(scope="session")
def byte_tasks():
    """Registers `EXAMPLES` and two mixtures of them."""
    import seqio

    for name, examples in EXAMPLES.items():
        register(name, examples)
    seqio.MixtureRegistry.add(
        "bytes_proportional", list(EXAMPLES), default_rate=seqio.mixing_rate_num_examples
    )
    seqio.MixtureRegistry.add("bytes_equal", list(EXAMPLES), default_rate=1.0)
    seqio.MixtureRegistry.add("bytes_rare", [("bytes_large", 1.0), ("bytes_small", 1e-9)])
    return EXAMPLES
