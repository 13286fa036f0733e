"""How fast this machine is, by a second of the work that experts do.

The estimates of `jobs.cost` were calibrated on one machine, where an epoch of small SGD steps took `REFERENCE` seconds.
The same epoch is timed here in as many processes at once as there will be workers, so that shared caches, clocks and
whatever else runs here slow it as they will slow the jobs; the ratio carries the estimates over. It takes no part in
any result.
"""

from __future__ import annotations

import os
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from multiprocessing.synchronize import Barrier

import torch

from jobs.specs import NetworkSpec, SgdSpec
from workers.training.students import build_network, fit, trainer_for

NETWORK = NetworkSpec(width=32, depth=2)
TRAINING = SgdSpec(epochs=1, lr=0.01, batch_size=64)
SHAPE, CLASSES, IMAGES = (1, 8, 8), 10, 640
REFERENCE = 0.040
"""Seconds of the epoch on the machine of the calibration, two processes at once: 0.038 to 0.043 on one quiet day."""
MOST = 8
"""Processes at once, however many workers there will be: each takes a few hundred MiB."""


def slowness(workers: int, seconds: float = 1.5) -> float:
    """How many times as long as at the calibration work takes here when so many workers are busy.

    Args:
        workers: they get a core each; more than there are cores, or than `MOST`, are measured as that many.
        seconds: how long each process measures.
    """
    count = max(1, min(workers, len(os.sched_getaffinity(0)), MOST))
    spawned = get_context("spawn")
    with ProcessPoolExecutor(count, spawned, initializer=_wait, initargs=(spawned.Barrier(count),)) as pool:
        return statistics.fmean(pool.map(epoch_seconds, [seconds] * count)) / REFERENCE


def epoch_seconds(seconds: float = 1.0) -> float:
    """Median seconds of an epoch of `TRAINING` on `IMAGES` images with one thread, as workers have on a CPU.

    Args:
        seconds: how long to measure, after a first epoch that does not count.
    """
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
            began = time.perf_counter()
            fit(trainer, images, labels, TRAINING)
            took.append(time.perf_counter() - began)
    finally:
        torch.set_num_threads(threads)
    return statistics.median(took)


def _wait(barrier: Barrier) -> None:
    """Until all processes are there, each of which has imported torch to come here."""
    barrier.wait()
