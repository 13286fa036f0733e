"""The matching loss and its gradients are those of a loop written out, of finite differences, of each other."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from jobs.methods import Engine
from workers.methods.trajectory import compiled
from workers.methods.trajectory.engines import ENGINES
from workers.methods.trajectory.trajectory_matching import InnerBatch, Matched, Student, normalised_distance
from workers.training.augmentation import OPERATIONS, Augmentation
from workers.training.networks import build, flatten

Array = NDArray[np.float64]
EVERYTHING = Augmentation.parse("color_crop_cutout_flip_scale_rotate", align_corners=True)
ENGINE_NAMES: list[Engine] = ["unrolled", "adjoint", "compiled", "graphs"]


@pytest.fixture(autouse=True)
def _not_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mathematics of `compiled` as PyTorch runs it; test_compiled compiles it."""
    monkeypatch.setattr(compiled, "compiled_function", lambda function, device: function)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def softmax_regression(inputs: int, classes: int) -> nn.Module:
    with torch.device("meta"):
        module = nn.Sequential(nn.Flatten(), nn.Linear(inputs, classes, dtype=torch.float64))
    return module.to_empty(device="cpu")


def convnet(size: int = 8) -> nn.Module:
    made = build("convnet", channels=1, size=size, classes=3, width=2, depth=2, norm="instance", generator=generator(1))
    return made.double()


class Case:
    """A small matching problem in float64; `strategy` names the one operation that every draw is of."""

    def __init__(self, module: nn.Module, shape: tuple[int, int, int], strategy: str | None = None) -> None:
        parameters = sum(p.numel() for p in module.parameters())
        self.images, self.labels = normal(6, *shape, seed=2), torch.tensor([0, 1, 2, 0, 1, 2])
        self.start, self.target = (0.5 * normal(parameters, seed=seed) for seed in (3, 4))
        self.step_size = torch.tensor(0.3, dtype=torch.float64)
        augmentation = Augmentation((strategy,), align_corners=True) if strategy else None
        self.student = Student(module, augmentation)
        # image 5 takes part in no step, image 1 in two of them
        indices = [torch.tensor([0, 1, 2]), torch.tensor([3, 1]), torch.tensor([4])]
        draws = generator(5)
        self.batches = [
            InnerBatch(
                index,
                augmentation and augmentation.draw(len(index), shape[1:], draws, siamese=False),
            )
            for index in indices
        ]

    def match(self, engine: Engine, images: Tensor | None = None, step_size: Tensor | None = None) -> Matched:
        return ENGINES[engine](
            self.student,
            self.start,
            self.target,
            self.images if images is None else images,
            self.labels,
            self.step_size if step_size is None else step_size,
            self.batches,
        )


def loss_written_out(case: Case, images: Array, step_size: float, labels: Array | None = None) -> float:
    """Softmax regression by hand: the gradient of mean cross-entropy is (p - q)^T x / n, q one-hot or a soft label."""
    temperature, given = case.student.temperature, case.labels.numpy() if labels is None else labels
    theta0, target = case.start.numpy(), case.target.numpy()
    weight, bias = theta0[:-3].reshape(3, -1).copy(), theta0[-3:].copy()
    for batch in case.batches:
        x, y = images[batch.index.numpy()].reshape(len(batch.index), -1), given[batch.index.numpy()]
        scores = np.exp(x @ weight.T + bias)
        wanted = np.eye(3)[y] if y.ndim == 1 else np.exp(y / temperature)
        error = (scores / scores.sum(1, keepdims=True) - wanted / wanted.sum(1, keepdims=True)) / len(y)
        weight -= step_size * error.T @ x
        bias -= step_size * error.sum(0)
    end = np.concatenate([weight.ravel(), bias])
    return float(((end - target) ** 2).sum() / ((theta0 - target) ** 2).sum())


def test_the_distance_is_normalised_by_the_way_the_expert_went() -> None:
    start, end, target = torch.tensor([0.0, 0.0]), torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0])
    assert float(normalised_distance(end, start, target)) == pytest.approx((4 + 4) / (9 + 16))
    assert float(normalised_distance(start, start, target)) == 1.0
    assert float(normalised_distance(target, start, target)) == 0.0


@pytest.mark.parametrize("engine", ENGINE_NAMES)
def test_the_loss_of_a_softmax_regression_is_that_of_a_loop_written_out(engine: Engine) -> None:
    case = Case(softmax_regression(4, 3), (1, 2, 2))
    expected = loss_written_out(case, case.images.numpy(), 0.3)
    assert float(case.match(engine).loss) == pytest.approx(expected, rel=1e-13)
    assert expected != pytest.approx(1.0, rel=1e-3)  # the student moved


@pytest.mark.parametrize("engine", ENGINE_NAMES)
def test_its_gradients_are_the_differences_of_the_loop_written_out(engine: Engine) -> None:
    case, tiny = Case(softmax_regression(4, 3), (1, 2, 2)), 1e-5
    images, matched = case.images.numpy(), case.match(engine)
    by_pixel = np.zeros(images.shape)
    for place in np.ndindex(images.shape):
        nudge = np.zeros(images.shape)
        nudge[place] = tiny
        rise = loss_written_out(case, images + nudge, 0.3) - loss_written_out(case, images - nudge, 0.3)
        by_pixel[place] = rise / (2 * tiny)
    by_step = loss_written_out(case, images, 0.3 + tiny) - loss_written_out(case, images, 0.3 - tiny)
    np.testing.assert_allclose(matched.images.numpy(), by_pixel, rtol=1e-6, atol=1e-9)
    assert float(matched.step_size) == pytest.approx(by_step / (2 * tiny), rel=1e-7)
    assert np.abs(by_pixel[:5]).max(axis=(1, 2, 3)).min() > 1e-4  # every image that took part matters


class _Loss(torch.autograd.Function):
    """The loss as a function whose backward is what an engine says its gradients are."""

    @staticmethod
    def forward(ctx, images, step_size, case, engine):  # type: ignore[no-untyped-def]
        matched = case.match(engine, images, step_size)
        ctx.save_for_backward(matched.images, matched.step_size)
        return matched.loss

    @staticmethod
    def backward(ctx, upstream):  # type: ignore[no-untyped-def]
        to_images, to_step_size = ctx.saved_tensors
        return upstream * to_images, upstream * to_step_size, None, None


@pytest.mark.parametrize("strategy", [None, "color"])
def test_gradcheck_finds_the_gradients_of_the_whole_graph_exact_for_a_convnet(strategy: str | None) -> None:
    case = Case(convnet(size=4), (1, 4, 4), strategy)
    inputs = (case.images.requires_grad_(), case.step_size.requires_grad_(), case, "unrolled")
    assert torch.autograd.gradcheck(_Loss.apply, inputs, eps=1e-6, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("strategy", [None, *OPERATIONS])
@pytest.mark.parametrize("engine", ["adjoint", "compiled"])
def test_engines_agree_with_and_without_augmentation(engine: Engine, strategy: str | None) -> None:
    case = Case(convnet(), (1, 8, 8), strategy)
    whole, other = case.match("unrolled"), case.match(engine)
    torch.testing.assert_close(other.loss, whole.loss, rtol=1e-12, atol=0)
    torch.testing.assert_close(other.images, whole.images, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(other.step_size, whole.step_size, rtol=1e-10, atol=1e-10)
    if strategy is not None:
        assert float(whole.loss) != float(Case(convnet(), (1, 8, 8)).match("unrolled").loss)


@pytest.mark.parametrize("engine", ENGINE_NAMES)
def test_an_image_in_no_batch_gets_no_gradient_and_the_others_get_some(engine: Engine) -> None:
    moved = Case(convnet(), (1, 8, 8)).match(engine).images.abs().amax((1, 2, 3))
    assert float(moved[5]) == 0.0
    assert bool((moved[:5] > 0).all())


@pytest.mark.parametrize("engine", ENGINE_NAMES)
def test_an_engine_leaves_its_arguments_alone_and_needs_no_gradient_mode(engine: Engine) -> None:
    case = Case(convnet(), (1, 8, 8))
    given = [case.start, case.target, case.images, case.labels, case.step_size]
    before = [tensor.clone() for tensor in given]
    with torch.no_grad():
        quiet = case.match(engine)
    loud = case.match(engine)
    assert torch.equal(quiet.loss, loud.loss) and torch.equal(quiet.images, loud.images)
    assert all(torch.equal(now, then) for now, then in zip(given, before, strict=True))
    results = [loud.loss, loud.images, loud.step_size]
    assert not any(tensor.requires_grad for tensor in [*given, *results])


def test_a_batch_without_a_draw_is_not_augmented() -> None:
    case = Case(convnet(), (1, 8, 8))
    plain = case.match("unrolled").loss
    case.student = Student(case.student.module, EVERYTHING)
    assert torch.equal(case.match("unrolled").loss, plain)


def test_the_student_is_run_at_the_parameters_it_is_given_not_at_its_modules_own() -> None:
    module = convnet()
    case = Case(module, (1, 8, 8))
    index = torch.arange(6)
    loss = case.student.loss(flatten(module), case.images, case.labels, InnerBatch(index, None))
    own = nn.functional.cross_entropy(module(case.images), case.labels).detach()
    elsewhere = case.student.loss(case.start, case.images, case.labels, InnerBatch(index, None))
    assert float(loss) == pytest.approx(float(own), rel=1e-14)
    assert float(elsewhere) != pytest.approx(float(own), rel=1e-3)


# Soft labels.


def softly(case: Case, temperature: float = 2.0) -> Case:
    """The same problem with soft labels, as logits."""
    case.labels = normal(6, 3, seed=6)
    case.student = replace(case.student, temperature=temperature, kept={})
    return case


@pytest.mark.parametrize("engine", ENGINE_NAMES)
def test_the_gradients_of_soft_labels_are_the_differences_of_the_loop_written_out(engine: Engine) -> None:
    case, tiny = softly(Case(softmax_regression(4, 3), (1, 2, 2))), 1e-5
    images, labels, matched = case.images.numpy(), case.labels.numpy(), case.match(engine)
    assert float(matched.loss) == pytest.approx(loss_written_out(case, images, 0.3), rel=1e-13)
    by_logit, by_pixel = np.zeros(labels.shape), np.zeros(images.shape)
    for place in np.ndindex(labels.shape):
        nudge = np.zeros(labels.shape)
        nudge[place] = tiny
        rise = [loss_written_out(case, images, 0.3, labels + sign * nudge) for sign in (1, -1)]
        by_logit[place] = (rise[0] - rise[1]) / (2 * tiny)
    for place in np.ndindex(images.shape):
        nudge = np.zeros(images.shape)
        nudge[place] = tiny
        rise = [loss_written_out(case, images + sign * nudge, 0.3) for sign in (1, -1)]
        by_pixel[place] = (rise[0] - rise[1]) / (2 * tiny)
    assert matched.labels is not None
    np.testing.assert_allclose(matched.labels.numpy(), by_logit, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(matched.images.numpy(), by_pixel, rtol=1e-6, atol=1e-9)
    assert np.abs(by_logit[:5]).max(axis=1).min() > 1e-4 and not by_logit[5].any()


@pytest.mark.parametrize("strategy", [None, *OPERATIONS])
@pytest.mark.parametrize("engine", ["adjoint", "compiled"])
def test_the_engines_agree_on_the_gradients_of_soft_labels(engine: Engine, strategy: str | None) -> None:
    case = softly(Case(convnet(), (1, 8, 8), strategy))
    whole, other = case.match("unrolled"), case.match(engine)
    assert whole.labels is not None and other.labels is not None
    torch.testing.assert_close(other.images, whole.images, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(other.labels, whole.labels, rtol=1e-10, atol=1e-10)
    assert not case.labels.requires_grad


@pytest.mark.parametrize("engine", ENGINE_NAMES)
def test_certain_soft_labels_match_as_the_classes_do_and_classes_have_no_gradient(engine: Engine) -> None:
    case = Case(convnet(), (1, 8, 8))
    hard, classes = case.match(engine), case.labels
    softly(case, temperature=0.001).labels = nn.functional.one_hot(classes, 3).double()
    soft = case.match(engine)
    assert hard.labels is None and soft.labels is not None
    torch.testing.assert_close(soft.loss, hard.loss, rtol=1e-12, atol=0)
    torch.testing.assert_close(soft.images, hard.images, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("soft", [False, True])
def test_the_slope_of_a_card_is_the_gradient_of_the_loss(soft: bool) -> None:
    """Also what depends on it in its turn: the gradients of its product with a vector."""
    student = Student(nn.Identity(), None, temperature=2.0)
    logits, along = normal(5, 4, seed=1).requires_grad_(), normal(5, 4, seed=2)
    labels = normal(5, 4, seed=3).requires_grad_() if soft else torch.tensor([0, 3, 1, 1, 2])
    leaves = (logits, labels) if soft else (logits,)
    loss = student._cross_entropy(logits, labels)
    (expected,) = torch.autograd.grad(loss, logits, create_graph=True)
    slope = student._slope(logits, labels)
    torch.testing.assert_close(slope, expected, rtol=1e-12, atol=1e-15)
    pairs = (torch.autograd.grad((one * along).sum(), leaves) for one in (slope, expected))
    for own, other in zip(*pairs, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-12, atol=1e-15)
