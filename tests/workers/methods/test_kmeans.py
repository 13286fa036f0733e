"""Representative images: one of each cluster, nearest to its centroid, the same on every machine."""

from __future__ import annotations

import numpy as np
import torch

from tests.workers.matched import AFFINE, generator, images, random_network
from workers.methods import kmeans
from workers.methods.kmeans import embeddings, nearest_to_centroids, representatives


def test_of_each_cluster_the_row_nearest_to_its_mean_is_taken() -> None:
    # two clusters about 0 and 10 with means 1 and 11: rows 1 and 4 lie there
    line = torch.tensor([0.0, 1.0, 2.0, 10.0, 11.0, 12.0])[:, None]
    assert sorted(nearest_to_centroids(line, 2, seed=0).tolist()) == [1, 4]


def test_rows_are_distinct_and_each_stands_for_a_cluster_of_its_own() -> None:
    features = torch.randn(40, 3, generator=generator())
    chosen = nearest_to_centroids(features, 9, seed=1)
    assert len(set(chosen.tolist())) == 9
    assert nearest_to_centroids(features, 40, seed=1).sort().values.tolist() == list(range(40))


def test_the_seed_decides_and_nothing_else() -> None:
    features = torch.randn(200, 5, generator=generator())
    one, same, other = (nearest_to_centroids(features, 12, seed) for seed in (1, 1, 2))
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
    assert kmeans.BATCH > 0


def test_each_class_gives_its_own_images_as_many_as_asked_or_all() -> None:
    network, split = random_network(0), images(12, 1)
    members = [torch.arange(12), torch.arange(12, 24), torch.tensor([24, 30])]
    chosen = representatives(network, split.images, AFFINE, members, 4, generator())
    assert [len(one) for one in chosen] == [4, 4, 2]
    assert all(set(one.tolist()) <= set(own.tolist()) for one, own in zip(chosen, members, strict=True))
    again = representatives(network, split.images, AFFINE, members, 4, generator())
    assert all(np.array_equal(one, other) for one, other in zip(chosen, again, strict=True))
