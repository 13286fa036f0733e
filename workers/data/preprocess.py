"""From stored bytes to what a network sees, and back: normalisation by channel, or ZCA whitening.

A transform maps uint8 images [N, C, H, W] to float32 by `forward` and back to pixels in [0, 1] by `inverse`,
which does not clamp: distilled images leave [0, 1], and only a picture of them should be cut. It is fitted to
training images alone, applied alike to every split, and kept with the dataset, because images distilled in
one space mean nothing in another (ZCA images tested on normalised ones score at chance, see
mtt-distillation issue 11).

Both fits are exact. Bytes are small integers, so their sums and sums of products are computed without
rounding in float64 (below 2^53 for up to some 370,000 images); the result does not depend on the chunks or on
the number of threads until the final eigendecomposition.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jobs.datasets import NORMALISATIONS

ZCA_EPS = 0.1
"""What MTT adds to the eigenvalues; far above the 1e-6 usual elsewhere."""

_CHUNK = 1024


@dataclass(frozen=True, eq=False)
class Affine:
    """Normalisation by channel; `mean` and `std` are float32 [C] of pixels in [0, 1]."""

    mean: Tensor
    std: Tensor

    def forward(self, images: Tensor) -> Tensor:
        """(x / 255 - mean) / std of uint8 [N, C, H, W], as float32."""
        return self.normalise(_unit(images))

    def to(self, device: torch.device) -> Affine:
        """The same on a device."""
        return Affine(self.mean.to(device), self.std.to(device))

    def normalise(self, pixels: Tensor) -> Tensor:
        """(x - mean) / std of float32 pixels in [0, 1]; differentiable."""
        return (pixels - self._shaped(self.mean, pixels)) / self._shaped(self.std, pixels)

    def inverse(self, images: Tensor) -> Tensor:
        """The float32 pixels of normalised images, in [0, 1] but not clamped to it."""
        return images * self._shaped(self.std, images) + self._shaped(self.mean, images)

    @staticmethod
    def _shaped(values: Tensor, images: Tensor) -> Tensor:
        return values.to(images.device)[:, None, None]


@dataclass(frozen=True, eq=False)
class Zca:
    """Whitening of whole images, all channels jointly; D = C * H * W numbers each, in that order.

    `mean` is float32 [D], `whiten` and `unwhiten` float32 [D, D], symmetric and each other's inverse.
    """

    mean: Tensor
    whiten: Tensor
    unwhiten: Tensor
    shape: tuple[int, int, int]

    def forward(self, images: Tensor) -> Tensor:
        """(x / 255 - mean) @ whiten of uint8 [N, C, H, W], as float32."""
        return self.normalise(_unit(images))

    def normalise(self, pixels: Tensor) -> Tensor:
        """(x - mean) @ whiten of float32 pixels in [0, 1]; differentiable."""
        device = pixels.device
        return ((pixels.flatten(1) - self.mean.to(device)) @ self.whiten.to(device)).view(-1, *self.shape)

    def inverse(self, images: Tensor) -> Tensor:
        """The float32 pixels of whitened images, in [0, 1] but not clamped to it."""
        device = images.device
        return (images.flatten(1) @ self.unwhiten.to(device) + self.mean.to(device)).view(-1, *self.shape)


def _unit(images: Tensor) -> Tensor:
    """Divided by a tensor: by a number CUDA multiplies with the rounded reciprocal, to another last bit than a CPU."""
    return images / torch.full((), 255.0, device=images.device)


def fit_affine(images: Tensor) -> Affine:
    """Mean and population deviation of each channel over uint8 images [N, C, H, W].

    Raises:
        ValueError: a channel has the same value everywhere and cannot be normalised.
    """
    counts = torch.stack([channel.flatten().bincount(minlength=256) for channel in images.unbind(1)]).double()
    values = torch.arange(256, dtype=torch.float64, device=images.device) / 255
    pixels = counts.sum(1)  # [C]
    mean = counts @ values / pixels
    variance = (counts * (values - mean[:, None]) ** 2).sum(1) / pixels
    if (variance == 0).any():
        raise ValueError("a channel is constant over all training images; it cannot be normalised")
    return Affine(mean.float(), variance.sqrt().float())


def fit_zca(images: Tensor, eps: float = ZCA_EPS) -> Zca:
    """Whitening fitted to uint8 images [N, C, H, W], as MTT does on CIFAR.

    With the unbiased covariance of the flattened [0, 1] images U diag(S) U^T, the whitening matrix is
    U diag((S + eps)^-1/2) U^T. Takes 3 * D^2 float64 of memory; meant for D up to CIFAR's 3072.

    Raises:
        ValueError: fewer than two images, or eps not above 0.
    """
    if len(images) < 2 or eps <= 0:
        raise ValueError(f"ZCA needs two images and eps > 0; got {len(images)} images and eps = {eps}")
    mean, covariance = _moments(images.flatten(1))
    eigenvalues, vectors = torch.linalg.eigh(covariance)
    scale = (eigenvalues.clamp_min(0) + eps).sqrt()
    channels, height, width = images.shape[1:]
    return Zca(
        mean=mean.float(),
        whiten=((vectors / scale) @ vectors.T).float(),
        unwhiten=((vectors * scale) @ vectors.T).float(),
        shape=(channels, height, width),
    )


def _moments(flat: Tensor) -> tuple[Tensor, Tensor]:
    """Mean [D] and unbiased covariance [D, D] of bytes [N, D] divided by 255, in float64.

    With G the sum of x x^T and s the sum of x, the covariance is (N G - s s^T) / (N (N - 1)): a difference of
    two integers, so nothing cancels.
    """
    count, width = flat.shape
    products = torch.zeros(width, width, dtype=torch.float64, device=flat.device)
    for start in range(0, count, _CHUNK):
        rows = flat[start : start + _CHUNK].double()
        products.addmm_(rows.T, rows)
    total = flat.sum(0, dtype=torch.int64).double()
    covariance = (count * products - total.outer(total)) / (count * (count - 1) * 255**2)
    return total / (count * 255), covariance


def make(kind: str, images: Tensor) -> Affine | Zca:
    """The transform of a name: measured, unit (pixels in [0, 1]), zca, or one of `NORMALISATIONS`.

    Args:
        kind: the name.
        images: training images, uint8 [N, C, H, W].

    Raises:
        ValueError: no such name, or constants for another number of channels.
    """
    channels = images.shape[1]
    if kind == "measured":
        return fit_affine(images)
    if kind == "zca":
        return fit_zca(images)
    if kind == "unit":
        return Affine(torch.zeros(channels), torch.ones(channels))
    if kind not in NORMALISATIONS:
        raise ValueError(f"no normalisation {kind!r}; there are measured, unit, zca, {', '.join(NORMALISATIONS)}")
    mean, std = NORMALISATIONS[kind]
    if len(mean) != channels:
        raise ValueError(f"normalisation {kind!r} is for {len(mean)} channel(s); the images have {channels}")
    return Affine(torch.tensor(mean), torch.tensor(std))


def arrays(transform: Affine | Zca) -> dict[str, NDArray[Any]]:
    """The numbers of a transform, for storing; `from_arrays` turns them back."""
    if isinstance(transform, Affine):
        return {"mean": transform.mean.cpu().numpy(), "std": transform.std.cpu().numpy()}
    tensors = {"mean": transform.mean, "whiten": transform.whiten, "unwhiten": transform.unwhiten}
    return {name: tensor.cpu().numpy() for name, tensor in tensors.items()} | {"shape": np.array(transform.shape)}


def from_arrays(kind: str, stored: Mapping[str, NDArray[Any]]) -> Affine | Zca:
    """The transform whose `arrays` were stored, of kind affine or zca; the numbers are copied.

    Raises:
        ValueError: another kind.
    """
    tensors = {name: torch.tensor(stored[name]) for name in stored if name != "shape"}
    if kind == "affine":
        return Affine(**tensors)
    if kind != "zca":
        raise ValueError(f"no kind of transform {kind!r}; there are affine and zca")
    channels, height, width = map(int, stored["shape"])
    return Zca(**tensors, shape=(channels, height, width))
