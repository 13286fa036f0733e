"""A small stand-in for CIFAR-10 in the authors' layout: ten noisy patterns that a network tells apart."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np

FOLDER = "cifar-10-batches-py"


def write_cifar10(root: Path, train_per_class: int, test_per_class: int) -> Path:
    """Write the folder `cifar-10-batches-py`; `train_per_class` is a multiple of 5, the batches being five."""
    random = np.random.default_rng(0)
    patterns = random.integers(60, 196, (10, 3072))
    folder = root / FOLDER
    folder.mkdir(parents=True)
    sizes = {f"data_batch_{number}": train_per_class // 5 for number in range(1, 6)} | {"test_batch": test_per_class}
    for name, per_class in sizes.items():
        labels = np.arange(10 * per_class) % 10
        pixels = patterns[labels] + random.normal(0, 60, (len(labels), 3072))
        content = {"data": pixels.clip(0, 255).astype(np.uint8), "labels": labels.tolist()}
        (folder / name).write_bytes(pickle.dumps(content))
    names = {"label_names": [f"class {number}" for number in range(10)]}
    (folder / "batches.meta").write_bytes(pickle.dumps(names))
    return folder
