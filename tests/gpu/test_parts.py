"""Resuming, networks, gradients, data sets and clusters on a card, beside the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from jobs.errors import Yielded
from jobs.graph import Job
from jobs.specs import NetworkSpec
from tests.gpu.conftest import CUDA, note
from tests.gpu.test_jobs import NEAR, distance, on
from tests.workers.short_jobs import CARD_ENGINES, GRADIENTS, ONE, matched, trained_weights
from tests.workers.workshop import CPU, Workshop
from workers.data import dataset
from workers.data.stored_images import StoredImages
from workers.execute import perform, perform_missing
from workers.methods.matching.kmeans import _CLUSTERINGS
from workers.runtime.context import JobContext

pytestmark = pytest.mark.gpu

UNORDERED = 1e-5
"""Relative distance of images after some steps whose sums had no fixed order; 1e-7 was measured."""


@pytest.mark.parametrize("method", ["mtt", "dm", "dsa", "idc"])
def test_a_stage_goes_on_from_its_checkpoint_to_the_same_bits(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit, but where images are scaled, rotated or tiled: as nearly as float32 adds in another order.

    CUDA adds the gradients of bilinear sampling (`grid_sample`, `interpolate`) in no fixed order and has no other way
    to do it, so the same stage twice may differ as well, and does in some runs and not in others.
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
    assert max(noise, far) <= (UNORDERED if method in ("dsa", "idc") else 0.0)


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


@pytest.mark.parametrize("engine", CARD_ENGINES)
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
    assert torch.equal(there.images[index.to(CUDA)].cpu(), here.images[index])


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
