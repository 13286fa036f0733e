"""Differentiable augmentation: the DSA operations, how they are combined, and CutMix.

Why it exists: matching needs augmentation that gradients pass through (twice, where the matching loss is
itself made of gradients), whose random numbers can be shared between a real and a synthetic batch, and that
costs little beside a small network. So drawing and applying are two steps: a `Draw` holds every random
number of one call, and the operations are pure functions of images and numbers. Nothing loops over images.

What it decides: the constants below, common to every method compared here; a generator is always given, on
the CPU, so that the numbers are the same on every device; rotation and scaling take `align_corners` from
the `Augmentation`, because MTT means `True` and DC, CAFE, IDC and DREAM mean `False`.

What it leaves out: which strategy a method uses (recipes) and IDC's multi-formation. Operations act on
whatever space the images are in, normalised as a rule: brightness moves by half a normalised unit.

Sources: DSA, Zhao & Bilen, ICML 2021; the combination rule "idc" of Kim et al., ICML 2022; CutMix, Yun et
al., ICCV 2019.

In every operation images are [n, C, H, W], and its arguments have one row per image, [n, ..], or one for all, [1, ..].
Whatever can be worked out from the numbers alone is worked out on the CPU when they are drawn: on a card each of those
small steps would cost as much as one over all images.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from workers.runtime.transfer import moved_together

BRIGHTNESS = 1.0  # width of the shift's range
SATURATION = 2.0  # largest factor about the pixel's mean
CONTRAST = 0.5  # smallest factor about the image's mean, and width of its range is 1
CROP = 0.125  # largest shift as a share of the side
CUTOUT = 0.5  # the square's side as a share of the image's
FLIP = 0.5  # probability
SCALE = 1.2  # largest factor; the smallest is its inverse
ROTATE = 15.0  # degrees to either side

OPERATIONS = ("color", "crop", "cutout", "flip", "scale", "rotate")


def brightness(x: Tensor, shift: Tensor) -> Tensor:
    """Result: x + shift."""
    return x + _rows(shift)


def saturation(x: Tensor, factor: Tensor) -> Tensor:
    """Result: (x - m) * factor + m, with m the mean over the channels at each pixel."""
    mean = x.mean(1, keepdim=True)
    return (x - mean) * _rows(factor) + mean


def contrast(x: Tensor, factor: Tensor) -> Tensor:
    """Result: (x - m) * factor + m, with m the mean over the whole image."""
    mean = x.mean((1, 2, 3), keepdim=True)
    return (x - mean) * _rows(factor) + mean


def crop(x: Tensor, dx: Tensor, dy: Tensor) -> Tensor:
    """out[r, c] = x[r + dy, c + dx], zero where that lies outside; whole pixels, int64, at most `CROP` of the side."""
    height, width = x.shape[2:]
    down, across = _share(height, CROP), _share(width, CROP)
    framed = F.pad(x, (across, across, down, down))
    tall, wide = framed.shape[2:]
    place = torch.arange(tall * wide, device=x.device).view(tall, wide)[down : down + height, across : across + width]
    source = place + torch.add(dx, dy, alpha=wide).view(-1, 1, 1)
    return framed.flatten(2).gather(2, source.flatten(1)[:, None].expand(len(x), x.shape[1], -1)).view_as(x)


def cutout(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Zero where both the row, bool [.., H], and the column, bool [.., W], are in the square of `square_at`."""
    return x.masked_fill(rows[:, None, :, None] & columns[:, None, None, :], 0.0)


def flip(x: Tensor, mirrored: Tensor) -> Tensor:
    """Left and right change sides where `mirrored`, bool, says so."""
    return torch.where(_rows(mirrored), x.flip(3), x)


def warp(x: Tensor, theta: Tensor, *, align_corners: bool) -> Tensor:
    """out(v) = x(theta v) for v = (p, q, 1) and theta [.., 2, 3], bilinear, zero outside.

    p runs right and q down from the centre, both in units of half the side.
    """
    grid = F.affine_grid(theta, [len(theta), *x.shape[1:]], align_corners=align_corners)
    return F.grid_sample(x, grid.expand(len(x), -1, -1, -1), align_corners=align_corners)


def square_at(cx: Tensor, cy: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Which rows, bool [n, H], and columns, bool [n, W], the square about column cx and row cy has, int64 [n].

    Its side is s = int(0.5 * side + 0.5). It has rows cy - s//2 up to, not including, cy - s//2 + s, and columns
    likewise; what lies beyond the border is lost, so that less than a quarter of the image may go.
    """
    return _strip(cy, size[0]), _strip(cx, size[1])


def _strip(centre: Tensor, side: int) -> Tensor:
    length = _share(side, CUTOUT)
    position = torch.arange(length // 2, side + length // 2) - centre.view(-1, 1)
    return (position >= 0) & (position < length)


def scaling(sx: Tensor, sy: Tensor) -> Tensor:
    """The theta [n, 2, 3] of (p, q) -> (sx * p, sy * q), factors [n]; a factor above 1 shrinks."""
    zero = torch.zeros_like(sx)
    return torch.stack([sx, zero, zero, zero, sy, zero], 1).view(-1, 2, 3)


def rotation(angle: Tensor) -> Tensor:
    """The theta [n, 2, 3] of (p, q) -> (p cos a - q sin a, p sin a + q cos a), angles [n] in radians."""
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    return torch.stack([cos, -sin, zero, sin, cos, zero], 1).view(-1, 2, 3)


def _rows(numbers: Tensor) -> Tensor:
    return numbers.view(-1, 1, 1, 1)


def _share(side: int, ratio: float) -> int:
    return int(side * ratio + 0.5)


@dataclass(frozen=True, eq=False)
class Draw:
    """Every random number of one augmentation call; can be applied to any number of batches.

    Attributes:
        numbers: for each operation, in the order of application, its arguments after the images: tensors
            of one row per image, or of a single row that all images share.
    """

    numbers: dict[str, tuple[Tensor, ...]]

    @property
    def names(self) -> tuple[str, ...]:
        """The operations in the order of application."""
        return tuple(self.numbers)


def draws_on(device: torch.device, draws: Sequence[Draw | None]) -> list[Draw | None]:
    """The same draws with their numbers on the device, moved together."""
    numbers = [number for draw in draws if draw is not None for group in draw.numbers.values() for number in group]
    moved = iter(moved_together(numbers, device))
    return [
        None if draw is None else Draw({name: tuple(islice(moved, len(group))) for name, group in draw.numbers.items()})
        for draw in draws
    ]


@dataclass(frozen=True)
class Augmentation:
    """A set of operations and the rule by which a call combines them.

    Attributes:
        strategy: names out of `OPERATIONS`; "color" is brightness, saturation and contrast in this order.
            Empty: the identity.
        mode: "one" (DC, DSA, DM, MTT, CAFE): each call draws one name for the whole batch. "idc" (IDC,
            DREAM): flip and color always, then one of crop, scale and rotate, then cutout always, each only
            if listed.
        align_corners: as in `torch.nn.functional.grid_sample`.
    """

    strategy: tuple[str, ...]
    mode: Literal["one", "idc"] = "one"
    align_corners: bool = False

    def __post_init__(self) -> None:
        """Refuse names that are not operations."""
        unknown = [name for name in self.strategy if name not in OPERATIONS]
        if unknown or len(set(self.strategy)) < len(self.strategy):
            fix = f"give each of {', '.join(OPERATIONS)} at most once, or none"
            raise ValueError(f"Augmentation: strategy is {'_'.join(self.strategy)!r}: {fix}")
        if self.mode not in ("one", "idc"):
            raise ValueError(f"Augmentation: mode is {self.mode!r}: give 'one' or 'idc'")

    @classmethod
    def parse(cls, strategy: str, *, mode: Literal["one", "idc"] = "one", align_corners: bool = False) -> Augmentation:
        """Read the literature's spelling, names joined by underscores, or "none".

        Raises:
            ValueError: for an unknown or repeated name.
        """
        names = () if strategy == "none" else tuple(strategy.split("_"))
        return cls(names, mode, align_corners)

    def draw(self, n: int, size: tuple[int, int], generator: torch.Generator, *, siamese: bool) -> Draw:
        """Draw the operations, then their numbers, for n images of `size` (height, width).

        Args:
            n: number of images; does not matter when `siamese`.
            size: height and width of the images in pixels.
            generator: a CPU generator; how far it moves depends on the operations drawn.
            siamese: one row of numbers for all images, of this batch and of any other.
        """
        rows = 1 if siamese else n
        return Draw({name: _numbers(name, rows, size, generator) for name in self._names(generator)})

    def _names(self, generator: torch.Generator) -> list[str]:
        if self.mode == "one":
            return _one_of(self.strategy, generator)
        listed = self.strategy
        always = [name for name in ("flip", "color") if name in listed]
        geometric = tuple(name for name in listed if name in ("crop", "scale", "rotate"))
        return [*always, *_one_of(geometric, generator), *(["cutout"] if "cutout" in listed else [])]

    def apply(self, images: Tensor, draw: Draw) -> Tensor:
        """Augment images [n, C, H, W] with the numbers of `draw`; differentiable to second order.

        Raises:
            ValueError: if the draw was made for another number of images.
        """
        for name, numbers in draw.numbers.items():
            made, n = len(numbers[0]), len(images)
            if made not in (1, n):
                raise ValueError(f"Augmentation: draw has {made} rows for {n} images: draw again, or siamese")
            images = self._operate(images, name, [_beside(images, number) for number in numbers])
        return images

    def _operate(self, x: Tensor, name: str, numbers: list[Tensor]) -> Tensor:
        match name:
            case "color":
                first, second, third = numbers
                return contrast(saturation(brightness(x, first), second), third)
            case "crop":
                return crop(x, *numbers)
            case "cutout":
                return cutout(x, *numbers)
            case "flip":
                return flip(x, *numbers)
            case _:
                return warp(x, *numbers, align_corners=self.align_corners)

    def __call__(self, images: Tensor, generator: torch.Generator, *, siamese: bool = False) -> Tensor:
        """Draw for these images [n, C, H, W] and apply at once."""
        height, width = images.shape[2:]
        return self.apply(images, self.draw(len(images), (height, width), generator, siamese=siamese))


def _one_of(names: tuple[str, ...], generator: torch.Generator) -> list[str]:
    return [names[int(torch.randint(len(names), (), generator=generator))]] if names else []


def _numbers(name: str, rows: int, size: tuple[int, int], generator: torch.Generator) -> tuple[Tensor, ...]:
    """The arguments of operation `name` for `rows` images."""
    height, width = size

    def uniform(low: float = 0.0, high: float = 1.0) -> Tensor:
        return torch.rand(rows, generator=generator, dtype=torch.float32) * (high - low) + low

    def whole(low: int, high: int) -> Tensor:
        return torch.randint(low, high + 1, (rows,), generator=generator)

    match name:
        case "color":
            return (uniform() - 0.5) * BRIGHTNESS, uniform() * SATURATION, uniform() + CONTRAST
        case "crop":
            across, down = _share(width, CROP), _share(height, CROP)
            return whole(-across, across), whole(-down, down)
        case "cutout":  # a square of even side has its centre between pixels: one place more
            cx, cy = (whole(0, side - _share(side, CUTOUT) % 2) for side in (width, height))
            return square_at(cx, cy, size)
        case "flip":
            return (uniform() < FLIP,)
        case "scale":
            return (scaling(uniform(1 / SCALE, SCALE), uniform(1 / SCALE, SCALE)),)
        case _:
            return (rotation(uniform(-math.radians(ROTATE), math.radians(ROTATE))),)


def _beside(images: Tensor, number: Tensor) -> Tensor:
    """Move to the images' device and, unless whole, to their dtype."""
    dtype = images.dtype if number.is_floating_point() else number.dtype
    return number.to(images.device, dtype, non_blocking=True)


@dataclass(frozen=True, eq=False)
class Mix:
    """The random numbers of one CutMix call.

    Attributes:
        partner: int64 [n], whose pixels each image gets.
        box: first and last + 1 row, then column, of the pixels.
    """

    partner: Tensor
    box: tuple[int, int, int, int]


def draw_cutmix(n: int, size: tuple[int, int], probability: float, generator: torch.Generator) -> Mix | None:
    """Draw a CutMix for n images of `size` (height, width), or with the rest of the probability none.

    Partners come from a random permutation of the batch. With v uniform (Beta(1, 1)) the box has sides
    2 * (int(side * sqrt(1 - v)) // 2) about a uniformly drawn pixel and is clipped at the border; it is the
    same for all images.

    Args:
        n: images of the batch.
        size: their height and width in pixels.
        probability: of mixing this batch at all.
        generator: a CPU generator.
    """
    if float(torch.rand((), generator=generator)) >= probability:
        return None
    box = _box(*size, generator)
    return Mix(torch.randperm(n, generator=generator), box)


def cutmix(images: Tensor, labels: Tensor, mix: Mix) -> tuple[Tensor, Tensor, float]:
    """Paste the box of each image's partner into it. No gradient is meant to pass.

    Args:
        images: [n, C, H, W]; not changed.
        labels: int64 [n], or soft ones [n, classes].
        mix: partners, on the images' device, and box.

    Returns:
        images, the partners' labels, and the weight w of the images' own labels in the loss
        w * CE(labels) + (1 - w) * CE(partners): the share of the image outside the clipped box.
    """
    top, bottom, left, right = mix.box
    mixed = images.clone()
    mixed[:, :, top:bottom, left:right] = images[mix.partner, :, top:bottom, left:right]
    weight = 1 - (bottom - top) * (right - left) / (images.shape[2] * images.shape[3])
    return mixed, labels[mix.partner], weight


def _box(height: int, width: int, generator: torch.Generator) -> tuple[int, int, int, int]:
    ratio = math.sqrt(1 - float(torch.rand((), generator=generator)))
    edges = []
    for side in (height, width):
        centre, half = int(torch.randint(side, (), generator=generator)), int(side * ratio) // 2
        edges += [max(centre - half, 0), min(centre + half, side)]
    top, bottom, left, right = edges
    return top, bottom, left, right
