"""How fast this machine is, by a second of the work that experts do.

The prices of `jobs.machines` were calibrated on one machine. An epoch that is bound by its calls and one that is bound
by what they do are timed here, in as many processes at once as there will be workers, so that shared caches, clocks and
whatever else runs here slow them as they will slow the jobs; two factors carry the prices over. Timing takes no part in
any result. Only these processes import torch: to load it takes as long as to measure.
"""

from __future__ import annotations

import importlib
import os
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection

from jobs.cost import fit, sizes
from jobs.machines import Effort, Slowness, slowness
from jobs.specs import NetworkSpec, SgdSpec

CLASSES = 10


@dataclass(frozen=True)
class Epoch:
    """An epoch of a ConvNet on grey images of `side` pixels."""

    network: NetworkSpec
    side: int
    images: int
    batch_size: int

    @property
    def training(self) -> SgdSpec:
        """One epoch of plain SGD."""
        return SgdSpec(epochs=1, lr=0.01, batch_size=self.batch_size)

    @property
    def effort(self) -> Effort:
        """What it takes, by the count that prices are made of."""
        return fit(sizes(self.network, 1, self.side, CLASSES), self.training, self.images)


EPOCHS = (Epoch(NetworkSpec(width=8, depth=2), 8, 320, 32), Epoch(NetworkSpec(width=16, depth=3), 28, 128, 64))
"""Bound by its calls, and by what they do: 8 and 18 ms on the machine of the calibration."""
MOST = 8
"""Processes at once, however many workers there will be: each takes a few hundred MiB."""


class Timing:
    """Processes that load what an epoch needs while others work, and are then asked to time one."""

    def __init__(self, workers: int, seconds: float = 0.75) -> None:
        """Start the processes.

        Args:
            workers: they get a core each; more than there are cores, or than `MOST`, are measured as that many.
            seconds: how long each process measures.
        """
        spawned = get_context("spawn")
        self._ends: list[Connection] = []
        for _ in range(max(1, min(workers, len(os.sched_getaffinity(0)), MOST))):
            own, other = spawned.Pipe()
            spawned.Process(target=_time, args=(other, seconds), daemon=True).start()
            other.close()  # so that the end of the process is the end of what it says
            self._ends.append(own)

    def slowness(self) -> Slowness:
        """How many times as long as at the calibration work takes here when so many workers are busy.

        Raises:
            EOFError: a process ended before its time.
        """
        for end in self._ends:
            end.recv()
        for end in self._ends:
            end.send(None)
        timed = [end.recv() for end in self._ends]
        return slowness_of([statistics.fmean(seconds) for seconds in zip(*timed, strict=True)])


def slowness_of(seconds: Sequence[float]) -> Slowness:
    """How slow a core is that takes these seconds for the two `EPOCHS`."""
    calling, working = zip((epoch.effort for epoch in EPOCHS), seconds, strict=True)
    return slowness(calling, working)


def _time(end: Connection, seconds: float) -> None:
    """Settle and load the code as a worker does, say so, and time when asked; whoever asks may end first."""
    importlib.import_module("workers.training.students")
    importlib.import_module("workers.runtime.process").prepare_process(1, "none")  # with workers' allocator, too
    with suppress(OSError, EOFError):
        end.send(None)
        end.recv()
        end.send(epoch_seconds(seconds))


def epoch_seconds(seconds: float = 1.0, clock: Callable[[], float] = time.perf_counter) -> list[float]:
    """Median seconds of each of `EPOCHS` with one thread, as workers have on a CPU; the two take turns.

    Args:
        seconds: how long to measure, after a first epoch of each that does not count.
        clock: by which epochs are timed; `time.process_time` leaves out what neighbours take.
    """
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        work = [_work(epoch) for epoch in EPOCHS]
        took: list[list[float]] = [[] for _ in work]
        until = time.perf_counter() + seconds
        while not took[0] or time.perf_counter() < until:
            for do, its in zip(work, took, strict=True):
                began = clock()
                do()
                its.append(clock() - began)
    finally:
        torch.set_num_threads(threads)
    return [statistics.median(its) for its in took]


def _work(epoch: Epoch) -> Callable[[], None]:
    """The epoch, ready to be done; it was done once."""
    import torch

    from workers.training import students

    generator, shape = torch.Generator().manual_seed(0), (1, epoch.side, epoch.side)
    network = students.build_network(epoch.network, shape, CLASSES, generator, torch.device("cpu"))
    images, labels = torch.randn(epoch.images, *shape, generator=generator), torch.arange(epoch.images) % CLASSES
    trainer = students.trainer_for(network, epoch.training, generator)
    students.fit(trainer, images, labels, epoch.training)
    return lambda: students.fit(trainer, images, labels, epoch.training)
