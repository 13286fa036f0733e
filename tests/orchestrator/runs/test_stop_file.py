"""Signals of a run: what takes them, and what gives them back."""

from __future__ import annotations

import subprocess
import sys

RESTORED = """
import ctypes, os, signal
from orchestrator.runs.stop_file import handlers_kept, signals_to

numbers = []
with signals_to(numbers.append):
    with handlers_kept():
        ctypes.CDLL(None).signal(signal.SIGTERM, 0)  # as Ray's C++ does on its way out
        os.kill(os.getpid(), signal.SIGTERM)
        assert numbers == []
    assert numbers == [signal.SIGTERM]
assert not signal.pthread_sigmask(signal.SIG_BLOCK, ()) & {signal.SIGTERM, signal.SIGINT}
"""


def test_handlers_are_put_back_after_a_library_that_sets_the_default_action() -> None:
    end = subprocess.run([sys.executable, "-c", RESTORED], capture_output=True, text=True, check=False, timeout=60)
    assert end.returncode == 0, end.stderr
