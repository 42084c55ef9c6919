"""The one exception that means "you can mend this": bad settings, data or checkpoints."""


class UserError(Exception):
    """Bad input from outside. Its message is one line that names the file, row, field or setting.

    The command line prints the message and exits with code 2, without a traceback.
    """


def one_line(error: BaseException) -> str:
    """What an error says, in one line of a few hundred characters at most."""
    return " ".join(str(error).split())[:500]
