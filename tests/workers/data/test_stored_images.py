"""Images that stay bytes: the floats that are seen of them, whatever is asked for at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from workers.data import dataset, preprocess
from workers.data.preprocess import Affine
from workers.data.stored_images import StoredImages, batches, subset
from workers.store.store import Store

TRANSFORM = Affine(torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.3, 0.1]))


def _pixels(count: int = 7, side: int = 5) -> torch.Tensor:
    drawn = torch.randint(0, 256, (count, 3, side, side), generator=torch.Generator().manual_seed(1))
    return drawn.to(torch.uint8)


@pytest.mark.parametrize("index", [torch.tensor([5, 0, 5]), torch.arange(7) > 3, slice(2, 4), 6])
def test_what_is_asked_for_has_the_bits_of_all_images_normalised_at_once(index: Any) -> None:
    stored, whole = StoredImages(_pixels(), TRANSFORM), TRANSFORM.forward(_pixels())
    assert torch.equal(stored[index], whole[index]) and stored[index].dtype == torch.float32
    assert (len(stored), stored.shape, stored.device) == (7, whole.shape, whole.device)


def test_batches_and_images_come_in_order() -> None:
    stored, whole = StoredImages(_pixels(), TRANSFORM), TRANSFORM.forward(_pixels())
    assert [len(part) for part in batches(stored, 3)] == [3, 3, 1]
    assert torch.equal(torch.cat(list(batches(stored, 3))), whole) and torch.equal(torch.stack(list(stored)), whole)
    assert torch.equal(torch.cat(list(batches(whole, 3))), whole)


def test_a_subset_stays_bytes_and_floats_stay_floats() -> None:
    stored, whole, some = StoredImages(_pixels(), TRANSFORM), TRANSFORM.forward(_pixels()), torch.tensor([3, 1])
    part = subset(stored, some)
    assert isinstance(part, StoredImages) and part.pixels.dtype == torch.uint8
    assert torch.equal(part[:], whole[some]) and torch.equal(subset(whole, some), whole[some])


@pytest.mark.parametrize("kind", ["measured", "zca"])
def test_a_loaded_data_set_is_bytes_unless_it_is_whitened(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = _pixels(40)
    transform = preprocess.make(kind, pixels)
    for name in dataset.SPLITS:
        dataset.write_split(tmp_path / f"{name}.arrow", pixels.numpy(), np.arange(40) % 2, ("a", "b"))
    word = "zca" if kind == "zca" else "affine"
    np.savez(tmp_path / dataset.TRANSFORM, kind=np.array(word), **preprocess.arrays(transform))  # type: ignore[arg-type]
    monkeypatch.setattr(Store, "path", lambda store, key, name: tmp_path / name)
    images = dataset._load(tmp_path, f"key-{kind}", torch.device("cpu")).train.images
    assert isinstance(images, StoredImages) == (kind == "measured")
    assert torch.equal(images[:], transform.forward(pixels))


def test_reading_a_split_takes_hardly_more_memory_than_its_bytes(tmp_path: Path) -> None:
    """Arrow's own pool is asked: nothing is copied out of what it reads, and nothing is mapped."""
    pa = pytest.importorskip("pyarrow")
    pixels = np.zeros((3000, 3, 32, 32), np.uint8)
    dataset.write_split(tmp_path / "train.arrow", pixels, np.zeros(3000, np.int64), ("a",))
    before = pa.total_allocated_bytes()
    images, labels, _ = dataset.read_split(tmp_path / "train.arrow")
    assert pixels.nbytes <= pa.total_allocated_bytes() - before <= 1.1 * pixels.nbytes
    del images, labels
    assert pa.total_allocated_bytes() - before < 0.1 * pixels.nbytes
