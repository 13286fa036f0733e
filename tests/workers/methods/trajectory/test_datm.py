"""DATM: a range of start epochs that grows, iterations that move nothing, and labels that learn with the images."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from jobs.learning import ImageOptimiserSpec, LabelSpec
from tests.workers.matched import resumed
from tests.workers.methods.trajectory import test_mtt
from tests.workers.methods.trajectory.test_mtt import NUMBERS, generator, images
from workers.methods import method_named
from workers.methods.base import LearnableImages, Stage
from workers.methods.trajectory.datm import DatmSettings, DifficultyAlignedMatching

stage = test_mtt.stage
LEARNING = ImageOptimiserSpec(lr=3.0, momentum=0.9)


def settings(**changes: Any) -> DatmSettings:
    return DatmSettings(**{**NUMBERS, **changes})


@pytest.fixture
def soft_stage(stage: Stage) -> Stage:
    labels = LabelSpec(source="experts", learning=LEARNING)
    return test_mtt._with(stage, spec=stage.spec.model_copy(update={"labels": labels}))


def canvas() -> LearnableImages:
    new, earlier = (replace(images(1, seed), logits=torch.randn(3, 3, generator=generator(seed))) for seed in (11, 12))
    return LearnableImages(new, earlier, test_mtt.SGD, 10, label_optimiser=LEARNING)


def test_the_range_grows_on_a_line_from_its_first_epochs_to_all() -> None:
    growing = settings(min_start_epoch=2, max_start_epoch=12, first_span=4, grown_at=9)
    seen = [growing.start_epochs(iteration) for iteration in range(12)]
    assert seen == [(2, 6 + int(6 * min(iteration / 9, 1))) for iteration in range(12)]
    assert seen[0] == (2, 6) and seen[9] == seen[11] == (2, 12)
    assert settings().start_epochs(0) == (0, 4)


@pytest.mark.parametrize(
    ("numbers", "fix"),
    [
        ({"first_span": 2}, "give first_span and grown_at together, or neither"),
        ({"grown_at": 2}, "give first_span and grown_at together, or neither"),
        ({"first_span": 5, "grown_at": 2}, "first_span must be at most"),
    ],
)
def test_a_range_that_cannot_grow_is_refused(numbers: dict[str, int], fix: str) -> None:
    with pytest.raises(ValidationError, match=fix):
        settings(**numbers)


def test_matches_start_inside_the_range_of_their_iteration(soft_stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    method = DifficultyAlignedMatching(soft_stage, settings(first_span=1, grown_at=30))
    read, experts = list[int](), method._experts
    parameters = experts.parameters

    def spy(expert: int, epoch: int) -> torch.Tensor:
        read.append(epoch)
        return parameters(expert, epoch)

    monkeypatch.setattr(experts, "parameters", spy)
    draws = generator(3)
    for iteration in range(60):
        method._matched(canvas(), iteration, draws)
    starts = [min(read[number : number + 2]) for number in range(0, len(read), 2)]
    assert set(starts[:10]) == {0} and set(starts[30:]) == {0, 1, 2, 3}
    assert all(start < method._settings.start_epochs(iteration)[1] for iteration, start in enumerate(starts))


@pytest.mark.parametrize("most_loss", [None, 1e-6, 1e6])
def test_an_iteration_whose_loss_is_too_high_moves_nothing(soft_stage: Stage, most_loss: float | None) -> None:
    method, moved = DifficultyAlignedMatching(soft_stage, settings(most_loss=most_loss)), canvas()
    before, step_size = (moved.union, moved.logits), method.step_size
    loss = method.iterate(moved, 0, generator(2))
    assert 1e-6 < loss < 1e6 and before[1] is not None and moved.logits is not None
    stayed = most_loss == 1e-6
    assert torch.equal(moved.union, before[0]) == torch.equal(moved.logits, before[1]) == stayed
    assert (method.step_size == step_size) == stayed


def test_images_labels_and_step_size_learn_and_the_earlier_ones_stay(soft_stage: Stage) -> None:
    method, moved = DifficultyAlignedMatching(soft_stage, settings()), canvas()
    frozen, first = (moved.union[:3], moved.logits), method.step_size
    assert frozen[1] is not None
    for iteration in range(3):
        method.iterate(moved, iteration, generator(iteration))
    assert torch.equal(moved.union[:3], frozen[0]) and moved.logits is not None
    assert torch.equal(moved.logits[:3], frozen[1][:3])
    assert bool((moved.logits[3:] != frozen[1][3:]).any()) and method.step_size != first
    assert method_named("datm") is DifficultyAlignedMatching


def test_a_stage_goes_on_from_a_state_bit_for_bit(soft_stage: Stage) -> None:
    numbers = settings(first_span=1, grown_at=3, most_loss=2.0)
    methods, canvases = [DifficultyAlignedMatching(soft_stage, numbers) for _ in range(2)], [canvas(), canvas()]
    straight, again = resumed(*methods, *canvases)
    assert straight == again
    assert torch.equal(canvases[0].logits, canvases[1].logits)
