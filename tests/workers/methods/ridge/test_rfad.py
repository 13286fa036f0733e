"""RFAD in one stage: its loss and gradients against a reference written out, which networks it draws, what may move."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from jobs.errors import BadInput, Diverged
from jobs.methods import RfadSettings
from jobs.specs import ImageOptimiserSpec, LabelSpec
from tests.workers.matched import CLASSES, SGD, after, generator, images, pixels, random_network, resumed, stage, starts
from tests.workers.methods.ridge.test_frepo import embedded
from workers.data.synthetic_set import SyntheticSet
from workers.methods import method_named
from workers.methods.base import LearnableImages
from workers.methods.ridge.rfad import RandomFeatures
from workers.training.networks import Network, flatten

NUMBERS = {"batch": 9, "networks": 2, "ridge": 1e-2, "loss": "platt", "lr_scale": 0.1}
LEARNED = LabelSpec(source="classes", scale=4.0, learning=ImageOptimiserSpec(lr=2.0, momentum=0.0))


def method(*earlier: SyntheticSet, labels: LabelSpec | None = None, **changes: Any) -> RandomFeatures:
    more = {name: changes.pop(name) for name in ("transition", "factor") if name in changes}
    numbers = {**NUMBERS, **changes}
    here = stage("rfad", numbers, earlier=earlier, **more)
    here = replace(here, spec=here.spec.model_copy(update={"labels": labels}))
    return RandomFeatures(here, RfadSettings(**numbers))


def reference(union: Tensor, targets: Tensor, real: Tensor, networks: list[Network]) -> Tensor:
    """Predictions in double precision, from the sum of the networks' kernels."""
    kernels = []
    for network in networks:
        synthetic, queries = embedded(network, union), embedded(network, real)
        kernels.append((synthetic @ synthetic.T, queries @ synthetic.T))
    within, across = (torch.stack([pair[side] for pair in kernels]).sum(0) for side in (0, 1))
    penalty = 1e-2 * torch.trace(within) / len(within)
    return across @ torch.linalg.inv(within + penalty * torch.eye(len(within)).double()) @ targets


def one_hot(labels: Tensor) -> Tensor:
    return torch.eye(CLASSES).double()[labels] - 1 / CLASSES


@pytest.mark.parametrize("loss", ["platt", "squared"])
def test_an_iteration_is_one_image_step_along_the_gradient_of_a_reference_in_double_precision(loss: str) -> None:
    """The third iteration, with two networks in each, takes numbers 4 and 5."""
    one, canvas = method(batch=1000, loss=loss), pixels(False)
    train, union = one.stage.train, canvas.union.double().requires_grad_()
    predicted = reference(union, one_hot(canvas.labels), train.images.double(), [random_network(4), random_network(5)])
    error = (
        F.cross_entropy(predicted, train.labels)
        if loss == "platt"
        else 0.5 * (predicted - one_hot(train.labels)).square().sum(1).mean()
    )
    (gradient,) = torch.autograd.grad(error, union)
    assert one.iterate(canvas, 2, generator()) == pytest.approx(error.item(), rel=1e-4)
    torch.testing.assert_close(canvas.new.double(), union.detach() - 0.5 * gradient, rtol=1e-3, atol=1e-5)


def test_the_scale_of_predictions_learns_with_platt_and_stays_without() -> None:
    learning, fixed = method(), method(loss="squared")
    for one in (learning, fixed):
        after(one, pixels(False))
    assert float(fixed.state()[0]["values"]) == 0.0
    assert abs(float(learning.state()[0]["values"])) == pytest.approx(0.2, rel=0.05)  # Adam: two steps of 0.1


def soft(canvas: LearnableImages, optimiser: ImageOptimiserSpec | None) -> LearnableImages:
    """The same images with logits that are those of their classes at scale 4."""
    logits = (4.0 * one_hot(canvas.labels)).float()
    new = SyntheticSet(canvas.new, canvas.labels, None, logits=logits)
    return LearnableImages(new, None, SGD, 10, label_optimiser=optimiser)


def test_soft_labels_of_the_classes_begin_as_hard_ones_and_learn_by_the_same_loss() -> None:
    hard, learned = pixels(False), soft(pixels(False), LEARNED.learning)
    loss = method(batch=1000).iterate(hard, 0, generator())
    one = method(batch=1000, labels=LEARNED)
    assert one.iterate(learned, 0, generator()) == pytest.approx(loss, rel=1e-6)
    torch.testing.assert_close(learned.new, hard.new, rtol=1e-5, atol=1e-6)

    train, before = one.stage.train, pixels(False)
    logits = (4.0 * one_hot(before.labels)).requires_grad_()
    networks = [random_network(0), random_network(1)]
    predicted = reference(before.union.double(), logits / 4, train.images.double(), networks)
    (gradient,) = torch.autograd.grad(F.cross_entropy(predicted, train.labels), logits)
    assert learned.new_logits is not None
    torch.testing.assert_close(learned.new_logits.double(), logits.detach() - 2 * gradient, rtol=1e-3, atol=1e-5)


def test_soft_labels_that_do_not_learn_stay() -> None:
    fixed, spec = soft(pixels(False), None), LEARNED.model_copy(update={"learning": None})
    before = fixed.logits
    after(method(labels=spec), fixed)
    assert before is not None and fixed.logits is not None and torch.equal(fixed.logits, before)


def test_soft_labels_of_experts_are_refused() -> None:
    with pytest.raises(BadInput, match=r"distil\.labels\.source.*classes"):
        method(labels=LabelSpec(source="experts"))


def test_frozen_images_take_part_and_never_move() -> None:
    frozen, nudged = images(1, 12), images(1, 12)
    nudged.images[0, 0, 3, 3] += 1.0
    canvas, other = pixels(False, frozen=frozen), pixels(False, frozen=nudged)
    one, two = (after(method(first, transition=False), c) for first, c in ((frozen, canvas), (nudged, other)))
    assert not torch.equal(one, two)
    assert canvas.union[:CLASSES].numpy().tobytes() == images(1, 12).images.numpy().tobytes()


def test_its_networks_have_been_through_their_chains(monkeypatch: pytest.MonkeyPatch) -> None:
    frozen = images(2, 12)
    one = method(frozen)
    drawn: list[Tensor] = []
    network = type(one.stage.start_networks).network

    def spy(self: Any, number: int) -> Network:
        drawn.append(flatten(network(self, number)))
        return network(self, number)

    monkeypatch.setattr(type(one.stage.start_networks), "network", spy)
    one.iterate(pixels(False, frozen=frozen), 1, generator())
    monkeypatch.undo()
    assert all(torch.equal(theirs, flatten(starts(frozen).network(n))) for n, theirs in zip((2, 3), drawn, strict=True))
    assert not torch.equal(drawn[0], flatten(random_network(2)))


def test_images_that_leave_the_finite_numbers_end_the_stage() -> None:
    one, canvas = method(), pixels(False)
    canvas.new[0, 0, 0, 0] = float("inf")
    with pytest.raises(Diverged, match=r"iteration 5: .*distil\.image\.lr"):
        one.iterate(canvas, 5, generator())


@pytest.mark.parametrize("before", [0, 2])
def test_it_goes_on_from_a_checkpoint_as_if_it_had_never_stopped(before: int) -> None:
    frozen = images(1, 12)
    runs = [pixels(False, frozen=frozen) for _ in range(2)]
    straight, again = resumed(method(frozen), method(frozen), *runs, before=before)
    assert straight == again


def test_it_is_found_by_its_name() -> None:
    assert method_named("rfad") is RandomFeatures
