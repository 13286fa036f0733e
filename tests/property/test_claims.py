"""Claims of hosts whose clocks differ: one living holder a key, and none that is dead for ever.

A model of several hosts shares one folder. Each has its own clock, which may be off by any amount and may jump; its
processes cannot be seen by the others. All that a claim promises must hold by heartbeats alone.
"""

from __future__ import annotations

KEY = "distil-demo-0123456789abcdef"
LEASE = 30.0


class Clock:
    """A clock that is off."""

    def __init__(self, off: float) -> None:
        self.off, self.now = off, 1_000_000.0

    def __call__(self) -> float:
        return self.now + self.off
