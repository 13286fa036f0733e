"""Claims of several hosts whose clocks are off by up to a third of a lease: one living holder, no dead one for ever.

The hosts share one folder. A process of another host cannot be seen, so all that a claim promises must hold by its
heartbeats alone.
"""

from __future__ import annotations

import shutil
import socket
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any
from unittest import mock

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from workers.store.claims import Claims, Held

KEY = "distil-demo-0123456789abcdef"
LEASE = 30.0
HOSTS = ("a", "b", "c")
MOST_OFF = LEASE / 3
"""Seconds by which a clock may be off; two of them differ by twice that at most."""
BEAT = LEASE / 6
host = st.sampled_from(HOSTS)


class ClaimsOfHosts(RuleBasedStateMachine):
    """Hosts that take, beat, die with and release one key while time goes on."""

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp())
        self.now = 1_000_000.0
        self.holders: dict[str, Held] = {}
        self.starts: Counter[str] = Counter()
        """How often each host came back; its processes of before are gone, though this test's process is not."""
        self.beat_at = self.now

    @initialize(off=st.tuples(*[st.floats(-MOST_OFF, MOST_OFF)] * len(HOSTS)))
    def clocks(self, off: tuple[float, ...]) -> None:
        self.claims = {
            name: Claims(self.root, LEASE, clock=lambda o=seconds: self.now + o)  # type: ignore[misc]
            for name, seconds in zip(HOSTS, off, strict=True)
        }

    def on(self, name: str) -> Any:
        """What the block does is done on that host."""
        return mock.patch.object(socket, "gethostname", lambda: f"{name}{self.starts[name]}")

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
        """The holder's host is gone; its claim stays until everybody must take it for dead."""
        name, _ = self.holders.popitem()
        self.starts[name] += 1
        self.now += LEASE + 2 * MOST_OFF + 1

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
