"""The error that tasks raise for a user's mistake."""


class DataError(ValueError):
    """A mistake in the user's data, vocabulary or paths.

    The message is one line with the given and the expected value, the file as the user wrote it,
    and the line number, counted from 1, if there is one.
    """
