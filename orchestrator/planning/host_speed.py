"""How fast this host's cores are: timed once, remembered in the user's cache folder, and timed anew after a week.

What was timed while others kept the cores busy is believed for ten minutes only. A card is timed by `pdd doctor --gpu`
alone, and what it found is remembered for good.

A measurement takes some seconds, most of them to import torch in as many processes as there will be workers, and what
is planned changes more often than the host. `pdd doctor` shows what is remembered.
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

from jobs import cost
from workers.data.remembered import Memory
from workers.store.versions import installed_versions

if TYPE_CHECKING:
    from workers.runtime.card_speed import CardSpeed

KEPT_SECONDS = 7 * 86_400.0
"""For how long a measurement is believed: kernels, clocks and neighbours change."""
KEPT_BUSY_SECONDS = 600.0
"""The same for a measurement beside other work, which says little about the next run."""
KERNELS_OF_LAYER, KERNELS_OF_INNER_LAYER = 11, 50
"""Kernels that a layer starts in an SGD step, and in a differentiated inner step."""
people = Console(stderr=True)


@dataclass(frozen=True)
class HostSpeed:
    """How many times as long as at the calibration of `jobs.cost` work takes here, and when (unix) that was timed."""

    slowness: float
    at: float

    @property
    def date(self) -> str:
        """The day on which it was timed."""
        return datetime.fromtimestamp(self.at, UTC).date().isoformat()


def host_speed(workers: int) -> HostSpeed:
    """The speed of a core of this host when so many workers are busy."""
    cores, memory = len(os.sched_getaffinity(0)), Memory.beside(None)
    name = f"speed-{hashlib.sha256(platform.node().encode()).hexdigest()[:16]}-{min(workers, cores)}"
    state = f"{platform.machine()}, {cores} cores, torch {installed_versions(('torch',)).get('torch')}"
    known = memory.recall(name, state)
    if known is not None and 0 <= time.time() - known["at"] < known.get("kept", KEPT_SECONDS):
        return HostSpeed(known["slowness"], known["at"])
    people.print("timing the cores of this machine, as once a week", soft_wrap=True, highlight=False)
    from workers.training import speed  # takes torch along

    kept = KEPT_BUSY_SECONDS if os.getloadavg()[0] > cores / 2 else KEPT_SECONDS
    timed = HostSpeed(speed.slowness(workers), time.time())
    memory.remember(name, state, {"slowness": timed.slowness, "at": timed.at, "kept": kept})
    return timed


def machine_of_card() -> cost.Machine:
    """A worker with a card: as fast as a card of this host was when `pdd doctor --gpu` timed it, else as assumed.

    A layer of an SGD step starts some 11 kernels, one of a differentiated inner step some 50 (docs/performance.md).
    """
    known = Memory.beside(None).recall(_card_name(), "1")
    if known is None:
        return cost.GPU
    call, inner_call = KERNELS_OF_LAYER * known["launch"], KERNELS_OF_INNER_LAYER * known["launch"]
    return replace(cost.GPU, rate=known["convolution"], call=call, inner_call=inner_call)


def remember_card(speed: CardSpeed) -> None:
    """Keep what was timed of this host's card for prices."""
    Memory.beside(None).remember(_card_name(), "1", vars(speed))


def _card_name() -> str:
    return f"card-{hashlib.sha256(platform.node().encode()).hexdigest()[:16]}"
