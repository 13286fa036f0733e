"""What methods have in common that match real and synthetic images class by class.

A batch of a class's real images, one augmentation for both sides, and the end of a stage whose numbers leave the finite
ones.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from jobs.errors import BadInput, Diverged
from workers.data.stored_images import Images
from workers.methods.base import LearnableImages, Stage
from workers.training.augmentation import Augmentation, Draw, draws_on
from workers.training.side_by_side import stands_side_by_side


def random_rows(members: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """At most `size` of a class's rows, drawn without replacement and anew every time."""
    chosen = torch.randperm(len(members), generator=generator)[:size]
    return members[chosen.to(members.device, non_blocking=True)]


def siamese(
    augmentation: Augmentation | None, real: Tensor, synthetic: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Both batches [n, C, H, W] under one draw, shared by all of their images."""
    (draw,) = draws_on(real.device, [siamese_draw(augmentation, real, generator)])
    return augmented(augmentation, real, draw), augmented(augmentation, synthetic, draw)


def augmented(augmentation: Augmentation | None, images: Tensor, draw: Draw | None) -> Tensor:
    """Images [n, C, H, W] under a draw, if there is one."""
    return images if augmentation is None or draw is None else augmentation.apply(images, draw)


def siamese_draw(augmentation: Augmentation | None, images: Images, generator: torch.Generator) -> Draw | None:
    """What `siamese` would draw for images [..., H, W]."""
    if augmentation is None:
        return None
    height, width = images.shape[-2:]
    return augmentation.draw(1, (height, width), generator, siamese=True)


class SiameseDraws:
    """The draws of several classes; classes with the same operations are augmented together.

    Args:
        augmentation: None for the identity.
        draws: of each class, of one row.
        device: where the images are.
    """

    def __init__(self, augmentation: Augmentation | None, draws: Sequence[Draw | None], device: torch.device) -> None:
        self._augmentation = augmentation
        self._groups: dict[tuple[str, ...], list[int]] = {}
        for position, draw in enumerate(draws):
            if draw is not None:
                self._groups.setdefault(draw.names, []).append(position)
        joint = [_joint([draws[position] for position in group]) for group in self._groups.values()]
        self._draws = draws_on(device, joint)

    def apply(self, images: Tensor) -> Tensor:
        """Augment images [classes, n, C, H, W], those of each class by its draw; differentiable to second order."""
        if self._augmentation is None or not self._groups:
            return images
        by_class, n = images.unbind(), images.shape[1]
        augmented: dict[int, Tensor] = {}
        for group, draw in zip(self._groups.values(), self._draws, strict=True):
            assert draw is not None
            rows = {
                name: tuple(one.repeat_interleave(n, 0) for one in numbers) for name, numbers in draw.numbers.items()
            }
            together = self._augmentation.apply(torch.cat([by_class[position] for position in group]), Draw(rows))
            augmented |= dict(zip(group, together.view(len(group), *images.shape[1:]).unbind(), strict=True))
        return torch.stack([augmented[position] for position in range(len(by_class))])


def _joint(draws: Sequence[Draw | None]) -> Draw:
    """Draws of the same operations as one, a row after the other."""
    numbers = [draw.numbers for draw in draws if draw is not None]
    return Draw(
        {
            name: tuple(torch.cat(rows) for rows in zip(*(one[name] for one in numbers), strict=True))
            for name in numbers[0]
        }
    )


def taken_together(sizes: Sequence[int], most: int) -> Iterator[range]:
    """Runs of at most `most` neighbouring classes with equally many real images, which one call can take."""
    start = 0
    while start < len(sizes):
        end = start + 1
        while end < min(start + most, len(sizes)) and sizes[end] == sizes[start]:
            end += 1
        yield range(start, end)
        start = end


def classes_at_once(stage: Stage, wanted: int) -> int:
    """How many classes a call takes: as many as wanted, or one after the memory was too small.

    Raises:
        BadInput: the network cannot take several.
    """
    if wanted > 1 and not stands_side_by_side(stage.network):
        place = f"stage {stage.spec.stage} of {stage.spec.method}"
        fix = "write 1: several need a ConvNet or a ResNet without batch norm"
        raise BadInput(place, "distil.settings.classes_at_once", wanted, fix)
    return 1 if stage.memory_level else wanted


def require_finite(learnable: LearnableImages, iteration: int, losses: Tensor) -> list[float]:
    """The losses [n], read from the device, if they and the images are finite numbers.

    Raises:
        Diverged: they are not.
    """
    *read, finite = torch.cat([losses, learnable.new.isfinite().all().to(losses)[None]]).tolist()
    if not (finite and all(map(math.isfinite, read))):
        fix = "lower distil.image.lr"
        raise Diverged(f"iteration {iteration}: matching loss {sum(read):g} or the images are not finite: {fix}")
    return read
