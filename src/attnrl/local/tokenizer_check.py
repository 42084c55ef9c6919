"""Check of ``tokenizer.json`` in a child process with a time limit and a memory limit.

``tokenizers`` is compiled code: a regular expression that backtracks without end, a rule that doubles the text forty
times or a panic cannot be interrupted or caught in this process.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from functools import lru_cache
from pathlib import Path

from attnrl.errors import UserError
from attnrl.local import tokenizer_probe

SECONDS = 30.0
MEMORY_GIB = 4
FILE = "tokenizer.json"


def check_tokenizer_file(directory: Path) -> None:
    """Encode and decode a text of printable characters with ``tokenizer.json``, in a child process.

    Exceptions of the child process are not faults: transformers raises the same exceptions in this process, with
    further files at hand. A directory without ``tokenizer.json`` is not checked.

    Raises:
        UserError: the child process did not end in time, needed too much memory, crashed or panicked.
    """
    path = directory / FILE
    try:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return
    fault = _fault(path, digest, SECONDS)
    if fault is not None:
        raise UserError(f"model {directory}: the tokenizer cannot be used ({FILE}: {fault})")


@lru_cache(maxsize=64)
def _fault(path: Path, digest: str, seconds: float) -> str | None:
    """Return why the tokenizer cannot be used, or None; ``digest`` is the hash of the file, for the cache."""
    command = [sys.executable, "-P", tokenizer_probe.__file__, str(path), str(MEMORY_GIB << 30)]
    try:
        done = subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        return f"a text of {len(tokenizer_probe.TEXT):,} characters takes more than {seconds:g} s"
    if done.returncode < 0:
        return f"a crash on plain text, or more than {MEMORY_GIB} GiB of memory: signal {-done.returncode}"
    try:
        return f"a panic of tokenizers: {json.loads(done.stdout)}"
    except ValueError:
        return None
