"""Makes the data of the English bases: token arrays of text, instructions, GLUE, and the teacher.

The folder has all that a training needs, on any machine: no text file and no tokenizer are read
there. Texts that repeat eight words in a row of a dev set of GLUE are left out.
"""

import dataclasses
import hashlib
import importlib.util
import json
import pathlib
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from adalink_jax import files
from adalink_jax.errors import UserError, install
from adalink_jax.notices import load_tasks
from adalink_jax.tools.english_base import instructions, packed, teacher, texts, vocabulary, wordnet

GLUE_INPUT = 126
_SENTENCES = {"sentence1": "sentence1", "sentence2": "sentence2"}
_ENTAILED = {"entailment": "yes", "not_entailment": "no"}
_SCORES = {str(i): word for i, word in enumerate("zero one two three four five".split())}
_SAME = {"0": "no", "1": "yes"}
# Of a task of GLUE: its folder, {name of a text: its column}, the label's column, and the words
# for the labels; each has a first token of its own. STS-B's are the rounded scores.
GLUE: Mapping[str, tuple[str, Mapping[str, str], str, Mapping[str, str]]] = {
    "cola": ("CoLA", {"sentence": "sentence"}, "label", {"0": "unacceptable", "1": "acceptable"}),
    "sst2": ("SST-2", {"sentence": "sentence"}, "label", {"0": "negative", "1": "positive"}),
    "mrpc": ("MRPC", {"sentence1": "#1 String", "sentence2": "#2 String"}, "Quality", _SAME),
    "qqp": ("QQP", {"question1": "question1", "question2": "question2"}, "is_duplicate", _SAME),
    "stsb": ("STS-B", _SENTENCES, "score", _SCORES),
    "mnli": ("MNLI", {"premise": "sentence1", "hypothesis": "sentence2"}, "gold_label",
             {"entailment": "yes", "neutral": "maybe", "contradiction": "no"}),
    "qnli": ("QNLI", {"question": "question", "sentence": "sentence"}, "label", _ENTAILED),
    "rte": ("RTE", _SENTENCES, "label", _ENTAILED),
}  # fmt: skip


def _glue_rows(folder: pathlib.Path, task: str, name: str) -> Iterator[tuple[list[str], str]]:
    """Yields the texts and the label of each row of a file, as they are written."""
    load_tasks()
    from tasks import tsv

    part, fields, label, _ = GLUE[task]
    header = ("source", "label", "star", "sentence") if task == "cola" else None
    columns = (*fields.values(), label)
    for _, cells in tsv.read_rows(str(folder / part / name), columns, header=header):
        yield list(cells[:-1]), cells[-1]


def _held_out(folder: pathlib.Path) -> texts.Seen:
    """Returns the texts of all dev files of GLUE."""
    found: list[str] = []
    for task, (part, *_) in GLUE.items():
        for path in (folder / part).glob("dev*.tsv"):
            for some, _ in _glue_rows(folder, task, path.name):
                found += some
    return texts.Seen(found)


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
    """Texts in the order of their numbers."""

    def __init__(self, left_out: texts.Seen):
        self.texts: list[str] = []
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
        return len(self.texts) - 1


def make(out: pathlib.Path, sources: Sources, amounts: Amounts, seed: int = 0) -> None:
    """Writes the folder of data.

    Args:
      out: a folder without data.
      sources: where the data comes from.
      amounts: how much is made.
      seed: of all choices.

    Raises:
      UserError: a source or the package tokenizers is not there, OUT has data, or the text is
        too short for a vocabulary.
      DataError: a file of GLUE is not as it was published.
    """
    for name, path in dataclasses.asdict(sources).items():
        if not path.exists():
            raise UserError(f"--{name}={path}: not there")
    if importlib.util.find_spec("tokenizers") is None:
        raise UserError(f"the teacher needs tokenizers: {install('english')}")
    tokenizer, words = _tokenizer(sources.teacher)
    if (out / "data.json").exists():
        raise UserError(f"{out} has data already; give a new folder, or remove it")
    out.mkdir(parents=True, exist_ok=True)
    rng = random.Random(seed)
    lines = sources.text.read_text(encoding="utf-8").splitlines()[: amounts.paragraphs]
    pieces = _Pieces(_held_out(sources.glue))
    _add_text(pieces, lines, rng)
    net = wordnet.read(sources.wordnet)
    of_text = len(pieces.texts)
    made = list(_instructions(lines, net, sources.vader, amounts, rng))
    kept = _add_made(pieces, made)
    if amounts.paragraphs is None:
        _add_wordnet(pieces, net)
    processor = _vocabulary(out / "vocabulary.model", lines, tokenizer, words)
    _write_pieces(out, pieces, processor)
    answers = _write_instructions(out, kept, processor)
    _write_glue(out, sources.glue, processor, None if amounts.paragraphs is None else 300)
    rows = vocabulary.teacher_rows(processor, words, packed.EXTRA_IDS)
    teacher.compress(sources.teacher, out / "teacher.npz", rows)
    about = {
        "amounts": dataclasses.asdict(amounts),
        "answers": answers,
        "counts": {"pieces": len(pieces.texts), "of_text": of_text, "left_out": pieces.refused},
        "made": {k: sum(m.kind == k for _, _, m in kept) for k in sorted({m.kind for m in made})},
        "seed": seed,
        "sources": {name: path.name for name, path in dataclasses.asdict(sources).items()},
        "templates": [_encoded_template(processor, t) for t in instructions.TEMPLATES],
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
        for text in texts.pieces(line, rng):
            pieces.add(text)


def _add_made(
    pieces: _Pieces, made: Iterable[instructions.Made]
) -> list[tuple[int, int, instructions.Made]]:
    kept = []
    for one in made:
        first = pieces.add(one.first)
        second = pieces.add(one.second) if one.second else -1
        if first is None or second is None:
            continue
        kept.append((first, second, one))
    return kept


def _add_wordnet(pieces: _Pieces, net: wordnet.WordNet) -> None:
    for sense in net.senses.values():
        if not sense.counted and not sense.examples:
            continue
        pieces.add(f"{', '.join(sense.words[:3])}: {sense.gloss}")
        for example in sense.examples[:2]:
            pieces.add(example)


def _tokenizer(folder: pathlib.Path) -> tuple[Any, list[str]]:
    """Returns the teacher's tokenizer, and its vocabulary in the order of the ids.

    Raises:
      UserError: a file of the teacher is not there, or it is no BERT's tokenizer.
    """
    import tokenizers

    for name in ("tokenizer.json", "config.json", "model.safetensors"):
        if not (folder / name).is_file():
            raise UserError(f"--teacher={folder}: no {name} in it")
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    words = [word for word, _ in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])]
    if missing := {"[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"} - set(words):
        raise UserError(f"--teacher={folder}: no BERT: its tokenizer has no {min(missing)}")
    return tokenizer, words


def _vocabulary(path: pathlib.Path, lines: Sequence[str], tokenizer: Any, words) -> Any:
    """Makes a vocabulary of the teacher's pieces that the text has most often.

    Args:
      path: its file.
      lines: the text.
      tokenizer: the teacher's.
      words: its vocabulary, in the order of the ids.
    """
    import sentencepiece

    counts: Counter[int] = Counter()
    for start in range(0, len(lines), 2000):
        for one in tokenizer.encode_batch(lines[start : start + 2000]):
            counts.update(one.ids)
    named = {words[i]: count for i, count in counts.items()}
    with files.replaced_file(path) as file:
        file.write(vocabulary.make(words, named, packed.VOCABULARY_SIZE))
    return sentencepiece.SentencePieceProcessor(model_file=str(path))


def _write_pieces(out: pathlib.Path, pieces: _Pieces, processor: Any) -> None:
    tokens = []
    for start in range(0, len(pieces.texts), 2000):
        for row in processor.encode(pieces.texts[start : start + 2000]):
            tokens.append(np.array(row[: packed.PIECE], np.uint16))
    packed.write(out / "pieces.npz", packed.ragged("tokens", tokens))


def _encoded_template(processor: Any, template: instructions.Template) -> dict[str, Any]:
    parts = (template.before, template.between, template.after)
    tokens = [processor.encode(part) if part is not None else None for part in parts]
    return {"kind": template.kind, "parts": tokens, "answers": template.answers}


def _write_instructions(
    out: pathlib.Path,
    kept: Sequence[tuple[int, int, instructions.Made]],
    processor: Any,
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
    return {answer: processor.encode(answer) for answer in answers}


def _write_glue(out: pathlib.Path, folder: pathlib.Path, processor: Any, limit: int | None) -> None:
    """Writes GLUE's training sets, which only score a base."""
    arrays = {}
    for task, (_, fields, _, labels) in GLUE.items():
        words = list(labels.values())
        firsts = [processor.encode(word)[0] for word in words]
        if len(set(firsts)) < len(firsts):
            raise UserError(f"--text is too short: {words} begin with the same token")
        rows, values = [], []
        found = list(_glue_rows(folder, task, "train.tsv"))[:limit]
        for parts, label in found:
            named = [f"{field}: {part}" for field, part in zip(fields, parts, strict=True)]
            value = float(label) if task == "stsb" else list(labels).index(label)
            rows.append(f"{task} {' '.join(named)}")
            values.append(value)
        tokens = processor.encode(rows)
        cut = [np.array([*row[:GLUE_INPUT], 1], np.uint16) for row in tokens]
        arrays |= packed.ragged(task, cut)
        arrays |= {f"{task}_labels": np.array(values, np.float32), f"{task}_firsts": firsts}
        if task == "stsb":
            for i, name in enumerate(("first", "second")):
                alone = processor.encode([parts[i] for parts, _ in found])
                alone = [np.array(row[:GLUE_INPUT], np.uint16) for row in alone]
                arrays |= packed.ragged(f"stsb_{name}", alone)
    packed.write(out / "glue.npz", arrays)
