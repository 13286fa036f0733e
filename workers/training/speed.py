"""How fast this machine is, by a second of the work that experts do.

The estimates of `jobs.cost` were calibrated on one machine, where an epoch of small SGD steps took `REFERENCE` seconds.
The same epoch is timed here in as many processes at once as there will be workers, so that shared caches, clocks and
whatever else runs here slow it as they will slow the jobs; the ratio carries the estimates over. It takes no part in
any result. Only these processes import torch: to load it takes as long as to measure.
"""

from __future__ import annotations

import importlib
import os
import statistics
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection

from jobs.specs import NetworkSpec, SgdSpec

NETWORK = NetworkSpec(width=32, depth=2)
TRAINING = SgdSpec(epochs=1, lr=0.01, batch_size=64)
SHAPE, CLASSES, IMAGES = (1, 8, 8), 10, 640
REFERENCE = 0.040
"""Seconds of the epoch on the machine of the calibration, two processes at once: 0.038 to 0.043 on one quiet day."""
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

    def slowness(self) -> float:
        """How many times as long as at the calibration work takes here when so many workers are busy.

        Raises:
            EOFError: a process ended before its time.
        """
        for end in self._ends:
            end.recv()
        for end in self._ends:
            end.send(None)
        return statistics.fmean(end.recv() for end in self._ends) / REFERENCE


def _time(end: Connection, seconds: float) -> None:
    """Load the code, say so, and time when asked; whoever asks may end first."""
    importlib.import_module("workers.training.students")
    with suppress(OSError, EOFError):
        end.send(None)
        end.recv()
        end.send(epoch_seconds(seconds))


def epoch_seconds(seconds: float = 1.0, clock: Callable[[], float] = time.perf_counter) -> float:
    """Median seconds of an epoch of `TRAINING` on `IMAGES` images with one thread, as workers have on a CPU.

    Args:
        seconds: how long to measure, after a first epoch that does not count.
        clock: by which epochs are timed; `time.process_time` leaves out what neighbours take.
    """
    import torch

    from workers.training.students import build_network, fit, trainer_for

    generator = torch.Generator().manual_seed(0)
    network = build_network(NETWORK, SHAPE, CLASSES, generator, torch.device("cpu"))
    images = torch.randn(IMAGES, *SHAPE, generator=generator)
    labels = torch.arange(IMAGES) % CLASSES
    trainer = trainer_for(network, TRAINING, generator)
    took: list[float] = []
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        fit(trainer, images, labels, TRAINING)
        until = time.perf_counter() + seconds
        while not took or time.perf_counter() < until:
            began = clock()
            fit(trainer, images, labels, TRAINING)
            took.append(clock() - began)
    finally:
        torch.set_num_threads(threads)
    return statistics.median(took)
