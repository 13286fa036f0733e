"""Teachers: the experts of a stage at their last epoch, asked what they make of images (Guo et al., DATM, ICLR 2024).

They choose real images that they classify rightly, for new images to start from, and give the logits from which soft
labels start: of each image the mean over the experts that classify it rightly, or over all if none does.

Departures from the published code: where all experts together classify too few images of a class rightly, the rest are
random ones (there the search never ends); an image that no expert classifies rightly has their mean logits (there NaN).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from jobs.learning import LabelSpec
from workers.data.dataset import Split
from workers.data.stored_images import Images, batches
from workers.data.synthetic_set import SyntheticSet
from workers.store.trajectories import Trajectories
from workers.training.networks import Network, load_flat

BATCH = 512


class Teachers:
    """The experts of a stage; of methods without experts there are none.

    Args:
        experts: their trajectories.
        network: of their architecture; its weights are overwritten.
    """

    def __init__(self, experts: Trajectories | None, network: Network) -> None:
        self._experts, self._network = experts, network.eval()

    def first_labels(self, one: SyntheticSet, classes: int, spec: LabelSpec) -> Tensor:
        """The logits from which soft labels start, float32 [n, classes]; see `jobs.learning.LabelSpec`.

        Args:
            one: images in the training space, and their classes.
            classes: of the data set.
            spec: what they start from.
        """
        if spec.source == "classes":
            one_hot = torch.nn.functional.one_hot(one.labels, classes).float()
            return spec.scale * (one_hot - 1 / classes)
        images, _ = one.expanded()
        tiles = one.factor**2
        asked = range(min(len(self._trajectories), spec.teachers or len(self._trajectories)))
        logits = torch.stack([self._logits(number, images).view(len(one), tiles, -1).mean(1) for number in asked])
        return mean_of_right(logits, one.labels)

    def classified(self, train: Split, count: int, generator: torch.Generator) -> Tensor:
        """Random real images of each class that the first expert classifies rightly, then the second, and so on.

        Args:
            train: the real images of the stage.
            count: images wanted of each class.
            generator: a CPU generator.

        Returns:
            Indices int64 [classes * count], class by class.

        Raises:
            ValueError: a class has fewer images.
        """
        labels, right = train.labels.cpu(), list[Tensor]()
        chosen = []
        for label in range(int(labels.max()) + 1):
            own = torch.nonzero(labels == label).flatten()
            if len(own) < count:
                raise ValueError(f"class {label} has {len(own)} images, fewer than {count}")
            own = own[torch.randperm(len(own), generator=generator)]
            taken: list[int] = []
            for number in range(len(self._trajectories)):
                if number == len(right):
                    right.append((self._logits(number, train.images).argmax(1) == train.labels).cpu())
                taken = _filled(taken, own[right[number][own]].tolist(), count)
                if len(taken) == count:
                    break
            chosen.append(torch.tensor(_filled(taken, own.tolist(), count)))
        return torch.cat(chosen)

    @property
    def _trajectories(self) -> Trajectories:
        assert self._experts is not None, "a recipe without experts that asks them is refused before anything runs"
        return self._experts

    def _logits(self, number: int, images: Images) -> Tensor:
        """What one expert makes of images: float32 [n, classes] on their device."""
        parameters = self._trajectories.parameters(number, self._trajectories.epochs)
        load_flat(self._network, parameters.to(images.device))
        with torch.no_grad():
            return torch.cat([self._network(batch) for batch in batches(images, BATCH)])


def mean_of_right(logits: Tensor, labels: Tensor) -> Tensor:
    """The mean logits [n, classes] over the networks that are right about an image, or over all where none is.

    Args:
        logits: of each network, float [networks, n, classes].
        labels: int64 [n].
    """
    right = logits.argmax(2) == labels
    asked = (right | ~right.any(0)).unsqueeze(2)
    return (logits * asked).sum(0) / asked.sum(0)


def _filled(taken: Sequence[int], more: Sequence[int], count: int) -> list[int]:
    """What is taken, and of the rest as many as are wanted, in order."""
    return [*taken, *(row for row in more if row not in taken)][:count]
