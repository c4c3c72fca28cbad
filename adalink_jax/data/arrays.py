"""Token arrays of one batch, with T5X's feature names. Only imports NumPy."""

import dataclasses

import numpy as np

from adalink_jax.data.ragged import Ragged, ranges


@dataclasses.dataclass(frozen=True)
class Sequences:
    """One feature (inputs or targets) of all tasks of a mixture, truncated to a length.

    A sequence longer than the limit keeps its first tokens, and its end-of-sequence token if it
    has one.

    Attributes:
      tasks: the sequences of each task, int32.
      first: int64 [K], the global number of each task's example 0.
      limit: maximum number of tokens of a sequence.
      eos: the id of the end-of-sequence token.
      lengths: int64 [examples], the length of each sequence after truncation, by global number.
    """

    tasks: tuple[Ragged, ...]
    first: np.ndarray
    limit: int
    eos: int
    lengths: np.ndarray = dataclasses.field(init=False)

    def __post_init__(self):
        full = np.concatenate([task.lengths for task in self.tasks])
        object.__setattr__(self, "lengths", np.minimum(full, self.limit))

    def truncated(self, task: int) -> int:
        """Returns the number of sequences of a task that are longer than the limit."""
        return int(np.count_nonzero(self.tasks[task].lengths > self.limit))

    def fill(self, out: np.ndarray, examples: np.ndarray, starts: np.ndarray) -> None:
        """Writes sequences into an array.

        Args:
          out: int32, any shape, contiguous; written in place.
          examples: int64 [n], global example numbers.
          starts: int64 [n], where each sequence begins in the flattened `out`.
        """
        out = out.reshape(-1)
        lengths = self.lengths[examples]
        owners = np.searchsorted(self.first, examples, side="right") - 1
        for k in np.unique(owners):
            mine = np.flatnonzero(owners == k)
            source, local = self.tasks[k], examples[mine] - self.first[k]
            begin, end = source.offsets[local], source.offsets[local + 1]
            out[ranges(starts[mine], lengths[mine])] = source.flat[ranges(begin, lengths[mine])]
            cut = np.flatnonzero(end - begin > lengths[mine])
            last = source.flat[end[cut] - 1]
            cut, last = cut[last == self.eos], last[last == self.eos]
            out[starts[mine][cut] + lengths[mine][cut] - 1] = last


def assemble(
    inputs: Sequences,
    targets: Sequences,
    examples: np.ndarray,
    rows: np.ndarray,
    shape: tuple[int, int, int],
    packed: bool,
) -> dict[str, np.ndarray]:
    """Returns the features of one batch, named as in SeqIO's ``EncDecFeatureConverter`` and T5X.

    Args:
      inputs: the inputs of all tasks.
      targets: the targets of all tasks.
      examples: int64 [n], global example numbers, row by row.
      rows: int64 [n], the row of each example, not decreasing.
      shape: (B, T, L), number of rows, padded input length and padded target length.
      packed: whether rows hold several examples, which need segments and positions.

    Returns:
      encoder_input_tokens and encoder_routes [B, T]; decoder_target_tokens,
      decoder_input_tokens (targets shifted right by one, starting with 0), decoder_routes and
      decoder_loss_weights [B, L]. When packed, also encoder_segment_ids and encoder_positions
      [B, T], decoder_segment_ids and decoder_positions [B, L]. All are int32, the weights float32.
      A route is the index of the example's task. Padding has the route of the row's first
      example. Segments count from 1; 0 is padding.
    """
    batch, input_length, target_length = shape
    routes = np.searchsorted(inputs.first, examples, side="right") - 1
    encoder = _Layout(inputs.lengths[examples], rows, routes, (batch, input_length))
    decoder = _Layout(targets.lengths[examples], rows, routes, (batch, target_length))
    encoder_tokens = np.zeros((batch, input_length), np.int32)
    inputs.fill(encoder_tokens, examples, encoder.starts)
    decoder_tokens = np.zeros((batch, target_length), np.int32)
    targets.fill(decoder_tokens, examples, decoder.starts)
    shifted = np.zeros_like(decoder_tokens)
    shifted[:, 1:] = decoder_tokens[:, :-1]
    features = {
        "encoder_input_tokens": encoder_tokens,
        "encoder_routes": encoder.routes(),
        "decoder_target_tokens": decoder_tokens,
        "decoder_input_tokens": shifted,
        "decoder_loss_weights": (decoder.segments() > 0).astype(np.float32),
        "decoder_routes": decoder.routes(),
    }
    if packed:
        features["encoder_segment_ids"] = encoder.segments()
        features["encoder_positions"] = encoder.positions()
        features["decoder_segment_ids"] = decoder.segments()
        features["decoder_positions"] = decoder.positions()
        # The last token of a segment is no input of the next segment or of padding.
        shifted[features["decoder_positions"] == 0] = 0
    return features


class _Layout:
    """Where the segments of one feature are in an array [B, length]."""

    def __init__(
        self, lengths: np.ndarray, rows: np.ndarray, routes: np.ndarray, shape: tuple[int, int]
    ):
        self.shape, self.lengths, self.rows = shape, lengths, rows
        self.route_of = routes.astype(np.int32)
        self.leader = np.searchsorted(rows, rows)  # the first segment of each segment's row
        before = np.cumsum(lengths) - lengths
        self.starts = rows * shape[1] + before - before[self.leader]
        self.tokens = ranges(self.starts, lengths)  # positions of tokens, flattened

    def segments(self) -> np.ndarray:
        out = np.zeros(self.shape, np.int32)
        numbers = np.arange(len(self.rows)) - self.leader + 1
        out.reshape(-1)[self.tokens] = np.repeat(numbers, self.lengths)
        return out

    def positions(self) -> np.ndarray:
        out = np.zeros(self.shape, np.int32)
        out.reshape(-1)[self.tokens] = ranges(np.zeros_like(self.lengths), self.lengths)
        return out

    def routes(self) -> np.ndarray:
        out = np.zeros(self.shape, np.int32)
        out[self.rows[self.leader]] = self.route_of[self.leader][:, None]
        out.reshape(-1)[self.tokens] = np.repeat(self.route_of, self.lengths)
        return out
