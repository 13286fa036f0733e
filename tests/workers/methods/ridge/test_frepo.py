"""FRePo in one stage: its loss and gradient against a reference written out, the pool's life, what may move."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from jobs.errors import Diverged
from jobs.methods import FrepoSettings
from tests.workers.matched import CLASSES, after, generator, images, pixels, random_network, resumed, stage
from workers.data.multi_formation import decode
from workers.data.synthetic_set import SyntheticSet
from workers.methods import method_named
from workers.methods.base import LearnableImages
from workers.methods.ridge.frepo import FeatureRegression
from workers.training.networks import Network, flatten

NUMBERS = {"batch": 9, "pool": 2, "most_updates": 4, "lr_network": 0.01, "ridge": 1e-3}


def method(*earlier: SyntheticSet, **changes: Any) -> FeatureRegression:
    more = {name: changes.pop(name) for name in ("transition", "factor") if name in changes}
    numbers = {**NUMBERS, **changes}
    return FeatureRegression(stage("frepo", numbers, earlier=earlier, **more), FrepoSettings(**numbers))


def embedded(network: Network, x: Tensor) -> Tensor:
    """The last map flattened, written out."""
    p = [parameter.double() for parameter in network.parameters()]
    for conv, bias, gain, shift in (p[0:4], p[4:8]):
        x = F.conv2d(x, conv, bias, padding=1)
        mean, var = x.mean((2, 3), keepdim=True), x.var((2, 3), keepdim=True, unbiased=False)
        x = F.avg_pool2d(((x - mean) / (var + 1e-5).sqrt() * gain.view(-1, 1, 1) + shift.view(-1, 1, 1)).relu(), 2)
    return x.reshape(len(x), -1)


def reference(network: Network, union: Tensor, labels: Tensor, real: Tensor, real_labels: Tensor) -> Tensor:
    """The paper's loss in double precision: with K = F F^T + ridge mean(diag), 0.5 |K_ts K^-1 Y_s - Y_t|^2 an image."""
    synthetic, queries = embedded(network, union), embedded(network, real)
    one_hot = [[float(label == c) - 1 / CLASSES for c in range(CLASSES)] for label in labels.tolist()]
    kernel = torch.stack([torch.stack([(a * b).sum() for b in synthetic]) for a in synthetic])
    penalty = 1e-3 * sum(kernel[i, i] for i in range(len(union))) / len(union)
    inverse = torch.linalg.inv(kernel + penalty * torch.eye(len(union)).double())
    total = torch.zeros((), dtype=torch.float64)
    for query, label in zip(queries, real_labels.tolist(), strict=True):
        row = torch.stack([(query * b).sum() for b in synthetic])
        predicted = row @ inverse @ torch.tensor(one_hot).double()
        wanted = torch.tensor([float(label == c) - 1 / CLASSES for c in range(CLASSES)]).double()
        total = total + 0.5 * ((predicted - wanted) ** 2).sum()
    return total / len(real)


def test_an_iteration_is_one_image_step_along_the_gradient_of_a_reference_in_double_precision() -> None:
    one, canvas = method(batch=1000, pool=1), pixels(False)
    train = one.stage.train
    union = canvas.union.double().requires_grad_()
    loss = reference(random_network(0), union, canvas.labels, train.images.double(), train.labels)
    (gradient,) = torch.autograd.grad(loss, union)
    assert one.iterate(canvas, 0, generator()) == pytest.approx(loss.item(), rel=1e-4)
    expected = union.detach() - 0.5 * gradient
    torch.testing.assert_close(canvas.new.double(), expected, rtol=1e-3, atol=1e-4)


def test_frozen_images_take_part_in_the_regression_and_only_new_ones_move() -> None:
    frozen = images(1, 12)
    one, canvas = method(frozen, batch=1000, pool=1, transition=False), pixels(False, frozen=frozen)
    union, train = canvas.union.double().requires_grad_(), one.stage.train
    loss = reference(random_network(0), union, canvas.labels, train.images.double(), train.labels)
    assert one.iterate(canvas, 0, generator()) == pytest.approx(loss.item(), rel=1e-4)
    assert canvas.union[:CLASSES].numpy().tobytes() == images(1, 12).images.numpy().tobytes()


def test_a_pooled_network_makes_a_step_of_adam_on_the_squared_error_of_its_logits() -> None:
    one, canvas = method(pool=1), pixels(False)
    one.iterate(canvas, 0, generator())
    network = random_network(0).double()
    targets = torch.eye(CLASSES).double()[canvas.labels] - 1 / CLASSES
    error = (network(canvas.union.double()) - targets).square().mean()
    gradients = torch.cat([g.flatten() for g in torch.autograd.grad(error, list(network.parameters()))]).numpy()
    start = flatten(network).numpy()
    moments, squares = 0.1 * gradients, 0.001 * gradients**2
    expected = start - 0.01 * (moments / 0.1) / (np.sqrt(squares / 0.001) + 1e-8)
    large = abs(gradients) > 1e-5  # of the others the sign is a matter of rounding
    np.testing.assert_allclose(one.state()[0]["0/values"][large], expected[large], atol=1e-5)
    assert large.mean() > 0.5


def test_a_network_gives_way_to_the_next_one_when_it_has_made_its_steps() -> None:
    """Of two networks that may make 4 steps each the second starts as if it had made 2."""
    one, canvas, draws = method(), pixels(False), generator()
    numbers, updates = [], []
    for iteration in range(12):
        one.iterate(canvas, iteration, draws)
        values = one.state()[1]
        numbers.append(values["started"])
        updates.append(sum(values["updates"]))
    made = [before - after_ + 1 for before, after_ in zip([2, *updates], updates, strict=False)]
    assert numbers[0] == 2 and numbers[-1] > 3 and numbers == sorted(numbers)
    assert set(made) <= {0, 4}  # a step more, or a network of 3 steps replaced by one of none
    assert made.count(4) == numbers[-1] - 2


def test_the_pool_s_networks_have_been_through_their_chains() -> None:
    frozen = images(2, 12)
    weights = [method(frozen, transition=chain)._new().weights.values for chain in (False, True)]
    assert torch.equal(weights[0], flatten(random_network(0))) and not torch.equal(weights[1], weights[0])


def test_only_as_many_synthetic_images_train_a_network_as_may() -> None:
    one, canvas = method(batch_train=2), pixels(False)
    rows, targets = one._chosen(canvas, generator())
    own = {row.numpy().tobytes() for row in canvas.union}
    assert len(rows) == len(targets) == 2 and {row.numpy().tobytes() for row in rows} <= own


def test_stored_images_of_a_formation_are_decoded_and_their_labels_repeated() -> None:
    one, canvas = method(factor=2), pixels(False, factor=2)
    trained, targets = one._chosen(canvas, generator())
    assert torch.equal(trained, decode(canvas.union, 2)) and len(targets) == 4 * len(canvas.union)
    assert not torch.equal(after(one, canvas), pixels(False, factor=2).new)


def test_images_that_leave_the_finite_numbers_end_the_stage() -> None:
    one, canvas = method(), pixels(False)
    canvas.new[0, 0, 0, 0] = float("inf")
    with pytest.raises(Diverged, match=r"iteration 5: .*distil\.image\.lr"):
        one.iterate(canvas, 5, generator())


@pytest.mark.parametrize("before", [0, 1, 5])
def test_it_goes_on_from_a_checkpoint_as_if_it_had_never_stopped(before: int) -> None:
    frozen = images(1, 12)
    runs: list[LearnableImages] = [pixels(False, frozen=frozen) for _ in range(2)]
    straight, again = resumed(method(frozen), method(frozen), *runs, before=before)
    assert straight == again


def test_it_is_found_by_its_name() -> None:
    assert method_named("frepo") is FeatureRegression
