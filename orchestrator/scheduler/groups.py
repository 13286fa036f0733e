"""The groups of jobs of which only so many may run at once, such as the stages of one seed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from orchestrator.scheduler.schedule import Schedule


class Groups:
    """How many jobs of each group run.

    Args:
        schedule: the groups of each key, and their limits.
        running: the keys of the jobs that run already.
    """

    def __init__(self, schedule: Schedule, running: Iterable[str]) -> None:
        self.of, self.limits = schedule.exclusive, schedule.limits
        self.in_use = Counter(group for key in running for group in self.of.get(key, ()))

    def admit(self, key: str) -> str | None:
        """Count a job into its groups, unless one of them is full: that one is returned."""
        groups = self.of.get(key, ())
        for group in groups:
            if self.in_use[group] >= self.limits[group]:
                return group
        self.in_use.update(groups)
        return None

    def release(self, key: str) -> None:
        """Take a job that runs no more out of its groups."""
        self.in_use.subtract(self.of.get(key, ()))
