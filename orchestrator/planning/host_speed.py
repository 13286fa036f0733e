"""How fast this host's cores are: timed once, remembered in the user's cache folder, and timed anew after a week.

What was timed while others kept the cores busy is believed for ten minutes only. A card is timed by `pdd doctor --gpu`
alone, and what it found is remembered for good.

A measurement takes some seconds, most of them to import torch in as many processes as there will be workers; `plan` has
them do that while it reads the data set. What is planned changes more often than the host. `pdd doctor` shows what is
remembered.
"""

from __future__ import annotations

import hashlib
import os
import platform
import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from rich.console import Console

from jobs import machines
from jobs.machines import Slowness
from workers.data.remembered import Memory
from workers.store.versions import installed_versions

if TYPE_CHECKING:
    from workers.runtime.card_speed import CardSpeed
    from workers.training.speed import Timing

KEPT_SECONDS = 7 * 86_400.0
"""For how long a measurement is believed: kernels, clocks and neighbours change."""
KEPT_BUSY_SECONDS = 600.0
"""The same for a measurement beside other work, which says little about the next run."""
SUSTAINED = 0.18
"""Share of a card's timed convolutions that loops keep: measured on an H200, as are the next two."""
STARTS_OF_LAYER, STARTS_OF_INNER_LAYER = 145, 345
"""What a layer takes of the host in an SGD step and in a differentiated inner step, by the start of one bare kernel:
it starts 26 and 81 kernels, and autograd takes some four times as long as their start."""
PRICES = "two factors"
"""What is timed; what was remembered by an earlier version says something else."""
people = Console(stderr=True)


@dataclass(frozen=True)
class HostSpeed:
    """How many times as long as in `jobs.machines` a core takes here, and when (unix) that was timed."""

    slowness: Slowness
    at: float

    @property
    def date(self) -> str:
        """The day on which it was timed."""
        return datetime.fromtimestamp(self.at, UTC).date().isoformat()


_begun: dict[int, Timing] = {}
"""By the number of workers: processes that wait to time the host."""


def begin_timing(workers: int) -> None:
    """Load in processes of their own what timing the host needs, unless its speed is known."""
    if _known(workers) is None:
        from workers.training.speed import Timing  # starts processes

        _begun[workers] = Timing(workers)


def host_speed(workers: int) -> HostSpeed:
    """The speed of a core of this host when so many workers are busy."""
    if (known := _known(workers)) is not None:
        return known
    people.print("timing the cores of this machine, as once a week", soft_wrap=True, highlight=False)
    kept = KEPT_BUSY_SECONDS if os.getloadavg()[0] > len(os.sched_getaffinity(0)) / 2 else KEPT_SECONDS
    if workers not in _begun:
        begin_timing(workers)
    timed = HostSpeed(_begun.pop(workers).slowness(), time.time())
    Memory.beside(None).remember(*_named(workers), {"slowness": list(timed.slowness), "at": timed.at, "kept": kept})
    return timed


def _known(workers: int) -> HostSpeed | None:
    """What is remembered and still believed."""
    known = Memory.beside(None).recall(*_named(workers))
    if known is None or not 0 <= time.time() - known["at"] < known.get("kept", KEPT_SECONDS):
        return None
    return HostSpeed(Slowness(*known["slowness"]), known["at"])


def _named(workers: int) -> tuple[str, str]:
    """The name under which this host's speed is remembered, and the state that it is true of."""
    cores = len(os.sched_getaffinity(0))
    name = f"speed-{hashlib.sha256(platform.node().encode()).hexdigest()[:16]}-{min(workers, cores)}"
    return name, f"{PRICES}, {platform.machine()}, {cores} cores, torch {installed_versions(('torch',)).get('torch')}"


def machine_of_card() -> machines.Machine:
    """A worker with a card: as fast as a card of this host was when `pdd doctor --gpu` timed it, else an H200."""
    known = Memory.beside(None).recall(_card_name(), "1")
    if known is None:
        return machines.GPU
    call, inner_call = STARTS_OF_LAYER * known["launch"], STARTS_OF_INNER_LAYER * known["launch"]
    rate = SUSTAINED * known["convolution"]
    return replace(machines.GPU, rate=rate, call=call, inner_call=inner_call)


def remember_card(speed: CardSpeed) -> None:
    """Keep what was timed of this host's card for prices."""
    Memory.beside(None).remember(_card_name(), "1", vars(speed))


def _card_name() -> str:
    return f"card-{hashlib.sha256(platform.node().encode()).hexdigest()[:16]}"
