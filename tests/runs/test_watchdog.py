"""A sampler that cannot be interrupted: what tests/runs/test_session.py cannot have in its own process."""

from __future__ import annotations

import subprocess
import sys
import time

STUCK = """
import hashlib
import attnrl.runs.watchdog as watchdog

watchdog.GRACE_SECONDS = 0.5


class Stuck:
    def generate(self, requests, *, on_completion, should_stop):
        should_stop(set())
        hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)  # half an hour in which Python hears no signal


try:
    watchdog.WatchedSampler(Stuck(), 0.5).generate([])
finally:
    print("it was interrupted")
"""


def test_a_sampler_that_hears_nothing_ends_the_process() -> None:
    started = time.monotonic()
    ended = subprocess.run([sys.executable, "-c", STUCK], capture_output=True, text=True, timeout=240, check=False)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr.startswith("attnrl: ") and "0.5 s" in ended.stderr and ended.stderr.count("\n") == 1
    assert time.monotonic() - started > 1.0
