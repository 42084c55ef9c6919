"""The exceptions that end in one line: bad input, and runs that cannot go on."""

import re

CREDENTIALS = re.compile(r"(?<=[\w+.-]{2}:/)/?[^\s/'\"]+(?=@)|\bhf_[A-Za-z0-9]{20,}")
"""What must not be written anywhere: ``user:password`` of a URL (also as a path, which has one slash less), and tokens
of the Hugging Face Hub."""


class UserError(Exception):
    """Bad input from outside. Its message is one line that names the file, row, field or setting.

    The command line prints the message and exits with code 2, without a traceback. Credentials in it are masked, and
    what would break the line, or work on a terminal, is escaped: names in it may come out of a file.
    """

    def __init__(self, message: str) -> None:
        """Keep what may be said of ``message``."""
        masked = CREDENTIALS.sub("***", message)
        super().__init__("".join(one if one.isprintable() else repr(one)[1:-1] for one in masked))


class RunError(Exception):
    """A run cannot go on, though its input is good: a full disk, a sampler that fails, numbers that are none.

    Its message is one line that says what happened and where the run can be continued from. The command line prints it
    and exits with code 1, without a traceback; the cause is kept as ``__cause__``.
    """


def one_line(error: BaseException) -> str:
    """What an error says, in one line of a few hundred characters at most."""
    return " ".join(str(error).split())[:500]
