"""Moving many small tensors of the CPU to a device in one copy for each dtype.

Random numbers are drawn on the CPU, so that they are the same for every device. Moved one by one they would stop the
card once each.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def moved_together(tensors: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """The CPU tensors on the device, in their order; on the CPU the tensors themselves.

    Args:
        tensors: of any shapes and dtypes.
        device: where they go; a card is not waited for.
    """
    if device.type == "cpu":
        return list(tensors)
    pieces: dict[torch.dtype, list[Tensor]] = {}
    for tensor in tensors:
        pieces.setdefault(tensor.dtype, []).append(tensor)
    split = {}
    for dtype, group in pieces.items():
        packed = torch.cat([tensor.reshape(-1) for tensor in group]).to(device, non_blocking=True)
        split[dtype] = iter(torch.split(packed, [math.prod(tensor.shape) for tensor in group]))
    return [next(split[tensor.dtype]).view(tensor.shape) for tensor in tensors]
