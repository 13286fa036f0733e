"""Forgetting counts, and that the experts' streams give them without any training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from jobs.errors import BadInput
from jobs.graph import Job
from jobs.keys import seed_from
from jobs.specs import ExpertsSpec, ForgettingSpec
from tests.workers.workshop import ONE_STAGE, Workshop, changed
from workers.runtime.context import JobContext
from workers.store.trajectories import CORRECTNESS, read_correctness
from workers.tasks import forgetting
from workers.tasks.distil import StageRun
from workers.tasks.forgetting import COUNTS, count_events, levels_of, read_counts, write_counts
from workers.training.networks import build
from workers.training.trainer import Optimiser, Schedule, Trainer

STREAM = np.array(
    # presentations 1 to 4, downwards; one image a column
    [
        [1, 1, 1, 0, 0, 0, 0],
        [1, 0, 0, 0, 1, 0, 1],
        [1, 1, 0, 0, 1, 0, 0],
        [1, 0, 0, 0, 0, 1, 1],
    ],
    dtype=bool,
)
EVENTS = [0, 2, 1, 0, 1, 0, 1]  # the fourth image was never right


def test_an_event_is_a_wrong_presentation_right_after_a_right_one() -> None:
    assert count_events(STREAM, "zero").tolist() == EVENTS


def test_an_image_that_was_never_right_counts_as_many_epochs_under_the_other_convention() -> None:
    assert count_events(STREAM, "epochs").tolist() == [0, 2, 1, 4, 1, 0, 1]


@pytest.mark.parametrize("convention", ["zero", "epochs"])
def test_the_first_presentation_cannot_be_an_event(convention: Any) -> None:
    assert count_events(np.array([[True]]), convention).tolist() == [0]
    assert count_events(np.array([[True], [False]]), convention).tolist() == [1]
    assert count_events(np.array([[False], [True]]), convention).tolist() == [0]


def by_hand(stream: NDArray[np.bool_], never_learned: int) -> list[int]:
    counts = []
    for image in stream.T.tolist():
        events = sum(before and not now for before, now in zip(image, image[1:], strict=False))
        counts.append(events if any(image) else never_learned)
    return counts


def test_the_counting_equals_a_loop_over_images() -> None:
    stream = np.random.default_rng(0).random((9, 200)) < 0.4
    stream[:, 7] = False
    assert count_events(stream, "zero").tolist() == by_hand(stream, 0)
    assert count_events(stream, "epochs").tolist() == by_hand(stream, 9)


def test_levels_are_equal_parts_of_each_class_by_rank_and_equal_counts_keep_their_order() -> None:
    counts = np.array([5, 0, 0, 9, 0, 0, 7, 1])
    labels = np.array([0, 0, 0, 0, 1, 1, 1, 1])
    assert levels_of(counts, labels, 2).tolist() == [1, 0, 0, 1, 0, 0, 1, 1]
    assert levels_of(counts, labels, 4).tolist() == [2, 0, 1, 3, 0, 1, 3, 2]


def test_counts_come_back_in_the_order_of_the_images(tmp_path: Path) -> None:
    counts = np.array([3, 0, 12, 0], dtype=np.int64)
    write_counts(tmp_path / COUNTS, counts)
    assert read_counts(tmp_path / COUNTS).tolist() == [3, 0, 12, 0]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    """Two experts in two jobs, trained fast enough to forget."""
    numbers = {"experts.real.epochs": 6, "experts.real.lr": 0.1}
    workshop = Workshop.open(tmp_path_factory.mktemp("made"), ONE_STAGE, set=numbers)
    for job in workshop.jobs("experts"):
        workshop.make(job)
    return workshop


def scores(workshop: Workshop, from_experts: bool, **fields: Any) -> Job:
    expert = workshop.job("experts")
    assert isinstance(expert.spec, ExpertsSpec)
    spec = ForgettingSpec(network=expert.spec.network, training=expert.spec.real, **fields)
    experts = [job.key for job in workshop.jobs("experts")] if from_experts else []
    return Job.make(spec, {"dataset": [workshop.job("dataset").key], "experts": experts})


def counts_of(workshop: Workshop, job: Job) -> list[int]:
    workshop.make(job)
    counts: list[int] = read_counts(workshop.store.path(job.key, COUNTS)).tolist()
    return counts


def streams(workshop: Workshop) -> list[NDArray[np.bool_]]:
    paths = [workshop.store.path(job.key, CORRECTNESS) for job in workshop.jobs("experts")]
    return [stream for path in paths for stream in read_correctness(path)]


def test_scores_come_from_the_experts_streams_without_training(made: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Trainer, "run", lambda *args, **more: pytest.fail("something was trained"))
    for convention, never in (("zero", 0), ("epochs", 6)):
        job = scores(made, from_experts=True, never_learned=convention)
        expected = np.sum([by_hand(stream, never) for stream in streams(made)], axis=0)
        assert counts_of(made, job) == expected.tolist()
        assert expected.max() > 1
        extra = made.make(job).extra
        assert extra == {"streams": 2, "never_forgotten": pytest.approx((expected == 0).mean())}


def test_own_training_with_the_same_streams_gives_the_same_scores(
    made: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = streams(made)
    monkeypatch.setattr(forgetting, "_stream", lambda context, spec, run: known[run])
    own = scores(made, from_experts=False, runs=2)
    assert counts_of(made, own) == counts_of(made, scores(made, from_experts=True))
    assert made.make(own).digest == made.make(scores(made, from_experts=True)).digest


def test_own_training_counts_the_stream_of_each_run_and_sums(made: Workshop) -> None:
    job, train = scores(made, from_experts=False, runs=2, seed=5), made.data().train
    total = np.zeros(len(train), dtype=np.int64)
    for run in (0, 1):
        drawn, ordered = (torch.Generator().manual_seed(seed_from(job.key, use, run)) for use in ("init", "real"))
        net = build("convnet", channels=1, size=8, classes=10, width=8, depth=2, norm="instance", generator=drawn)
        history = Trainer(net, Optimiser(lr=0.1), ordered).run(
            train.images, train.labels, schedule=Schedule(epochs=6), batch_size=32, correctness=True
        )
        rows = [one.correct.numpy() for one in history if one.correct is not None]
        total += np.array(by_hand(np.stack(rows), 0))
    assert counts_of(made, job) == total.tolist()
    assert counts_of(made, changed(job, runs=1)) != total.tolist()


# Partitions


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    """Two stages by forgetting score, the scores from a training hard enough to have some."""
    numbers = {"scores.training.epochs": 12, "scores.training.lr": 0.1, "scores.training.batch_size": 32}
    arm = {"method": "mtt", "stages": 2, "ipc_per_stage": 1, "partition": {"increment": 1}}
    return Workshop.open(tmp_path_factory.mktemp("split"), arm, set=numbers)


def test_a_stage_is_given_no_image_outside_of_its_partition_and_says_how_many_were_used(split: Workshop) -> None:
    second = split.job("distil", stage=2)
    manifest = split.make(second)
    counts = read_counts(split.store.path(second.parents["forgetting"][0], COUNTS))
    inside = np.flatnonzero(counts == 1)
    run = StageRun(JobContext.alone(second, split.store))
    assert torch.equal(run.data.train.images[:], split.data().train.images[inside])
    assert 0 < len(inside) < len(counts)
    assert manifest.extra["data_used"] == pytest.approx(100 * np.isin(counts, [0, 1]).mean())


def test_new_images_start_from_images_of_the_partition(split: Workshop) -> None:
    second = split.job("distil", stage=2)
    run = StageRun(split.context(second))
    counts = read_counts(split.store.path(second.parents["forgetting"][0], COUNTS))
    inside = {image.numpy().tobytes() for image in split.data().train.images[np.flatnonzero(counts == 1)]}
    assert {image.numpy().tobytes() for image in run.learnable.new} <= inside


def test_a_partition_with_too_few_images_of_a_class_is_refused(split: Workshop) -> None:
    second = split.job("distil", stage=2)
    job = changed(second, partition=(1, 2), ipc_per_stage=60)
    with pytest.raises(BadInput, match="training images with such forgetting scores and 60 are needed; widen it"):
        StageRun(split.context(job))
