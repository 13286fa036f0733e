"""How a card computes in these tests: float32 throughout, by algorithms that give the same bits again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.benchmarks.measure import Row, record
from workers.data import dataset

CUDA = torch.device("cuda")


@pytest.fixture(autouse=True)
def exact_card(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No TF32, whose eleven bits would hide an error, and no algorithm that adds in another order each time."""
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    monkeypatch.setattr("workers.execute.with_tf32", lambda device, tf32: nullcontext())  # nor when a job asks for it
    yield
    torch.set_float32_matmul_precision(precision)
    dataset._load.cache_clear()


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An `.npz` file of 3,000 training and 500 test images of CIFAR's size in ten classes, smooth and random."""
    draws = np.random.default_rng(0)
    arrays = {}
    for split, count in (("train", 3000), ("test", 500)):
        coarse = draws.integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
        arrays[f"{split}_images"] = coarse.repeat(4, axis=1).repeat(4, axis=2)
        arrays[f"{split}_labels"] = np.arange(count) % 10
    file = tmp_path_factory.mktemp("pictures") / "pictures.npz"
    np.savez_compressed(file, **arrays)
    return file


def note(name: str, **figures: float | str | None) -> None:
    """Keep a figure of a test for the table of `make gpu`."""
    record(Row(part="gpu tests", name=name, **{"cpu_seconds": None, **figures}))  # type: ignore[arg-type]
    print(name, figures)
