"""Every kind of job and every method on a card, by the workers' own code, beside the same job on the CPU.

Each job starts from the CPU's artifacts, so that what is compared is one job and not a chain of them. TF32 is off, so
the two differ by the order in which float32 numbers are added: 1e-6 an operation, which some tens of steps of training
grow to 1e-4, and a unit that falls to the other side of zero to 1e-3 and more. Hence one part in a hundred for images
and weights, and what is counted (images classified rightly, chosen images) may differ in a few.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from jobs.graph import Job
from jobs.specs import SelectSpec
from tests.gpu.conftest import CUDA, note
from tests.workers.short_jobs import ARMS, CARD_ENGINES, GRADIENTS, ONE, TWO
from tests.workers.workshop import CPU, PUBLISHED, Workshop
from workers.data import synthetic_set
from workers.execute import perform
from workers.runtime.context import JobContext
from workers.store.store import Manifest
from workers.store.trajectories import TRAJECTORIES, Trajectories

pytestmark = pytest.mark.gpu

NEAR = 1e-2
"""Relative distance of images and weights after a short job."""
AMPLIFIED = {"rat_bptt": 5e-2}
"""The same where students are trained by Adam, which makes a gradient near zero as large as others: a last bit of the
images moves RaT-BPTT's stage by 1.4e-3 on a CPU, too, and those of other methods by 1e-7."""
POINTS = 4.0
"""Percentage points by which accuracies of a test on some hundred images may differ."""
DECIDED = {
    **GRADIENTS,
    "dream": {**GRADIENTS["dream"], "distil.settings.batch_real": 1, "distil.init": "real"},
}
"""DREAM with one cluster a class: in a cluster of two both are equally near to its centroid, and rounding decides (on
digits half of 16 clusters a class; a last bit of the images moves the stage by 0.19 on a CPU, too)."""
OTHERS: dict[str, dict[str, Any]] = {
    "partitions": {"method": "mtt", **ONE, "partition": {"increment": 9}},
    "class-incremental": {"method": "random", **TWO, "class_incremental": {"phases": 5, "orders": 1}},
}


def on(device: torch.device, job: Job, workshop: Workshop) -> Manifest:
    """Do a job of the workshop on a device."""
    context = JobContext.alone(job, workshop.store)
    context.device = device
    perform(context)
    return workshop.store.manifest(job.key)


def compared(here: Workshop, there: Workshop) -> None:
    """Do each job on the CPU and on the card, from equal parents, and compare what came out."""
    for job in here.plan.graph:
        ours, theirs = on(CPU, job, here), on(CUDA, job, there)
        assert theirs.device == "cuda"
        _COMPARE.get(job.kind, _same_accuracy)(job, here, there)
        if ours.digest == theirs.digest:
            continue
        there.store.remove(job.key)
        shutil.copytree(*(shop.store.root / "objects" / job.kind / job.key for shop in (here, there)))


def distance(there: torch.Tensor, here: torch.Tensor) -> float:
    """The norm of the difference by that of the CPU's values."""
    return float((there.double() - here.double()).norm() / here.double().norm())


def _same_bytes(job: Job, here: Workshop, there: Workshop) -> None:
    assert there.store.manifest(job.key).digest == here.store.manifest(job.key).digest


def _near_weights(job: Job, here: Workshop, there: Workshop) -> None:
    ours, theirs = (Trajectories([shop.store.path(job.key, TRAJECTORIES)]) for shop in (here, there))
    assert len(ours) == len(theirs) and ours.epochs == theirs.epochs
    assert torch.equal(ours.parameters(0, 0), theirs.parameters(0, 0)) or job.spec.stage > 1  # type: ignore[union-attr]
    far = max(
        distance(theirs.parameters(number, ours.epochs), ours.parameters(number, ours.epochs))
        for number in range(len(ours))
    )
    note(f"{job.kind}: distance to the CPU", error=far)
    assert far < NEAR


def _near_images(job: Job, here: Workshop, there: Workshop) -> None:
    ours, theirs = (synthetic_set.read(shop.store.path(job.key, synthetic_set.EXACT)) for shop in (here, there))
    assert torch.equal(ours.labels, theirs.labels)
    far = distance(theirs.images, ours.images)
    method = getattr(job.spec, "method", job.kind)
    note(f"{method}: distance to the CPU", error=far)
    assert far < AMPLIFIED.get(method, NEAR)
    if ours.step_size is None:
        assert theirs.step_size is None
    else:
        assert theirs.step_size == pytest.approx(ours.step_size, rel=NEAR)


def _nearly_same_choice(job: Job, here: Workshop, there: Workshop) -> None:
    """Real images, bit for bit; where features decide all but a few, since two may be as near but for rounding."""
    assert isinstance(job.spec, SelectSpec)
    ours, theirs = (synthetic_set.read(shop.store.path(job.key, synthetic_set.EXACT)) for shop in (here, there))
    same = float((ours.images == theirs.images).flatten(1).all(1).float().mean())
    note(f"{job.spec.rule}: share of the images that the CPU chooses", ratio=same)
    assert same >= (0.8 if job.parents.get("experts") else 1.0)


def _same_accuracy(job: Job, here: Workshop, there: Workshop) -> None:
    ours, theirs = (shop.store.manifest(job.key).extra for shop in (here, there))
    numbers = {name: value for name, value in ours.items() if isinstance(value, float)}
    for name, value in numbers.items():
        assert theirs[name] == pytest.approx(value, rel=NEAR, abs=POINTS), name


_COMPARE: dict[str, Callable[[Job, Workshop, Workshop], None]] = {
    "dataset": _same_bytes,
    "experts": _near_weights,
    "distil": _near_images,
    "select": _nearly_same_choice,
}


def _shops(folder: Path, arm: dict[str, Any], **more: Any) -> tuple[Workshop, Workshop]:
    return (
        Workshop.open(folder / "cpu", arm, networks=1, **more),
        Workshop.open(folder / "card", arm, networks=1, **more),
    )


@pytest.mark.slow
@pytest.mark.parametrize("method", ARMS)
def test_jobs_of_a_method_give_what_they_give_on_the_cpu(method: str, tmp_path: Path) -> None:
    compared(*_shops(tmp_path, {"method": method, **ARMS[method]}, set=DECIDED.get(method)))


@pytest.mark.slow
@pytest.mark.parametrize("engine", CARD_ENGINES)
def test_published_matching_gives_what_it_gives_on_the_cpu(engine: str, tmp_path: Path) -> None:
    compared(*_shops(tmp_path, {"method": "mtt", **ONE}, set={**PUBLISHED, "distil.settings.engine": engine}))


@pytest.mark.slow
@pytest.mark.parametrize("arm", OTHERS)
def test_jobs_of_the_other_tables_give_what_they_give_on_the_cpu(arm: str, tmp_path: Path) -> None:
    compared(*_shops(tmp_path, OTHERS[arm]))
