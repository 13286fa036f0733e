"""DD and RaT-BPTT in one stage: losses and gradients against training written out in float64, and which steps count."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F

from jobs.errors import Diverged
from jobs.methods import UnrolledSettings
from tests.workers.matched import after, generator, images, pixels, random_network, resumed, stage, starts
from workers.data.synthetic_set import SyntheticSet
from workers.methods import method_named
from workers.methods.trajectory.trajectory_matching import InnerBatch, Student
from workers.methods.unrolled import unrolled
from workers.methods.unrolled.unrolled import Outcome, StepSizes, UnrolledTraining, outcome
from workers.training.networks import flatten, unflatten

DD = {"syn_steps": 3, "batch": 9, "step_size_init": 0.1, "lr_step_size": 0.01}
RAT = {"syn_steps": 5, "window": 2, "ends": "random", "optimiser": "adam", "batch": 9, "step_size_init": 0.01}


def method(numbers: dict[str, Any], *earlier: SyntheticSet, **more: Any) -> UnrolledTraining:
    return UnrolledTraining(stage("dd", numbers, earlier=earlier, **more), UnrolledSettings(**numbers))


def whole(n: int, steps: int) -> list[InnerBatch]:
    return [InnerBatch(torch.arange(n).roll(step), None) for step in range(steps)]


def trained(net: Any, canvas: Tensor, labels: Tensor, sizes: Sequence[Tensor], optimiser: str) -> list[Tensor]:
    """The parameters after every step in one graph, tensor by tensor as a textbook writes the update."""
    theta = {name: parameter.detach().clone().requires_grad_() for name, parameter in net.named_parameters()}
    means = {name: torch.zeros_like(value) for name, value in theta.items()}
    squares = {name: torch.zeros_like(value) for name, value in theta.items()}
    path = [torch.cat([value.flatten() for value in theta.values()])]
    for t, size in enumerate(sizes, 1):
        loss = F.cross_entropy(functional_call(net, theta, (canvas,)), labels)
        gradients = torch.autograd.grad(loss, list(theta.values()), create_graph=True)
        for name, gradient in zip(list(theta), gradients, strict=True):
            if optimiser == "sgd":
                theta[name] = theta[name] - size * gradient
                continue
            means[name] = 0.9 * means[name] + 0.1 * gradient
            squares[name] = 0.999 * squares[name] + 0.001 * gradient**2
            step = (means[name] / (1 - 0.9**t)) / (squares[name] / (1 - 0.999**t) + 1e-12).sqrt()
            theta[name] = theta[name] - size * step
        path.append(torch.cat([value.flatten() for value in theta.values()]))
    return path


def case() -> tuple[Any, Tensor, Tensor, tuple[Tensor, Tensor], Tensor]:
    net, synthetic = random_network(0).double(), images(2, 2, torch.float64)
    real = images(3, 1, torch.float64)
    sizes = torch.tensor([0.3, 0.2, 0.1, 0.05], dtype=torch.float64)
    return net, synthetic.images, synthetic.labels, (real.images, real.labels), sizes


def found(window: int, optimiser: str = "sgd") -> Outcome:
    net, canvas, labels, real, sizes = case()
    return outcome(Student(net, None), flatten(net), canvas, labels, sizes, whole(6, 4), real, window, optimiser)


@pytest.mark.parametrize("optimiser", ["sgd", "adam"])
def test_the_loss_and_its_gradients_are_those_of_training_written_out_in_double_precision(optimiser: str) -> None:
    net, canvas, labels, real, sizes = case()
    canvas.requires_grad_()
    sizes.requires_grad_()
    end = trained(net, canvas, labels, list(sizes), optimiser)[-1]
    loss = F.cross_entropy(functional_call(net, unflatten(end, net), (real[0],)), real[1])
    to_images, to_sizes = torch.autograd.grad(loss, (canvas, sizes))
    ours = found(4, optimiser)
    assert float(ours.loss) == pytest.approx(loss.item(), rel=1e-10)
    torch.testing.assert_close(ours.images, to_images, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(ours.sizes, to_sizes, rtol=1e-6, atol=1e-9)


def test_a_window_gives_the_gradient_of_its_own_steps_alone() -> None:
    """The steps before are taken with other images, which have the same values and get no gradient."""
    net, canvas, labels, real, sizes = case()
    before = trained(net, canvas, labels, list(sizes[:2]), "sgd")[-1].detach()
    start = random_network(0).double()
    torch.nn.utils.vector_to_parameters(before, start.parameters())
    canvas.requires_grad_()
    end = trained(start, canvas, labels, list(sizes[2:]), "sgd")[-1]
    loss = F.cross_entropy(functional_call(net, unflatten(end, net), (real[0],)), real[1])
    (to_images,) = torch.autograd.grad(loss, canvas)
    ours = found(2)
    assert float(ours.loss) == pytest.approx(loss.item(), rel=1e-10)
    torch.testing.assert_close(ours.images, to_images, rtol=1e-7, atol=1e-10)
    assert ours.sizes[:2].tolist() == [0, 0] and bool((ours.sizes[2:] != 0).all())
    assert not torch.allclose(ours.images, found(4).images, rtol=1e-3)


def test_adam_s_means_go_on_from_the_steps_before_the_window() -> None:
    assert float(found(1, "adam").loss) == pytest.approx(float(found(4, "adam").loss), rel=1e-12)


def test_a_gradient_of_zero_leaves_the_derivative_of_adam_s_step_finite() -> None:
    net, canvas, labels, real, sizes = case()
    with torch.no_grad():
        net.blocks[1].weight.zero_()  # half of the network is dead
        net.blocks[1].bias.fill_(-1.0)
    ours = outcome(Student(net, None), flatten(net), canvas, labels, sizes, whole(6, 4), real, 4, "adam")
    assert bool(ours.images.isfinite().all())


def test_the_gradients_of_images_and_sizes_are_right_to_finite_differences() -> None:
    ours, small = found(4), 1e-5
    net, canvas, labels, real, sizes = case()

    def loss(at: Tensor, steps: Tensor) -> float:
        return float(outcome(Student(net, None), flatten(net), at, labels, steps, whole(6, 4), real, 4).loss)

    for place in ((0, 0, 3, 3), (4, 0, 5, 1)):
        nudge = torch.zeros_like(canvas)
        nudge[place] = small
        slope = (loss(canvas + nudge, sizes) - loss(canvas - nudge, sizes)) / (2 * small)
        assert float(ours.images[place]) == pytest.approx(slope, rel=1e-4, abs=1e-8)
    nudge = torch.tensor([0.0, small, 0.0, 0.0]).double()
    slope = (loss(canvas, sizes + nudge) - loss(canvas, sizes - nudge)) / (2 * small)
    assert float(ours.sizes[1]) == pytest.approx(slope, rel=1e-4)


# One iteration


def test_an_iteration_is_one_step_on_the_images_and_one_on_the_sizes() -> None:
    one, canvas = method({**DD, "batch": 1000}), pixels(False)
    train, union = one.stage.train, canvas.union.double()
    sizes = torch.full((3,), 0.1, dtype=torch.float64)
    ours = outcome(
        Student(random_network(4).double(), None),
        flatten(random_network(4).double()),
        union,
        canvas.labels,
        sizes,
        whole(6, 3),
        (train.images.double(), train.labels),
        3,
    )
    assert one.iterate(canvas, 4, generator()) == pytest.approx(float(ours.loss), rel=1e-5)
    torch.testing.assert_close(canvas.new.double(), union - 0.5 * ours.images, rtol=1e-4, atol=1e-6)
    moved = one._sizes.values.double() - sizes
    assert bool((moved.sign() == -ours.sizes.sign()).all()) and one.step_size == pytest.approx(
        float(one._sizes.values.mean())
    )


def test_sizes_stay_positive_and_a_fixed_one_stays_as_it_is() -> None:
    learning, fixed = (
        StepSizes(UnrolledSettings(**{**DD, "lr_step_size": rate}), torch.device("cpu")) for rate in (5.0, 0.0)
    )
    assert learning.values.tolist() == pytest.approx([0.1] * 3)
    for _ in range(20):
        learning.step(torch.ones(3))
        fixed.step(torch.ones(3))
    assert bool((learning.values > 0).all()) and float(learning.values.max()) < 1e-3
    assert fixed.values.tolist() == pytest.approx([0.1] * 3)
    assert method({**DD, "lr_step_size": 0.0}).step_size is None


def test_training_ends_at_random_between_the_window_and_the_most_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    ends: list[tuple[int, int]] = []

    def spy(*args: Any) -> Outcome:
        ends.append((len(args[5]), args[7]))
        return outcome(*args)

    monkeypatch.setattr(unrolled, "outcome", spy)
    after(method(RAT), pixels(False), 30)
    assert {window for _, window in ends} == {2} and {steps for steps, _ in ends} == {2, 3, 4, 5}
    ends.clear()
    after(method(DD), pixels(False), 3)
    assert ends == [(3, 3)] * 3


def test_inner_batches_are_chunks_of_a_random_order_of_the_union(monkeypatch: pytest.MonkeyPatch) -> None:
    frozen, drawn = images(1, 12), []

    def spy(*args: Any) -> Outcome:
        drawn.extend(batch.index.tolist() for batch in args[5])
        return outcome(*args)

    monkeypatch.setattr(unrolled, "outcome", spy)
    one = method({**DD, "batch_syn": 4}, frozen)
    after(one, pixels(False, frozen=frozen), 1)
    assert [len(rows) for rows in drawn] == [4, 4, 1] and sorted(sum(drawn, [])) == list(range(9))


def test_an_augmentation_is_part_of_the_inner_steps() -> None:
    plain, augmented = (after(method({**DD, "augmentation": name}), pixels(False)) for name in ("none", "crop"))
    assert not torch.equal(plain, augmented)


def test_a_gradient_that_leaves_the_finite_numbers_ends_the_stage() -> None:
    with pytest.raises(Diverged, match=r"iteration 0: .*step_size_init"):
        method({**DD, "step_size_init": 1e30}).iterate(pixels(False), 0, generator())


@pytest.mark.parametrize("numbers", [{"window": 4}, {"ends": "random"}])
def test_a_window_that_does_not_fit_is_refused(numbers: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="window"):
        UnrolledSettings(**{**DD, **numbers})


# Under PDD


@pytest.mark.parametrize("numbers", [DD, RAT])
def test_frozen_images_train_the_network_and_never_move(numbers: dict[str, Any]) -> None:
    frozen, nudged = images(1, 12), images(1, 12)
    nudged.images[0, 0, 3, 3] += 1.0
    canvas, other = pixels(False, frozen=frozen), pixels(False, frozen=nudged)
    before = canvas.new.clone()
    assert not torch.equal(
        after(method(numbers, frozen, transition=False), canvas),
        after(method(numbers, nudged, transition=False), other),
    )
    assert canvas.union[:3].numpy().tobytes() == images(1, 12).images.numpy().tobytes()
    assert not torch.equal(canvas.new, before)


def test_training_starts_at_the_end_of_a_chain(monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[Tensor] = []

    def spy(*args: Any) -> Outcome:
        begun.append(args[1])
        return outcome(*args)

    monkeypatch.setattr(unrolled, "outcome", spy)
    frozen = images(2, 12)
    method(DD, frozen).iterate(pixels(False, frozen=frozen), 7, generator())
    assert torch.equal(begun[0], flatten(starts(frozen).network(7)))
    assert not torch.equal(begun[0], flatten(random_network(7)))


@pytest.mark.parametrize("numbers", [{**DD, "batch_syn": 4}, {**RAT, "augmentation": "crop"}])
@pytest.mark.parametrize("before", [0, 3])
def test_it_goes_on_from_a_checkpoint_as_if_it_had_never_stopped(numbers: dict[str, Any], before: int) -> None:
    frozen = images(1, 12)
    runs = [pixels(False, frozen=frozen) for _ in range(2)]
    straight, again = resumed(method(numbers, frozen), method(numbers, frozen), *runs, before=before)
    assert straight == again


@pytest.mark.parametrize("name", ["dd", "rat_bptt"])
def test_it_is_found_by_its_names(name: str) -> None:
    assert method_named(name) is UnrolledTraining
