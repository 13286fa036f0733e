"""Multi-formation: one stored image holds f*f training images (IDC, Kim et al., ICML 2022; facts 3.5).

A stored image is cut into f by f equal tiles, and every tile is upsampled bilinearly to the full size, so n stored
images of a class are worth f*f*n in training at the storage of n. Matching goes through `decode`, whose gradient
reaches the stored pixels; evaluation trains on the decoded images.

Our departure: the sides must be multiples of f, where IDC pads with grey. All of the paper's images are.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def decode(images: Tensor, factor: int) -> Tensor:
    """The training images [n * f * f, C, H, W] in stored images [n, C, H, W], tile after tile, row by row.

    Raises:
        ValueError: a side is no multiple of the factor.
    """
    if factor == 1:
        return images
    n, channels, height, width = images.shape
    _require_multiple(height, width, factor)
    tiles = images.reshape(n, channels, factor, height // factor, factor, width // factor)
    tiles = tiles.permute(0, 2, 4, 1, 3, 5).reshape(-1, channels, height // factor, width // factor)
    return F.interpolate(tiles, size=(height, width), mode="bilinear", align_corners=False)


def compose(images: Tensor, factor: int) -> Tensor:
    """Stored images [n, C, H, W] made of images [n * f * f, C, H, W], each shrunk (nearest pixel) to a tile.

    Raises:
        ValueError: a side is no multiple of the factor.
    """
    if factor == 1:
        return images
    many, channels, height, width = images.shape
    _require_multiple(height, width, factor)
    tiles = F.interpolate(images, size=(height // factor, width // factor), mode="nearest")
    tiles = tiles.reshape(many // factor**2, factor, factor, channels, height // factor, width // factor)
    return tiles.permute(0, 3, 1, 4, 2, 5).reshape(-1, channels, height, width).contiguous()


def _require_multiple(height: int, width: int, factor: int) -> None:
    if height % factor or width % factor:
        raise ValueError(f"images of {height}x{width} pixels cannot be cut into {factor} by {factor} tiles")
