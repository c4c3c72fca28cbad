"""The one error that tasks raise for a user's mistake."""


class DataError(ValueError):
    """A mistake in the user's data, vocabulary or paths.

    The message is one line that names what was given and what is expected, with the file as the
    user wrote it and, where there is one, the line number counted from 1.
    """
