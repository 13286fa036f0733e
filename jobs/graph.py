"""The graph of jobs: every job once, parents before children.

Adding a job that is already there returns the one that is there, so two experiments that share a prefix of
stages share its jobs without anybody arranging it. The graph knows keys and edges; it runs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from jobs.keys import Parents, canonical, key_of
from jobs.kinds import SPECS
from jobs.specs import Kind, Spec


@dataclass(frozen=True)
class Job:
    """One node: a spec, the keys of its parents by role, and its own key."""

    spec: Spec
    parents: Mapping[str, tuple[str, ...]]
    key: str

    @classmethod
    def make(cls, spec: Spec, parents: Parents) -> Job:
        """Build the job and derive its key; roles without a parent are left out."""
        kept = {role: tuple(keys) for role, keys in parents.items() if keys}
        return cls(spec, kept, key_of(spec, kept))

    @property
    def kind(self) -> Kind:
        """The kind of its spec."""
        return self.spec.kind

    def parent_keys(self) -> tuple[str, ...]:
        """All parents, each once, in order of role and position."""
        return self._parent_keys

    @cached_property
    def _parent_keys(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(key for role in sorted(self.parents) for key in self.parents[role]))

    def canonical(self) -> dict[str, Any]:
        """What the key is the digest of."""
        return canonical(self.spec, self.parents)

    def to_json(self) -> dict[str, Any]:
        """The job as plain values, placement included: what travels to a worker."""
        return {
            "kind": self.kind,
            "spec": self.spec.model_dump(mode="json", by_alias=True),
            "parents": {role: list(keys) for role, keys in self.parents.items()},
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Job:
        """The inverse of `to_json`; validates the spec again."""
        spec = SPECS[value["kind"]].model_validate(value["spec"])
        return cls.make(spec, value["parents"])


@dataclass
class Graph:
    """Jobs by key, in an order in which parents come before children."""

    jobs: dict[str, Job] = field(default_factory=dict)
    requested: int = 0
    """How many times `add` was called: the jobs a run without sharing would have."""

    def add(self, spec: Spec, parents: Parents | None = None) -> str:
        """Add a job, or find the one that is there; returns its key."""
        self.requested += 1
        job = Job.make(spec, parents or {})
        missing = [key for key in job.parent_keys() if key not in self.jobs]
        assert not missing, f"{job.key}: parents not in the graph: {missing}"
        self.jobs.setdefault(job.key, job)
        return job.key

    def __iter__(self) -> Iterator[Job]:
        return iter(self.jobs.values())

    def __len__(self) -> int:
        return len(self.jobs)

    def __getitem__(self, key: str) -> Job:
        return self.jobs[key]

    def children(self) -> dict[str, tuple[str, ...]]:
        """The keys that wait for each key."""
        found: dict[str, list[str]] = {key: [] for key in self.jobs}
        for job in self:
            for parent in job.parent_keys():
                found[parent].append(job.key)
        return {key: tuple(keys) for key, keys in found.items()}

    def remaining_path(self, seconds: Callable[[Job], float]) -> dict[str, float]:
        """Seconds from the start of each job to the end of the longest chain that hangs on it."""
        children = self.children()
        path: dict[str, float] = {}
        for key in reversed(self.jobs):
            path[key] = seconds(self.jobs[key]) + max((path[child] for child in children[key]), default=0.0)
        return path

    def critical_path(self, seconds: Callable[[Job], float]) -> list[str]:
        """The keys of the longest chain, first job first; empty for an empty graph."""
        path, children = self.remaining_path(seconds), self.children()
        chain: list[str] = []
        candidates: Iterable[str] = self.jobs
        while best := max(candidates, key=lambda key: path[key], default=None):
            chain.append(best)
            candidates = children[best]
        return chain

    def ancestors(self, keys: Iterable[str]) -> set[str]:
        """The keys and everything they hang on."""
        found: set[str] = set()
        waiting = list(keys)
        while waiting:
            key = waiting.pop()
            if key not in found:
                found.add(key)
                waiting += self.jobs[key].parent_keys()
        return found
