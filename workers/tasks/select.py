"""Selection baselines: synthetic sets made of real images (paper section 5.1; facts 8).

Each takes n images of every class. Random draws them without replacement. Herding and K-Center look at features, the
embeddings before the classifier of a network trained on the whole training split (its last snapshot, in evaluation
mode, without augmentation; which network and for how long is nowhere said, so the recipe's choice is ours). Forgetting
takes the images with the highest forgetting scores. Ties go to the image that comes first in the training split.

The chosen images are stored as any synthetic set, without a step size, together with their indices into the split.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

from jobs.outcomes import SelectOutcome
from jobs.specs import NetworkSpec, SelectSpec
from workers.data import dataset as datasets
from workers.data import synthetic_set
from workers.data.dataset import Dataset
from workers.data.stored_images import batches
from workers.data.synthetic_set import SyntheticSet
from workers.runtime.context import JobContext
from workers.store import trajectories
from workers.tasks import forgetting
from workers.training.compute import images_at_a_time
from workers.training.networks import load_flat
from workers.training.students import build_network

INDICES = "indices.parquet"


def random_per_class(labels: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Random images of each class, drawn without replacement.

    Args:
        labels: int64 [N], the label of every image.
        count: images wanted of each class.
        generator: a CPU generator.

    Returns:
        Indices int64 [classes * count], class by class.

    Raises:
        ValueError: a class has fewer than `count` images.
    """
    return _per_class(labels, count, lambda own: torch.randperm(len(own), generator=generator)[:count])


def most_forgotten_per_class(labels: Tensor, counts: NDArray[np.int64], count: int) -> Tensor:
    """The images of each class with the highest forgetting counts.

    Args:
        labels: int64 [N], the label of every image.
        counts: int64 [N], how often every image was forgotten.
        count: images wanted of each class.

    Returns:
        Indices int64 [classes * count], class by class.

    Raises:
        ValueError: a class has fewer than `count` images.
    """
    scores = torch.from_numpy(np.array(counts))
    return _per_class(labels, count, lambda own: torch.argsort(scores[own], descending=True, stable=True)[:count])


def by_features(rule: Callable[[Tensor, int], Tensor], features: Tensor, labels: Tensor, count: int) -> Tensor:
    """The images that a rule such as `herding` takes from each class by itself.

    Args:
        rule: given the features float32 [n, d] of a class and a count, the rows it takes, int64 [count].
        features: float32 [N, d] of all images.
        labels: int64 [N], the label of every image.
        count: images wanted of each class.

    Returns:
        Indices int64 [classes * count], class by class.

    Raises:
        ValueError: a class has fewer than `count` images.
    """
    return _per_class(labels, count, lambda own: rule(features[own], count))


def herding(features: Tensor, count: int) -> Tensor:
    """Rows int64 [count] of features [n, d] whose running mean stays as near as possible to the mean of all.

    Image k+1 is the one that minimises ||(k+1) * mu - sum of the chosen - f||, none twice (DatasetCondensation
    issue 15; DeepCore's code takes the farthest instead).
    """
    points = features.double()
    mean, total = points.mean(0), torch.zeros(points.shape[1], dtype=torch.float64)
    free = torch.ones(len(points), dtype=torch.bool)
    chosen: list[int] = []
    for step in range(1, count + 1):
        distances = (step * mean - total - points).square().sum(1)
        nearest = int(distances.masked_fill(~free, torch.inf).argmin())
        chosen.append(nearest)
        total += points[nearest]
        free[nearest] = False
    return torch.tensor(chosen)


def k_center(features: Tensor, count: int) -> Tensor:
    """Rows int64 [count] of features [n, d] that cover them: the one nearest to the mean, then always the farthest.

    Farthest is the one with the largest distance to its nearest chosen one (DatasetCondensation issue 21; DeepCore's
    code starts from a random image instead).
    """
    points = features.double()
    chosen = [int((points - points.mean(0)).square().sum(1).argmin())]
    nearest = torch.full((len(points),), torch.inf, dtype=torch.float64)
    for _ in range(count - 1):
        nearest = torch.minimum(nearest, (points - points[chosen[-1]]).square().sum(1))
        nearest[chosen[-1]] = -1.0  # so that copies of a chosen image come before the image itself
        chosen.append(int(nearest.argmax()))
    return torch.tensor(chosen)


def select(context: JobContext, folder: Path) -> SelectOutcome:
    """Choose the images by the spec's rule and write them as a synthetic set; an imported one is taken as it is."""
    spec = context.job.spec
    assert isinstance(spec, SelectSpec)
    data = datasets.load(context.store, context.parent("dataset"), context.device)
    if spec.rule == "imported":
        found = synthetic_set.read(context.store.path(context.parent("source"), synthetic_set.EXACT))
        synthetic_set.write(folder, found, data.transform, data.class_names)
        return SelectOutcome(images=len(found))
    index = _chosen(context, spec, data)
    where = index.to(context.device)
    chosen = SyntheticSet(data.train.images[where].cpu(), data.train.labels[where].cpu(), None)
    synthetic_set.write(folder, chosen, data.transform, data.class_names)
    pq.write_table(pa.table({"index": index.numpy()}), folder / INDICES)
    return SelectOutcome(images=len(index))


def _chosen(context: JobContext, spec: SelectSpec, data: Dataset) -> Tensor:
    labels = data.train.labels
    match spec.rule:
        case "random":
            return random_per_class(labels, spec.ipc_total, context.generator("select"))
        case "forgetting":
            counts = forgetting.read_counts(context.store.path(context.parent("forgetting"), forgetting.COUNTS))
            return most_forgotten_per_class(labels, counts, spec.ipc_total)
        case "herding":
            return by_features(herding, expert_features(context, data), labels, spec.ipc_total)
        case "k_center":
            return by_features(k_center, expert_features(context, data), labels, spec.ipc_total)
    raise ValueError(f"no real images are chosen by the rule {spec.rule}")


def expert_features(context: JobContext, data: Dataset) -> Tensor:
    """Embeddings [N, d] of the training split under the last snapshot of the first expert, on the CPU."""
    key = context.parents("experts")[0]
    spec = NetworkSpec.model_validate(context.store.manifest(key).spec["network"])
    network = build_network(spec, data.shape, data.classes, context.generator("layout"), context.device)
    experts = trajectories.Trajectories([context.store.path(key, trajectories.TRAJECTORIES)])
    load_flat(network, experts.parameters(0, experts.epochs).to(context.device))
    network.eval()
    images = data.train.images
    with torch.no_grad():
        parts = [network.embed(part).cpu() for part in batches(images, images_at_a_time(network, images))]
    return torch.cat(parts)


def _per_class(labels: Tensor, count: int, rule: Callable[[Tensor], Tensor]) -> Tensor:
    """The images that `rule` takes from each class, given their indices; it answers with positions among these."""
    labels = labels.cpu()
    chosen = []
    for label in range(int(labels.max()) + 1):
        members = torch.nonzero(labels == label).flatten()
        if len(members) < count:
            raise ValueError(f"class {label} has {len(members)} images, fewer than {count}")
        chosen.append(members[rule(members)])
    return torch.cat(chosen)
