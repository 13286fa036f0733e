"""The store against a model: whatever is put, damaged, moved away and looked at, nothing wrong is ever handed out."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from jobs.errors import Damaged
from workers.store.manifest import MANIFEST
from workers.store.store import Store

KEYS = ("dataset-a", "experts-b", "distil-c", "evaluate-d")
key = st.sampled_from(KEYS)


class StoreOfArtifacts(RuleBasedStateMachine):
    """Artifacts that come, are harmed and go; each look is by a new `Store`, as another process has it."""

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp())
        Store.open(self.root)
        self.whole: dict[str, bytes] = {}
        self.harmed: set[str] = set()
        self.moved: set[str] = set()

    def folder(self, key: str) -> Path:
        return self.root / "objects" / key.partition("-")[0] / key

    @rule(key=key, content=st.binary(min_size=1, max_size=40))
    def put(self, key: str, content: bytes) -> None:
        """The first whole artifact of a key stays; a damaged one that is noticed makes way."""
        store = Store.open(self.root)
        noticed = key in self.harmed and not store.has(key)
        with store.put(key, key.partition("-")[0], {"n": 1}, {}, device="cpu") as folder:
            (folder / "data").write_bytes(content)
        if noticed:
            self.harmed.discard(key)
            self.moved.add(key)
        if key not in self.whole and key not in self.harmed:
            self.whole[key] = content

    @rule(key=key, position=st.integers(0, 10**6), bit=st.integers(0, 7), manifest=st.booleans())
    def flip(self, key: str, position: int, bit: int, manifest: bool) -> None:
        """One bit of a whole artifact's data or manifest."""
        if key not in self.whole:
            return
        path = self.folder(key) / (MANIFEST if manifest else "data")
        content = bytearray(path.read_bytes())
        content[position % len(content)] ^= 1 << bit
        path.write_bytes(content)
        if Store(self.root).verify(key):  # a bit of white space in a manifest harms nothing
            del self.whole[key]
            self.harmed.add(key)

    @rule(key=key)
    def read(self, key: str) -> None:
        """What is read is what was put; what is harmed is refused and gone from then on."""
        try:
            content = Store.open(self.root).path(key, "data").read_bytes()
        except Damaged:
            assert key not in self.whole
            if key in self.harmed:
                self.harmed.discard(key)
                self.moved.add(key)
        else:
            assert content == self.whole[key]

    @rule(key=key)
    def remove(self, key: str) -> None:
        if key in self.whole:
            Store.open(self.root).remove(key)
            del self.whole[key]

    @rule()
    def audit(self) -> None:
        """All that is harmed is lost, with what was moved away and not made again; all the rest is sound."""
        audit = Store.open(self.root).audit(KEYS)
        assert audit.sound == self.whole.keys()
        self.moved |= self.harmed
        self.harmed.clear()
        assert audit.lost.keys() == self.moved - self.whole.keys()

    @invariant()
    def nothing_is_left_in_the_way(self) -> None:
        assert list((self.root / "tmp").iterdir()) == []

    def teardown(self) -> None:
        shutil.rmtree(self.root, ignore_errors=True)


StoreOfArtifacts.TestCase.settings = settings(stateful_step_count=25)
TestStoreOfArtifacts = StoreOfArtifacts.TestCase
