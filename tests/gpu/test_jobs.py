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

from jobs.errors import Yielded
from jobs.graph import Job
from jobs.specs import NetworkSpec
from tests.gpu.conftest import CUDA, note
from tests.workers.short_jobs import ARMS, GRADIENTS, ONE, TWO, matched, trained_weights
from tests.workers.workshop import CPU, PUBLISHED, Workshop
from workers.data import dataset, synthetic_set
from workers.data.stored_images import StoredImages
from workers.execute import perform, perform_missing
from workers.methods.matching.kmeans import _CLUSTERINGS
from workers.methods.trajectory.trajectory_matching import ENGINES
from workers.runtime.context import JobContext
from workers.store.store import Manifest
from workers.store.trajectories import TRAJECTORIES, Trajectories

pytestmark = pytest.mark.gpu

NEAR = 1e-2
"""Relative distance of images and weights after a short job."""
POINTS = 4.0
"""Percentage points by which accuracies of a test on some hundred images may differ."""
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
    note(f"{getattr(job.spec, 'method', job.kind)}: distance to the CPU", error=far)
    assert far < NEAR
    assert theirs.step_size == pytest.approx(ours.step_size, rel=NEAR)


def _nearly_same_choice(job: Job, here: Workshop, there: Workshop) -> None:
    """Selected images are real ones: all but a few are the same, since two may be equally near but for rounding."""
    ours, theirs = (synthetic_set.read(shop.store.path(job.key, synthetic_set.EXACT)) for shop in (here, there))
    same = (ours.images == theirs.images).flatten(1).all(1).float().mean()
    assert float(same) >= 0.8


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
    compared(*_shops(tmp_path, {"method": method, **ARMS[method]}, set=GRADIENTS.get(method)))


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_published_matching_gives_what_it_gives_on_the_cpu(engine: str, tmp_path: Path) -> None:
    compared(*_shops(tmp_path, {"method": "mtt", **ONE}, set={**PUBLISHED, "distil.settings.engine": engine}))


@pytest.mark.slow
@pytest.mark.parametrize("arm", OTHERS)
def test_jobs_of_the_other_tables_give_what_they_give_on_the_cpu(arm: str, tmp_path: Path) -> None:
    compared(*_shops(tmp_path, OTHERS[arm]))


@pytest.mark.parametrize("method", ["mtt", "dm", "dsa", "idc"])
def test_a_stage_goes_on_from_its_checkpoint_to_the_same_bits(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit where the stage itself gives the same bits twice, and always as nearly as it does.

    A card adds the gradients of bilinear sampling (scaled and rotated images, IDC's tiles) in no fixed order.
    """
    monkeypatch.setattr("workers.runtime.context._LOOK_SECONDS", 0.0)
    shop = Workshop.open(tmp_path, {"method": method, **ONE}, networks=1, set=GRADIENTS.get(method))
    job, stop = shop.job("distil"), tmp_path / "stop"
    perform_missing(shop.plan.graph, shop.store, job.parent_keys())
    first, second = _images_of(job, shop), _images_of(job, shop)
    context = JobContext.alone(job, shop.store)
    context.stop_file, context.report = stop, lambda done, text: stop.touch() if done > 0.3 else None
    with pytest.raises(Yielded, match="asked to stop"):
        perform(context)
    resumed = _images_of(job, shop)
    noise, far = distance(second, first), distance(resumed, first)
    note(f"{method}: the same stage twice, and resumed", error=far, note=f"twice: {noise:.1e}")
    assert noise == 0.0 or method in ("dsa", "idc")
    assert far <= 10 * noise


def _images_of(job: Job, shop: Workshop) -> torch.Tensor:
    """The images that a stage on the card makes, which are not kept."""
    on(CUDA, job, shop)
    images = shop.synthetic(job).images
    shop.store.remove(job.key)
    return images


@pytest.mark.parametrize("norm", ["batch", "instance"])
@pytest.mark.parametrize("architecture", ["convnet", "resnet18", "idc_resnet18"])
def test_networks_of_both_layouts_train_as_on_the_cpu(architecture: Any, norm: Any) -> None:
    """Batch norm keeps channels last on a card, instance norm PyTorch's own layout."""
    spec = NetworkSpec(architecture=architecture, width=4, depth=2 if architecture == "convnet" else None, norm=norm)
    far = distance(trained_weights(spec, CUDA, epochs=1), trained_weights(spec, CPU, epochs=1))
    note(f"{architecture}, {norm} norm: distance to the CPU after 3 steps", error=far)
    assert far < NEAR


@pytest.mark.parametrize("engine", ENGINES)
def test_the_gradients_of_matching_are_those_of_the_cpu(engine: Any) -> None:
    here, there = matched(CPU, engine), matched(CUDA, engine)
    far = max(distance(a.cpu(), b) for a, b in ((there.images, here.images), (there.step_size, here.step_size)))
    note(f"matching, {engine}: distance to the CPU", error=far)
    assert far < 1e-3


def test_data_sets_are_bytes_on_the_card(tmp_path: Path) -> None:
    shop = Workshop.open(tmp_path, {"method": "random", **ONE}, networks=1)
    job = shop.job("dataset")
    on(CPU, job, shop)
    here, there = (dataset.load(shop.store, job.key, device).train for device in (CPU, CUDA))
    assert isinstance(here.images, StoredImages) and isinstance(there.images, StoredImages)
    assert there.images.device.type == "cuda" and there.images.pixels.dtype == torch.uint8
    index = torch.tensor([3, 1, 7])
    torch.testing.assert_close(there.images[index.to(CUDA)].cpu(), here.images[index], rtol=1e-6, atol=1e-6)


def test_k_means_on_the_card_is_as_good_as_scikit_learns() -> None:
    draws = torch.Generator().manual_seed(0)
    features = (
        torch.randn(900, 256, generator=draws) + 3 * torch.randn(20, 256, generator=draws)[torch.arange(900) % 20]
    )
    _, expected = _CLUSTERINGS["sklearn"](features, 32, 1)
    _, distances = _CLUSTERINGS["torch"](features.to(CUDA), 32, 1)
    ratio = float(distances.sum()) / float(expected.sum())
    note("k-means on the card: objective by scikit-learn's", ratio=ratio)
    assert ratio < 1.01
