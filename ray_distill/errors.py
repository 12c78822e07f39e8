"""The two kinds of errors that end a command with a message instead of a traceback."""


class MistakeError(ValueError):
    """The user can mend it: what was wrong, the value found, what is allowed. Exit code 2."""


class FailedError(RuntimeError):
    """The work could not be brought to its end although the input was right. Exit code 1."""
