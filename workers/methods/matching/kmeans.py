"""Representative images: of each class those nearest to the centroids of k-means over a network's embeddings.

DREAM (Liu et al., ICCV 2023; facts 7.5) takes them in place of random images, in every batch that is matched and as the
images a stage starts from. Embedded is the flattened last block, of images in [0, 1] that are not normalised, as the
published code has it.

There are two k-means, chosen by `distil.clustering`; both start once, by greedy k-means++, with a seed drawn from the
caller's generator.

`sklearn`, as published: scikit-learn's, on the CPU and on one thread, since its sums over several threads come in no
fixed order.

`torch`, on the network's device: distances hardly change when features are projected to 128 random directions (Johnson
and Lindenstrauss), so where clusters are large, start and most rounds of Lloyd take place there, and the last rounds
among the features themselves. Its objective is scikit-learn's within a percent (a test) in a tenth of the time: 4,500
images with 2,048 features to 128 clusters take 0.3 s of one core instead of 3.1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
import torch
from threadpoolctl import ThreadpoolController
from torch import Tensor

from jobs.specs import Clustering
from workers.data.preprocess import Affine, Zca
from workers.data.stored_images import Images
from workers.training.compute import images_at_a_time
from workers.training.networks import Network

DIRECTIONS = 128
"""Random directions to which features are projected."""
LARGE = 16
"""Points a cluster from which on they are: of 4 points a cluster the objective would be 3 % worse, of 10 1.4 %."""
MOST_ROUNDS = 100
"""Rounds of Lloyd's algorithm at most, as many again after those in the projection."""
SETTLED = 1e-3
"""Rounds end when the objective falls by less than this share of it."""


def representatives(
    network: Network,
    images: Images,
    transform: Affine | Zca,
    members: Sequence[Tensor],
    count: int,
    generator: torch.Generator,
    clustering: Clustering,
) -> list[Tensor]:
    """For each class the indices of its representative images, int64 [min(count, images of the class)].

    Args:
        network: whose embeddings are clustered.
        images: [n, C, H, W] in the training space.
        transform: from the training space back to [0, 1].
        members: for each class the indices of its images.
        count: clusters of a class.
        generator: seeds k-means.
        clustering: which k-means.
    """
    chosen = []
    for own in members:
        seed = int(torch.randint(2**31 - 1, (), generator=generator))
        features = embeddings(network, images, transform, own)
        nearest = nearest_to_centroids(features, min(count, len(own)), seed, clustering)
        chosen.append(own[nearest.to(own.device)])
    return chosen


def embeddings(network: Network, images: Images, transform: Affine | Zca, index: Tensor) -> Tensor:
    """The features [n, d] of the images at `index` [n], on their device, in evaluation mode and without a graph."""
    training = network.training
    network.eval()
    batch = images_at_a_time(network, images)
    with torch.no_grad():
        parts = [network.embed(transform.inverse(images[part])) for part in torch.split(index, batch)]
    network.train(training)
    return torch.cat(parts)


def nearest_to_centroids(features: Tensor, count: int, seed: int, clustering: Clustering) -> Tensor:
    """Rows int64 [count] of features [n, d], on the CPU: of each cluster the one nearest to its centroid.

    Being of its own cluster, no row is taken twice. On a tie the first is taken; where features are equal and some
    clusters stay empty, the rows farthest from their centroids stand for these.

    Args:
        features: float32 [n, d], n at least `count`.
        count: clusters.
        seed: of k-means.
        clustering: which k-means.
    """
    labels, distances = (values.cpu().numpy() for values in _CLUSTERINGS[clustering](features, count, seed))
    order = np.lexsort((distances, labels))
    _, first = np.unique(labels[order], return_index=True)
    rows = order[first]
    others = np.setdiff1d(np.argsort(-distances, kind="stable"), rows, assume_unique=True)
    return torch.from_numpy(np.concatenate([rows, others[: count - len(rows)]]))


def _sklearn(features: Tensor, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """The cluster of each row of features [n, d], int64 [n], and the squared distance to its centroid, float [n]."""
    from sklearn.cluster import KMeans  # takes half a second, which only jobs with clusters should pay

    points = features.cpu().numpy()
    with _pools().limit(limits=1):
        fitted = KMeans(count, n_init=1, random_state=seed).fit(points)
    distances = np.square(points - fitted.cluster_centers_[fitted.labels_]).sum(1)
    return torch.from_numpy(fitted.labels_), torch.from_numpy(distances)


@cache
def _pools() -> ThreadpoolController:
    """The thread pools of the libraries that are loaded by now: finding them takes as long as a small k-means."""
    return ThreadpoolController()


def _torch(features: Tensor, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """As `_sklearn`, on the features' device."""
    generator = torch.Generator().manual_seed(seed)
    points = features - features.mean(0)  # small numbers, so that differences of squares keep their digits
    if points.shape[1] <= DIRECTIONS or len(points) < LARGE * count:
        return lloyd(points, points[_greedy_start(points, count, generator)])
    directions = torch.randn(points.shape[1], DIRECTIONS, generator=generator) / math.sqrt(DIRECTIONS)
    projected = points @ directions.to(points)
    labels, _ = lloyd(projected, projected[_greedy_start(projected, count, generator)])
    return lloyd(points, _centroids(points, labels, count))


def lloyd(points: Tensor, centroids: Tensor) -> tuple[Tensor, Tensor]:
    """Clusters of points [n, d] by Lloyd's algorithm from centroids [k, d], until the objective hardly falls.

    An empty cluster moves to the point farthest from its centroid, the next to the second farthest, and so on.

    Returns:
        The cluster of each point, int64 [n], and the squared distance to its centroid, float [n].
    """
    squares, last = points.square().sum(1), math.inf
    for _ in range(MOST_ROUNDS):
        products = torch.addmm(centroids.square().sum(1), points, centroids.T, alpha=-2)
        nearest, labels = products.min(1)
        distances = (nearest + squares).clamp_min(0)
        objective = float(distances.sum(dtype=torch.float64))
        if last - objective <= SETTLED * objective:
            break
        last = objective
        farthest = points[distances.topk(len(centroids)).indices]
        empty = torch.ones(len(centroids), dtype=torch.bool, device=points.device).index_fill_(0, labels, False)
        moved = farthest[(empty.cumsum(0) - 1).clamp_min(0)]
        centroids = torch.where(empty[:, None], moved, _centroids(points, labels, len(centroids)))
    return labels, distances


def _greedy_start(points: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Rows int64 [count] of points [n, d] by k-means++: the next is drawn by squared distance to those there are.

    As scikit-learn does, a few are drawn each time, and the one is taken that lowers the objective most. Nothing is
    read from the device.
    """
    trials = 2 + int(math.log(count))
    first = torch.randint(len(points), (1,), generator=generator)
    shares = torch.rand(count - 1, trials, generator=generator, dtype=torch.float64).to(points.device)
    rows, squares = [first.to(points.device)], points.square().sum(1)

    def distances(candidates: Tensor) -> Tensor:  # squared, [candidates, n]
        sums = squares + squares[candidates][:, None]
        return torch.addmm(sums, points[candidates], points.T, alpha=-2).clamp_min_(0)

    nearest = distances(rows[0])[0]
    for share in shares:
        cumulated = nearest.cumsum(0, dtype=torch.float64)
        candidates = torch.searchsorted(cumulated, share * cumulated[-1]).clamp_max_(len(points) - 1)
        then = torch.minimum(distances(candidates), nearest)
        best = then.sum(1).argmin().view(1)
        nearest = then[best][0]
        rows.append(candidates[best])
    return torch.cat(rows)


def _centroids(points: Tensor, labels: Tensor, count: int) -> Tensor:
    """The means [count, d] of the points [n, d] of each cluster; zero for an empty one."""
    sums = points.new_zeros(count, points.shape[1]).index_add_(0, labels, points)
    sizes = points.new_zeros(count).index_add_(0, labels, points.new_ones(len(points)))
    return sums / sizes.clamp_min(1)[:, None]


_CLUSTERINGS: dict[Clustering, Callable[[Tensor, int, int], tuple[Tensor, Tensor]]] = {
    "sklearn": _sklearn,
    "torch": _torch,
}
