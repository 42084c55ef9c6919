"""The one exception that means "you can mend this": bad settings, data or checkpoints."""

import re

CREDENTIALS = re.compile(r"(?<=[\w+.-]{2}:/)/?[^\s/'\"]+(?=@)|\bhf_[A-Za-z0-9]{20,}")
"""What must not be written anywhere: ``user:password`` of a URL (also as a path, which has one slash less), and tokens
of the Hugging Face Hub."""


class UserError(Exception):
    """Bad input from outside. Its message is one line that names the file, row, field or setting.

    The command line prints the message and exits with code 2, without a traceback. Credentials in it are masked.
    """

    def __init__(self, message: str) -> None:
        """Keep what may be said of ``message``."""
        super().__init__(CREDENTIALS.sub("***", message))


def one_line(error: Exception) -> str:
    """What an error says, in one line of a few hundred characters at most."""
    return " ".join(str(error).split())[:500]
