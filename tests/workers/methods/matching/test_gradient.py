"""DC and DSA: the distance, its gradient, what an iteration does, and what of a stage reaches it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from jobs.errors import BadInput, Diverged
from tests.workers.matched import CLASSES, SGD, after, generator, images, pixels, random_network, resumed, stage
from workers.data.dataset import rows_by_class
from workers.methods import base, method_named, settings_for
from workers.methods.base import LearnableImages, Stage
from workers.methods.by_class import siamese, taken_together
from workers.methods.matching import gradient
from workers.methods.matching.gradient import GradientMatching, GradientSettings, cosine_distance, gradient_distance
from workers.training.augmentation import Augmentation
from workers.training.networks import Network, flatten
from workers.training.students import fit, trainer_for

NUMBERS: dict[str, Any] = {"outer": 2, "batch_real": 5, "training": {"epochs": 2, "lr": 0.05, "batch_size": 4}}
DSA = {**NUMBERS, "augmentation": "color_crop_cutout_flip_scale_rotate"}


def settings(numbers: dict[str, Any] | None = None, **changes: Any) -> GradientSettings:
    return GradientSettings.model_validate({**(numbers or NUMBERS), **changes})


def method(made: Stage | None = None, numbers: dict[str, Any] | None = None, **changes: Any) -> GradientMatching:
    return GradientMatching(made or stage("dc", NUMBERS), settings(numbers, **changes))


# The loss


def test_the_distance_adds_one_minus_the_cosine_of_every_output_unit() -> None:
    ours = torch.tensor([[3.0, 4.0], [1.0, 0.0], [2.0, 0.0]])
    theirs = torch.tensor([[3.0, 4.0], [0.0, 7.0], [-5.0, 0.0]])  # cosines 1, 0, -1
    assert float(cosine_distance(ours, theirs)) == pytest.approx(0 + 1 + 2, abs=1e-5)


def test_a_convolution_s_unit_is_its_whole_stack_of_kernels() -> None:
    ours, theirs = torch.randn(2, 3, 2, 2, generator=generator()), torch.randn(2, 3, 2, 2, generator=generator(1))
    flat = sum(1 - F.cosine_similarity(a.flatten(), b.flatten(), 0) for a, b in zip(ours, theirs, strict=True))
    torch.testing.assert_close(cosine_distance(ours, theirs), flat)


def test_a_unit_without_gradient_is_at_distance_one_and_moves_nothing() -> None:
    ours = torch.zeros(1, 2, dtype=torch.float64, requires_grad=True)
    loss = cosine_distance(ours, torch.ones(1, 2, dtype=torch.float64))
    (slope,) = torch.autograd.grad(loss, ours)
    assert float(loss.detach()) == 1.0 and bool(slope.isfinite().all())


def reference(network: Network, real: Tensor, synthetic: Tensor, label: int) -> float:
    """The loss written out, tensor by tensor and unit by unit."""
    total = 0.0
    pulls = []
    for batch in (real, synthetic):
        network.zero_grad()
        F.cross_entropy(network(batch), torch.full((len(batch),), label)).backward()
        pulls.append([parameter.grad.clone() for parameter in network.parameters()])
    for theirs, ours in zip(*pulls, strict=True):
        if theirs.dim() > 1:
            for a, b in zip(ours.flatten(1), theirs.flatten(1), strict=True):
                total += float(1 - a @ b / (a.norm() * b.norm() + 1e-6))
    return total


def matched(network: Network, real: Tensor, synthetic: Tensor, label: int) -> Tensor:
    weights = [parameter for parameter in network.parameters() if parameter.dim() > 1]
    return gradient_distance(network, weights, cosine_distance, real, synthetic, label)


def test_the_loss_equals_the_reference_in_float64() -> None:
    network = random_network(1, torch.float64)
    real, synthetic = images(4, 1, torch.float64).images, images(1, 2, torch.float64).images
    loss = float(matched(network, real, synthetic, 2).detach())
    assert loss == pytest.approx(reference(network, real, synthetic, 2), rel=1e-12)
    assert loss > 0.1


def test_the_loss_is_zero_for_the_real_images_themselves() -> None:
    network, real = random_network(1, torch.float64), images(2, 1, torch.float64).images
    assert float(matched(network, real, real.clone(), 0).detach()) == pytest.approx(0.0, abs=1e-3)


def test_the_gradient_with_respect_to_the_images_is_exact() -> None:
    network = random_network(1, torch.float64)
    real, synthetic = images(2, 1, torch.float64).images, images(1, 2, torch.float64).images[:2].requires_grad_()
    with torch.random.fork_rng():  # it draws directions
        assert torch.autograd.gradcheck(lambda x: matched(network, real, x, 1), (synthetic,), fast_mode=True)


# Batches


def test_both_sides_of_a_match_get_one_draw_for_all_images() -> None:
    augmentation = Augmentation(("crop",))
    real, synthetic = images(2, 1).images, images(1, 1).images
    twice = torch.cat([real, synthetic])
    one, other = siamese(augmentation, real, synthetic, generator(3))
    expected = augmentation(twice, generator(3), siamese=True)
    assert torch.equal(torch.cat([one, other]), expected)
    assert not torch.equal(expected, twice)


def test_rows_are_found_by_class() -> None:
    assert [rows.tolist() for rows in rows_by_class(torch.tensor([1, 0, 1, 2]), 3)] == [[1], [0, 2], [3]]


class Recorder:
    """Keeps what is matched and answers with a constant slope."""

    def __init__(self) -> None:
        self.real: list[Tensor] = []
        self.synthetic: list[Tensor] = []
        self.labels: list[int] = []
        self.thetas: list[Tensor] = []

    def __call__(
        self, network: Network, weights: Any, distance: Any, real: Tensor, synthetic: Tensor, label: int
    ) -> Tensor:
        self.real.append(real.clone())
        self.synthetic.append(synthetic.detach().clone())
        self.labels.append(label)
        self.thetas.append(flatten(network))
        return (label + 1) * synthetic.sum()


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    recorder = Recorder()
    monkeypatch.setattr(gradient, "gradient_distance", recorder)
    return recorder


def test_every_class_is_matched_once_a_step_with_its_own_images_and_then_all_descend(recorder: Recorder) -> None:
    made, canvas = stage("dc", NUMBERS), pixels(unit=False)
    before = canvas.new.clone()
    loss = method(made).iterate(canvas, 0, generator())
    assert recorder.labels == [0, 1, 2] * 2
    train = {
        image.numpy().tobytes(): int(label) for image, label in zip(made.train.images, made.train.labels, strict=True)
    }
    for label, real in zip(recorder.labels, recorder.real, strict=True):
        assert {train[image.numpy().tobytes()] for image in real} == {label}
        assert len({image.numpy().tobytes() for image in real}) == 5  # without replacement
    assert torch.equal(torch.cat(recorder.synthetic[:3]), before)  # no class has moved when the next is matched
    slope = (canvas.labels + 1)[:, None, None, None].expand_as(before)
    torch.testing.assert_close(canvas.new, before - 0.5 * (1 + 1.5) * slope)
    assert loss == pytest.approx(
        sum(float((n + 1) * x.sum()) for n, x in zip([0, 1, 2] * 2, recorder.synthetic, strict=True)) / 6
    )


def test_the_network_starts_at_its_number_and_trains_on_the_union_between_steps(recorder: Recorder) -> None:
    frozen = images(1, 7)
    made, canvas = stage("dc", NUMBERS, earlier=(frozen,)), pixels(unit=False, frozen=frozen)
    method(made).iterate(canvas, 4, draws := generator(2))
    assert torch.equal(recorder.thetas[0], flatten(made.start_networks.network(4)))
    assert not torch.equal(recorder.thetas[0], flatten(random_network(4)))  # it has been through S_1
    assert torch.equal(recorder.thetas[0], recorder.thetas[2])
    assert not torch.equal(recorder.thetas[2], recorder.thetas[3])
    twin, network = generator(2), made.start_networks.network(4)
    for _ in range(3):
        torch.randperm(12, generator=twin)
    union = torch.cat([recorder.synthetic[3 + label] for label in range(3)])  # class by class: frozen, then new
    order = torch.cat(
        [torch.tensor([label * 3]) for label in range(3)] + [torch.tensor([i * 3 + 1, i * 3 + 2]) for i in range(3)]
    )
    fit(trainer_for(network, settings().training, twin), union[order], canvas.labels, settings().training)
    assert torch.equal(recorder.thetas[3], flatten(network))
    for _ in range(3):
        torch.randperm(12, generator=twin)
    assert torch.equal(draws.get_state(), twin.get_state())  # and it is not trained after the last step


def test_frozen_images_of_the_class_take_part(recorder: Recorder) -> None:
    frozen = images(1, 7)
    canvas = pixels(unit=False, frozen=frozen)
    method(stage("dc", NUMBERS, earlier=(frozen,))).iterate(canvas, 0, generator())
    assert [len(batch) for batch in recorder.synthetic] == [3] * 6
    assert torch.equal(recorder.synthetic[1][:1], frozen.images[1:2])


def test_a_class_with_few_real_images_gives_all_it_has(recorder: Recorder) -> None:
    method(stage("dc", NUMBERS, per_class=3)).iterate(pixels(unit=False), 0, generator())
    assert {len(batch) for batch in recorder.real} == {3}


# A stage


def test_the_gradient_of_an_iteration_is_that_of_the_loss_summed_over_classes() -> None:
    made, canvas = stage("dc", NUMBERS), pixels(unit=False)
    before, draws = canvas.new.clone(), generator(8)
    real = [made.train.images[12 * label + torch.randperm(12, generator=draws)[:5]] for label in range(CLASSES)]
    learning = before.clone().requires_grad_()
    loss = sum(matched(made.start_networks.network(0), real[c], learning[2 * c : 2 * c + 2], c) for c in range(CLASSES))
    (expected,) = torch.autograd.grad(loss, learning)
    found = method(made, outer=1).iterate(canvas, 0, generator(8))
    assert found == pytest.approx(float(loss.detach()) / 3, rel=1e-5)
    torch.testing.assert_close(canvas.new, before - 0.5 * expected)


@pytest.mark.parametrize("numbers", [NUMBERS, DSA], ids=["dc", "dsa"])
def test_frozen_images_stay_and_one_of_their_pixels_changes_the_result(numbers: dict[str, Any]) -> None:
    results = []
    for nudge in (0.0, 0.5):
        frozen = images(1, 7)
        frozen.images[0, 0, 3, 3] += nudge
        kept = frozen.images.clone()
        canvas = pixels(unit=False, frozen=frozen)
        results.append(after(method(stage("dc", numbers, earlier=(frozen,)), numbers), canvas))
        assert torch.equal(canvas.union[:3], kept)
    assert not torch.equal(*results)


def test_by_conditioning_alone_and_by_transition_alone_an_earlier_set_changes_the_result() -> None:
    def result(earlier: bool, transition: bool, conditioning: bool) -> Tensor:
        frozen = images(1, 7)
        made = stage("dc", NUMBERS, earlier=(frozen,) if earlier else (), transition=transition)
        return after(method(made), pixels(unit=False, frozen=frozen if conditioning else None))

    plain = result(earlier=False, transition=False, conditioning=False)
    assert torch.equal(result(earlier=True, transition=False, conditioning=False), plain)
    assert not torch.equal(result(earlier=True, transition=True, conditioning=False), plain)
    assert not torch.equal(result(earlier=True, transition=False, conditioning=True), plain)


@pytest.mark.parametrize("numbers", [NUMBERS, DSA], ids=["dc", "dsa"])
def test_a_stage_goes_on_from_its_state_bit_for_bit(numbers: dict[str, Any]) -> None:
    made = stage("dc", numbers)
    straight, again = resumed(method(made, numbers), method(made, numbers), pixels(unit=False), pixels(unit=False))
    assert straight == again


def test_augmentation_is_all_that_tells_dsa_from_dc() -> None:
    dc, dsa = (method(stage("dc", n), n) for n in (NUMBERS, DSA))
    assert dc._augmentation is None
    assert dsa._augmentation is not None and dsa._augmentation.mode == "one" and not dsa._augmentation.align_corners
    assert method_named("dc") is method_named("dsa") is GradientMatching


def test_images_that_leave_the_finite_numbers_end_the_stage() -> None:
    wild = LearnableImages(images(2, 2), None, SGD.model_copy(update={"lr": 1e38}), 10)
    with pytest.raises(Diverged, match="lower distil.image.lr|left the finite numbers"):
        method().iterate(wild, 3, generator())


def test_the_learning_rate_of_the_network_is_no_option() -> None:
    assert settings_for("dsa", DSA) == settings(DSA)
    with pytest.raises(BadInput, match=r"distil\.settings\.training\.lr"):
        settings_for("dc", {**NUMBERS, "training": {"epochs": 1}})
    assert issubclass(GradientMatching, base.Method)


# Several classes at once


@pytest.mark.parametrize("numbers", [NUMBERS, DSA], ids=["dc", "dsa"])
@pytest.mark.parametrize("at_once", [2, 3, 9])
def test_several_classes_at_once_are_matched_as_one_by_one_in_float64(numbers: dict[str, Any], at_once: int) -> None:
    images_after, losses = [], []
    for taken in (1, at_once):
        one = method(stage("dc", numbers, dtype=torch.float64), numbers, classes_at_once=taken)
        canvas, draws = LearnableImages(images(2, 2, torch.float64), images(1, 7, torch.float64), SGD, 10), generator(5)
        losses.append([one.iterate(canvas, iteration, draws) for iteration in range(2)])
        images_after.append(canvas.new)
    assert losses[0] == pytest.approx(losses[1], rel=1e-9)
    torch.testing.assert_close(*images_after, rtol=1e-8, atol=1e-10)


def test_classes_of_unequal_sizes_are_not_taken_together() -> None:
    assert list(taken_together([5, 5, 5, 4, 4, 5], 2)) == [range(0, 2), range(2, 3), range(3, 5), range(5, 6)]
    assert list(taken_together([5, 5], 1)) == [range(0, 1), range(1, 2)]


def test_after_too_little_memory_classes_are_taken_one_by_one() -> None:
    assert GradientMatching.memory_levels(settings(classes_at_once=3)) == 1 and not GradientMatching.memory_levels(
        settings()
    )
    assert method(classes_at_once=3)._at_once == 3
    assert method(replace(stage("dc", NUMBERS), memory_level=1), classes_at_once=3)._at_once == 1


def test_a_network_that_has_no_copies_is_refused() -> None:
    with pytest.raises(BadInput, match=r"classes_at_once is 2: write 1"):
        method(replace(stage("dc", NUMBERS), network=torch.nn.ReLU()), classes_at_once=2)
