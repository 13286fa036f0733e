"""What people are told while a data set is read: nothing in the first second, then what is read, and how far it is."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from rich.console import Console

PATIENCE = 1.0
"""Seconds for which nothing is said."""


@contextmanager
def reading(what: str, console: Console | None = None) -> Iterator[Callable[[int, int], None]]:
    """Gives what is to be called with the images read so far and their number in a split.

    On a terminal they show as a bar, which goes when the data set is read; elsewhere as one line.
    """
    console, began = console or Console(stderr=True), time.monotonic()
    advance: Callable[[int, int], object] | None = None
    with ExitStack() as shown:

        def report(done: int, total: int) -> None:
            nonlocal advance
            if time.monotonic() - began < PATIENCE:
                return
            if advance is None:
                advance = _bar(what, console, shown)
            advance(done, total)

        yield report


def _bar(what: str, console: Console, shown: ExitStack) -> Callable[[int, int], object]:
    """A bar for as long as `shown` is open, or a line at once; gives what moves the bar."""
    if not console.is_terminal or console.is_dumb_terminal:
        console.print(f"reading {what}", soft_wrap=True, markup=False, highlight=False)
        return lambda done, total: None
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bar = shown.enter_context(Progress(*columns, console=console, transient=True))
    task = bar.add_task(f"reading {what}", total=None)
    return lambda done, total: bar.update(task, completed=done, total=total)
