"""Soft labels through two stages: where they start, that they learn, who keeps them, and who is trained on them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from jobs.learning import ImageOptimiserSpec
from tests.workers.workshop import TWO_STAGES, Workshop, changed
from workers.data import synthetic_set
from workers.data.synthetic_set import SyntheticSet
from workers.execute import perform
from workers.methods.base import LearnableImages
from workers.runtime.context import JobContext
from workers.tasks import evaluate, experts
from workers.tasks.distil import StageRun
from workers.tasks.teachers import mean_of_right
from workers.training import transition
from workers.training.trainer import Trainer

LEARNED = {"distil.labels": {"source": "experts", "learning": {"lr": 5.0, "momentum": 0.9}, "temperature": 2.0}}
SGD = ImageOptimiserSpec(lr=0.5, momentum=0.5)


def labelled(value: float, logit: float | None) -> SyntheticSet:
    logits = None if logit is None else torch.tensor([[logit, 0.0, 0.0], [0.0, logit, 0.0]])
    return SyntheticSet(torch.full((2, 1, 2, 2), value), torch.tensor([0, 1]), None, logits=logits)


# What learns.


def test_labels_learn_by_an_optimiser_of_their_own_and_earlier_ones_stay() -> None:
    rate = ImageOptimiserSpec(lr=2.0, momentum=0.9)
    canvas = LearnableImages(labelled(1.0, 3.0), labelled(2.0, 4.0), SGD, 10, label_optimiser=rate)
    assert canvas.logits is not None and canvas.logits[:, :2].diagonal(0).tolist() == [4.0, 4.0]
    gradient = torch.ones(4, 3)
    for at, moved in enumerate((2.0, 2.0 + 2.0 * 1.9)):  # velocity 1, then 1.9
        canvas.step(torch.ones(4, 1, 2, 2), at, gradient)
        torch.testing.assert_close(canvas.logits[2:], labelled(1.0, 3.0).logits - moved)
        assert torch.equal(canvas.logits[:2], labelled(2.0, 4.0).logits)
    assert canvas.new[0, 0, 0, 0].item() == pytest.approx(1 - 0.5 - 0.75)


def test_without_a_rate_labels_stay_until_the_method_assigns_others() -> None:
    canvas = LearnableImages(labelled(1.0, 3.0), None, SGD, 10)
    canvas.step(torch.ones(2, 1, 2, 2), 0, torch.ones(2, 3))
    assert torch.equal(canvas.logits, labelled(1.0, 3.0).logits)
    canvas.assign_labels(torch.full((2, 3), 7.0))
    assert torch.equal(canvas.logits, torch.full((2, 3), 7.0))
    twin = canvas.twin()
    twin.assign_labels(torch.zeros(2, 3))
    assert torch.equal(canvas.logits, torch.full((2, 3), 7.0))


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_a_state_of_learned_labels_goes_on_bit_for_bit(name: Any) -> None:
    rate, source = ImageOptimiserSpec(name=name, lr=0.5), torch.Generator().manual_seed(0)
    steps = [(torch.randn(2, 1, 2, 2, generator=source), torch.randn(2, 3, generator=source)) for _ in range(6)]
    straight, first, second = (
        LearnableImages(labelled(1.0, 3.0), None, SGD, 10, label_optimiser=rate) for _ in range(3)
    )
    for at, (pixels, labels) in enumerate(steps):
        straight.step(pixels, at, labels)
        if at < 3:
            first.step(pixels, at, labels)
    twin = first.twin()
    second.load_state(first.state())
    for canvas in (second, twin):
        for at, (pixels, labels) in list(enumerate(steps))[3:]:
            canvas.step(pixels, at, labels)
        assert torch.equal(canvas.logits, straight.logits) and torch.equal(canvas.new, straight.new)


def test_hard_labels_are_in_no_state() -> None:
    canvas = LearnableImages(labelled(1.0, None), None, SGD, 10)
    assert canvas.logits is None and set(canvas.state()) == {"new"}


# Through a chain.


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    """Two stages of MTT with learned labels."""
    workshop = Workshop.open(tmp_path_factory.mktemp("soft"), TWO_STAGES, set=LEARNED)
    workshop.make(workshop.job("distil", stage=2))
    return workshop


def logits_of(one: SyntheticSet) -> Tensor:
    assert one.logits is not None
    return one.logits


def test_a_stage_stores_labels_that_learned_from_those_its_experts_gave(made: Workshop) -> None:
    for job in made.jobs("distil"):
        stored = made.synthetic(job)
        run = StageRun(JobContext.alone(job, made.store))
        first = run.learnable.new_logits
        assert first is not None and first.shape == (10, 10) and stored.temperature == 2.0
        asked = torch.stack([run._teachers()._logits(number, run.learnable.new) for number in range(2)])
        assert torch.equal(first, mean_of_right(asked, stored.labels))
        assert not torch.equal(logits_of(stored), first)
        torch.testing.assert_close(logits_of(stored), first, rtol=0, atol=20.0)  # it moved, and not away


def test_the_second_stage_matches_with_the_labels_of_the_first_as_they_are(made: Workshop) -> None:
    first, second = made.jobs("distil")
    frozen = logits_of(made.synthetic(first))
    run = StageRun(JobContext.alone(second, made.store))
    for _ in range(run.spec.iterations):
        run.step()
        assert run.learnable.logits is not None
        assert run.learnable.logits[:10].numpy().tobytes() == frozen.numpy().tobytes()
    assert torch.equal(logits_of(run.result()), logits_of(made.synthetic(second)))
    assert torch.equal(logits_of(run.result_so_far())[:10], frozen)


def test_a_stage_goes_on_from_its_checkpoint_bit_for_bit(made: Workshop, tmp_path: Path) -> None:
    second = made.job("distil", stage=2)
    workshop = made.copy(tmp_path)
    workshop.store.quarantine(second.key, "to be made again")
    before = StageRun(workshop.context(second))
    for _ in range(4):  # a candidate has been kept
        before.step()
    before.save()
    perform(JobContext.alone(second, workshop.store))
    assert workshop.store.manifest(second.key).digest == made.store.manifest(second.key).digest


def test_the_labels_are_in_a_file_of_the_artifact_that_its_digest_covers(made: Workshop, tmp_path: Path) -> None:
    first = made.job("distil", stage=1)
    workshop = made.copy(tmp_path)
    path = workshop.store.path(first.key, synthetic_set.EXACT)
    one = synthetic_set.read(path)
    path.unlink()
    synthetic_set.write_exact(path, replace(one, logits=logits_of(one) + 1e-3))
    assert workshop.store.verify(first.key) != [] and made.store.verify(first.key) == []


def test_links_candidates_and_tested_networks_are_trained_towards_the_soft_labels(
    made: Workshop, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen: list[Tensor] = []
    run = Trainer.run

    def spy(self: Trainer, images: Any, labels: Tensor, **more: Any) -> Any:
        seen.append(labels)
        return run(self, images, labels, **more)

    monkeypatch.setattr(Trainer, "run", spy)
    sets = [made.synthetic(job) for job in made.jobs("distil")]
    union = synthetic_set.union(sets)
    workshop = made.copy(tmp_path)
    network = replace_training(workshop, temperature=None)
    evaluate.evaluate(JobContext.alone(network, workshop.store), tmp_path)
    assert torch.equal(seen[0], torch.softmax(logits_of(sets[0]) / 2.0, 1))
    assert torch.equal(seen[1], torch.softmax(logits_of(union) / 2.0, 1))
    seen.clear()
    network = replace_training(workshop, temperature=5.0)
    evaluate.evaluate(JobContext.alone(network, workshop.store), tmp_path)
    assert torch.equal(seen[-1], torch.softmax(logits_of(union) / 5.0, 1))
    seen.clear()
    expert = workshop.job("experts", stage=2)
    experts.start_of(JobContext.alone(expert, workshop.store), workshop.data(), 0)
    assert torch.equal(seen[0], torch.softmax(logits_of(sets[0]) / 2.0, 1))
    seen.clear()
    stage = StageRun(JobContext.alone(workshop.job("distil", stage=2), workshop.store))
    stage._candidate_accuracy()
    assert torch.equal(seen[0], stage.result_so_far().training_data()[1])
    assert transition.link is experts.link


def replace_training(workshop: Workshop, **numbers: Any) -> Any:
    job = workshop.jobs("evaluate")[-1]
    spec: Any = job.spec
    return changed(job, training={**spec.training.model_dump(), **numbers})


def test_images_may_start_from_real_ones_that_an_expert_knows(tmp_path: Path) -> None:
    numbers = {**LEARNED, "distil.init": "classified"}
    workshop = Workshop.open(tmp_path, {"method": "mtt", "ipc_per_stage": 3}, set=numbers)
    job = workshop.job("distil", stage=1)
    run = StageRun(workshop.context(job))
    images = run.learnable.new
    known = torch.stack([run._teachers()._logits(number, images).argmax(1) == run._new_labels() for number in range(2)])
    real = run.data.train.images[:].flatten(1)
    assert all(bool((real == image).all(1).any()) for image in images.flatten(1))
    assert known.any(0).float().mean() > 0.6  # of random ones the experts know few; where too few are known, any
