"""Selection baselines: real images, chosen by class, stored as they are."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from jobs.graph import Job
from jobs.specs import ExpertsSpec, ForgettingSpec, SelectSpec
from tests.workers.workshop import ONE_STAGE, Workshop
from workers.tasks.forgetting import COUNTS, read_counts
from workers.tasks.select import INDICES, by_features, herding, k_center, most_forgotten_per_class, random_per_class
from workers.training.networks import build, load_flat

LABELS = torch.tensor([1, 0, 2, 0, 1, 1, 2, 0, 0, 2])


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_a_random_selection_takes_each_class_in_turn_and_no_image_twice() -> None:
    for seed in range(20):
        chosen = random_per_class(LABELS, 3, generator(seed))
        assert LABELS[chosen].tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
        assert len(set(chosen.tolist())) == 9


def test_every_image_can_be_chosen_equally_often() -> None:
    counts = np.zeros(len(LABELS))
    for seed in range(400):
        counts[random_per_class(LABELS, 1, generator(seed)).numpy()] += 1
    assert counts[LABELS.numpy() == 0] == pytest.approx(100, abs=35)  # four images; 4 deviations
    assert counts[LABELS.numpy() == 1] == pytest.approx(133, abs=38)


def test_a_class_too_small_is_named() -> None:
    with pytest.raises(ValueError, match="class 1 has 3 images, fewer than 4"):
        random_per_class(LABELS, 4, generator())


def test_the_most_forgotten_of_each_class_come_first_ties_by_position() -> None:
    counts = np.array([5, 1, 0, 7, 5, 9, 0, 7, 3, 2], dtype=np.int64)
    # class 0 has images 1, 3, 7, 8 with 1, 7, 7, 3; class 1 has 0, 4, 5 with 5, 5, 9; class 2 has 2, 6, 9
    assert most_forgotten_per_class(LABELS, counts, 2).tolist() == [3, 7, 5, 0, 9, 2]
    assert most_forgotten_per_class(LABELS, counts, 3).tolist() == [3, 7, 8, 5, 0, 4, 9, 2, 6]


POINTS = torch.tensor([[0.0], [1.0], [2.0], [3.0], [9.0], [3.0]])  # their mean is 3


def test_herding_keeps_the_running_mean_near_the_mean_and_takes_none_twice() -> None:
    # what is missing to k times the mean: 3; 6-3 = 3, the copy; 9-6 = 3, nearest is 2; 12-8 = 4, 1; 15-9 = 6, 9
    assert herding(POINTS, 5).tolist() == [3, 5, 2, 1, 4]
    assert sorted(herding(POINTS, 6).tolist()) == list(range(6))


def test_herding_equals_a_loop_over_all_candidates() -> None:
    features = torch.randn(30, 4, generator=generator(1))
    chosen: list[int] = []
    for step in range(1, 9):
        free = [row for row in range(30) if row not in chosen]
        distances = [float((features[[*chosen, row]].sum(0) / step - features.mean(0)).norm()) for row in free]
        chosen.append(free[int(np.argmin(distances))])
    assert herding(features, 8).tolist() == chosen


def test_k_center_starts_at_the_mean_and_then_takes_the_farthest_from_all_chosen() -> None:
    # the first of the two at the mean; then 9 (6 away); then 0 (3 away); then 1 and 2 are 1 away, 1 comes first
    assert k_center(POINTS, 4).tolist() == [3, 4, 0, 1]
    assert sorted(k_center(POINTS, 6).tolist()) == list(range(6))  # the copy of the first one too


def test_rules_on_features_look_at_one_class_at_a_time_and_answer_with_indices_into_the_split() -> None:
    features = torch.tensor([[5.0], [0.0], [1.0], [1.0], [7.0], [6.0], [2.0], [5.0], [9.0], [3.0]])
    # class 0 has images 1, 3, 7, 8 with 0, 1, 5, 9, mean 3.75; class 1 has 0, 4, 5 with 5, 7, 6; class 2 2, 6, 9
    assert by_features(herding, features, LABELS, 1).tolist() == [7, 5, 6]
    assert by_features(k_center, features, LABELS, 2).tolist() == [7, 1, 5, 0, 6, 2]
    with pytest.raises(ValueError, match="class 1 has 3 images, fewer than 4"):
        by_features(herding, features, LABELS, 4)


@pytest.fixture(scope="module")
def featured(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    arms = tuple({"method": method, "ipc_per_stage": 2} for method in ("herding", "k_center"))
    return Workshop.open(tmp_path_factory.mktemp("featured"), *arms)


@pytest.mark.parametrize(("method", "rule"), [("herding", herding), ("k_center", k_center)])
def test_features_are_the_embeddings_of_the_expert_s_last_snapshot(
    featured: Workshop, method: str, rule: Callable[[torch.Tensor, int], torch.Tensor]
) -> None:
    job, expert, train = featured.job("select", rule=method), featured.job("experts"), featured.data().train
    network = build("convnet", channels=1, size=8, classes=10, width=8, depth=2, norm="instance", generator=generator())
    trajectory = featured.trajectories(expert)
    load_flat(network, trajectory.parameters(0, trajectory.epochs))
    with torch.no_grad():
        features = network.embed(train.images[:])
    featured.make(job)
    assert indices(featured, job) == by_features(rule, features, train.labels, 2).tolist()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    arms = ({"method": "random", "ipc_per_stage": 3}, ONE_STAGE)
    return Workshop.open(tmp_path_factory.mktemp("made"), *arms)


def indices(workshop: Workshop, job: Job) -> list[int]:
    index: list[int] = pq.read_table(workshop.store.path(job.key, INDICES)).column("index").to_pylist()
    return index


def test_the_chosen_images_are_stored_bit_for_bit_without_a_step_size(made: Workshop) -> None:
    job, train = made.job("select", draw=0), made.data().train
    chosen = made.synthetic(job)
    index = indices(made, job)
    assert chosen.images.numpy().tobytes() == train.images[index].numpy().tobytes()
    assert chosen.labels.tolist() == train.labels[index].tolist() == [c for c in range(10) for _ in range(3)]
    assert chosen.step_size is None
    assert made.make(job).extra == {"images": 30}


def test_every_network_has_a_draw_of_its_own(made: Workshop) -> None:
    draws = made.jobs("select")
    for job in draws:
        made.make(job)
    assert len(draws) == 2
    assert indices(made, draws[0]) != indices(made, draws[1])


def test_the_forgetting_rule_takes_the_highest_counts(made: Workshop) -> None:
    expert = made.job("experts")
    assert isinstance(expert.spec, ExpertsSpec)
    dataset, training = made.job("dataset").key, expert.spec.real.model_copy(update={"epochs": 6, "lr": 0.1})
    scores = Job.make(ForgettingSpec(network=expert.spec.network, training=training), {"dataset": [dataset]})
    made.make(scores)
    parents = {"dataset": [dataset], "forgetting": [scores.key]}
    job = Job.make(SelectSpec(rule="forgetting", ipc_total=2), parents)
    made.make(job)

    counts = read_counts(made.store.path(scores.key, COUNTS)).tolist()
    expected = []
    for label in range(10):
        members = [i for i, known in enumerate(made.data().train.labels.tolist()) if known == label]
        expected += sorted(members, key=lambda i: (-counts[i], i))[:2]
    assert indices(made, job) == expected
    assert max(counts) > 1
