"""Claims of several hosts whose clocks are off by anything and jump: one living holder, and no dead one for ever.

The hosts share one folder. A process of another host cannot be seen, so all that a claim promises must hold by its
heartbeats alone.
"""

from __future__ import annotations

import shutil
import socket
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from workers.store import claims as module
from workers.store.claims import Claims, Held

KEY = "distil-demo-0123456789abcdef"
LEASE = 30.0
HOSTS = ("a", "b", "c")
BEAT = LEASE / 6
host = st.sampled_from(HOSTS)
years = st.floats(-1e9, 1e9)
"""Seconds by which a clock is off."""


class ClaimsOfHosts(RuleBasedStateMachine):
    """Hosts that take, beat, die with and release one key while time goes on."""

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp())
        self.now = 1_000_000.0
        self.holders: dict[str, Held] = {}
        self.watched: dict[str, dict[Any, Any]] = {}
        self.starts: Counter[str] = Counter()
        """How often each host came back; its processes of before are gone, though this test's process is not."""
        self.beat_at = self.now

    @initialize(off=st.tuples(*[years] * len(HOSTS)))
    def clocks(self, off: tuple[float, ...]) -> None:
        self.off = dict(zip(HOSTS, off, strict=True))
        self.claims = {
            name: Claims(self.root, LEASE, lambda name=name: self.now + self.off[name], lambda: self.now)  # type: ignore[misc]
            for name in HOSTS
        }

    @rule(name=host, off=years)
    def a_clock_jumps(self, name: str, off: float) -> None:
        self.off[name] = off

    @contextmanager
    def on(self, name: str) -> Iterator[None]:
        """What the block does is done on that host."""
        watched = self.watched.setdefault(f"{name}{self.starts[name]}", {})
        with (
            mock.patch.object(socket, "gethostname", lambda: f"{name}{self.starts[name]}"),
            mock.patch.object(module, "_watched", watched),
        ):
            yield

    @rule(name=host)
    def take(self, name: str) -> None:
        with self.on(name), mock.patch.object(Held, "_keep_beating", lambda held: None):
            held = self.claims[name].take(KEY, f"run-{name}")
        if held is not None:
            assert not self.holders, f"{name} took what {list(self.holders)} holds"
            self.holders[name], self.beat_at = held, self.now

    @precondition(lambda self: self.holders)
    @rule(done=st.floats(0, 1))
    def beat(self, done: float) -> None:
        ((name, held),) = self.holders.items()
        with self.on(name):
            held.beat(done, force=True)
        self.beat_at = self.now

    @precondition(lambda self: self.holders)
    @rule()
    def release(self) -> None:
        name, held = self.holders.popitem()
        with self.on(name):
            held.release()

    @precondition(lambda self: self.holders)
    @rule()
    def die(self) -> None:
        """The holder's host is gone, and comes back without its processes; its claim stays."""
        name, _ = self.holders.popitem()
        self.starts[name] += 1

    @rule(seconds=st.floats(0, BEAT))
    def time_goes_on(self, seconds: float) -> None:
        """A living holder beats in time."""
        self.now += seconds
        if self.holders and self.now - self.beat_at >= BEAT:
            self.beat(0.5)

    @rule(name=host)
    def a_free_key_can_be_taken(self, name: str) -> None:
        if not self.holders:
            self.take(name)
        if not self.holders:  # it watches the claim of a dead host from now on
            self.now += LEASE + 1
            self.take(name)
            assert self.holders, "nobody holds it, and yet it cannot be taken"

    @invariant()
    def a_living_claim_stands(self) -> None:
        for name, held in self.holders.items():
            with self.on(name):
                standing = self.claims[name].read(KEY)
            assert standing is not None and standing.owner == held.claim.owner

    def teardown(self) -> None:
        shutil.rmtree(self.root, ignore_errors=True)


ClaimsOfHosts.TestCase.settings = settings(stateful_step_count=30)
TestClaimsOfHosts = ClaimsOfHosts.TestCase
