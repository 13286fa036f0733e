"""Evaluation: the links, their epochs and learning rates, the momentum, and which number is the result."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor

from jobs.graph import Job
from jobs.keys import seed_from
from jobs.specs import EvaluateSpec
from tests.workers.workshop import THREE_STAGES, TWO_STAGES, Workshop, changed
from workers.data.dataset import Split
from workers.data.synthetic_set import SyntheticSet
from workers.execute import perform
from workers.runtime.context import JobContext
from workers.tasks import evaluate as evaluating
from workers.tasks.evaluate import RESULT, evaluate, links
from workers.training.networks import Network, build, flatten
from workers.training.trainer import EpochStats, Optimiser, Schedule, Trainer, accuracy

EIGHT_EPOCHS = {"evaluate.epochs": 8, "evaluate.epochs_total": None}
MODES = ("progressive", "union", "sequential")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    """Three stages, every prefix evaluated in all three modes; eight epochs, so that there is a drop."""
    workshop = Workshop.open(
        tmp_path_factory.mktemp("made"),
        {**THREE_STAGES, "modes": MODES},
        set=EIGHT_EPOCHS,
        architectures=["convnet", "resnet10"],
    )
    workshop.make(workshop.job("distil", stage=3))
    return workshop


@pytest.fixture(scope="module")
def selected(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    """The baselines of the same images per class: a random selection and the whole training split."""
    return Workshop.open(
        tmp_path_factory.mktemp("selected"), {"method": "random", "ipc_per_stage": 2}, {"method": "full"}
    )


class Run:
    """What one call of `Trainer.run` was given and did."""

    def __init__(self, trainer: Trainer, images: Tensor, labels: Tensor, more: dict[str, Any]) -> None:
        self.trainer, self.images, self.labels, self.more = trainer, images, labels, more
        self.start, self.momentum = flatten(trainer.module), momentum_of(trainer)
        self.history: list[EpochStats] = []
        self.momentum_after: dict[str, np.ndarray[Any, Any]] = {}

    @property
    def rates(self) -> list[float]:
        return [one.lr for one in self.history]


def momentum_of(trainer: Trainer) -> dict[str, Any]:
    return {name: value for name, value in trainer.state().items() if name.startswith("momentum/")}


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[Run]:
    """Every training of the test, in order."""
    seen: list[Run] = []
    run = Trainer.run

    def spy(trainer: Trainer, images: Tensor, labels: Tensor, **more: Any) -> list[EpochStats]:
        one = Run(trainer, images, labels, more)
        seen.append(one)
        one.history = run(trainer, images, labels, **more)
        one.momentum_after = momentum_of(trainer)
        return one.history

    monkeypatch.setattr(Trainer, "run", spy)
    return seen


def evaluation(workshop: Workshop, prefix: int, mode: str, index: int = 0, architecture: str = "convnet") -> Job:
    """The job that evaluates the first `prefix` stages."""
    (job,) = [
        job
        for job in workshop.jobs("evaluate", mode=mode, index=index)
        if len(job.parents["sets"]) == prefix and job.spec.network.architecture == architecture  # type: ignore
    ]
    return job


def sets(workshop: Workshop) -> list[SyntheticSet]:
    return [workshop.synthetic(job) for job in workshop.jobs("distil")]


def fresh(job: Job) -> Network:
    generator = torch.Generator().manual_seed(seed_from(job.key, "init"))
    return build("convnet", channels=1, size=8, classes=10, width=8, depth=2, norm="instance", generator=generator)


# Links


def test_the_three_modes_train_on_unions_on_the_last_union_or_on_each_set_alone() -> None:
    one, two, three = (SyntheticSet(torch.full((n, 1, 2, 2), float(n)), torch.arange(n), 0.1 * n) for n in (1, 2, 3))

    def content(mode: Any) -> list[tuple[list[float], float | None]]:
        return [(link.images[:, 0, 0, 0].tolist(), link.step_size) for link in links([one, two, three], mode)]

    assert content("progressive") == [
        ([1.0], one.step_size),
        ([1.0, 2.0, 2.0], two.step_size),
        ([1.0, 2.0, 2.0, 3.0, 3.0, 3.0], three.step_size),
    ]
    assert content("union") == [([1.0, 2.0, 2.0, 3.0, 3.0, 3.0], three.step_size)]
    assert content("sequential") == [
        ([1.0], one.step_size),
        ([2.0, 2.0], two.step_size),
        ([3.0, 3.0, 3.0], three.step_size),
    ]


def test_a_link_keeps_each_image_beside_its_label(made: Workshop) -> None:
    union = links(sets(made), "union")[0]
    assert union.labels.tolist() == list(range(10)) * 3


# Progressive evaluation


def test_every_link_has_all_epochs_at_its_own_step_size_with_a_drop_of_its_own(made: Workshop, runs: list[Run]) -> None:
    job, (one, two, three) = evaluation(made, 3, "progressive"), sets(made)
    assert len({one.step_size, two.step_size, three.step_size}) == 3
    perform(made.context(job))
    assert [len(run.images) for run in runs] == [10, 20, 30]
    assert torch.equal(runs[2].images, torch.cat([one.images, two.images, three.images]))
    for run, made_by in zip(runs, (one, two, three), strict=True):
        a = made_by.step_size
        # eight passes, the drop after that of index 8 // 2 + 1
        assert a is not None and run.rates == pytest.approx([a] * 6 + [a / 10] * 2)
        assert run.more["batch_size"] == 256 and run.more["augmentation"] is None
        numbers = run.trainer.optimiser
        assert (numbers.momentum, numbers.weight_decay) == (0.9, 0.0005)


def test_weights_and_momentum_are_carried_from_link_to_link(made: Workshop, runs: list[Run], tmp_path: Path) -> None:
    evaluate(made.context(evaluation(made, 3, "progressive", index=1)), tmp_path)
    assert len({id(run.trainer) for run in runs}) == 1
    assert runs[0].momentum == {}
    for before, after in pairwise(runs):
        assert before.momentum_after.keys() == after.momentum.keys() != set()
        assert not torch.equal(after.start, before.start)
        for name, value in before.momentum_after.items():
            assert np.array_equal(after.momentum[name], value) and np.abs(value).max() > 0


@pytest.mark.parametrize("mode", MODES)
def test_the_result_is_the_accuracy_after_the_last_link_trained_by_hand(made: Workshop, mode: Any) -> None:
    job, test = evaluation(made, 2, mode), made.data().test
    net, curve = fresh(job), []
    generator = torch.Generator().manual_seed(seed_from(job.key, "train"))
    trainer = Trainer(net, Optimiser(lr=1.0, momentum=0.9, weight_decay=5e-4), generator)
    chain = {
        "progressive": lambda a, b: [(a.images, a), (torch.cat([a.images, b.images]), b)],
        "union": lambda a, b: [(torch.cat([a.images, b.images]), b)],
        "sequential": lambda a, b: [(a.images, a), (b.images, b)],
    }[mode](*sets(made)[:2])
    for images, last in chain:
        labels = torch.arange(len(images)) % 10
        trainer.run(images, labels, schedule=Schedule(epochs=8, drops=(6,)), batch_size=256, lr=last.step_size)
        curve.append(accuracy(net, test.images, test.labels))
    extra = made.make(job).extra
    assert extra == {"accuracy": curve[-1], "curve": curve}
    table = pq.read_table(made.store.path(job.key, RESULT)).to_pydict()
    assert table == {"link": list(range(1, len(curve) + 1)), "accuracy": curve}


def test_the_papers_epochs_shrink_with_the_number_of_stages(
    tmp_path_factory: pytest.TempPathFactory, runs: list[Run]
) -> None:
    numbers = {"evaluate.epochs_total": 11}
    workshop = Workshop.open(tmp_path_factory.mktemp("paper"), TWO_STAGES, set=numbers)
    for prefix, epochs in ((1, [5]), (2, [3, 3])):  # int(11 / (p + 1))
        context = workshop.context(evaluation(workshop, prefix, "progressive"))
        runs.clear()
        perform(context)
        assert [run.more["schedule"].epochs for run in runs] == epochs
        assert [len(run.history) for run in runs] == epochs


def test_every_network_is_random_and_none_is_an_experts(made: Workshop, runs: list[Run]) -> None:
    experts = [made.trajectories(job).parameters(0, 0) for job in made.jobs("experts")]
    runs.clear()
    for index in (0, 1):
        perform(JobContext.alone(evaluation(made, 1, "progressive", index), made.store))
    starts = [run.start.numpy().tobytes() for run in runs]
    assert starts[0] == flatten(fresh(evaluation(made, 1, "progressive", 0))).numpy().tobytes()
    assert len({*starts, *(start.numpy().tobytes() for start in experts)}) == 2 + len(experts)


def test_another_architecture_is_trained_at_the_same_learned_step_sizes(made: Workshop, runs: list[Run]) -> None:
    perform(made.context(evaluation(made, 2, "progressive", architecture="resnet10")))
    assert [run.rates[0] for run in runs] == [one.step_size for one in sets(made)[:2]]
    assert type(runs[0].trainer.module).__name__ == "ResNet"


def test_nothing_but_the_test_split_is_tested_on(made: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    tested: list[Tensor] = []

    def accuracy_of(net: Network, images: Tensor, labels: Tensor) -> float:
        tested.append(images)
        return [30.0, 20.0][len(tested) - 1]

    monkeypatch.setattr("workers.tasks.evaluate.accuracy", accuracy_of)
    job = changed(evaluation(made, 2, "progressive"), index=7)
    assert made.make(job).extra == {"accuracy": 20.0, "curve": [30.0, 20.0]}  # the last, not the best
    assert len(tested) == 2 and all(images is made.data().test.images for images in tested)


@pytest.mark.parametrize(("best_of", "tests"), [(2, 2), (4, 4)])
def test_the_best_of_several_tests_of_the_last_link_is_the_result_only_where_it_is_asked_for(
    made: Workshop, monkeypatch: pytest.MonkeyPatch, best_of: int, tests: int
) -> None:
    """As IDC and DREAM report: after 8 epochs of the last link, and before that at even distances."""
    job = changed(evaluation(made, 2, "progressive"), best_of=best_of)
    scores, seen = iter([30.0, 70.0, 60.0, 50.0, 40.0]), []
    monkeypatch.setattr("workers.tasks.evaluate.accuracy", lambda *_: seen.append(next(scores)) or seen[-1])
    extra = made.make(job).extra
    assert len(seen) == 1 + tests and extra == {"accuracy": 70.0, "curve": [30.0, 70.0]}


# Learning rates


def test_a_selection_is_trained_at_the_recipes_learning_rate(selected: Workshop, runs: list[Run]) -> None:
    job = selected.job("evaluate")
    assert selected.synthetic(selected.job("select")).step_size is None
    perform(selected.context(job))
    assert [run.rates for run in runs] == [[0.02] * 4]
    assert len(runs[0].images) == 20


def test_a_learning_rate_in_the_spec_takes_the_place_of_the_learned_one(made: Workshop, runs: list[Run]) -> None:
    job = evaluation(made, 2, "progressive")
    job = changed(job, training={**job.canonical()["spec"]["training"], "lr": 0.123})
    perform(made.context(job))
    assert [run.rates[0] for run in runs] == [0.123, 0.123]


def test_a_set_without_a_step_size_is_not_trained_at_an_invented_rate(selected: Workshop) -> None:
    job = selected.job("evaluate")
    job = changed(job, training={**job.canonical()["spec"]["training"], "lr": None})
    with pytest.raises(AssertionError, match="no learning rate"):
        perform(selected.context(job))


# Full data


def test_the_bound_is_one_network_trained_on_the_whole_training_split(selected: Workshop, runs: list[Run]) -> None:
    job, data = selected.job("full"), selected.data()
    extra = selected.make(job).extra
    (run,) = runs
    assert run.images is data.train.images
    assert torch.equal(run.start, flatten(fresh(job)))
    assert len(run.history) == run.more["schedule"].epochs
    tested = accuracy(run.trainer.module, data.test.images, data.test.labels)
    assert extra == {"accuracy": tested, "curve": [tested]}


# Named departures


def test_stored_weights_are_those_of_the_first_expert_for_every_network(tmp_path: Path) -> None:
    workshop = Workshop.open(tmp_path, {"method": "mtt", "ipc_per_stage": 1}, set={"evaluate.start": "expert"})
    stored = workshop.trajectories(workshop.job("experts", first=0)).parameters(0, 0)
    for index in (0, 1):
        context = workshop.context(workshop.job("evaluate", index=index))
        spec, data = context.job.spec, workshop.data()
        assert isinstance(spec, EvaluateSpec)
        assert torch.equal(flatten(evaluating._network(context, spec, data)), stored)
        plain = spec.model_copy(update={"start": "random"})
        assert not torch.equal(flatten(evaluating._network(context, plain, data)), stored)


def test_an_uneven_test_split_has_a_balanced_accuracy_beside_the_accuracy(
    made: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = made.data()
    few = torch.cat([torch.nonzero(data.test.labels == label).flatten()[: 3 + 5 * (label == 0)] for label in range(10)])
    test = Split(data.test.images[few], data.test.labels[few])
    monkeypatch.setattr("workers.data.dataset.load", lambda *_: replace(data, test=test))
    extra = made.make(changed(evaluation(made, 1, "progressive"), index=9)).extra
    assert set(extra) == {"accuracy", "curve", "balanced_accuracy"}
    assert extra["balanced_accuracy"] != extra["accuracy"]
