"""DREAM: whose representatives are matched, how often they change, and how its stages begin."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.workers.matched import AFFINE, CLASSES, SGD, after, generator, images, pixels, resumed
from tests.workers.matched import stage as any_stage
from tests.workers.methods.matching.test_idc import NUMBERS as IDC_NUMBERS
from tests.workers.workshop import Workshop, changed
from workers.methods import method_named
from workers.methods.base import LearnableImages, Stage
from workers.methods.matching.dream import DreamSettings, RepresentativeMatching
from workers.methods.matching.idc import FormationMatching
from workers.methods.matching.kmeans import representatives
from workers.tasks.distil import StageRun

NUMBERS: dict[str, Any] = {**IDC_NUMBERS, "recluster_every": 2, "rounds": 3}
MEMBERS = [torch.arange(12 * label, 12 * label + 12) for label in range(CLASSES)]


def stage(**more: Any) -> Stage:
    return any_stage("dream", NUMBERS, **{"factor": 2, **more})


def method(made: Stage | None = None, **changes: Any) -> RepresentativeMatching:
    return RepresentativeMatching(made or stage(), DreamSettings.model_validate({**NUMBERS, **changes}))


def canvas(**more: Any) -> LearnableImages:
    return pixels(unit=True, factor=2, optimiser=SGD.model_copy(update={"lr": 0.01}), **more)


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
