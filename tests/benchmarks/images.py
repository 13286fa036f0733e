"""What one's own images cost a plan: 60,000 JPEG files, beside reading their bytes once, in turns.

Before each reading the files are taken out of the page cache, as they are not in it when somebody plans for the first
time. Where the temporary folder is memory they cannot be, and the first plan is then mostly the start of Python.
"""

from __future__ import annotations

import io
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np
from PIL import Image

from orchestrator.planning.host_speed import host_speed
from tests.benchmarks.measure import Row
from tests.benchmarks.start import PDD

CLASSES, SPLITS, REPEATS = 10, {"train": 5000, "test": 1000}, 3


def make_tree(root: Path) -> None:
    """Class folders of pictures like those of CIFAR-10, of which no two have the same bytes."""
    chance = np.random.default_rng(0)
    pictures = []
    for _ in range(100):
        stream = io.BytesIO()
        Image.fromarray(chance.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(stream, "JPEG")
        pictures.append(stream.getvalue())
    for split, count in SPLITS.items():
        for label in range(CLASSES):
            (root / split / str(label)).mkdir(parents=True)
            for number in range(count):
                content = pictures[number % 100] + f"{split} {label} {number}".encode()
                (root / split / str(label) / f"{number:05}.jpg").write_bytes(content)


def files_of(root: Path) -> list[str]:
    """All files below a folder."""
    return [os.path.join(folder, name) for folder, _, names in os.walk(root) for name in names]


def evict(files: list[str]) -> None:
    """Take files out of the page cache."""
    for file in files:
        handle = os.open(file, os.O_RDONLY)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)


def read_all(root: Path) -> None:
    """Read every byte once, the plain way."""
    for file in files_of(root):
        with open(file, "rb") as opened:
            opened.read()


def seconds(work: Callable[[], object]) -> float:
    """What it takes by the wall clock, which is what a disk is waited for by."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def rows() -> list[Row]:
    """Reading once; the first plan, the whole command on a host that was timed before; and the second."""
    with tempfile.TemporaryDirectory() as folder:
        root, facts = Path(folder) / "images", Path(folder) / "facts"
        make_tree(root)
        os.sync()
        files, words = files_of(root), ["plan", "tiny", "--workers", "1", "--store", f"{folder}/none"]
        with mock.patch.dict(os.environ, PDD_CACHE=folder):
            host_speed(1)  # remembered where the plans look
            environment = dict(os.environ)

        def plan() -> None:
            command = [*PDD, *words, "--dataset", str(root)]
            subprocess.run(command, check=True, capture_output=True, env=environment)

        taken: dict[str, list[float]] = {"read": [], "first": [], "second": []}
        for _ in range(REPEATS):
            evict(files)
            taken["read"].append(seconds(lambda: read_all(root)))
            for path in facts.glob("[!s]*.json"):  # all but the speed
                path.unlink()
            evict(files)
            taken["first"].append(seconds(plan))
            taken["second"].append(seconds(plan))
    read, first, second = (statistics.median(times) for times in taken.values())
    ratio = statistics.median(one / other for one, other in zip(taken["first"], taken["read"], strict=True))
    count, cold = f"{len(files):,} JPEG files", "out of the page cache"
    return [
        Row(part="images", name=f"{count} read once", cpu_seconds=None, wall_seconds=read, note=cold),
        Row(
            part="images",
            name=f"first plan of {count}",
            cpu_seconds=None,
            wall_seconds=first,
            ratio=ratio,
            goal=1.2,
            note="the whole command, to reading once",
        ),
        Row(part="images", name="second plan", cpu_seconds=None, wall_seconds=second, goal=2.0, note="of the same"),
    ]
