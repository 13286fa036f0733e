"""A drill: one small run is disturbed, then the same command is typed again; what is in the store must be as ever."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from orchestrator.runs import journal
from tests.faults.server import REPOSITORY, Ended, Server
from tests.faults.write_faults import Action, WriteFaults
from workers.store.store import Store

EXPERIMENT = Path(__file__).with_name("small.yaml")
PATIENCE = 180.0
"""Seconds after which a run counts as hanging; alone it takes one, with Ray ten."""
ENDINGS = {0, 2, 3, 130, -signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT}
"""Exit codes that a disturbed run may have: all but 1, a bug of ours. A signal before the run begins ends Python."""
FAILINGS = ("wrong digests", "lost", "doubled", "hangs", "leftovers", "wrong endings")


@dataclass
class Drill:
    """A store, the processes that work in it, and what an undisturbed run left there.

    Attributes:
        folder: of the drill.
        faults: what happens at the writes in the store.
        server: starts commands.
        experiment: what is run.
        points: how many writes an undisturbed run makes.
        digests: by key, what such a run left.
        chance: of the drill that goes on.
        endings: of all commands of the drill that goes on.
    """

    folder: Path
    faults: WriteFaults
    server: Server
    experiment: Path
    points: int = 0
    digests: dict[str, str] = field(default_factory=dict)
    chance: random.Random = field(default_factory=random.Random)
    endings: list[Ended] = field(default_factory=list)

    @property
    def store(self) -> Path:
        return self.folder / "store"

    @classmethod
    def open(cls, folder: Path, library: Path, experiment: Path = EXPERIMENT) -> Self:
        """Start a server, and do the run once undisturbed."""
        faults = WriteFaults(folder, folder / "store", library)
        warm = ("run", str(experiment), "--workers", "0", "--quiet", "--store", str(folder / "warm"))
        drill = cls(folder, faults, Server(folder, faults.environment(), warm), experiment)
        drill.begin(0)
        assert drill.run().exit == 0, drill.endings
        drill.points, drill.digests = faults.points, drill.found()
        return drill

    def begin(self, seed: int) -> None:
        """Start a drill with an empty store and nothing planned."""
        shutil.rmtree(self.store, ignore_errors=True)
        self.faults.plan()
        self.chance, self.endings = random.Random(seed), []

    # The run, undisturbed or not.

    def words(self, workers: int = 0) -> tuple[str, ...]:
        return ("run", str(self.experiment), "--workers", str(workers), "--quiet", "--store", str(self.store))

    def run(self) -> Ended:
        """The run to its end, in one process."""
        return self.wait(self.start())

    def start(self) -> int:
        return self.server.start(*self.words())

    def wait(self, pid: int) -> Ended:
        self.endings.append(self.server.wait(pid, PATIENCE))
        return self.endings[-1]

    def a_point(self, share: float = 0.0) -> int:
        """The number of one of the writes, after that share of them."""
        return self.chance.randint(int(share * self.points) + 1, self.points)

    @contextmanager
    def halted(self, share: float = 0.0) -> Iterator[int]:
        """A run that stands still at one of its writes during the block and then goes on to its end."""
        self.faults.plan(Action.RAISE, self.a_point(share), signal.SIGSTOP)
        pid = self.start()
        self.until(lambda: stands_still(pid) or self.server.ended(pid))
        try:
            yield pid
        finally:
            self.faults.plan()
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
            self.wait(pid)

    @contextmanager
    def on_ray(self) -> Iterator[subprocess.Popen[str]]:
        """A run on two workers of Ray that halts at one of its writes; what halted goes on after the block."""
        self.faults.plan(Action.RAISE, self.a_point(), signal.SIGSTOP)
        driver = subprocess.Popen(
            [sys.executable, "-m", "orchestrator.launch", *self.words(2)],
            cwd=self.folder,
            env=os.environ
            | {"PYTHONPATH": str(REPOSITORY), "TMPDIR": str(self.server.temporary)}
            | self.faults.environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            process_group=0,
        )
        began = time.monotonic()
        try:
            self.until(lambda: any(map(stands_still, self.processes())) or driver.poll() is not None)
            yield driver
        finally:
            self.faults.plan()
            for pid in self.processes():
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)
            late = False
            try:
                out, err = driver.communicate(timeout=PATIENCE)
            except subprocess.TimeoutExpired:
                late = True
                driver.kill()
                out, err = driver.communicate()
            exit = None if late else driver.returncode
            self.endings.append(Ended(exit, out, err, 0, time.monotonic() - began))

    def until(self, condition: object) -> None:
        """Look a hundred times a second until the condition holds or the patience is over."""
        assert callable(condition)
        deadline = time.monotonic() + PATIENCE
        while not condition() and time.monotonic() < deadline:
            time.sleep(0.01)

    def processes(self, name: str = "") -> list[int]:
        """The living processes of the drill but the server, or those of this program or whose title begins so."""
        mark = f"TMPDIR={self.server.temporary}\0".encode()
        pids = []
        for entry in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):  # gone meanwhile, or somebody else's
                words = (entry / "cmdline").read_bytes()
                ours = mark in (entry / "environ").read_bytes() and b"tests.faults.server" not in words
                first = words.split(b"\0")[0].decode(errors="replace")
                if ours and (first.startswith(name) or first.endswith(f"/{name}")):
                    pids.append(int(entry.name))
        return sorted(pids)

    # What came of it.

    def found(self) -> dict[str, str]:
        """The digest of every whole artifact."""
        store = Store(self.store)
        return {key: store.manifest(key).digest for key in store.keys() if store.has(key)}

    def judge(self) -> Counter[str]:
        """Type the command once more, and count what is not as it must be."""
        self.faults.plan()
        disturbed = list(self.endings)
        last, found, store = self.run(), self.found(), Store(self.store)
        wrong = {key for key in found if found[key] != self.digests.get(key)}
        return Counter(
            {
                "wrong digests": len(wrong | {key for key in found if store.verify(key)}),
                "lost": len(self.digests.keys() - found.keys()),
                "doubled": len(self.doubled()),
                "hangs": sum(ended.exit is None for ended in self.endings),
                "leftovers": len(self.leftovers()),
                "wrong endings": sum(map(self.is_wrong, disturbed)) + (last.exit != 0),
            }
        )

    def is_wrong(self, ended: Ended) -> bool:
        """Whether a run ended as no run may, however it was disturbed."""
        return ended.exit is not None and (ended.exit not in ENDINGS or "Traceback" in ended.err)

    def doubled(self) -> list[str]:
        """Keys that were made more than once, though nothing had happened to their artifacts."""
        records = [record for path in self.store.glob(f"runs/*/{journal.NAME}") for record in journal.read(path)]
        made = Counter(record["key"] for record in records if record["event"] == "job_done")
        moved = {path.name.rpartition("-")[0] for path in (self.store / "quarantine").iterdir()}
        return [key for key, times in made.items() if times > 1 and key not in moved]

    def leftovers(self) -> list[str]:
        """Files that nobody needs and processes that nobody waits for."""
        self.until(lambda: not self.processes())
        hidden = [path for path in self.store.rglob(".*") if path.name not in (".", "..")]
        working = [path for name in ("tmp", "claims", "checkpoints") for path in (self.store / name).iterdir()]
        temporary = [path for path in self.server.temporary.iterdir() if not path.name.startswith("torchinductor_")]
        return [*map(str, {*hidden, *working, *temporary}), *map(str, self.processes())]

    def story(self) -> str:
        """What the drill saw, for whoever looks into a failure."""
        lines = [f"exit {ended.exit} after {ended.seconds:.1f} s: {ended.err[-2000:]}" for ended in self.endings]
        return "\n".join([*lines, f"leftovers: {self.leftovers()}", f"doubled: {self.doubled()}"])


def stands_still(pid: int) -> bool:
    """Whether a process has taken the signal that halts it: one to go on that came before would be lost."""
    with suppress(OSError):  # it is gone
        state = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()[0]
        return state == "T"
    return False
