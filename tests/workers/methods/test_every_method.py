"""Progressive distillation is written once around the methods, so what holds of it must hold of every one of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from jobs.graph import Job
from jobs.methods import SETTINGS, SOFT_LABELS, TrajectorySettings
from tests.workers.workshop import Workshop, changed
from workers.data import synthetic_set
from workers.data.synthetic_set import EXACT, SyntheticSet
from workers.execute import perform
from workers.methods import _BUILT_IN, method_named
from workers.methods.base import Method
from workers.runtime.context import JobContext
from workers.tasks import experts
from workers.tasks.distil import StageRun
from workers.training import transition

METHODS = tuple(SETTINGS)
TRAJECTORIES = ("mtt", "tesla", "datm", "haba")

pytestmark = pytest.mark.slow


def arm(method: str, **more: Any) -> dict[str, Any]:
    return {"method": method, "stages": 2, "ipc_per_stage": 1, **more}


@pytest.fixture(scope="module", params=METHODS)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    """Two stages of one method, everything done."""
    workshop = Workshop.open(tmp_path_factory.mktemp(request.param), arm(request.param))
    workshop.make(workshop.job("distil", stage=2))
    return workshop


def stages(workshop: Workshop) -> tuple[Job, Job]:
    return workshop.job("distil", stage=1), workshop.job("distil", stage=2)


def links(monkeypatch: pytest.MonkeyPatch) -> list[SyntheticSet]:
    """The unions that links of chains are trained on from now on."""
    trained: list[SyntheticSet] = []

    def spy(network: Any, union: SyntheticSet, *rest: Any) -> None:
        trained.append(union)
        link(network, union, *rest)

    link = transition.link
    monkeypatch.setattr(transition, "link", spy)
    monkeypatch.setattr(experts, "link", spy)
    return trained


def test_the_frozen_images_do_not_move_by_a_bit_through_the_second_stage(made: Workshop) -> None:
    first, second = stages(made)
    file = made.store.path(first.key, EXACT)
    before = file.read_bytes()
    run = StageRun(JobContext.alone(second, made.store))
    stored = made.synthetic(first).images
    frozen = run.data.transform.inverse(stored) if run.method.space == "unit" else stored
    new = run.learnable.new.clone()
    for _ in range(run.spec.iterations):
        run.step()
        assert run.learnable.union[:10].numpy().tobytes() == frozen.numpy().tobytes()
    assert not torch.equal(run.learnable.new, new)
    assert file.read_bytes() == before and made.store.verify(first.key) == []
    assert torch.equal(run.result().images, made.synthetic(second).images)  # it is what the job has stored


def test_another_first_set_gives_the_second_stage_another_key(made: Workshop) -> None:
    first, second = stages(made)
    other = changed(first, seed=1)
    assert changed(second, parents={**second.parents, "sets": (other.key,)}).key != second.key


def test_one_pixel_of_the_first_set_changes_the_second_one(made: Workshop, tmp_path: Path) -> None:
    """Under the same key, so that no seed is another one and the pixel alone can make a difference."""
    first, second = stages(made)
    nudged = made.synthetic(first)
    nudged.images[0, 0, 3, 3] += 0.1
    workshop = made.copy(tmp_path)
    for job in (first, second):
        workshop.store.quarantine(job.key, "to be made again")
    with workshop.store.put(first.key, "distil", {}, {}, device="cpu") as folder:
        synthetic_set.write(folder, nudged, workshop.data().transform, [str(number) for number in range(10)])
    workshop.make(second)
    assert not torch.equal(workshop.synthetic(second).images, made.synthetic(second).images)


def test_its_networks_have_been_through_the_first_set_and_are_random_without_a_transition(
    made: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained, (first, second) = links(monkeypatch), stages(made)
    workshop = made.copy(tmp_path)
    for job in (second, *workshop.jobs("experts", stage=2)):
        workshop.store.quarantine(job.key, "to be made again")
    workshop.make(second)
    assert trained and all(torch.equal(union.images, made.synthetic(first).images) for union in trained)

    trained.clear()
    without = Workshop.open(tmp_path / "without", arm(second.canonical()["spec"]["method"], transition=False))
    without.make(without.job("distil", stage=2))
    assert trained == []


def test_a_stage_goes_on_from_its_checkpoint_bit_for_bit(made: Workshop, tmp_path: Path) -> None:
    _, second = stages(made)
    workshop = made.copy(tmp_path)
    workshop.store.quarantine(second.key, "to be made again")
    context = workshop.context(second)
    before = StageRun(context)
    for _ in range(2):
        before.step()
    before.save()
    perform(JobContext.alone(second, workshop.store))
    assert workshop.store.manifest(second.key).digest == made.store.manifest(second.key).digest


def test_the_second_stage_distils_as_its_recipe_says(made: Workshop) -> None:
    _, second = stages(made)
    spec = second.canonical()["spec"]
    stored = made.synthetic(second)
    assert stored.labels.tolist() == list(range(10)) and stored.factor == spec.get("factor", 1)
    assert (spec["choice"]["by"] == "last") == (
        spec["method"] not in TRAJECTORIES
    )  # as their papers do; MTT's choice is ours
    assert (stored.step_size is not None) == (spec["method"] in (*TRAJECTORIES, "dd"))
    assert (stored.logits is not None) == ("labels" in spec)


def test_every_method_has_its_numbers_where_torch_is_not_needed() -> None:
    assert SETTINGS == {name: method_named(name).Settings for name in _BUILT_IN}


def test_only_trajectory_matching_reads_epochs_of_its_experts() -> None:
    readers = {name for name in _BUILT_IN if method_named(name).expert_epochs_needed.__func__ is not _ours}  # type: ignore[attr-defined]
    assert readers == {name for name, model in SETTINGS.items() if issubclass(model, TrajectorySettings)}
    assert readers == set(TRAJECTORIES)


def test_a_method_says_that_it_takes_soft_labels_where_torch_is_not_needed() -> None:
    assert {name for name in _BUILT_IN if method_named(name).soft_labels} == SOFT_LABELS


_ours = Method.expert_epochs_needed.__func__  # type: ignore[attr-defined]
