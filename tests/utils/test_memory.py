"""Tests of the memory limit."""

from pathlib import Path

import pytest

from attnrl.utils.memory import memory_limit


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="no effect without /proc")
def test_an_allocation_beyond_the_limit_fails_and_the_limit_ends_with_the_block() -> None:
    with memory_limit(1 << 28):
        assert len(bytes(1 << 26)) == 1 << 26
        with pytest.raises(MemoryError):
            bytes(1 << 30)
    assert len(bytes(1 << 30)) == 1 << 30
