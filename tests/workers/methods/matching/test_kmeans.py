"""Representative images: one of each cluster, nearest to its centroid, the same on every machine."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from jobs.specs import Clustering
from tests.workers.matched import AFFINE, generator, images, random_network
from workers.methods.matching import kmeans
from workers.methods.matching.kmeans import embeddings, lloyd, nearest_to_centroids, representatives
from workers.training.compute import images_at_a_time

BOTH = pytest.mark.parametrize("clustering", ["sklearn", "torch"])


@BOTH
def test_of_each_cluster_the_row_nearest_to_its_mean_is_taken(clustering: Clustering) -> None:
    # two clusters about 0 and 10 with means 1 and 11: rows 1 and 4 lie there
    line = torch.tensor([0.0, 1.0, 2.0, 10.0, 11.0, 12.0])[:, None]
    assert sorted(nearest_to_centroids(line, 2, 0, clustering).tolist()) == [1, 4]


@BOTH
def test_rows_are_distinct_and_each_stands_for_a_cluster_of_its_own(clustering: Clustering) -> None:
    features = torch.randn(40, 3, generator=generator())
    chosen = nearest_to_centroids(features, 9, 1, clustering)
    assert len(set(chosen.tolist())) == 9
    assert nearest_to_centroids(features, 40, 1, clustering).sort().values.tolist() == list(range(40))


@BOTH
def test_the_seed_decides_and_nothing_else(clustering: Clustering) -> None:
    features = torch.randn(200, 5, generator=generator())
    one, same, other = (nearest_to_centroids(features, 12, seed, clustering) for seed in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other)


def test_embedded_are_pixels_between_zero_and_one_in_the_order_of_the_index() -> None:
    network, real = random_network(0), images(4, 1).images
    index = torch.tensor([7, 2, 5])
    with torch.no_grad():
        expected = network.embed(AFFINE.inverse(real))[index]
    found = embeddings(network, real, AFFINE, index)
    torch.testing.assert_close(found, expected)
    assert not found.requires_grad and network.training


def test_embedding_goes_by_batches() -> None:
    network, real, index = random_network(0), images(4, 1).images, torch.arange(12)
    whole = embeddings(network, real, AFFINE, index)
    parts = torch.cat([embeddings(network, real, AFFINE, part) for part in torch.split(index, 5)])
    torch.testing.assert_close(whole, parts)
    at_once: list[int] = []
    network.embed = lambda x: at_once.append(len(x)) or x.mean((2, 3))  # type: ignore[method-assign, assignment, func-returns-value]
    index = torch.arange(12).repeat(100)
    assert embeddings(network, real, AFFINE, index).shape == (1200, real.shape[1])
    assert sum(at_once) == 1200 and max(at_once) == images_at_a_time(network, real) < 1200


def test_each_class_gives_its_own_images_as_many_as_asked_or_all() -> None:
    network, split = random_network(0), images(12, 1)
    members = [torch.arange(12), torch.arange(12, 24), torch.tensor([24, 30])]
    chosen = representatives(network, split.images, AFFINE, members, 4, generator(), "torch")
    assert [len(one) for one in chosen] == [4, 4, 2]
    assert all(set(one.tolist()) <= set(own.tolist()) for one, own in zip(chosen, members, strict=True))
    again = representatives(network, split.images, AFFINE, members, 4, generator(), "torch")
    assert all(np.array_equal(one, other) for one, other in zip(chosen, again, strict=True))


# Our own k-means


def _clouds(count: int, dimensions: int, of: int = 40) -> torch.Tensor:
    """Points about 40 centres that overlap."""
    draws = generator(3)
    centres = 0.7 * torch.randn(of, dimensions, generator=draws)
    return centres[torch.randint(of, (count,), generator=draws)] + torch.randn(count, dimensions, generator=draws)


@pytest.mark.parametrize(
    ("count", "dimensions", "clusters"), [(800, 512, 32), (300, 512, 64), (400, 20, 16)], ids=["large", "small", "few"]
)
def test_its_objective_is_scikit_learn_s_within_a_percent(count: int, dimensions: int, clusters: int) -> None:
    """Mean over seeds; with large clusters among random directions, with small ones and few features without."""
    points = _clouds(count, dimensions)
    theirs, ours = (
        sum(float(cluster(points, clusters, seed)[1].sum()) for seed in range(4))
        for cluster in (kmeans._sklearn, kmeans._torch)
    )
    assert ours <= 1.01 * theirs


def test_large_clusters_are_sought_among_random_directions(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = list[int]()

    def watched(points: torch.Tensor, centroids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        seen.append(points.shape[1])
        return lloyd(points, centroids)

    monkeypatch.setattr(kmeans, "lloyd", watched)
    kmeans._torch(_clouds(160, 200), 10, 0)
    kmeans._torch(_clouds(159, 200), 10, 0)
    kmeans._torch(_clouds(160, 128), 10, 0)
    assert seen == [128, 200, 200, 128]


def test_distances_are_squared_and_to_the_centroid_of_the_label() -> None:
    line = torch.tensor([0.0, 4.0, 5.0, 7.0])[:, None] * 3
    labels, distances = lloyd(line, torch.tensor([[0.0], [21.0]]))
    assert labels.tolist() == [0, 1, 1, 1]
    torch.testing.assert_close(distances, torch.tensor([0.0, 16.0, 1.0, 25.0]))


def test_an_empty_cluster_moves_to_the_farthest_point() -> None:
    line = torch.tensor([0.0, 1.0, 2.0, 30.0])[:, None]
    labels, distances = lloyd(line, torch.tensor([[0.9], [-50.0]]))
    assert labels[:3].unique().tolist() == [0] and labels[3] == 1 and float(distances.sum()) == pytest.approx(2)


@BOTH
@pytest.mark.filterwarnings("ignore:Number of distinct clusters")
def test_equal_images_are_taken_once_each(clustering: Clustering) -> None:
    equal = torch.ones(9, 3)
    assert sorted(set(nearest_to_centroids(equal, 4, 0, clustering).tolist())) == sorted(
        nearest_to_centroids(equal, 4, 0, clustering).tolist()
    )
    assert len(nearest_to_centroids(equal, 4, 0, clustering)) == 4
