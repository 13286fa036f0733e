"""The memory that jobs take of a card beside the estimate that `plan` goes by."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pytest
import torch

from jobs.expansion import expand
from jobs.experiment import Experiment
from jobs.memory import WORKSPACE, peak_bytes
from tests.gpu.conftest import note
from tests.workers.workshop import Workshop
from workers.data import dataset, sources
from workers.execute import perform
from workers.runtime.context import JobContext
from workers.store.store import Store

pytestmark = pytest.mark.gpu

LEAST, MOST = 0.6, 1.1
"""What is taken, without `WORKSPACE`, by what is estimated: some steps of a card keep fewer maps than were counted."""
SMALL = 200e6
"""Bytes below which a job is mostly work space, and may take as little as it likes."""
METHODS: dict[str, dict[str, Any]] = {
    "mtt, whole graph": {
        "experts.real.batch_size": 256,
        "distil.settings.syn_steps": 10,
        "distil.settings.engine": "unrolled",
    },
    "mtt, adjoint": {"distil.settings.syn_steps": 10, "distil.settings.engine": "adjoint"},
    "dm": {"distil.settings.batch_real": 128},
    "dsa": {"distil.settings.batch_real": 128, "distil.settings.outer": 2},
    "idc": {"distil.settings.batch_real": 64, "distil.settings.rounds": 2},
    "cafe": {"distil.settings.batch_real": 64},
    "full": {},
}
CASES = [(method, ipc, "convolutions") for method in METHODS for ipc in (10, 50)] + [
    (method, 10, "none") for method in ("mtt, adjoint", "dsa", "full")
]
"""Method, images per class, and what is computed in TF32."""
WIDTH = 128


@pytest.fixture(autouse=True)
def exact_card() -> None:
    """In place of the other tests' fixture: jobs compute as a worker's do, for whose memory the estimate is."""


def workshop_of(folder: Path, pictures: Path, arm: dict[str, Any], **numbers: Any) -> Workshop:
    """A workshop with pictures of CIFAR's size."""
    experiment = Experiment.model_validate(
        {
            "name": "test",
            "dataset": {"name": "auto", "path": str(pictures)},
            "scale": "tiny",
            "networks": 1,
            "arms": [arm],
            "set": {"dataset.train_per_class": 250, "dataset.test_per_class": 50, **numbers},
        }
    )
    facts = sources.inspect(sources.Source(layout="npz", place="test", path=pictures))
    return Workshop(Store.open(folder / "store"), expand(experiment, facts, "test"))


@pytest.mark.slow
@pytest.mark.parametrize(("method", "ipc", "tf32"), CASES)
def test_a_job_takes_about_the_memory_that_was_estimated(
    method: str, ipc: int, tf32: str, pictures: Path, tmp_path: Path
) -> None:
    arm = {"method": method.split(",")[0]} | ({} if method == "full" else {"ipc_per_stage": ipc})
    network = {"network.width": WIDTH, "network.depth": 3, "network.tf32": tf32}
    short = {} if method == "full" else {"distil.iterations": 2, **METHODS[method]}
    shop = workshop_of(tmp_path, pictures, arm, **network, **short)
    peaks = {}
    for job in shop.plan.graph:
        dataset._load.cache_clear()
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        perform(JobContext.alone(job, shop.store))
        taken, estimated = torch.cuda.max_memory_allocated() - before, peak_bytes(job, shop.plan.graph)
        peaks[job.kind] = taken, estimated
        if estimated > 0:
            note(
                f"memory, {job.kind} of {method}, {ipc} a class, TF32: {tf32}", peak_mib=taken / 2**20,
                ratio=taken / estimated, note=f"of {estimated / 2**20:.0f} MiB estimated",
            )  # fmt: skip
    dataset._load.cache_clear()
    assert all(taken <= MOST * estimated + WORKSPACE for taken, estimated in peaks.values()), peaks
    assert all(taken >= LEAST * estimated for taken, estimated in peaks.values() if estimated > SMALL), peaks
