"""`doctor`: what would stop a run here, each finding with its fix, before a run finds out."""

from __future__ import annotations

import importlib
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from jobs.errors import BadInput
from orchestrator.clusters.config import Target, usable_cores
from orchestrator.clusters.finding import Finding
from orchestrator.clusters.ray_cluster import LONGEST_FOLDER
from orchestrator.clusters.versions import PACKAGES, package_versions
from orchestrator.planning.host_speed import host_speed, remember_card
from workers.runtime.visible_cards import visible_cards
from workers.store.store import Store

if TYPE_CHECKING:
    from workers.runtime.card_speed import CardSpeed

_FREE_GIB = 5
_SHM_GIB = 0.5


def examine(place: Target) -> list[Finding]:
    """All checks of this machine, cheap ones first; of one that only submits to SLURM, those that it needs for that."""
    here = place.cluster.kind != "slurm"
    workers_here = [_cards(), _workers(place), _speed(place), _temporary_folder(), _shared_memory()] if here else []
    return [_python(), *_packages(), *workers_here, *_store(place.store)]


def _python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    return Finding("python", sys.version_info >= (3, 11), version, "install Python 3.11 or later")


def _packages() -> list[Finding]:
    installed = package_versions()
    return [
        *(
            Finding(name, name in installed, installed.get(name, "not installed"), f"pip install {name}")
            for name in PACKAGES
        ),
        _device(),
    ]


def _device() -> Finding:
    torch = importlib.import_module("torch")
    if torch.cuda.is_available():
        return Finding("device", True, f"{torch.cuda.device_count()} CUDA device(s)")
    return Finding("device", True, "no CUDA device: jobs run on the CPU")


def _cards() -> Finding:
    """The cards of this machine that a run may use, and whether this PyTorch can."""
    cards = visible_cards(os.environ)
    usable = importlib.import_module("torch").cuda.is_available()
    text = "; ".join(f"{card.id}: {card}" for card in cards) or "none"
    fix = "install a PyTorch for the driver of these cards (https://pytorch.org/get-started/locally)"
    return Finding("cards", usable or not cards, text, fix)


def _workers(place: Target) -> Finding:
    """How the workers share cores and cards."""
    cores, workers, cards = usable_cores(), place.cluster.count(), len(visible_cards(os.environ))
    if not cards:
        found = f"{workers} workers on {cores} cores"
        return Finding("workers", workers <= cores, found, f"use --workers {cores} or fewer")
    most, threads = -(-workers // cards), max(1, cores // workers)
    found = f"{workers} workers on {cards} cards, at most {most} on each; {threads} of {cores} cores for each"
    fix = "more workers than cards pay for small networks only: use --workers " + str(cards)
    return Finding("workers", workers <= max(cores, cards), found, fix)


def _speed(place: Target) -> Finding:
    timed = host_speed(place.cluster.count())
    calls, work = timed.slowness
    by_prices = f"{calls:.2f} times its price for a layer's call and {work:.2f} times for its work"
    text = f"a core takes {by_prices}, timed on {timed.date}"
    return Finding("speed", True, text)


def time_card() -> Finding:
    """Time the first card of this machine and keep it for prices; ten seconds."""
    torch = importlib.import_module("torch")
    if not torch.cuda.is_available():
        return Finding("GPU speed", False, "no CUDA device", "type it on a node with one; `pdd doctor` shows the cards")
    from workers.runtime import card_speed

    timed = card_speed.time_card(torch.device("cuda"))
    remember_card(timed)
    return Finding("GPU speed", True, sentence_of(timed))


def sentence_of(speed: CardSpeed) -> str:
    """What was timed, for people."""
    parts = (f"{speed.convolution / 1e12:.2f} TFLOP/s in convolutions", f"{speed.bandwidth / 1e9:.0f} GB/s in memory")
    return f"{parts[0]}, {parts[1]}, {speed.launch * 1e6:.1f} us to start a kernel"


def _temporary_folder() -> Finding:
    folder = tempfile.gettempdir()
    room = LONGEST_FOLDER - len("/pdd-xxxxxxxx/ray")
    return Finding("temporary folder", len(folder) <= room, folder, f"set TMPDIR to at most {room} characters")


def _shared_memory() -> Finding:
    if not Path("/dev/shm").is_dir():
        return Finding("shared memory", True, "no /dev/shm on this system")
    free = shutil.disk_usage("/dev/shm").free / 2**30
    return Finding("shared memory", free >= _SHM_GIB, f"{free:.1f} GiB free in /dev/shm", "free or enlarge /dev/shm")


def _store(root: str) -> list[Finding]:
    try:
        store = Store.open(root)
    except BadInput as error:
        return [Finding("store", False, str(error.value), error.fix)]
    free = shutil.disk_usage(store.root).free / 2**30
    return [
        Finding("store", True, str(store.root)),
        Finding("disk", free >= _FREE_GIB, f"{free:.0f} GiB free", f"keep {_FREE_GIB} GiB free for trajectories"),
    ]
