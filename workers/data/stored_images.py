"""Images that stay bytes and are normalised whenever some of them are looked at.

As bytes a data set takes a quarter of the memory, on a card as in the host. Normalisation by channel works pixel by
pixel, so what a batch looks like does not depend on what else is in it. Whitening is a matrix product, whose rounding
may: whitened images are kept as floats.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from workers.data.preprocess import Affine


@dataclass(frozen=True, eq=False)
class StoredImages:
    """The normalised images of some bytes; what of a tensor's interface training and tests need.

    Attributes:
        pixels: uint8 [n, C, H, W].
        transform: on the same device.
    """

    pixels: Tensor
    transform: Affine

    @property
    def shape(self) -> torch.Size:
        """Images, channels, height and width."""
        return self.pixels.shape

    @property
    def device(self) -> torch.device:
        """Where they are."""
        return self.pixels.device

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: Tensor | slice | int) -> Tensor:
        """Images float32 [m, C, H, W], or one of them, normalised."""
        return self.transform.forward(self.pixels[index])

    def __iter__(self) -> Iterator[Tensor]:
        return (self.transform.forward(image) for image in self.pixels)


Images = Tensor | StoredImages
"""Normalised images [n, C, H, W], as floats or kept as bytes."""


def batches(images: Images, size: int) -> Iterator[Tensor]:
    """All images, normalised, at most `size` at a time."""
    if isinstance(images, StoredImages):
        return (images.transform.forward(part) for part in torch.split(images.pixels, size))
    return iter(torch.split(images, size))


def subset(images: Images, index: Tensor) -> Images:
    """The images at an index int64 [m] or bool [n], kept as they were."""
    if isinstance(images, StoredImages):
        return StoredImages(images.pixels[index], images.transform)
    return images[index]
