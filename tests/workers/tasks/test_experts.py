"""Experts: each starts exactly where its own chain ends, and what it leaves behind is what it went through."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from jobs.errors import BadInput, Yielded
from jobs.graph import Job
from jobs.keys import seed_from
from jobs.specs import ExpertsSpec, ForgettingSpec
from tests.workers.workshop import THREE_STAGES, TWO_STAGES, Workshop, changed
from workers.data.synthetic_set import SyntheticSet
from workers.execute import perform
from workers.runtime.context import JobContext
from workers.store.trajectories import CORRECTNESS, read_correctness
from workers.tasks import experts
from workers.tasks.forgetting import COUNTS, partitioned, read_counts
from workers.training.augmentation import Augmentation
from workers.training.networks import Network, build, flatten, load_flat
from workers.training.trainer import Optimiser, Schedule, Trainer, accuracy


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    """Three stages of one image per class; the two experts of each stage are two jobs."""
    workshop = Workshop.open(tmp_path_factory.mktemp("made"), THREE_STAGES)
    for job in workshop.jobs("experts"):
        workshop.make(job)
    return workshop


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    """Two stages; the two experts of each stage are one job, augmented and with a drop in the transition."""
    numbers = {
        "experts.expert_batch": 2,
        "experts.real.augmentation": "color_crop",
        "transition.augmentation": "flip_scale",
        "transition.epochs": 6,
        "transition.extra_epoch": True,
    }
    workshop = Workshop.open(tmp_path_factory.mktemp("together"), TWO_STAGES, set=numbers)
    for job in workshop.jobs("experts"):
        workshop.make(job)
    return workshop


def network(job: Job, number: int) -> Network:
    """Expert `number` of a job, freshly initialised."""
    generator = torch.Generator().manual_seed(seed_from(job.key, "init", number))
    return build("convnet", channels=1, size=8, classes=10, width=8, depth=2, norm="instance", generator=generator)


def link_by_hand(
    start: Tensor,
    union: list[SyntheticSet],
    job: Job,
    number: int,
    schedule: Schedule,
    augmentation: Augmentation | None = None,
) -> Tensor:
    """Train a network at `start` on the union at the step size of its last set; where it ends."""
    net = network(job, number)
    load_flat(net, start)
    step_size = union[-1].step_size
    assert step_size is not None
    numbers = Optimiser(lr=step_size, momentum=0.9, weight_decay=0.0005)
    generator = torch.Generator().manual_seed(seed_from(job.key, "transition", number))
    images = torch.cat([one.images for one in union])
    labels = torch.cat([one.labels for one in union])
    Trainer(net, numbers, generator).run(images, labels, schedule=schedule, batch_size=256, augmentation=augmentation)
    return flatten(net)


def test_a_stage_two_expert_starts_exactly_where_its_own_chain_ends(made: Workshop) -> None:
    first = made.synthetic(made.job("distil", stage=1))
    for number in (0, 1):
        before = made.trajectories(made.job("experts", stage=1, first=number))
        job = made.job("experts", stage=2, first=number)
        expected = link_by_hand(before.parameters(0, 0), [first], job, number, Schedule.one_drop(3))
        start = made.trajectories(job).parameters(0, 0)
        assert start.numpy().tobytes() == expected.numpy().tobytes()
        assert not torch.equal(start, before.parameters(0, 0))
        assert not torch.equal(start, before.parameters(0, 3))  # nor where the training on real data went


def test_a_chain_of_three_goes_on_from_the_second_link_with_the_union_of_both_sets(made: Workshop) -> None:
    sets = [made.synthetic(made.job("distil", stage=stage)) for stage in (1, 2)]
    assert sets[0].step_size != sets[1].step_size
    for number in (0, 1):
        theta_2 = made.trajectories(made.job("experts", stage=2, first=number)).parameters(0, 0)
        job = made.job("experts", stage=3, first=number)
        theta_3 = made.trajectories(job).parameters(0, 0)
        expected = link_by_hand(theta_2, sets, job, number, Schedule.one_drop(3))
        assert theta_3.numpy().tobytes() == expected.numpy().tobytes()
        for wrong in (sets[:1], sets[1:], sets[::-1]):
            assert not torch.equal(theta_3, link_by_hand(theta_2, wrong, job, number, Schedule.one_drop(3)))


def test_every_expert_of_a_cohort_follows_its_own_chain(together: Workshop) -> None:
    job, first = together.job("experts", stage=2), together.synthetic(together.job("distil", stage=1))
    before, after = together.trajectories(together.job("experts", stage=1)), together.trajectories(job)
    augmentation = Augmentation.parse("flip_scale", align_corners=True)
    schedule = Schedule(epochs=7, drops=(5,))  # 6 and the extra one; the drop after index 6 // 2 + 1
    ends = [link_by_hand(before.parameters(n, 0), [first], job, n, schedule, augmentation) for n in (0, 1)]
    assert [torch.equal(after.parameters(n, 0), ends[n]) for n in (0, 1)] == [True, True]
    assert not torch.equal(ends[0], ends[1])


def test_a_stage_one_expert_starts_at_random_and_trains_on_the_real_images(made: Workshop) -> None:
    job = made.job("experts", stage=1, first=1)
    net, train = network(job, 1), made.data().train
    rows = [flatten(net)]
    generator = torch.Generator().manual_seed(seed_from(job.key, "real", 1))
    history = Trainer(net, Optimiser(lr=0.02), generator).run(
        train.images,
        train.labels,
        schedule=Schedule(epochs=3),
        batch_size=32,
        correctness=True,
        on_epoch=lambda epoch, seen: rows.append(flatten(net)),
    )
    stored = made.trajectories(job)
    assert len(stored) == 1 and stored.epochs == 3
    assert all(torch.equal(stored.parameters(0, epoch), row) for epoch, row in enumerate(rows))
    right = np.stack([one.correct.numpy() for one in history if one.correct is not None])
    (stream,) = read_correctness(made.store.path(job.key, CORRECTNESS))
    assert stream.shape == (3, 360)
    assert np.array_equal(stream, right) and 0 < right.mean() < 1


def test_training_on_real_data_starts_without_the_momentum_of_the_link(made: Workshop) -> None:
    job, train = made.job("experts", stage=2, first=0), made.data().train
    stored, net = made.trajectories(job), network(job, 0)
    load_flat(net, stored.parameters(0, 0))
    generator = torch.Generator().manual_seed(seed_from(job.key, "real", 0))
    Trainer(net, Optimiser(lr=0.02), generator).run(
        train.images, train.labels, schedule=Schedule(epochs=1), batch_size=32
    )
    assert torch.equal(flatten(net), stored.parameters(0, 1))


def test_snapshots_are_copies_and_not_the_live_weights(made: Workshop) -> None:
    for job in made.jobs("experts"):
        stored = made.trajectories(job)
        rows = [stored.parameters(0, epoch) for epoch in range(stored.epochs + 1)]
        assert len({row.numpy().tobytes() for row in rows}) == len(rows) == 4


def test_experts_differ_by_their_number(made: Workshop, together: Workshop) -> None:
    starts = [made.trajectories(job).parameters(0, 0) for job in made.jobs("experts", stage=1)]
    expert_batch = together.trajectories(together.job("experts", stage=1))
    starts += [expert_batch.parameters(number, 0) for number in (0, 1)]
    assert len({start.numpy().tobytes() for start in starts}) == 4


def test_the_accuracies_noted_are_those_on_the_held_out_split(together: Workshop) -> None:
    job = together.job("experts", stage=2)
    stored, net, held_out = together.trajectories(job), network(job, 0), together.data().validation
    for name, epoch in (("start_accuracy", 0), ("end_accuracy", 3)):
        scores = []
        for number in (0, 1):
            load_flat(net, stored.parameters(number, epoch))
            scores.append(accuracy(net, held_out.images, held_out.labels))
        assert together.make(job).extra[name] == pytest.approx(sum(scores) / 2)


# Interrupting


def starts_of(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of the experts that are started from now on."""
    numbers: list[int] = []
    start_of = experts.start_of

    def spy(context: JobContext, data: Any, number: int) -> Network:
        numbers.append(number)
        return start_of(context, data, number)

    monkeypatch.setattr(experts, "start_of", spy)
    return numbers


@pytest.mark.parametrize("stage", [1, 2])
def test_a_cohort_that_yields_keeps_its_finished_experts_and_ends_the_same(
    stage: int, together: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.runtime.context._LOOK_SECONDS", 0.0)
    workshop, job = together.copy(tmp_path), together.job("experts", stage=stage)
    workshop.store.quarantine(job.key, "to be made again")
    context = workshop.context(job)
    context.stop_file = tmp_path / "stop"

    def report(done: float, note: str) -> None:
        if note.startswith("expert 1 epoch 2"):
            (tmp_path / "stop").touch()

    context.report = report
    started = starts_of(monkeypatch)
    with pytest.raises(Yielded):
        perform(context)
    assert not workshop.store.has(job.key)
    perform(JobContext.alone(job, workshop.store))
    assert started == [0, 1, 1]
    assert workshop.store.manifest(job.key).digest == together.store.manifest(job.key).digest
    assert list((workshop.store.root / "checkpoints").iterdir()) == []


def test_a_request_to_stop_is_heard_during_a_transition(made: Workshop, tmp_path: Path) -> None:
    job = made.job("experts", stage=2, first=0)
    context = JobContext.alone(job, made.store)
    context.stop_file = tmp_path / "stop"
    context.stop_file.touch()
    with pytest.raises(Yielded, match="during a transition"):
        experts.start_of(context, made.data(), 0)


# Partitions


def scored(workshop: Workshop) -> Job:
    """Forgetting scores of the training images, from a stream long enough to have some."""
    real = workshop.job("experts", stage=1).spec
    assert isinstance(real, ExpertsSpec)
    training = real.real.model_copy(update={"epochs": 8, "lr": 0.1})
    spec = ForgettingSpec(network=real.network, training=training, runs=1)
    return Job.make(spec, {"dataset": (workshop.job("dataset").key,)})


def test_a_partition_limits_the_real_images_to_those_with_such_a_score(made: Workshop) -> None:
    scores = scored(made)
    made.make(scores)
    counts = read_counts(made.store.path(scores.key, COUNTS))
    assert {0, 1, 2} <= set(counts.tolist())
    stage_one = made.job("experts", stage=1, first=0)
    parents = {**stage_one.parents, "forgetting": (scores.key,)}
    job = changed(stage_one, parents, partition=(1, 3))
    chosen = partitioned(JobContext.alone(job, made.store), made.data(), (1, 3)).train
    expected = [i for i, count in enumerate(counts.tolist()) if count in (1, 2)]  # not 0, not 3
    assert torch.equal(chosen.images[:], made.data().train.images[expected])
    assert torch.equal(chosen.labels, made.data().train.labels[expected])
    made.make(job)
    (stream,) = read_correctness(made.store.path(job.key, CORRECTNESS))
    assert stream.shape == (3, len(expected))


def test_a_partition_without_an_image_is_refused(made: Workshop) -> None:
    scores = scored(made)
    made.make(scores)
    stage_one = made.job("experts", stage=1, first=0)
    job = changed(stage_one, {**stage_one.parents, "forgetting": (scores.key,)}, partition=(100, 200))
    with pytest.raises(BadInput, match=r"partition is \(100, 200\): no training image has such"):
        perform(JobContext.alone(job, made.store))
