"""Representative images: of each class those nearest to the centroids of k-means over a network's embeddings.

DREAM (Liu et al., ICCV 2023; facts 7.5) takes them in place of random images, in every batch that is matched and as the
images a stage starts from. Embedded is the flattened last block, of images in [0, 1] that are not normalised, as the
published code has it.

K-means is scikit-learn's, started once by k-means++ with a seed drawn from the caller's generator. It runs on one
thread, on the CPU: its sums over several threads come in no fixed order, and a key must give the same bits anywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
from threadpoolctl import ThreadpoolController
from torch import Tensor

from workers.data.preprocess import Affine, Zca
from workers.training.networks import Network

BATCH = 512
"""Images embedded at a time."""


def representatives(
    network: Network,
    images: Tensor,
    transform: Affine | Zca,
    members: Sequence[Tensor],
    count: int,
    generator: torch.Generator,
) -> list[Tensor]:
    """For each class the indices of its representative images, int64 [min(count, images of the class)].

    Args:
        network: whose embeddings are clustered.
        images: [n, C, H, W] in the training space.
        transform: from the training space back to [0, 1].
        members: for each class the indices of its images.
        count: clusters of a class.
        generator: seeds k-means.
    """
    chosen = []
    for own in members:
        seed = int(torch.randint(2**31 - 1, (), generator=generator))
        features = embeddings(network, images, transform, own)
        nearest = nearest_to_centroids(features, min(count, len(own)), seed)
        chosen.append(own[nearest.to(own.device)])
    return chosen


def embeddings(network: Network, images: Tensor, transform: Affine | Zca, index: Tensor) -> Tensor:
    """The features [n, d] of the images at `index` [n], on the CPU, in evaluation mode and without a graph."""
    training = network.training
    network.eval()
    with torch.no_grad():
        parts = [network.embed(transform.inverse(images[part])).cpu() for part in torch.split(index, BATCH)]
    network.train(training)
    return torch.cat(parts)


def nearest_to_centroids(features: Tensor, count: int, seed: int) -> Tensor:
    """Rows int64 [count] of features [n, d]: of each cluster the one nearest to its centroid, the first on a tie.

    Being of its own cluster, no row is taken twice.
    """
    from sklearn.cluster import KMeans  # takes half a second, which only jobs with clusters should pay

    points = features.numpy()
    with _pools().limit(limits=1):
        fitted = KMeans(count, n_init=1, random_state=seed).fit(points)
    distances = np.square(points - fitted.cluster_centers_[fitted.labels_]).sum(1)
    order = np.lexsort((distances, fitted.labels_))
    _, first = np.unique(fitted.labels_[order], return_index=True)
    return torch.from_numpy(order[first])


@cache
def _pools() -> ThreadpoolController:
    """The thread pools of the libraries that are loaded by now: finding them takes as long as a small k-means."""
    return ThreadpoolController()
