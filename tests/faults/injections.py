"""What is done to a run. Each is a function of a drill; all chance comes from the drill's seed."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

from orchestrator.runs import journal
from tests.faults.drill import Drill
from tests.faults.write_faults import Action
from workers.store.manifest import MANIFEST

Injection = Callable[[Drill], None]
MOMENT = 3.0
"""Seconds for which a process of Ray is halted."""


def at_a_write(drill: Drill, action: Action, number: int = 0, slow_fsync: float = 0.0) -> None:
    """Something happens at a write; an error that goes on goes on to the run's end."""
    drill.faults.plan(action, drill.a_point(), number, slow_fsync)
    drill.run()


def halted_while_another_runs(drill: Drill) -> None:
    """A run stands still, another one of the same experiment does its work, then the first goes on."""
    with drill.halted() as pid:
        drill.faults.plan()
        second = drill.start()
        deadline = time.monotonic() + drill.chance.uniform(0.1, 3.0)  # a claim that lives is waited for
        while not drill.server.ended(second) and time.monotonic() < deadline:
            time.sleep(0.02)
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
        drill.wait(second)


def killed_beside_another(drill: Drill) -> None:
    """Two runs work side by side, and the first is killed."""
    with drill.halted() as pid:
        drill.faults.plan()
        second = drill.start()
        time.sleep(drill.chance.uniform(0.0, 1.0))
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        drill.wait(second)


def flip(drill: Drill, path: Path) -> None:
    """Change one bit."""
    content = bytearray(path.read_bytes())
    content[drill.chance.randrange(len(content))] ^= 1 << drill.chance.randrange(8)
    path.write_bytes(content)


def truncate(drill: Drill, path: Path) -> None:
    """Cut a file anywhere."""
    os.truncate(path, drill.chance.randrange(path.stat().st_size))


def delete(drill: Drill, path: Path) -> None:
    """Remove a file."""
    path.unlink()


def harmed_meanwhile(drill: Drill, pattern: str, harm: Callable[[Drill, Path], None], share: float = 0.3) -> None:
    """A file of the store is harmed while the run stands still for a moment."""
    with drill.halted(share):
        paths = sorted(path for path in drill.store.glob(pattern) if path.is_file() and path.stat().st_size)
        if paths:
            harm(drill, drill.chance.choice(paths))


def harmed_between(drill: Drill, harm: Callable[[Drill, Path], None]) -> None:
    """A file of a finished artifact is harmed between two runs."""
    drill.run()
    harm(drill, drill.chance.choice(sorted(path for path in drill.store.glob("objects/*/*/*"))))


def on_ray(drill: Drill, name: str, number: int) -> None:
    """A process of a run on Ray gets a signal at a moment of the work; one that is halted goes on later."""
    with drill.on_ray() as driver:
        hit(drill, driver, name, number)
        if number == signal.SIGSTOP:
            time.sleep(MOMENT)


def hit(drill: Drill, driver: subprocess.Popen[str], name: str, number: int) -> None:
    """Send a signal to the driver, or to one of the processes of this name."""
    pids = [driver.pid] if name == "driver" else drill.processes(name)
    with suppress(ProcessLookupError):
        if pids:
            os.kill(drill.chance.choice(pids), number)


ARTIFACT, MANIFESTS = "objects/*/*/*.*", f"objects/*/*/{MANIFEST}"
JOURNAL, CLAIM, CHECKPOINT = f"runs/*/{journal.NAME}", "claims/*.json", "checkpoints/*/*"

IN_ONE_PROCESS: dict[str, Injection] = {
    "SIGKILL before a write": partial(at_a_write, action=Action.KILL),
    "SIGKILL in the middle of a write": partial(at_a_write, action=Action.KILL_HALF_WAY),
    "ENOSPC once": partial(at_a_write, action=Action.ERROR_ONCE, number=errno.ENOSPC),
    "ENOSPC from then on": partial(at_a_write, action=Action.ERROR_ON, number=errno.ENOSPC),
    "EIO once": partial(at_a_write, action=Action.ERROR_ONCE, number=errno.EIO),
    "EIO from then on": partial(at_a_write, action=Action.ERROR_ON, number=errno.EIO),
    "EROFS from then on": partial(at_a_write, action=Action.ERROR_ON, number=errno.EROFS),
    "fsync of 20 ms, then SIGKILL": partial(at_a_write, action=Action.KILL, slow_fsync=0.02),
    "SIGTERM": partial(at_a_write, action=Action.RAISE, number=signal.SIGTERM),
    "SIGINT": partial(at_a_write, action=Action.RAISE, number=signal.SIGINT),
    "SIGSTOP, another run meanwhile": halted_while_another_runs,
    "SIGKILL beside another run": killed_beside_another,
    "an artifact flipped in mid-run": partial(harmed_meanwhile, pattern=ARTIFACT, harm=flip),
    "an artifact truncated in mid-run": partial(harmed_meanwhile, pattern=ARTIFACT, harm=truncate),
    "a manifest deleted in mid-run": partial(harmed_meanwhile, pattern=MANIFESTS, harm=delete),
    "an artifact flipped between runs": partial(harmed_between, harm=flip),
    "an artifact truncated between runs": partial(harmed_between, harm=truncate),
    "a claim deleted in mid-run": partial(harmed_meanwhile, pattern=CLAIM, harm=delete, share=0.05),
    "a claim flipped in mid-run": partial(harmed_meanwhile, pattern=CLAIM, harm=flip, share=0.05),
    "the journal deleted in mid-run": partial(harmed_meanwhile, pattern=JOURNAL, harm=delete, share=0.05),
    "the journal truncated in mid-run": partial(harmed_meanwhile, pattern=JOURNAL, harm=truncate, share=0.05),
    "the journal flipped in mid-run": partial(harmed_meanwhile, pattern=JOURNAL, harm=flip, share=0.05),
    "a checkpoint truncated in mid-run": partial(harmed_meanwhile, pattern=CHECKPOINT, harm=truncate),
    "a checkpoint deleted in mid-run": partial(harmed_meanwhile, pattern=CHECKPOINT, harm=delete),
}
"""By name, what is done to runs whose jobs are done by the driver itself."""

ON_RAY: dict[str, Injection] = {
    "Ray: SIGKILL of the driver": partial(on_ray, name="driver", number=signal.SIGKILL),
    "Ray: SIGKILL of a worker": partial(on_ray, name="ray::", number=signal.SIGKILL),
    "Ray: SIGKILL of the raylet": partial(on_ray, name="raylet", number=signal.SIGKILL),
    "Ray: SIGKILL of the GCS": partial(on_ray, name="gcs_server", number=signal.SIGKILL),
    "Ray: SIGSTOP of the driver for 3 s": partial(on_ray, name="driver", number=signal.SIGSTOP),
    "Ray: SIGSTOP of a worker for 3 s": partial(on_ray, name="ray::", number=signal.SIGSTOP),
    "Ray: SIGSTOP of the raylet for 3 s": partial(on_ray, name="raylet", number=signal.SIGSTOP),
    "Ray: SIGSTOP of the GCS for 3 s": partial(on_ray, name="gcs_server", number=signal.SIGSTOP),
}
"""By name, what is done to runs on two workers."""
