"""Whether a run's jobs fit the cards of its cluster, and the largest job for each size of card."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from jobs.errors import BadInput
from jobs.graph import Graph
from jobs.memory import CARD_SIZES, largest_by_card, peak_bytes, room
from jobs.specs import DistilSpec


def require_room(peaks: Mapping[str, int], graph: Graph, gigabytes: float | None, cluster: str) -> None:
    """Refuse a job that fits no card of the cluster.

    Args:
        peaks: bytes by key of the jobs.
        graph: the jobs.
        gigabytes: what a job may take of a card; None refuses nothing.
        cluster: its name, for the message.

    Raises:
        BadInput: the largest job is too large.
    """
    key = max(peaks, key=peaks.__getitem__, default=None)
    if gigabytes is None or key is None or peaks[key] <= room(gigabytes):
        return
    job, fix = graph[key], "take larger cards, fewer slots on each, or smaller batches"
    if isinstance(job.spec, DistilSpec) and "syn_steps" in job.spec.settings:
        lean = peak_bytes(job, graph, "adjoint")
        if lean <= room(gigabytes):
            fix = f"--set distil.settings.engine=adjoint takes {lean / 1e9:.1f} GB, and a third more time"
    text = f"{peaks[key] / 1e9:.1f} GB for {key}, of {room(gigabytes) / 1e9:.1f} GB that a job may take of a card"
    raise BadInput(f"cluster {cluster}", "memory of a card", text, fix)


def to_json(peaks: Mapping[str, int]) -> dict[str, Any]:
    """By card size in GB the largest job that fits, with its bytes, and how many jobs do not."""
    return {
        str(size): {
            "largest": key,
            "bytes": peaks[key] if key else 0,
            "too_large": sum(peak > room(size) for peak in peaks.values()),
        }
        for size, key in largest_by_card(peaks).items()
    }


def lines(peaks: Mapping[str, int]) -> Iterator[str]:
    """The same for people: one line for each card size."""
    for size, key in largest_by_card(peaks).items():
        over = sum(peak > room(size) for peak in peaks.values())
        largest = f"{key} with {peaks[key] / 1e9:.2g} GB" if key else "none"
        yield f"on a card of {size} GB the largest job is {largest}" + (f"; {over} are too large" if over else "")
        if not over and size != CARD_SIZES[-1]:
            return
