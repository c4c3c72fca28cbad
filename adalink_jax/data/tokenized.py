"""The examples of one split as token arrays, and choices among them. Only imports NumPy."""

import dataclasses
import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from adalink_jax.data import cache
from adalink_jax.data.ragged import Ragged, Texts
from adalink_jax.errors import UserError

# The split of the training examples that are held out (`Tokens.parted`).
HELD_OUT = "held_out"


@dataclasses.dataclass(frozen=True)
class Tokens:
    """One split of one task.

    Attributes:
      inputs: int32 token sequences, not truncated; they end with the end-of-sequence token if the
        task adds one.
      targets: the same for the targets.
      input_texts: the text of each input.
      target_texts: the text of each target.
      identity: JSON-able record: where the data came from (None if the task does not say), the
        number of examples, the SHA-256 of the token arrays, and the seed if they are drawn at
        random.
      numbers: int64, the place of each example in its split; None where all are there, in order.
      images: the key of each example's picture (`adalink_jax.data.images.read`), "" for none; None
        if the task has no feature `image`.
      digests: uint8 [N, 32], the SHA-256 of each picture's content (`pictured`), 0 for none.
      references: each example's reference texts as a JSON list; None if the task has no feature
        `references`.
    """

    inputs: Ragged
    targets: Ragged
    input_texts: Texts
    target_texts: Texts
    identity: dict
    numbers: np.ndarray | None = None
    images: Texts | None = None
    digests: np.ndarray | None = None
    references: Texts | None = None

    @property
    def drawn(self) -> bool:
        """Whether the task draws at random, so that another seed gives other tokens."""
        return "drawn" in self.identity

    def pictured(self, digests: np.ndarray) -> "Tokens":
        """Returns the examples with the digests of their pictures, which then identify them too.

        Args:
          digests: uint8 [N, 32], the SHA-256 of each picture's content, 0 for none.
        """
        known = {**self.identity, "images": _identity_of(digests)}
        return dataclasses.replace(self, digests=digests, identity=known)

    def few(self, count: int, seed: int) -> "Tokens":
        """Returns some of the examples, chosen by a hash of seed, tokens and picture.

        The choice does not depend on the order of the examples. A smaller choice is part of every
        larger one with the same seed. Labels are not balanced.

        Args:
          count: number of examples.
          seed: seed of the choice.

        Raises:
          UserError: `count` is below 1, or there are fewer examples.
        """
        if not 1 <= count <= len(self):
            raise UserError(f"{count} of the task's {len(self):,} training examples were asked for")
        prefix = f"{seed}\n".encode()
        keys = [
            hashlib.sha256(
                prefix + self.inputs[i].tobytes() + self.targets[i].tobytes() + self._picture(i)
            ).digest()
            for i in range(len(self))
        ]
        chosen = np.array(sorted(range(len(self)), key=keys.__getitem__)[:count])
        return self._taken(chosen, {"few_shot": {"of": len(self), "seed": seed}})

    def parted(self, share: float, held_out: bool) -> "Tokens":
        """Returns the examples that are held out of training, or the rest of them.

        An example is held out if a hash of its input's text is among the lowest `share` of all
        hashes. So it is so in every order, beside any other examples, with any vocabulary and
        seed; and examples with equal inputs are on the same side. About `share` of them are. Of an
        example with a picture, it is the picture's hash, so that none is on both sides.

        Args:
          share: in (0, 1).
          held_out: which of the two to return.

        Raises:
          UserError: one side is empty; or the task draws its texts at random, so that an example
            would be on one side in one draw and on the other in the next.
        """
        if self.drawn:
            raise UserError(
                f"held_out is {share}, but the task draws its texts at random, so its examples "
                "cannot be told apart by them; leave held_out out"
            )
        limit = int(share * 2**64)
        hashes = (
            hashlib.sha256(b"held out\n" + (self._picture(i) or text.encode()))
            for i, text in enumerate(self.input_texts)
        )
        among = np.array([int.from_bytes(one.digest()[:8], "big") < limit for one in hashes])
        if among.all() or not among.any():
            left = "left to train on" if among.all() else "held out"
            raise UserError(
                f"held_out is {share}: of {len(self):,} training examples none would be {left}"
            )
        note = {HELD_OUT: {"share": share, "of": len(self)}}
        return self._taken(np.flatnonzero(among == held_out), note)

    def _picture(self, index: int) -> bytes:
        """Returns the digest of an example's picture; nothing if it has none."""
        if self.digests is None or not self.digests[index].any():
            return b""
        return self.digests[index].tobytes()

    def _taken(self, chosen: np.ndarray, note: Mapping[str, Any]) -> "Tokens":
        inputs, targets = self.inputs.take(chosen), self.targets.take(chosen)
        arrays = {"inputs": inputs.flat, "inputs_offsets": inputs.offsets}
        arrays |= {"targets": targets.flat, "targets_offsets": targets.offsets}
        identity = {
            **self.identity,
            "examples": len(chosen),
            "sha256": cache.digest(arrays),
            **note,
        }
        digests = None if self.digests is None else self.digests[chosen]
        if digests is not None:
            identity["images"] = _identity_of(digests)
        return Tokens(
            inputs,
            targets,
            self.input_texts.take(chosen),
            self.target_texts.take(chosen),
            identity,
            chosen if self.numbers is None else self.numbers[chosen],
            None if self.images is None else self.images.take(chosen),
            digests,
            None if self.references is None else self.references.take(chosen),
        )

    def after(self, shown: "Tokens", eos_id: int | None) -> "Tokens":
        """Returns the examples with solved examples in front of each input.

        Args:
          shown: the examples to put in front, each with its input, then its target.
          eos_id: the end-of-sequence token, which is left out between examples.

        Raises:
          UserError: the examples have pictures, of which a row has only one.
        """
        if self.images is not None or shown.images is not None:
            raise UserError(
                "in_context puts solved examples in front of an input, but examples with pictures "
                "have no place for those of others; leave in_context out"
            )
        pairs = zip(shown.inputs, shown.targets, strict=True)
        prefix = np.concatenate([sequence for pair in pairs for sequence in pair])
        prefix = prefix[prefix != eos_id]
        text = "".join(
            f"{given} {target} "
            for given, target in zip(shown.input_texts, shown.target_texts, strict=True)
        )
        return dataclasses.replace(
            self,
            inputs=Ragged.of([np.concatenate([prefix, sequence]) for sequence in self.inputs]),
            input_texts=Texts.of([f"{text}{one}".encode() for one in self.input_texts]),
            identity={**self.identity, "in_context": shown.identity},
        )

    def __len__(self) -> int:
        return len(self.inputs)


def _identity_of(digests: np.ndarray) -> dict[str, Any]:
    """Returns the identity of examples' pictures."""
    shown = digests[digests.any(axis=1)]
    return {
        "pictures": len(np.unique(shown, axis=0)),
        "sha256": hashlib.sha256(digests.tobytes()).hexdigest(),
    }


def as_tokens(arrays: Mapping[str, np.ndarray], identity: dict) -> Tokens:
    """Returns what `reading.tokenize` made, or what the cache kept of it."""

    def ragged(name: str) -> Ragged:
        return Ragged(arrays[name], arrays[f"{name}_offsets"])

    def texts(name: str) -> Texts | None:
        return Texts(ragged(name)) if name in arrays else None

    return Tokens(
        ragged("inputs"),
        ragged("targets"),
        Texts(ragged("input_texts")),
        Texts(ragged("target_texts")),
        identity,
        images=texts("images"),
        references=texts("references"),
    )
