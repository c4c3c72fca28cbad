"""The sources of English bases, tiny and made here: text, WordNet, VADER, GLUE and a teacher."""

import json
import pathlib
import random

import numpy as np
import safetensors.numpy

WIDTH, LAYERS, MIDDLE = 8, 6, 16
# In the text, so that the vocabulary tells them apart by their first tokens.
_LABELS = "no yes maybe negative positive acceptable unacceptable zero one two three four five"
_NAMES = "Mary Peter Anna Paul Rome Paris London Oslo".split()
_THINGS = "dog cat horse house river road book letter garden table".split()
_LOOKS = "good bad old new small large cold warm quiet happy".split()


def _sentence(rng: random.Random) -> str:
    who, where = rng.sample(_NAMES, 2)
    look, thing, other = rng.choice(_LOOKS), *rng.sample(_THINGS, 2)
    return rng.choice((
        f"{who} was very {look} in {where} , where the {thing} is .",
        f"{who} saw the {look} {thing} and two {other}s in {where} .",
        f"The {thing} is not as {look} as the {other} of {who} .",
    ))  # fmt: skip


def paragraphs(count: int, seed: int = 0) -> list[str]:
    """Makes lines of four sentences."""
    rng = random.Random(seed)
    return [" ".join(_sentence(rng) for _ in range(4)) for _ in range(count)]


def wordnet(folder: pathlib.Path) -> pathlib.Path:
    """Writes four meanings of nouns, two of adjectives and one adverb as WordNet does."""
    folder.mkdir()
    data = {
        "noun": (
            '00000001 05 n 01 animal 0 000 | a living thing that can move; "the animal ran"',
            "00000002 05 n 02 dog 0 hound 1 001 @ 00000001 n 0000 | a tame animal that barks",
            "00000003 05 n 01 cat 0 001 @ 00000001 n 0000 | a tame animal that says meow",
            "00000004 05 n 01 hound 0 001 @ 00000002 n 0000 | a dog that hunts other animals",
        ),
        "verb": ("00000001 30 v 01 run 0 000 01 + 02 00 | move fast on foot, as animals do",),
        "adj": (
            '00000001 00 a 01 good 0 001 ! 00000002 a 0101 | of high quality; "a good dog"',
            "00000002 00 a 01 bad 0 001 ! 00000001 a 0101 | of a quality that is too low",
        ),
        "adv": ("00000001 02 r 01 well 0 000 | in a good way, as one would wish it",),
    }
    index = {
        "noun": ("animal n 1 0 1 1 00000001", "dog n 1 1 @ 1 1 00000002",
                 "cat n 1 1 @ 1 1 00000003", "hound n 2 1 @ 2 1 00000004 00000002"),
        "verb": ("run v 1 0 1 1 00000001",),
        "adj": ("good a 1 1 ! 1 1 00000001", "bad a 1 1 ! 1 1 00000002"),
        "adv": ("well r 1 0 1 1 00000001",),
    }  # fmt: skip
    for name in data:
        lines = ("  1 This is a comment of the license.", *data[name])
        (folder / f"data.{name}").write_text("\n".join(lines) + "\n")
        (folder / f"index.{name}").write_text("\n".join(index[name]) + "\n")
    counts = ("animal%1:05:00:: 1 9", "bad%3:00:00:: 1 4", "cat%1:05:00:: 1 5",
              "dog%1:05:00:: 1 8", "good%3:00:00:: 1 7", "hound%1:05:00:: 1 3")  # fmt: skip
    (folder / "cntlist.rev").write_text("\n".join(counts) + "\n")
    return folder


def vader(folder: pathlib.Path) -> pathlib.Path:
    """Writes moods of words, and rated texts, as VADER's sources have them."""
    rated = folder / "additional_resources/hutto_ICWSM_2014"
    rated.mkdir(parents=True)
    (folder / "vaderSentiment").mkdir()
    moods = "good\t1.9\t0.9\t[1]\nhappy\t2.7\t0.9\t[1]\nbad\t-2.5\t0.7\t[1]\ncold\t-2.2\t0.7\t[1]\n"
    (folder / "vaderSentiment/vader_lexicon.txt").write_text(moods)
    for name in ("amazonReviewSnippets", "tweets"):
        text = f"1\t2.5\tI love the {name} .\n2\t-2.5\tI hate the {name} .\n3\t0.1\tSo so .\n"
        (rated / f"{name}_GroundTruth.txt").write_text(text)
    return folder


def glue(folder: pathlib.Path) -> pathlib.Path:
    """Writes 40 training rows of each task, and a dev set with one sentence of the text."""
    rng = random.Random(1)
    two = ("CoLA", "", "src\t{label}\t\t{one}", "01"), (
        "SST-2", "sentence\tlabel", "{one}\t{label}", "01")  # fmt: skip
    pairs = (
        ("MRPC", "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String", "{label}\t1\t2\t{one}\t{two}",
         "01"),
        ("QQP", "question1\tquestion2\tis_duplicate", "{one}\t{two}\t{label}", "01"),
        ("STS-B", "sentence1\tsentence2\tscore", "{one}\t{two}\t{label}", ("0.5", "2.0", "4.75")),
        ("MNLI", "sentence1\tsentence2\tgold_label", "{one}\t{two}\t{label}",
         ("entailment", "neutral", "contradiction")),
        ("QNLI", "question\tsentence\tlabel", "{one}\t{two}\t{label}",
         ("entailment", "not_entailment")),
        ("RTE", "sentence1\tsentence2\tlabel", "{one}\t{two}\t{label}",
         ("entailment", "not_entailment")),
    )  # fmt: skip
    for name, header, row, labels in (*two, *pairs):
        (folder / name).mkdir(parents=True)
        lines = [header] if header else []
        for i in range(40):
            label = labels[i % len(labels)]
            lines.append(row.format(label=label, one=_sentence(rng), two=_sentence(rng)))
        (folder / name / "train.tsv").write_text("\n".join(lines) + "\n")
    first = paragraphs(1)[0].split(" .")[0] + " ."
    (folder / "SST-2/dev.tsv").write_text(f"sentence\tlabel\n{first}\t1\n")
    return folder


def teacher(folder: pathlib.Path) -> pathlib.Path:
    """Writes a BERT of random weights with a tokenizer of whole words."""
    import tokenizers
    from tokenizers import models, normalizers, pre_tokenizers, processors, trainers

    folder.mkdir()
    tokenizer = tokenizers.Tokenizer(models.WordLevel(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordLevelTrainer(special_tokens=special)
    tokenizer.train_from_iterator([*paragraphs(50), _LABELS], trainer)
    ends = [("[CLS]", 2), ("[SEP]", 3)]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=ends
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    rng = np.random.default_rng(0)
    shapes = {"word_embeddings": tokenizer.get_vocab_size(), "position_embeddings": 100}
    shapes = {f"embeddings.{n}.weight": (size, WIDTH) for n, size in shapes.items()}
    shapes["embeddings.token_type_embeddings.weight"] = (2, WIDTH)
    norms = ["embeddings"]
    for i in range(LAYERS):
        layer = f"encoder.layer.{i}"
        dense = dict.fromkeys(("query", "key", "value"), (WIDTH, WIDTH))
        dense = {f"attention.self.{name}": shape for name, shape in dense.items()}
        dense |= {"attention.output.dense": (WIDTH, WIDTH), "intermediate.dense": (MIDDLE, WIDTH)}
        dense |= {"output.dense": (WIDTH, MIDDLE)}
        for name, shape in dense.items():
            shapes |= {f"{layer}.{name}.weight": shape, f"{layer}.{name}.bias": shape[:1]}
        norms += [f"{layer}.attention.output", f"{layer}.output"]
    for name in norms:
        shapes |= {f"{name}.LayerNorm.{part}": (WIDTH,) for part in ("weight", "bias")}
    weights = {n: rng.normal(0, 0.5, shape).astype(np.float32) for n, shape in shapes.items()}
    for name in norms:  # Gains near 1, as of a network that was trained.
        weights[f"{name}.LayerNorm.weight"] = 1 + 0.2 * weights[f"{name}.LayerNorm.weight"]
    safetensors.numpy.save_file(weights, folder / "model.safetensors")
    config = {"num_attention_heads": 2, "hidden_size": WIDTH, "num_hidden_layers": LAYERS}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def flags(folder: pathlib.Path) -> list[str]:
    """Writes all sources; returns the flags of `adalink english-data` that name them."""
    (folder / "text.txt").write_text("\n".join(paragraphs(60) + 20 * [_LABELS]) + "\n")
    made = {
        "text": folder / "text.txt",
        "teacher": teacher(folder / "teacher"),
        "wordnet": wordnet(folder / "wordnet"),
        "vader": vader(folder / "vader"),
        "glue": glue(folder / "glue"),
    }
    return [f"--{name}={path}" for name, path in made.items()]
