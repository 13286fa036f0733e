"""The stop file of a run: how anybody asks a run to end, and how a signal does.

`cancel` writes the file, and so does the driver on SIGINT, SIGTERM or a first failure under fail-fast. Workers look at
it, save a checkpoint and yield; the driver starts nothing more and ends when all are back.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from workers.store.files import share

STOP = "stop"
"""The file's name in a run's folder."""


class StopFile:
    """A request that a run ends, as a file that workers and other shells can see."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.closing = False
        self._signal = ""

    def write(self, why: str) -> None:
        """Ask for the end; the reason of the first request is kept."""
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

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        """The first signal asks running jobs to yield, the second interrupts the driver; none disturbs the closing."""
        if self.closing:
            return
        if self._signal:
            raise KeyboardInterrupt
        self._signal = f"stopped by {signal.Signals(number).name}"
        with suppress(OSError):  # then running jobs go on to their end, but nothing new starts
            self.write(self._signal)

    @contextmanager
    def signals(self) -> Iterator[Callable[[], None]]:
        """Yield the function that takes over SIGINT and SIGTERM; afterwards both are as they were.

        Outside the main thread, where Python takes no signals, the function does nothing.
        """
        if threading.current_thread() is not threading.main_thread():
            yield lambda: None
            return
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

        def take_over() -> None:
            for number in before:
                signal.signal(number, self.on_signal)

        try:
            yield take_over
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
