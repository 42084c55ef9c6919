"""Exceptions with a message of one line: bad input, and runs that cannot continue."""

import re

CREDENTIALS = re.compile(r"(?<=[\w+.-]{2}:/)/?[^\s/'\"]+(?=@)|\bhf_[A-Za-z0-9]{20,}")
"""Secrets masked in messages: ``user:password`` of a URL (with ``//`` or, as a path, ``/``), Hugging Face tokens."""


class UserError(Exception):
    """Invalid input. The message is one line and names the file, row, field or setting.

    The command line prints the message and exits with code 2, without a traceback. Credentials are masked;
    unprintable characters are escaped, because names in a message may come from a file.
    """

    def __init__(self, message: str) -> None:
        """Mask credentials and escape unprintable characters of ``message``."""
        masked = CREDENTIALS.sub("***", message)
        super().__init__("".join(one if one.isprintable() else repr(one)[1:-1] for one in masked))


class RunError(Exception):
    """A run with valid input cannot continue: a full disk, a failed sampler, NaN.

    The message is one line with the fault and the checkpoint to resume from. The command line prints the message and
    exits with code 1, without a traceback; the cause is kept as ``__cause__``.
    """


class GraderError(Exception):
    """A command has done its work, but the grader failed on responses, which are not judged.

    The message is one line with the number of responses and the most frequent reason. The command line prints the
    message and exits with code 3. Before the first token a fault of the grader is a :class:`UserError`.
    """


def one_line(error: BaseException) -> str:
    """Return the message of an error as one line of at most 500 characters."""
    return " ".join(str(error).split())[:500]
