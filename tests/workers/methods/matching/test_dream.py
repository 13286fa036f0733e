"""DREAM: whose representatives are matched, how often they change, and how its stages begin."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.workers.matched import AFFINE, CLASSES, SGD, after, generator, images, pixels, resumed
from tests.workers.matched import stage as any_stage
from tests.workers.methods.matching.test_idc import NUMBERS as IDC_NUMBERS
from tests.workers.workshop import Workshop, changed
from workers.data.dataset import rows_by_class
from workers.methods import method_named
from workers.methods.base import LearnableImages, Stage
from workers.methods.matching import kmeans
from workers.methods.matching.dream import DreamSettings, RepresentativeMatching
from workers.methods.matching.idc import FormationMatching
from workers.methods.matching.kmeans import embeddings, representatives
from workers.tasks.distil import StageRun

SLOW = SGD.model_copy(update={"lr": 0.01})
NUMBERS: dict[str, Any] = {**IDC_NUMBERS, "recluster_every": 2, "rounds": 3}
MEMBERS = [torch.arange(12 * label, 12 * label + 12) for label in range(CLASSES)]


def stage(**more: Any) -> Stage:
    return any_stage("dream", NUMBERS, **{"factor": 2, **more})


def method(made: Stage | None = None, **changes: Any) -> RepresentativeMatching:
    return RepresentativeMatching(made or stage(), DreamSettings.model_validate({**NUMBERS, **changes}))


def canvas(**more: Any) -> LearnableImages:
    return pixels(unit=True, factor=2, optimiser=SLOW, **more)


def test_a_class_is_matched_with_the_images_nearest_to_its_centroids_under_the_current_network() -> None:
    made = stage()
    one, network = method(made), made.start_networks.network(3)
    found = one._real_batches(network, 0, generator(4))
    expected = representatives(network, made.train.images, AFFINE, MEMBERS, 5, generator(4), "sklearn")
    assert [rows.tolist() for rows in found] == [rows.tolist() for rows in expected]
    assert [len(rows) for rows in found] == [5] * 3


def test_clusters_are_kept_for_some_rounds_and_then_made_anew_for_the_network_as_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[torch.Tensor] = []

    def fake(network: Any, *rest: Any) -> list[torch.Tensor]:
        asked.append(network.classifier.weight.detach().clone())
        return [own[:2] for own in MEMBERS]

    monkeypatch.setattr("workers.methods.matching.dream.representatives", fake)
    after(method(rounds=5), canvas(), iterations=2)
    assert len(asked) == 2 * 3  # rounds 0, 2 and 4 of each network
    assert not torch.equal(asked[0], asked[1]) and not torch.equal(asked[0], asked[3])


def test_it_is_idc_but_for_the_real_batches() -> None:
    assert method_named("dream") is RepresentativeMatching
    assert RepresentativeMatching.iterate is FormationMatching.iterate
    assert RepresentativeMatching._match is FormationMatching._match


def test_a_class_smaller_than_the_batch_gives_all_its_images() -> None:
    made = stage(per_class=4)
    found = method(made)._real_batches(made.start_networks.network(0), 0, generator())
    assert [sorted(rows.tolist()) for rows in found] == [list(range(4 * c, 4 * c + 4)) for c in range(CLASSES)]


def test_our_own_k_means_is_as_good_as_scikit_learn_s_on_what_is_clustered(workshop: Workshop) -> None:
    """Within a percent of its objective: all classes of real images under a network of the chain, two seeds."""
    run = StageRun(workshop.context(workshop.job("distil")))
    train, network = run.data.train, run.start_networks.network(0)
    sums = {"sklearn": 0.0, "torch": 0.0}
    for own in rows_by_class(train.labels, 10):
        features = embeddings(network, train.images, run.data.transform, own)
        for clustering, cluster in kmeans._CLUSTERINGS.items():
            sums[clustering] += sum(float(cluster(features, 8, seed)[1].sum()) for seed in range(2))
    assert sums["torch"] <= 1.01 * sums["sklearn"]


@pytest.mark.parametrize("before", [1, 2])
def test_a_stage_goes_on_from_its_state_bit_for_bit(before: int) -> None:
    made = stage()
    straight, again = resumed(method(made), method(made), canvas(), canvas(), before)
    assert straight == again


def test_an_earlier_set_changes_the_result_and_stays() -> None:
    results = []
    for nudge in (0.0, 0.5):
        frozen = images(1, 7)
        frozen.images[0, 0, 3, 3] += nudge
        one = canvas(frozen=frozen)
        kept = one.union[:3].clone()
        results.append(after(method(stage()), one))
        assert torch.equal(one.union[:3], kept)
    assert not torch.equal(*results)


@pytest.mark.parametrize("at_once", [2, 3])
def test_several_classes_at_once_are_matched_as_one_by_one_in_float64(at_once: int) -> None:
    ends, losses = [], []
    for taken in (1, at_once):
        one = method(stage(dtype=torch.float64), classes_at_once=taken)
        new = replace(images(2, 2, torch.float64), factor=2)
        learnable = LearnableImages(replace(new, images=AFFINE.inverse(new.images)), None, SLOW, 10)
        draws = generator(5)
        losses.append([one.iterate(learnable, iteration, draws) for iteration in range(2)])
        ends.append(learnable.new)
    assert losses[0] == pytest.approx(losses[1], rel=1e-8)
    torch.testing.assert_close(*ends, rtol=1e-7, atol=1e-9)


def test_after_too_little_memory_classes_are_taken_one_by_one() -> None:
    settings = DreamSettings.model_validate({**NUMBERS, "classes_at_once": 3})
    assert RepresentativeMatching.memory_levels(settings) == 1
    assert method(replace(stage(), memory_level=1), classes_at_once=3)._at_once == 1


# How a stage begins


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    folder: Path = tmp_path_factory.mktemp("dream")
    return Workshop.open(folder, {"method": "dream", "ipc_per_stage": 2})


def test_new_images_start_from_the_representatives_under_the_first_network(workshop: Workshop) -> None:
    job = changed(workshop.job("distil"), factor=1, init="centroids")
    context = workshop.context(job)
    run = StageRun(context)
    train = run.data.train
    members = [torch.nonzero(train.labels == label).flatten() for label in range(10)]
    network = run.start_networks.network(0)
    chosen = representatives(
        network, train.images, run.data.transform, members, 2, context.generator("images"), run.spec.clustering
    )
    expected = run.data.transform.inverse(train.images[torch.cat(chosen)])
    assert torch.equal(run.learnable.new, expected)
    assert run.learnable.labels.tolist() == [label for label in range(10) for _ in range(2)]


def test_with_tiles_there_are_as_many_clusters_as_tiles(workshop: Workshop) -> None:
    run = StageRun(workshop.context(workshop.job("distil")))
    assert (run.spec.init, run.spec.factor) == ("centroids", 2)
    assert len(run._first_real(8, generator())) == 80 and run.learnable.new.shape == (20, 1, 8, 8)


def test_more_clusters_than_images_are_refused(workshop: Workshop) -> None:
    run = StageRun(workshop.context(workshop.job("distil")))
    with pytest.raises(ValueError, match=r"a class has 36 images, fewer than 37 clusters"):
        run._first_real(37, generator())
