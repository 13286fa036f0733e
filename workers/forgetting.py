"""Forgetting scores: how often an image was classified rightly and then wrongly (Toneva et al., ICLR 2019).

An event is a presentation that is wrong when the previous presentation of the same image was right; the first
presentation cannot be one. Right or wrong is seen on the training batch itself before its update, augmented
and in training mode, which is the correctness stream every expert leaves behind; so scores come free with the
experts, or from networks trained here for the purpose.

An image that was never right has no event. Under the paper's wording its count is therefore 0, the easiest;
Toneva et al. count it as the number of epochs, the hardest. That is a setting (`never_learned`), because it
moves such images from the first partition to beyond the last.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from jobs.specs import ForgettingSpec
from workers import dataset as datasets
from workers import trajectories
from workers.bench import Bench
from workers.students import build_network, fit, trainer_for
from workers.training import EpochStats

COUNTS = "counts.parquet"


def count_events(right: NDArray[np.bool_], never_learned: Literal["zero", "epochs"]) -> NDArray[np.int64]:
    """Forgetting events of each image.

    Args:
        right: bool [epochs, images], one row a presentation.
        never_learned: how an image without a right row counts: 0, or the number of epochs.

    Returns:
        int64 [images].
    """
    events: NDArray[np.int64] = (right[:-1] & ~right[1:]).sum(axis=0, dtype=np.int64)
    if never_learned == "epochs":
        events[~right.any(axis=0)] = len(right)
    return events


def score(bench: Bench, folder: Path) -> dict[str, Any]:
    """Sum the counts over the experts' streams, or over networks trained here when there are no experts."""
    spec = bench.job.spec
    assert isinstance(spec, ForgettingSpec)
    cohorts = bench.parents("experts")
    streams = (
        [
            stream
            for key in cohorts
            for stream in trajectories.read_correctness(bench.store.path(key, trajectories.CORRECTNESS))
        ]
        if cohorts
        else [_stream(bench, spec, run) for run in range(spec.runs)]
    )
    counts = np.sum([count_events(stream, spec.never_learned) for stream in streams], axis=0)
    write_counts(folder / COUNTS, counts)
    return {"streams": len(streams), "never_forgotten": float((counts == 0).mean())}


def write_counts(path: Path, counts: NDArray[np.int64]) -> None:
    """One row per training image, in the order of the dataset artifact's training split."""
    pq.write_table(pa.table({"image": np.arange(len(counts)), "count": counts}), path)


def read_counts(path: Path) -> NDArray[np.int64]:
    """The counts by training image: int64 [images]."""
    counts: NDArray[np.int64] = pq.read_table(path, columns=["count"]).column("count").to_numpy()
    return counts


def _stream(bench: Bench, spec: ForgettingSpec, run: int) -> NDArray[np.bool_]:
    data = datasets.load(bench.store, bench.parent("dataset"), bench.device)
    network = build_network(spec.network, data.shape, data.classes, bench.generator("init", run), bench.device)
    rows: list[NDArray[np.bool_]] = []

    def keep(epoch: int, seen: EpochStats) -> None:
        assert seen.correct is not None
        rows.append(seen.correct.numpy())
        bench.pulse((run + (epoch + 1) / spec.training.epochs) / spec.runs, f"run {run} epoch {epoch + 1}")

    trainer = trainer_for(network, spec.training, bench.generator("real", run))
    fit(trainer, data.train.images, data.train.labels, spec.training, on_epoch=keep, correctness=True)
    return np.stack(rows)
