"""Signals of a run: what takes them, and what gives them back."""

from __future__ import annotations

import ctypes
import os
import signal

from orchestrator.runs.stop_file import handlers_kept, signals_to


def test_handlers_are_put_back_after_a_library_that_sets_the_default_action() -> None:
    """As Ray's C++ does on its way out; the default action would end this process."""
    numbers: list[int] = []
    with signals_to(numbers.append):
        with handlers_kept():
            ctypes.CDLL(None).signal(signal.SIGTERM, 0)
            os.kill(os.getpid(), signal.SIGTERM)
            assert numbers == []
        assert numbers == [signal.SIGTERM]
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) & {signal.SIGTERM, signal.SIGINT} == set()
