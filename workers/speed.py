"""How fast this machine is, by a second of the work that experts do.

The estimates of `jobs.cost` were calibrated on one core of one machine. Small SGD steps are timed here as jobs do them,
and the ratio of the two carries the estimates over to this machine and to how busy it is. It takes no part in any
result.
"""

from __future__ import annotations

import statistics
import time

import torch

from jobs.specs import NetworkSpec, SgdSpec
from workers.students import build_network, fit, trainer_for

NETWORK = NetworkSpec(width=32, depth=2)
TRAINING = SgdSpec(epochs=1, lr=0.01, batch_size=64)
SHAPE, CLASSES, IMAGES = (1, 8, 8), 10, 640


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
