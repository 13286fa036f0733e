"""A file of a hundred experts of width 32: written by plain code and by the project, and two of its snapshots read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tests.benchmarks.cases.case import generator, network
from tests.benchmarks.plain import trajectories as plain
from workers.store import trajectories
from workers.store.trajectories import TRAJECTORIES, Trajectories

EPOCHS, SNAPSHOTS = 20, (3, 5)
BUFFER = "buffer.pt"


def write(folder: Path, experts: int, epochs: int = EPOCHS) -> None:
    """Write the same random snapshots in both forms."""
    folder.mkdir(exist_ok=True)
    shapes = [parameter.shape for parameter in network().parameters()]
    sizes, source = [shape.numel() for shape in shapes], generator(0)
    flat = [torch.randn(epochs + 1, sum(sizes), generator=source) for _ in range(experts)]
    plain.write(
        folder / BUFFER,
        [
            [[piece.view(shape).clone() for piece, shape in zip(row.split(sizes), shapes, strict=True)] for row in rows]
            for rows in flat
        ],
    )
    right = [np.ones((epochs, 8), bool)] * experts
    trajectories.write(folder, [rows.numpy() for rows in flat], right)


def read_plain(folder: str) -> tuple[object, list[Tensor]]:
    """All that was loaded, and two snapshots of the last expert."""
    experts = plain.load(Path(folder) / BUFFER)
    return experts, [plain.flat(experts[-1][epoch]) for epoch in SNAPSHOTS]


def read_ours(folder: str) -> tuple[object, list[Tensor]]:
    """The open file, and two snapshots of the last expert."""
    experts = Trajectories([Path(folder) / TRAJECTORIES])
    return experts, [experts.parameters(len(experts) - 1, epoch) for epoch in SNAPSHOTS]
