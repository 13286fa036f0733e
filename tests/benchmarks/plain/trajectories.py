"""Trajectories the ordinary way: lists of tensors in a file of `torch.save`, loaded whole."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import torch
from torch import Tensor

Experts = list[list[list[Tensor]]]
"""For each expert its snapshots, each a list of parameters."""


def write(path: Path, experts: Experts) -> None:
    """Save experts."""
    torch.save(experts, path)


def load(path: Path) -> Experts:
    """Load all of them."""
    return cast(Experts, torch.load(path))


def flat(snapshot: list[Tensor]) -> Tensor:
    """A snapshot as one vector."""
    return torch.cat([parameter.reshape(-1) for parameter in snapshot])
