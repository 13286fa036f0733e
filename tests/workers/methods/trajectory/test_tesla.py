"""TESLA: the loss of MTT, the gradient of its published formula, and labels from the expert that is matched."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.func import functional_call

from jobs.learning import LabelSpec
from tests.workers.matched import resumed
from tests.workers.methods.trajectory import test_mtt
from tests.workers.methods.trajectory.test_mtt import NUMBERS, generator, images, pixels
from tests.workers.methods.trajectory.test_trajectory_matching import Case, convnet, softly, softmax_regression
from workers.methods import method_named
from workers.methods.base import LearnableImages, Stage
from workers.methods.trajectory.mtt import TrajectoryMatching
from workers.methods.trajectory.tesla import ConstantMemoryMatching, TeslaSettings, constant_memory
from workers.methods.trajectory.trajectory_matching import Matched
from workers.training.augmentation import OPERATIONS
from workers.training.networks import unflatten

Array = NDArray[np.float64]
stage = test_mtt.stage


def tesla(case: Case) -> Matched:
    return constant_memory(
        case.student, case.start, case.target, case.images, case.labels, case.step_size, case.batches
    )


def gradient(parameters: Array, x: Array, wanted: Array) -> Array:
    """Of the mean cross-entropy of softmax regression."""
    weight, bias = parameters[:-3].reshape(3, -1), parameters[-3:]
    scores = np.exp(x.reshape(len(x), -1) @ weight.T + bias)
    error = (scores / scores.sum(1, keepdims=True) - wanted) / len(x)
    return np.concatenate([(error.T @ x.reshape(len(x), -1)).ravel(), error.sum(0)])


class WrittenOut:
    """The student's way, and the distance of its end as TESLA differentiates it: each step's parameters are fixed."""

    def __init__(self, case: Case) -> None:
        self.case, self.start, self.target = case, case.start.numpy(), case.target.numpy()
        theta, self.path = self.start.copy(), list[Array]()
        for batch in case.batches:
            self.path.append(theta)
            rows = batch.index.numpy()
            theta = theta - 0.3 * gradient(theta, case.images.numpy()[rows], self.wanted(case.labels.numpy())[rows])

    def wanted(self, labels: Array) -> Array:
        if labels.ndim == 1:
            return np.asarray(np.eye(3)[labels.astype(int)])
        scores: Array = np.exp(labels / self.case.student.temperature)
        return scores / scores.sum(1, keepdims=True)

    def loss(self, x: Array, labels: Array, step_size: float) -> float:
        wanted = self.wanted(labels)
        rows = [batch.index.numpy() for batch in self.case.batches]
        all_of_it = sum(gradient(theta, x[row], wanted[row]) for theta, row in zip(self.path, rows, strict=True))
        end = self.start - step_size * all_of_it
        return float(((end - self.target) ** 2).sum() / ((self.start - self.target) ** 2).sum())


@pytest.mark.parametrize("soft", [False, True])
def test_its_gradients_are_the_differences_of_the_published_formula(soft: bool) -> None:
    case, tiny = Case(softmax_regression(4, 3), (1, 2, 2)), 1e-5
    case = softly(case) if soft else case
    written, matched = WrittenOut(case), tesla(case)
    x, labels = case.images.numpy(), case.labels.numpy()
    assert float(matched.loss) == pytest.approx(written.loss(x, labels, 0.3), rel=1e-13)

    def differences(values: Array, loss: Any) -> Array:
        by_place = np.zeros(values.shape)
        for place in np.ndindex(values.shape):
            nudge = np.zeros(values.shape)
            nudge[place] = tiny
            by_place[place] = (loss(values + nudge) - loss(values - nudge)) / (2 * tiny)
        return by_place

    by_pixel = differences(x, lambda moved: written.loss(moved, labels, 0.3))
    by_step = written.loss(x, labels, 0.3 + tiny) - written.loss(x, labels, 0.3 - tiny)
    np.testing.assert_allclose(matched.images.numpy(), by_pixel, rtol=1e-6, atol=1e-9)
    assert float(matched.step_size) == pytest.approx(by_step / (2 * tiny), rel=1e-7)
    if not soft:
        assert matched.labels is None
        return
    by_logit = differences(labels, lambda moved: written.loss(x, moved, 0.3))
    assert matched.labels is not None
    np.testing.assert_allclose(matched.labels.numpy(), by_logit, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("strategy", [None, *OPERATIONS])
def test_it_has_the_loss_of_the_exact_gradient_and_for_one_step_the_gradient_too(strategy: str | None) -> None:
    case = Case(convnet(), (1, 8, 8), strategy)
    own, exact = tesla(case), case.match("adjoint")
    assert torch.equal(own.loss, exact.loss)
    apart = (own.images - exact.images).norm() / exact.images.norm()
    assert 1e-3 < float(apart) < 0.5  # what H lambda contributes
    last = case.batches[-1].index  # no later step depends on the last batch
    torch.testing.assert_close(own.images[last], exact.images[last], rtol=1e-12, atol=0)
    case.batches = case.batches[:1]
    own, exact = tesla(case), case.match("adjoint")
    assert torch.equal(own.images, exact.images) and torch.equal(own.step_size, exact.step_size)


# In a stage.


def settings(**changes: Any) -> TeslaSettings:
    return TeslaSettings(**{**NUMBERS, **changes})


def labelled(stage: Stage, **labels: Any) -> Stage:
    return test_mtt._with(stage, spec=stage.spec.model_copy(update={"labels": LabelSpec(**labels)}))


def soft_pixels() -> LearnableImages:
    new, earlier = (replace(images(1, seed), logits=torch.randn(3, 3, generator=generator(seed))) for seed in (11, 12))
    return LearnableImages(new, earlier, test_mtt.SGD, 10)


def test_the_method_moves_the_images_by_its_own_gradient(stage: Stage) -> None:
    ends = []
    for method in (TrajectoryMatching(stage, test_mtt.settings()), ConstantMemoryMatching(stage, settings())):
        canvas = pixels()
        losses = [method.iterate(canvas, number, draws) for draws in [generator(2)] for number in range(3)]
        ends.append((losses[0], canvas.new))
    assert ends[0][0] == pytest.approx(ends[1][0], rel=1e-6)  # the first loss, before anything moved
    assert not torch.equal(ends[0][1], ends[1][1])
    assert method_named("tesla") is ConstantMemoryMatching and ConstantMemoryMatching.memory_levels(settings()) == 0


def test_labels_from_the_target_are_what_the_matched_expert_makes_of_the_new_images(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    method, canvas = ConstantMemoryMatching(labelled(stage, source="target"), settings()), soft_pixels()
    assert canvas.logits is not None
    frozen = canvas.logits[:3].clone()
    targets: list[Tensor] = []
    match = method._match

    def spy(student: Any, start: Tensor, target: Tensor, union: Tensor, labels: Tensor, *rest: Any) -> Matched:
        targets.append(target)
        with torch.no_grad():
            said = functional_call(stage.network, unflatten(target, stage.network), (canvas.new,))
        torch.testing.assert_close(labels[3:], said)
        return match(student, start, target, union, labels, *rest)

    monkeypatch.setattr(method, "_match", spy)
    draws, seen = generator(4), list[Tensor]()
    for number in range(4):
        method.iterate(canvas, number, draws)
        assert canvas.logits is not None
        seen.append(canvas.logits)
    assert all(torch.equal(logits[:3], frozen) for logits in seen)
    assert len(targets) == 4 and not any(torch.equal(seen[0], other) for other in seen[1:])


def test_given_labels_go_on_from_a_state_bit_for_bit(stage: Stage) -> None:
    soft = labelled(stage, source="target")
    methods, canvases = [ConstantMemoryMatching(soft, settings()) for _ in range(2)], [soft_pixels(), soft_pixels()]
    straight, again = resumed(*methods, *canvases)
    assert straight == again
    assert torch.equal(canvases[0].logits, canvases[1].logits)
