"""Makes the data of the English bases: token arrays of text, instructions, GLUE, and the teacher.

The folder has all that a training needs, on any machine: no text file and no tokenizer are read
there. Texts that repeat eight words in a row of a dev set of GLUE are left out.
"""

import dataclasses
import hashlib
import json
import pathlib
import random
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from adalink_jax import files
from adalink_jax.errors import UserError
from adalink_jax.tools.english_base import instructions, packed, teacher, texts, wordnet

PIECE = 62  # Tokens of a piece at most.
TEACHER_PIECE = 80  # Tokens of it in the teacher's vocabulary, with its two special ones.
GLUE_INPUT = 126
EXTRA_IDS = 100
VOCABULARY_SIZE = 8192 - EXTRA_IDS
#: The words that stand for GLUE's labels; each has a first token of its own.
LABELS = {
    "cola": {"0": "unacceptable", "1": "acceptable"},
    "sst2": {"0": "negative", "1": "positive"},
    "mrpc": {"0": "no", "1": "yes"},
    "qqp": {"0": "no", "1": "yes"},
    "stsb": {str(i): word for i, word in enumerate("zero one two three four five".split())},
    "mnli": {"entailment": "yes", "neutral": "maybe", "contradiction": "no"},
    "qnli": {"entailment": "yes", "not_entailment": "no"},
    "rte": {"entailment": "yes", "not_entailment": "no"},
}
_FIELDS = {
    **dict.fromkeys(("cola", "sst2"), ("sentence",)),
    **dict.fromkeys(("mrpc", "stsb", "rte"), ("sentence1", "sentence2")),
    "qqp": ("question1", "question2"),
    "mnli": ("premise", "hypothesis"),
    "qnli": ("question", "sentence"),
}


@dataclasses.dataclass(frozen=True)
class Sources:
    """Where the data comes from.

    Attributes:
      text: a text file, a paragraph a line.
      teacher: the folder of a BERT with its tokenizer (`model.safetensors`, `tokenizer.json`).
      wordnet: the folder of WordNet 3's database files.
      vader: the folder of VADER's sources.
      glue: the folder with GLUE's folders.
    """

    text: pathlib.Path
    teacher: pathlib.Path
    wordnet: pathlib.Path
    vader: pathlib.Path
    glue: pathlib.Path


@dataclasses.dataclass(frozen=True)
class Amounts:
    """How much is made of each kind.

    Attributes:
      paragraphs: lines of the text that are read; None for all.
      changed: sentences that are changed.
      asked: questions about texts, with what comes next.
      defined: words with their meanings.
      judged: sentences judged by mood.
    """

    paragraphs: int | None = None
    changed: int = 60_000
    asked: int = 30_000
    defined: int = 30_000
    judged: int = 30_000


class _Pieces:
    """Texts in the order of their numbers, and for each the number of one that belongs to it."""

    def __init__(self, left_out: texts.Seen):
        self.texts: list[str] = []
        self.partners: list[int] = []
        self.refused = 0
        self._numbers: dict[str, int] = {}
        self._left_out = left_out

    def add(self, text: str) -> int | None:
        """Returns the number of a text; None if it repeats what is left out."""
        if text in self._numbers:
            return self._numbers[text]
        if text in self._left_out:
            self.refused += 1
            return None
        self._numbers[text] = len(self.texts)
        self.texts.append(text)
        self.partners.append(-1)
        return len(self.texts) - 1


def make(out: pathlib.Path, sources: Sources, amounts: Amounts, seed: int = 0) -> None:
    """Writes the folder of data.

    Args:
      out: a folder that is not there, or empty.
      sources: where the data comes from.
      amounts: how much is made.
      seed: of all choices.

    Raises:
      UserError: a source is not there.
    """
    for name, path in dataclasses.asdict(sources).items():
        if not path.exists():
            raise UserError(f"--{name}={path}: not there")
    out.mkdir(parents=True, exist_ok=True)
    rng = random.Random(seed)
    lines = sources.text.read_text(encoding="utf-8").splitlines()[: amounts.paragraphs]
    pieces = _Pieces(texts.glue_held_out(sources.glue))
    _add_text(pieces, lines, rng)
    net = wordnet.read(sources.wordnet)
    of_text = len(pieces.texts)
    made = list(_instructions(lines, net, sources.vader, amounts, rng))
    kept = _add_made(pieces, made)
    if amounts.paragraphs is None:
        _add_wordnet(pieces, net)
    vocabulary = _vocabulary(out / "vocabulary.model", sources.text)
    _write_pieces(out, pieces, vocabulary, sources.teacher)
    answers = _write_instructions(out, kept, vocabulary)
    _write_glue(out, sources.glue, vocabulary, None if amounts.paragraphs is None else 300)
    teacher.compress(sources.teacher, out / "teacher.npz")
    about = {
        "amounts": dataclasses.asdict(amounts),
        "answers": answers,
        "counts": {"pieces": len(pieces.texts), "of_text": of_text, "left_out": pieces.refused},
        "made": {k: sum(m.kind == k for _, _, m in kept) for k in sorted({m.kind for m in made})},
        "seed": seed,
        "sources": {name: path.name for name, path in dataclasses.asdict(sources).items()},
        "templates": [_encoded_template(vocabulary, t) for t in instructions.TEMPLATES],
        "text_sha256": hashlib.sha256(sources.text.read_bytes()).hexdigest(),
    }
    with files.replaced_file(out / "data.json") as file:
        file.write(json.dumps(about).encode())


def _instructions(
    lines: Sequence[str],
    net: wordnet.WordNet,
    vader: pathlib.Path,
    amounts: Amounts,
    rng: random.Random,
) -> Iterable[instructions.Made]:
    yield from instructions.of_changes(lines, net, amounts.changed, rng)
    yield from instructions.of_paragraphs(lines, amounts.asked, rng)
    yield from instructions.of_words(net, amounts.defined, rng)
    yield from instructions.of_sentiment(lines, vader, amounts.judged, rng)


def _add_text(pieces: _Pieces, lines: Iterable[str], rng: random.Random) -> None:
    for line in lines:
        before = None
        for text in texts.pieces(line, rng):
            new = pieces.add(text)
            if before is not None and new is not None:
                pieces.partners[before] = new
            before = new


def _add_made(
    pieces: _Pieces, made: Iterable[instructions.Made]
) -> list[tuple[int, int, instructions.Made]]:
    kept = []
    for one in made:
        numbers = [pieces.add(text) for text in (one.first, one.second) if text]
        if None in numbers:
            continue
        first, second = (*numbers, -1)[:2]
        if second >= 0 and one.kind in ("same", "logic"):
            pieces.partners[first] = second
        kept.append((first, second, one))
    return kept


def _add_wordnet(pieces: _Pieces, net: wordnet.WordNet) -> None:
    for sense in net.senses.values():
        if not sense.counted and not sense.examples:
            continue
        first = pieces.add(f"{', '.join(sense.words[:3])}: {sense.gloss}")
        for example in sense.examples[:2]:
            second = pieces.add(example)
            if first is not None and second is not None:
                pieces.partners[first] = second


def _vocabulary(path: pathlib.Path, text: pathlib.Path) -> Any:
    """Trains a vocabulary of lower-cased text, unless it is there."""
    import sentencepiece

    if not path.exists():
        sentencepiece.SentencePieceTrainer.train(
            input=str(text),
            model_prefix=str(path.with_suffix("")),
            vocab_size=VOCABULARY_SIZE,
            normalization_rule_name="nmt_nfkc_cf",
            pad_id=0,
            eos_id=1,
            unk_id=2,
            bos_id=-1,
            character_coverage=0.9999,
            input_sentence_size=60_000,
            max_sentence_length=20_000,
            split_digits=True,
            minloglevel=1,
        )
        path.with_suffix(".vocab").unlink()
    return sentencepiece.SentencePieceProcessor(model_file=str(path))


def _write_pieces(
    out: pathlib.Path, pieces: _Pieces, vocabulary: Any, folder: pathlib.Path
) -> None:
    import tokenizers

    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(TEACHER_PIECE)
    tokens, ids, aligned = [], [], []
    for start in range(0, len(pieces.texts), 2000):
        some = pieces.texts[start : start + 2000]
        protos = vocabulary.encode(some, return_type="proto")
        for text, proto, encoding in zip(some, protos, tokenizer.encode_batch(some), strict=True):
            own = proto.pieces[:PIECE]
            tokens.append(np.array([piece.id for piece in own], np.uint16))
            ids.append(np.array(encoding.ids, np.uint16))
            starts = np.array([start for start, _ in encoding.offsets[1:-1]])
            last = _characters(text)[[piece.end - 1 for piece in own]]
            aligned.append(np.clip(np.searchsorted(starts, last, "right"), 1, len(starts)))
    steps = [np.diff(some, prepend=0).astype(np.int8) for some in aligned]
    partners = np.array(pieces.partners, np.int32)
    files_ = {
        **_ragged("tokens", tokens),
        **_ragged("teacher", ids),
        "aligned": np.concatenate(steps),
        "partners": np.where(partners < 0, 0, partners - np.arange(len(partners))).astype(np.int32),
    }
    packed.write(out / "pieces.npz", files_)


def _characters(text: str) -> np.ndarray:
    """Returns for each byte of a text the number of its character."""
    octets = np.frombuffer(text.encode(), np.uint8)
    return np.cumsum((octets & 0xC0) != 0x80) - 1


def _ragged(name: str, rows: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    lengths = np.array([len(row) for row in rows])
    return {name: np.concatenate(rows), f"{name}_lengths": lengths.astype(np.uint8)}


def ragged(arrays: Any, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Reads rows of ids as they are written in a file of data: all ids, and the rows' lengths."""
    return arrays[name], arrays[f"{name}_lengths"].astype(np.int32)


def padded(flat: np.ndarray, lengths: np.ndarray, width: int) -> np.ndarray:
    """Makes rows of one width, [N, width], of ids in a row; 0 behind each."""
    rows = np.zeros((len(lengths), width), flat.dtype)
    rows[np.arange(width) < lengths[:, None]] = flat
    return rows


def _encoded_template(vocabulary: Any, template: instructions.Template) -> dict[str, Any]:
    parts = (template.before, template.between, template.after)
    tokens = [vocabulary.encode(part) if part is not None else None for part in parts]
    return {"kind": template.kind, "parts": tokens, "answers": template.answers}


def _write_instructions(
    out: pathlib.Path,
    kept: Sequence[tuple[int, int, instructions.Made]],
    vocabulary: Any,
) -> dict[str, list[int]]:
    """Writes the instructions; returns the tokens of all texts of answers."""
    kinds = sorted({template.kind for template in instructions.TEMPLATES})
    words = [m.answer for _, _, m in kept if isinstance(m.answer, str)]
    fixed = [answer for template in instructions.TEMPLATES for answer in template.answers]
    scores = [f"{i / 5:.1f}" for i in range(26)]
    answers = list(dict.fromkeys((*fixed, *scores, *words)))
    numbers = {answer: i for i, answer in enumerate(answers)}
    # Below 0: the text of that answer, less one. From 0: the label, whose text a template has.
    labels = [m.answer if isinstance(m.answer, int) else -1 - numbers[m.answer] for *_, m in kept]
    arrays = {
        "kind": np.array([kinds.index(m.kind) for *_, m in kept], np.uint8),
        "first": np.array([first for first, _, _ in kept], np.int32),
        "second": np.array([second for _, second, _ in kept], np.int32),
        "label": np.array(labels, np.int32),
    }
    packed.write(out / "instructions.npz", arrays)
    return {answer: vocabulary.encode(answer) for answer in answers}


def _write_glue(
    out: pathlib.Path, folder: pathlib.Path, vocabulary: Any, limit: int | None
) -> None:
    """Writes GLUE's training sets, which only score a base."""
    arrays = {}
    for task, labels in LABELS.items():
        words = list(labels.values())
        firsts = [vocabulary.encode(word)[0] for word in words]
        if len(set(firsts)) < len(firsts):
            raise ValueError(f"labels of {task} begin with the same token: {words}")
        rows, values = [], []
        found = list(texts.glue_rows(folder, task, "train.tsv"))[:limit]
        for parts, label in found:
            named = [f"{field}: {part}" for field, part in zip(_FIELDS[task], parts, strict=True)]
            value = float(label) if task == "stsb" else list(labels).index(label)
            rows.append(f"{task} {' '.join(named)}")
            values.append(value)
        tokens = vocabulary.encode(rows)
        cut = [np.array([*row[:GLUE_INPUT], 1], np.uint16) for row in tokens]
        arrays |= _ragged(task, cut)
        arrays |= {f"{task}_labels": np.array(values, np.float32), f"{task}_firsts": firsts}
        if task == "stsb":
            for i, name in enumerate(("first", "second")):
                alone = vocabulary.encode([parts[i] for parts, _ in found])
                arrays |= _ragged(f"stsb_{name}", [np.array(row[:GLUE_INPUT], np.uint16) for row in alone])
    packed.write(out / "glue.npz", arrays)
