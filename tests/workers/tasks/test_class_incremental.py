"""Class-incremental learning: phases are datasets of their own, and their sets come together under the true labels."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from jobs.specs import DatasetSpec, EvaluateSpec
from tests.workers.workshop import CPU, Workshop
from workers.data import dataset
from workers.data.dataset import Split
from workers.data.synthetic_set import SyntheticSet
from workers.tasks.class_incremental import by_stage, of_classes
from workers.tasks.evaluate import RESULT
from workers.training.trainer import Trainer

PHASES = ((2, 7), (0, 3))


def one_set(value: float, step_size: float | None) -> SyntheticSet:
    return SyntheticSet(torch.full((4, 1, 2, 2), value), torch.tensor([0, 0, 1, 1]), step_size)


def test_sets_of_several_phases_come_together_stage_by_stage_under_the_classes_own_ids() -> None:
    # first phase: stages 1 and 2; second phase: stages 1 and 2
    sets = [one_set(1, 0.1), one_set(2, 0.2), one_set(3, 0.3), one_set(4, 0.6)]
    first, second = by_stage(sets, PHASES, 10)
    assert first.images[:, 0, 0, 0].tolist() == 4 * [1.0] + 4 * [3.0]
    assert second.images[:, 0, 0, 0].tolist() == 4 * [2.0] + 4 * [4.0]
    assert first.labels.tolist() == second.labels.tolist() == [2, 2, 7, 7, 0, 0, 3, 3]
    assert (first.step_size, second.step_size) == (pytest.approx(0.2), pytest.approx(0.4))


def test_soft_labels_of_a_phase_give_the_classes_of_other_phases_no_probability() -> None:
    logits = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0], [0.0, 3.0]])
    (together,) = by_stage(
        [replace(one_set(1, 0.1), logits=logits), replace(one_set(2, 0.2), logits=logits)], PHASES, 10
    )
    _, targets = together.training_data()
    assert targets.shape == (8, 10) and together.labels.tolist() == [2, 2, 7, 7, 0, 0, 3, 3]
    for rows, phase in ((slice(4), PHASES[0]), (slice(4, 8), PHASES[1])):
        assert torch.equal(targets[rows][:, phase], torch.softmax(logits, 1))
        assert float(targets[rows].sum()) == pytest.approx(4.0)
    assert torch.nn.functional.cross_entropy(torch.zeros(8, 10), targets).isfinite()


def test_real_images_have_no_step_size_and_one_phase_stays_as_it_is() -> None:
    (together,) = by_stage([one_set(1, None)], [(4, 5)], 10)
    assert (together.step_size, together.labels.tolist()) == (None, [4, 4, 5, 5])


def test_only_images_of_the_classes_seen_are_asked_about() -> None:
    split = Split(torch.arange(5.0).reshape(5, 1, 1, 1), torch.tensor([0, 1, 2, 3, 7]))
    seen = of_classes(split, PHASES)
    assert (seen.images.flatten().tolist(), seen.labels.tolist()) == ([0.0, 2.0, 3.0, 4.0], [0, 2, 3, 7])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    """Two stages in each of five phases of two classes, in one order."""
    arms: tuple[dict[str, Any], ...] = (
        {"method": "mtt", "stages": 2, "ipc_per_stage": 1, "class_incremental": {"phases": 5, "orders": 1}},
    )
    return Workshop.open(tmp_path_factory.mktemp("made"), *arms, networks=1)


def phases_of(workshop: Workshop) -> list[DatasetSpec]:
    return [job.spec for job in workshop.jobs("dataset") if isinstance(job.spec, DatasetSpec) and job.spec.subset]


def test_a_phase_holds_the_images_of_its_classes_in_the_space_of_the_whole(made: Workshop) -> None:
    whole = made.data()
    phase = next(job for job in made.jobs("dataset") if isinstance(job.spec, DatasetSpec) and job.spec.subset)
    assert isinstance(phase.spec, DatasetSpec)
    manifest = made.make(phase)
    found = dataset.load(made.store, phase.key, CPU)
    for name in dataset.SPLITS:
        all_of_it, own = getattr(whole, name), getattr(found, name)
        expected = [i for i, label in enumerate(all_of_it.labels.tolist()) if label in phase.spec.subset]
        assert torch.equal(own.images[:], all_of_it.images[expected])
        ids = [phase.spec.subset[label] for label in own.labels.tolist()]
        assert ids == all_of_it.labels[expected].tolist()
        assert manifest.extra[name] == len(expected) > 0
    assert found.class_names == tuple(whole.class_names[label] for label in phase.spec.subset)
    assert phase.spec.train_images == len(found.train)


def test_the_phases_of_an_order_share_all_classes_among_them(made: Workshop) -> None:
    assert sorted(label for spec in phases_of(made) for label in spec.subset) == list(range(10))


def test_after_two_phases_a_network_learns_both_stage_by_stage(made: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    job = next(job for job in made.jobs("evaluate") if isinstance(job.spec, EvaluateSpec) and len(job.spec.phases) == 2)
    context = made.context(job)
    seen: list[list[int]] = []
    run = Trainer.run

    def spy(trainer: Trainer, images: torch.Tensor, labels: torch.Tensor, **more: Any) -> Any:
        seen.append(labels.tolist())
        return run(trainer, images, labels, **more)

    monkeypatch.setattr(Trainer, "run", spy)
    made.make(job)
    assert isinstance(job.spec, EvaluateSpec)
    once = [label for phase in job.spec.phases for label in phase]
    assert seen == [once, once + once]  # S_1 of both phases; S_1 and S_2 of both
    curve = pq.read_table(made.store.path(context.job.key, RESULT)).column("accuracy").to_pylist()
    tested = sum(label in once for label in made.data().test.labels.tolist())
    right = [accuracy * tested / 100 for accuracy in curve]
    assert right == pytest.approx([round(count) for count in right], abs=1e-3)


def test_a_phase_is_the_same_bytes_in_another_store(made: Workshop, tmp_path: Path) -> None:
    other = Workshop.open(
        tmp_path, {"method": "random", "ipc_per_stage": 1, "class_incremental": {"phases": 5, "orders": 1}}
    )
    job = made.jobs("dataset")[1]
    assert job.key in other.plan.graph.jobs
    assert made.make(job).digest == other.make(job).digest
