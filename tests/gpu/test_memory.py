"""The memory that jobs take of a card beside the estimate that `plan` goes by."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pytest
import torch

from jobs.expansion import expand
from jobs.experiment import Experiment
from jobs.memory import peak_bytes
from tests.gpu.conftest import note
from tests.workers.workshop import Workshop
from workers.data import dataset, sources
from workers.execute import perform
from workers.runtime.context import JobContext
from workers.store.store import Store

pytestmark = pytest.mark.gpu

LEAST, MOST = 0.6, 1.5
"""What was taken by what was estimated: cuDNN's work space and the allocator's rounding come on top of the estimate,
and the kernels of a card keep fewer maps than the CPU's operators, on which it was counted. Jobs below `SMALL` bytes
are mostly such a work space."""
SMALL = 200e6
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
SIZES = [(128, 10), (128, 50)]
"""Width and images per class."""


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
@pytest.mark.parametrize(("width", "ipc"), SIZES)
@pytest.mark.parametrize("method", METHODS)
def test_a_job_takes_about_the_memory_that_was_estimated(
    method: str, width: int, ipc: int, pictures: Path, tmp_path: Path
) -> None:
    arm = {"method": method.split(",")[0]} | ({} if method == "full" else {"ipc_per_stage": ipc})
    short = {} if method == "full" else {"distil.iterations": 2, **METHODS[method]}
    shop = workshop_of(tmp_path, pictures, arm, **{"network.width": width, "network.depth": 3, **short})
    ratios = {}
    for job in shop.plan.graph:
        dataset._load.cache_clear()
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        perform(JobContext.alone(job, shop.store))
        taken, estimated = torch.cuda.max_memory_allocated() - before, peak_bytes(job, shop.plan.graph)
        if estimated > SMALL:
            ratios[job.kind] = taken / estimated
            note(
                f"memory, {job.kind} of {method}, width {width}", peak_mib=taken / 2**20, ratio=ratios[job.kind],
                note=f"of {estimated / 2**20:.0f} MiB estimated",
            )  # fmt: skip
    assert all(LEAST < ratio < MOST for ratio in ratios.values()), ratios
