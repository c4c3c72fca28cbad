"""The teacher's WordPiece vocabulary as a SentencePiece model, which T5's tools read.

The normalizer does what BERT's does before it cuts words: lower case, no accents, spaces around
punctuation. Then every word is cut at the same places, but for rare ones, and a base can begin with
the teacher's own table. Two rules keep GLUE's labels whole: "_" is part of a word, and so is a
point in front of a digit ("3.8").
"""

import io
import itertools
import string
import tempfile
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

PAD, EOS, UNKNOWN = 0, 1, 2
_SPACE = "▁"  # SentencePiece's mark of a word's beginning.
_LAST_CHARACTER = 0x3000  # Those behind are normalized as they are, and no piece has them.
_PART = "##"  # WordPiece's mark of a piece that goes on.
_INSIDE = "._"  # Punctuation that may be part of a word.


def _normal(character: str) -> str:
    """Returns what BERT's uncased normalizer makes of a character, spaces around punctuation."""
    category = unicodedata.category(character)
    if character in "\t\n\r" or category[0] == "Z":
        return " "
    if category in ("Cc", "Cf"):
        return ""
    if character in _INSIDE:
        return character
    if category[0] == "P" or character in string.punctuation:
        return f" {character} "
    parts = unicodedata.normalize("NFD", character.lower())
    return "".join(part for part in parts if unicodedata.category(part) != "Mn")


def _rules() -> str:
    """Returns the normalizer as SentencePiece reads it: code points, a tab, code points."""
    rules = {}
    for code in (*range(1, _LAST_CHARACTER + 1), 0xFEFF):
        character = chr(code)
        if unicodedata.category(character) not in ("Cn", "Co", "Cs"):
            rules[character] = _normal(character)

    def codes(text: str) -> str:
        return " ".join(f"{ord(character):X}" for character in text)

    return "".join(f"{codes(a)}\t{codes(b)}\n" for a, b in rules.items() if a != b)


def make(words: Sequence[str], counts: Mapping[str, int], size: int) -> bytes:
    """Makes a SentencePiece model of the WordPieces that a text has most often.

    Single characters are all kept. The scores of pieces are nearly the same, so the fewest pieces
    win: as a rule those that WordPiece takes.

    Args:
      words: the teacher's vocabulary.
      counts: how often a text has each.
      size: pieces, without the sentinels.

    Returns:
      The model's file.
    """
    import sentencepiece
    from sentencepiece import sentencepiece_model_pb2

    written = io.BytesIO()
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", suffix=".tsv") as rules:
        rules.write(_rules())
        rules.flush()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter([string.ascii_lowercase] * 10),
            model_writer=written,
            vocab_size=30,
            hard_vocab_limit=False,
            normalization_rule_tsv=rules.name,
            pad_id=PAD,
            eos_id=EOS,
            unk_id=UNKNOWN,
            bos_id=-1,
            minloglevel=2,
        )
    # The class is made at run time.
    model = getattr(sentencepiece_model_pb2, "ModelProto")()  # noqa: B009
    model.ParseFromString(written.getvalue())
    del model.pieces[3:]
    for piece in itertools.islice(_pieces(words, counts), size - len(model.pieces)):
        model.pieces.add(piece=piece, score=_score(piece))
    model.trainer_spec.vocab_size = len(model.pieces)
    return model.SerializeToString()


def _score(piece: str) -> float:
    # WordPiece takes the longest beginning of a word, so long beginnings win between equals.
    length = min(len(piece), 20)
    return -1 + (1e-3 if piece.startswith(_SPACE) else 1e-4) * length**2 / 20


def _pieces(words: Sequence[str], counts: Mapping[str, int]) -> Iterable[str]:
    """Yields pieces: single characters, then the rest by their counts."""
    yield from (piece for piece in _INSIDE if piece in set(words))
    found = {piece_of(word): word for word in words if not word.startswith("[")}
    for piece in _INSIDE:
        found.pop(piece, None)
    short = [p for p in found if len(p.removeprefix(_SPACE)) == 1 and ord(p[-1]) < _LAST_CHARACTER]
    yield from short
    known = {*short, *(p for p in found if any(ord(c) > _LAST_CHARACTER for c in p))}
    rest = Counter({p: counts.get(w, 0) for p, w in found.items() if p not in known})
    yield from (piece for piece, _ in rest.most_common())


def piece_of(word: str) -> str:
    """Returns SentencePiece's spelling of a WordPiece."""
    return word.removeprefix(_PART) if word.startswith(_PART) else _SPACE + word


def teacher_rows(vocabulary: Any, words: Sequence[str], sentinels: int) -> list[int]:
    """Returns the row of the teacher's table that stands for each id.

    The last is the row of the token that begins a BERT's input; in front of it are the sentinels,
    which all have the row of the mask.

    Args:
      vocabulary: a processor of what `make` wrote.
      words: the teacher's vocabulary.
      sentinels: how many there are.
    """
    ids = {word: i for i, word in enumerate(words)}
    names = ["[PAD]", "[SEP]", "[UNK]"]
    for i in range(len(names), vocabulary.get_piece_size()):
        piece = vocabulary.id_to_piece(i)
        inside = piece in _INSIDE or piece.startswith(_SPACE)
        names.append(piece.removeprefix(_SPACE) if inside else _PART + piece)
    return [ids[name] for name in (*names, *["[MASK]"] * sentinels, "[CLS]")]
