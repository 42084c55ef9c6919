"""Child process of :mod:`attnrl.local.tokenizer_check`: load ``tokenizer.json``, encode and decode a text, end.

A script with the standard library and ``tokenizers`` only, so that the process starts in a tenth of a second.
"""

from __future__ import annotations

import contextlib
import json
import string
import sys

CHARACTERS = string.printable + "\u00a0\u00e9\u03c0\u0416\u4e2d\u3042\ud55c\u200b\ufeff\U0001f600"
#: Runs of equal characters, then all characters: a run of spaces, digits or letters is the worst case of a regular
#: expression with nested repetitions, and of a rule that replaces a character by two.
TEXT = "".join(character * 300 + "!\n" for character in CHARACTERS) + CHARACTERS


def main() -> None:
    """Print a JSON string with the message of a panic; nothing if the tokenizer works or raises a plain exception."""
    path, memory = sys.argv[1], int(sys.argv[2])
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(path)
        tokenizer.no_padding()  # as transformers does
        tokenizer.no_truncation()
        tokenizer.decode(tokenizer.encode(TEXT).ids)
    except Exception:
        return  # transformers raises the same exception, or loads the tokenizer from other files
    except BaseException as error:  # a panic of tokenizers
        print(json.dumps(str(error)[:300]))


if __name__ == "__main__":
    main()
