"""The stop file of a run: how anybody asks a run to end, and how a signal does.

`cancel` writes the file, and so does the driver on SIGINT, SIGTERM or a first failure under fail-fast. Workers look at
it, save a checkpoint and yield; the driver starts nothing more and ends when all are back.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from math import inf
from pathlib import Path
from types import FrameType

STOP = "stop"
"""The file's name in a run's folder."""
SIGNALS = (signal.SIGINT, signal.SIGTERM)
ONE_REQUEST_SECONDS = 1.0
"""Signals closer together are one request: `timeout` sends its signal to the process and again to its group."""


class StopFile:
    """A request that a run ends, as a file that workers and other shells can see."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._signal = ""

    def write(self, why: str) -> None:
        """Ask for the end; the reason of the first request is kept."""
        from workers.store.files import share  # late: a `workers.py` may lie in the folder that `python -m` looks into

        try:
            descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            return
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(why + "\n")
        share(self.path)

    def clear(self) -> None:
        """Remove the request that ended an earlier driver of this run."""
        self.path.unlink(missing_ok=True)

    def asked(self) -> str:
        """Why the run is to end; empty when nobody asked."""
        if self._signal:
            return self._signal
        try:
            return self.path.read_text(encoding="utf-8").strip() or "cancelled"
        except OSError:  # not there, or the file system is away for a moment: asked again in a second
            return ""

    def on_signal(self, number: int) -> None:
        """The first signal asks running jobs to yield, the second interrupts the driver."""
        if self._signal:
            raise Interrupted
        self._signal = f"stopped by {signal.Signals(number).name}"
        with suppress(OSError):  # then running jobs go on to their end, but nothing new starts
            self.write(self._signal)


class Interrupted(KeyboardInterrupt):
    """A signal came.

    A plain KeyboardInterrupt that passes through `exec` of a text, of which dataclasses are made, lets Python end by
    SIGINT instead of with the exit code, even if it was caught.
    """


def interrupt(number: int) -> None:
    """Let a signal interrupt this process as Ctrl-C does.

    Raises:
        Interrupted: always.
    """
    raise Interrupted


@contextmanager
def signals_to(act: Callable[[int], object]) -> Iterator[None]:
    """Let SIGINT and SIGTERM call a function with their number; afterwards both are as they were.

    Outside the main thread, where Python takes no signals, nothing is changed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    last = -inf

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal last
        signal.alarm(0)  # while Ray starts its handler comes first, and would abort this process three seconds later
        if time.monotonic() - last >= ONE_REQUEST_SECONDS:
            last = time.monotonic()
            act(number)

    before = {number: signal.signal(number, handle) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def handlers_kept() -> Iterator[None]:
    """Put the handlers of SIGINT and SIGTERM back after a block in which Ray sets the default action.

    A signal of that time waits until the end of the block.
    """
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                if (handler := signal.getsignal(number)) is not None:  # None: it was never Python's
                    signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


@contextmanager
def signals_held() -> Iterator[None]:
    """Let SIGINT and SIGTERM wait until the block is over.

    Raises:
        Interrupted: one of them came meanwhile.
    """
    held: list[int] = []
    with signals_to(held.append):
        yield
    if held:
        raise Interrupted
