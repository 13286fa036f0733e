"""DM in one stage: its distance and gradient, what is embedded with what, and which images may move."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from jobs.errors import Diverged
from jobs.learning import ImageOptimiserSpec
from jobs.specs import ChoiceSpec, DistilSpec, NetworkSpec, TransitionSpec
from workers.data.dataset import Split
from workers.data.multi_formation import decode
from workers.data.preprocess import Affine
from workers.data.synthetic_set import SyntheticSet
from workers.methods import method_named
from workers.methods.base import LearnableImages, Stage
from workers.methods.by_class import random_rows
from workers.methods.matching import dm
from workers.methods.matching.dm import DistributionMatching, DmSettings, mean_distance
from workers.training.networks import Network, build
from workers.training.transition import StartNetworks

CLASSES, SIDE = 3, 8
SGD = ImageOptimiserSpec(lr=0.5, momentum=0.5)
DSA = "color_crop_cutout_flip_scale_rotate"


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def network(number: int = 0) -> Network:
    return build(
        "convnet",
        channels=1,
        size=SIDE,
        classes=CLASSES,
        width=2,
        depth=2,
        norm="instance",
        generator=generator(900 + number),
    )


def images(per_class: int, seed: int) -> SyntheticSet:
    labels = torch.arange(CLASSES).repeat_interleave(per_class)
    return SyntheticSet(torch.randn(len(labels), 1, SIDE, SIDE, generator=generator(seed)), labels, None)


def pixels(frozen: SyntheticSet | None = None) -> LearnableImages:
    return LearnableImages(images(2, 11), frozen, SGD, 10)


def stage(frozen: SyntheticSet | None = None, transition: bool = True, factor: int = 1) -> Stage:
    """Three classes of six real images; with a frozen set it is stage 2, with or without a transition."""
    spec = DistilSpec(
        method="dm",
        stage=1 if frozen is None else 2,
        ipc_per_stage=2,
        network=NetworkSpec(width=2, depth=2),
        iterations=10,
        image=SGD,
        choice=ChoiceSpec(by="last"),
        settings={"batch_real": 4},
        factor=factor,
    )
    chain = TransitionSpec(epochs=2, lr=0.1) if transition else None
    earlier = [] if frozen is None else [frozen]
    real = images(6, 77)
    return Stage(
        spec=spec,
        train=Split(real.images, real.labels),
        classes=CLASSES,
        transform=Affine(torch.zeros(1), torch.ones(1)),
        experts=None,
        network=network(),
        start_networks=StartNetworks(network, lambda number: generator(number), earlier, chain, None),
        device=torch.device("cpu"),
        memory_level=0,
    )


def method(one: Stage, **changes: Any) -> DistributionMatching:
    return DistributionMatching(one, DmSettings(**{"batch_real": 4, **changes}))


def run(one: DistributionMatching, canvas: LearnableImages, iterations: int = 3) -> list[float]:
    draws = generator(3)
    return [one.iterate(canvas, iteration, draws) for iteration in range(iterations)]


# The loss


def embedded(net: Network, x: Tensor) -> Tensor:
    """The mean embedding, written out."""
    p = list(net.parameters())
    for conv, bias, gain, shift in (p[0:4], p[4:8]):
        x = F.conv2d(x, conv, bias, padding=1)
        mean, var = x.mean((2, 3), keepdim=True), x.var((2, 3), keepdim=True, unbiased=False)
        x = F.avg_pool2d(((x - mean) / (var + 1e-5).sqrt() * gain.view(-1, 1, 1) + shift.view(-1, 1, 1)).relu(), 2)
    return x.reshape(len(x), -1).sum(0) / len(x)


def test_the_distance_is_that_of_a_reference_written_out_in_double_precision() -> None:
    net = network().double()
    real, synthetic = images(5, 1).images.double(), images(2, 2).images.double()
    difference = (embedded(net, real) - embedded(net, synthetic)).detach()
    expected = sum(float(one) ** 2 for one in difference)
    assert float(mean_distance(net, real, synthetic).detach()) == pytest.approx(expected, rel=1e-12)
    assert float(mean_distance(net, real, real).detach()) == 0.0


class Sum(Network):
    """Embeds an image as the sums of its rows, so that a distance can be counted by hand."""

    def embed(self, x: Tensor) -> Tensor:
        return x.sum((1, 3))


def test_a_distance_counted_by_hand() -> None:
    real = torch.tensor([[[[1.0, 1.0], [0.0, 0.0]]], [[[3.0, 1.0], [2.0, 2.0]]]])  # rows 2, 0 and 4, 4: mean 3, 2
    synthetic = torch.tensor([[[[1.0, 0.0], [4.0, 1.0]]]])  # rows 1, 5
    assert float(mean_distance(Sum(), real, synthetic)) == (3 - 1) ** 2 + (2 - 5) ** 2


def test_the_gradient_of_the_images_is_right_to_finite_differences() -> None:
    net = network().double()
    real, synthetic = images(2, 1).images.double(), images(1, 2).images.double().requires_grad_()
    with torch.random.fork_rng():  # it draws the directions to check from the global generator
        assert torch.autograd.gradcheck(lambda x: mean_distance(net, real, x), (synthetic,))


def test_the_gradient_goes_through_the_siamese_augmentation_and_the_decoding() -> None:
    one = method(stage(factor=2), augmentation=DSA)
    stored = images(1, 5).images[:1]
    gradients = [one._match(network(), stored.clone(), 0, generator(seed))[1] for seed in range(12)]
    assert all(gradient.shape == stored.shape and bool((gradient != 0).any()) for gradient in gradients)


# One iteration


def test_an_iteration_is_one_image_step_along_the_gradient_summed_over_classes() -> None:
    one, canvas = method(stage(), batch_real=100), pixels()
    union = canvas.union.requires_grad_()
    real = one.stage.train
    loss = sum(mean_distance(network(4), real.images[real.labels == c], union[canvas.labels == c]) for c in range(3))
    assert isinstance(loss, Tensor)
    (gradient,) = torch.autograd.grad(loss, union)
    assert one.iterate(canvas, 4, generator()) == pytest.approx(loss.item(), rel=1e-5)
    torch.testing.assert_close(canvas.new, union.detach() - 0.5 * gradient, rtol=1e-5, atol=1e-6)


def spied(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Network, Tensor, Tensor]]:
    """What `mean_distance` is asked from now on."""
    asked: list[tuple[Network, Tensor, Tensor]] = []

    def spy(net: Network, real: Tensor, synthetic: Tensor) -> Tensor:
        asked.append((net, real, synthetic.detach().clone()))
        return mean_distance(net, real, synthetic)

    monkeypatch.setattr(dm, "mean_distance", spy)
    return asked


def test_each_class_meets_all_its_images_of_the_union_and_random_real_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, frozen = spied(monkeypatch), images(1, 12)
    one, canvas = method(stage(frozen)), pixels(frozen)
    union = canvas.union
    run(one, canvas, 2)
    assert len(asked) == 2 * CLASSES
    for label, (_, real, synthetic) in enumerate(asked[:CLASSES]):
        assert torch.equal(synthetic, union[canvas.labels == label]) and len(synthetic) == 3
        own = {row.numpy().tobytes() for row in one.stage.train.images[one.stage.train.labels == label]}
        chosen = {row.numpy().tobytes() for row in real}
        assert len(chosen) == 4 and chosen <= own
    assert not torch.equal(asked[0][1], asked[CLASSES][1])  # drawn anew


def test_a_class_has_one_network_an_iteration_and_every_iteration_a_new_one(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = spied(monkeypatch)
    run(method(stage()), pixels(), 3)
    nets = [asked[CLASSES * iteration][0] for iteration in range(3)]
    assert all(asked[i][0] is nets[i // CLASSES] for i in range(3 * CLASSES))
    weights = [next(net.parameters()).detach() for net in nets]
    assert all(torch.equal(weights[i], next(network(i).parameters())) for i in range(3))


def test_both_sides_of_a_class_are_augmented_by_one_draw_and_every_class_by_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked, one = spied(monkeypatch), stage()
    shared = one.train.images[:1]
    same = replace(one, train=Split(shared.expand(18, -1, -1, -1).clone(), one.train.labels))
    canvas = LearnableImages(SyntheticSet(shared.repeat(6, 1, 1, 1), images(2, 11).labels, None), None, SGD, 10)
    method(same, augmentation="scale").iterate(canvas, 0, generator())
    for _, real, synthetic in asked:
        assert all(torch.equal(row, real[0]) for row in [*real, *synthetic])
        assert not torch.equal(real[0], shared[0])
    assert not torch.equal(asked[0][1][0], asked[1][1][0])


def test_a_stored_image_of_a_formation_is_matched_by_what_is_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, canvas = spied(monkeypatch), pixels()
    stored = canvas.union
    run(method(stage(factor=2)), canvas, 1)
    assert torch.equal(asked[1][2], decode(stored[2:4], 2))


def test_random_rows_are_distinct_rows_of_the_class_and_all_of_them_if_it_is_small() -> None:
    members = torch.tensor([3, 5, 8, 9])
    assert sorted(random_rows(members, 9, generator()).tolist()) == [3, 5, 8, 9]
    drawn = [random_rows(members, 2, draws).tolist() for draws in [generator()] for _ in range(20)]
    assert all(len(set(two)) == 2 and set(two) <= {3, 5, 8, 9} for two in drawn)
    assert len({tuple(two) for two in drawn}) > 5


def test_images_that_leave_the_finite_numbers_end_the_stage() -> None:
    one, canvas = method(stage()), pixels()
    canvas.new[0, 0, 0, 0] = float("inf")
    with pytest.raises(Diverged, match=r"iteration 5: .*distil\.image\.lr"):
        one.iterate(canvas, 5, generator())


# Under PDD


def test_the_frozen_images_never_move_by_a_bit() -> None:
    frozen = images(1, 12)
    canvas = pixels(frozen)
    before = canvas.new.clone()
    run(method(stage(frozen), augmentation=DSA), canvas, 5)
    assert canvas.union[:3].numpy().tobytes() == images(1, 12).images.numpy().tobytes()
    assert not torch.equal(canvas.new, before)


def after(earlier: SyntheticSet, frozen: SyntheticSet | None, **more: Any) -> Tensor:
    """The new images after three iterations that are conditioned on `frozen`, the chain going through `earlier`."""
    canvas = pixels(frozen)
    run(method(stage(earlier, **more)), canvas)
    return canvas.new


def test_one_pixel_of_the_earlier_set_changes_the_result_through_conditioning_and_through_the_transition() -> None:
    usual, nudged = images(1, 12), images(1, 12)
    nudged.images[0, 0, 3, 3] += 1.0
    assert not torch.equal(after(usual, usual), after(usual, nudged))
    assert not torch.equal(after(usual, None), after(nudged, None))
    assert torch.equal(after(usual, None, transition=False), after(nudged, None, transition=False))


def test_it_goes_on_from_a_checkpoint_as_if_it_had_never_stopped() -> None:
    frozen, draws = images(1, 12), generator(3)
    straight, canvas = method(stage(frozen), augmentation=DSA), pixels(frozen)
    for iteration in range(3):
        straight.iterate(canvas, iteration, draws)
    kept, drawn = canvas.state(), draws.get_state()
    expected = [straight.iterate(canvas, iteration, draws) for iteration in (3, 4)]
    assert straight.state() == ({}, {})

    resumed, other = method(stage(frozen), augmentation=DSA), pixels(frozen)
    other.load_state(kept)
    draws.set_state(drawn)
    assert [resumed.iterate(other, iteration, draws) for iteration in (3, 4)] == expected
    assert torch.equal(other.new, canvas.new)


def test_it_is_found_by_its_name() -> None:
    assert method_named("dm") is DistributionMatching
