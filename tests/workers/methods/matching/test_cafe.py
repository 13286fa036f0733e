"""CAFE in one stage: its loss term by term, its two loops and what ends them, and which images may move."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from jobs.errors import BadInput, Diverged
from jobs.learning import ImageOptimiserSpec
from jobs.specs import ChoiceSpec, DistilSpec, NetworkSpec, TransitionSpec
from workers.data.dataset import Split
from workers.data.preprocess import Affine
from workers.data.synthetic_set import SyntheticSet
from workers.methods import method_named, settings_for
from workers.methods.base import LearnableImages, Stage
from workers.methods.matching import cafe
from workers.methods.matching.cafe import (
    CafeSettings,
    FeatureAlignment,
    Watch,
    Weights,
    alignment_loss,
    class_means,
    real_side,
)
from workers.training.networks import ConvNet, build
from workers.training.transition import StartNetworks

CLASSES, SIDE = 3, 8
SGD = ImageOptimiserSpec(lr=0.1, momentum=0.5)
DSA = "color_crop_cutout_flip_scale_rotate"
WEIGHTS = Weights(layers=(0.5, 2.0, 3.0), pooled=0.7, discrimination=0.01)
NUMBERS: dict[str, Any] = {
    "batch_real": 4,
    "weights": {"layers": [0.1, 0.1, 1.0, 1.0], "pooled": 1.0, "discrimination": 0.01},
    "lr_network": 0.01,
    "batch_train": 4,
    "probe": 2,
    "window": 2,
    "settled": 0.0,
    "moved": 1.0,
    "most_steps": 3,
    "most_epochs": 2,
}
"""Loops that only their bounds end: 3 image steps with 2 epochs between two of them."""


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def network(number: int = 0, norm: str = "instance") -> ConvNet:
    made = build(
        "convnet",
        channels=1,
        size=SIDE,
        classes=CLASSES,
        width=2,
        depth=2,
        norm=norm,
        generator=generator(900 + number),
    )
    assert isinstance(made, ConvNet)
    return made


def images(per_class: int, seed: int) -> SyntheticSet:
    labels = torch.arange(CLASSES).repeat_interleave(per_class)
    return SyntheticSet(torch.randn(len(labels), 1, SIDE, SIDE, generator=generator(seed)), labels, None)


def pixels(frozen: SyntheticSet | None = None, dtype: torch.dtype = torch.float32) -> LearnableImages:
    new = images(2, 11)
    return LearnableImages(replace(new, images=new.images.to(dtype)), frozen, SGD, 10)


def stage(frozen: SyntheticSet | None = None, transition: bool = True, **spec: Any) -> Stage:
    """Three classes of six real images; with a frozen set it is stage 2, with or without a transition."""
    fields: dict[str, Any] = {
        "method": "cafe",
        "stage": 1 if frozen is None else 2,
        "ipc": 2,
        "network": NetworkSpec(width=2, depth=2),
        "iterations": 10,
        "image": SGD,
        "choice": ChoiceSpec(by="last"),
        "settings": NUMBERS,
        **spec,
    }
    chain = TransitionSpec(epochs=2, lr=0.1) if transition else None
    earlier = [] if frozen is None else [frozen]
    real = images(6, 77)
    return Stage(
        spec=DistilSpec(**fields),
        train=Split(real.images, real.labels),
        classes=CLASSES,
        transform=Affine(torch.zeros(1), torch.ones(1)),
        experts=None,
        network=network(),
        start_networks=StartNetworks(network, lambda number: generator(number), earlier, chain, None),
        device=torch.device("cpu"),
        memory_level=0,
    )


def method(one: Stage, **changes: Any) -> FeatureAlignment:
    return FeatureAlignment(one, CafeSettings(**{**NUMBERS, **changes}))


# The loss

Pair = tuple[Tensor, Tensor]
"""Real and synthetic images of one class."""


def cafe_loss(net: ConvNet, classes: list[Pair], weights: Weights) -> Tensor:
    real, synthetic = zip(*classes, strict=True)
    return alignment_loss(net, real_side(net, real), class_means(net, synthetic), weights)


def pairs(real: int = 4, synthetic: int = 2) -> list[Pair]:
    one, other = images(real, 1).images.double(), images(synthetic, 2).images.double()
    return list(zip(one.split(real), other.split(synthetic), strict=True))


def value(net: ConvNet, classes: list[Pair], **weights: Any) -> float:
    silent = {"layers": (0.0, 0.0, 0.0), "pooled": 0.0, "discrimination": 0.0}
    return cafe_loss(net, classes, Weights(**{**silent, **weights})).item()


def test_the_loss_is_that_of_a_reference_written_out_in_double_precision() -> None:
    net, classes, expected = network().double(), pairs(), 0.0
    with torch.no_grad():
        centres = torch.stack([net.maps(s)[-1].mean(0).flatten() for _, s in classes])
        for label, (real, synthetic) in enumerate(classes):
            for weight, a, b in zip((0.5, 2.0, 3.0 + 0.7), net.maps(real), net.maps(synthetic), strict=True):
                expected += weight * float(((a.sum(0) / 4 - b.sum(0) / 2) ** 2).sum())
            for image in real:
                scores = [float(net.embed(image[None])[0] @ centre) for centre in centres]
                expected += 0.01 * (math.log(sum(math.exp(one) for one in scores)) - scores[label])
                logits = net(image[None])[0].tolist()
                expected += (math.log(sum(math.exp(one) for one in logits)) - logits[label]) / 12
    assert cafe_loss(net, classes, WEIGHTS).item() == pytest.approx(expected, rel=1e-10)


def test_every_layer_has_its_own_weight_and_the_pooled_map_is_counted_once_more_flattened() -> None:
    net, classes = network().double(), pairs()
    constant = value(net, classes)  # the cross-entropy of the real images
    ones = [value(net, classes, layers=[float(i == layer) for i in range(3)]) - constant for layer in range(3)]
    assert len({round(one, 6) for one in ones}) == 3 and min(ones) > 0
    assert value(net, classes, layers=(1.0, 2.0, 3.0)) - constant == pytest.approx(ones[0] + 2 * ones[1] + 3 * ones[2])
    assert value(net, classes, pooled=1.0) - constant == pytest.approx(ones[2])


def test_of_more_weights_than_maps_the_last_ones_count() -> None:
    net, classes = network().double(), pairs()
    assert value(net, classes, layers=(9.0, 1.0, 2.0, 3.0)) == value(net, classes, layers=(1.0, 2.0, 3.0))


class Plain(ConvNet):
    """Whose maps are the images themselves, so that the loss can be counted by hand."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.classifier = nn.Linear(2, 2, device="meta").to_empty(device="cpu")
        with torch.no_grad():
            self.classifier.weight.zero_()
            self.classifier.bias.zero_()

    def maps(self, x: Tensor) -> list[Tensor]:
        return [x, 2 * x]


def test_a_loss_counted_by_hand() -> None:
    def flat(*rows: Iterable[float]) -> Tensor:
        return torch.tensor([list(row) for row in rows]).view(-1, 1, 1, 2)

    first: Pair = flat((1.0, 0.0), (3.0, 0.0)), flat((1.0, 0.0))  # means (2, 0) and (1, 0)
    second: Pair = flat((0.0, 1.0)), flat((0.0, 0.0), (0.0, 1.0))  # means (0, 1) and (0, 1/2)
    layers = 10 * (1 + 0.25) + 1 * (4 + 1)
    # features 2x; centres (2, 0) and (0, 1): scores of the real images (4, 0), (12, 0) of class 0 and (0, 2) of class 1
    telling = math.log(1 + math.exp(-4)) + math.log(1 + math.exp(-12)) + math.log(1 + math.exp(-2))
    loss = cafe_loss(Plain(), [first, second], Weights(layers=(10.0, 1.0), pooled=0.5, discrimination=2.0))
    assert loss.item() == pytest.approx(layers + 0.5 * 5 + 2 * telling + math.log(2), rel=1e-6)


def test_the_gradient_of_the_images_is_right_to_finite_differences() -> None:
    net, classes = network().double(), pairs(real=2, synthetic=1)
    given = torch.cat([synthetic for _, synthetic in classes]).requires_grad_()

    def loss(synthetic: Tensor) -> Tensor:
        return cafe_loss(net, [(real, s[None]) for (real, _), s in zip(classes, synthetic, strict=True)], WEIGHTS)

    with torch.random.fork_rng():  # it draws the directions to check from the global generator
        assert torch.autograd.gradcheck(loss, (given,))


def test_the_cross_entropy_of_the_real_images_moves_nothing() -> None:
    net, classes = network().double(), pairs()
    given = torch.cat([synthetic for _, synthetic in classes]).requires_grad_()
    halves = [(real, part) for (real, _), part in zip(classes, given.split(2), strict=True)]
    (before,) = torch.autograd.grad(cafe_loss(net, halves, WEIGHTS), given, retain_graph=True)
    with torch.no_grad():
        net.classifier.weight.mul_(5)
    (after,) = torch.autograd.grad(cafe_loss(net, halves, WEIGHTS), given)
    assert torch.equal(before, after)


# The loops


def test_a_window_must_be_full_and_then_slides() -> None:
    watch, seen = Watch(3), []
    for accuracy in (0.5, 0.5, 0.5, 0.9, 0.9, 0.9):
        watch.see(accuracy)
        seen.append((watch.settled(0.1), watch.moved(0.1)))
    assert seen == [(False, False)] * 2 + [(True, False)] + [(False, True)] * 2 + [(True, False)]


def test_a_span_equal_to_the_bound_is_neither_settled_nor_moved() -> None:
    watch = Watch(2)
    watch.see(0.5)
    watch.see(0.75)
    assert not watch.settled(0.25) and not watch.moved(0.25)


class Diary:
    """What a method does, in order: `s` an image step, `p` a measurement, `t` an epoch on the synthetic set."""

    def __init__(self, one: FeatureAlignment, monkeypatch: pytest.MonkeyPatch, accuracies: Iterable[float]) -> None:
        self.deeds, scripted = "", iter(accuracies)
        step, run = one._image_step, cafe.Trainer.run

        def image_step(*args: Any) -> float:
            self.deeds += "s"
            return step(*args)

        def train(*args: Any, **more: Any) -> Any:
            self.deeds += "t"
            return run(*args, **more)

        def accuracy(*args: Any) -> float:
            self.deeds += "p"
            return next(scripted)

        monkeypatch.setattr(one, "_image_step", image_step)
        monkeypatch.setattr(one, "_accuracy", accuracy)
        monkeypatch.setattr(cafe.Trainer, "run", train)


def test_bounds_end_loops_that_would_not_end_by_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    one = method(stage())
    diary = Diary(one, monkeypatch, [0.5] * 99)  # flat, but settled only below a span of 0
    one.iterate(pixels(), 0, generator())
    assert diary.deeds == "sp" + "tptp" + "sp" + "tptp" + "sp"


def test_the_outer_loop_ends_when_its_own_window_has_settled(monkeypatch: pytest.MonkeyPatch) -> None:
    one = method(stage(), settled=0.04, most_steps=9, most_epochs=1)
    # its own measurements 0.1, 0.3, 0.5, 0.52; those of the inner loops between them are another watch's
    diary = Diary(one, monkeypatch, [0.1, 9, 0.3, 9, 0.5, 9, 0.52])
    one.iterate(pixels(), 0, generator())
    assert diary.deeds == "sp" + "tpsp" * 3


def test_an_inner_loop_ends_when_its_own_window_has_moved_and_the_next_one_starts_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one = method(stage(), moved=0.03, most_epochs=9, most_steps=3)
    diary = Diary(one, monkeypatch, [0.5, *(0.2, 0.21, 0.22, 0.26), 0.9, *(0.26, 0.5), 0.9])
    one.iterate(pixels(), 0, generator())
    assert diary.deeds == "sp" + "tptptptp" + "sp" + "tptp" + "sp"


def test_each_accuracy_is_measured_by_itself() -> None:
    """The reference adds a tenth of the measurement before, so that a flat accuracy seems to rise."""
    one, net = method(stage(), probe=6), network()
    first = one._accuracy(net, generator())
    assert [one._accuracy(net, generator(seed)) for seed in range(3)] == [first] * 3
    train = one.stage.train
    assert first == pytest.approx(float((net(train.images).argmax(1) == train.labels).float().mean()))


def test_an_accuracy_is_that_of_as_many_real_images_of_every_class(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Tensor, Tensor]] = []
    monkeypatch.setattr(cafe, "accuracy", lambda net, x, y: asked.append((x, y)) or 50.0)  # type: ignore[func-returns-value]
    one = method(stage(), probe=2)
    assert one._accuracy(network(), generator()) == 0.5
    one._accuracy(network(), generator(1))
    assert asked[0][1].tolist() == [0, 0, 1, 1, 2, 2]
    assert not torch.equal(asked[0][0], asked[1][0])  # fresh ones


def test_an_iteration_trains_one_network_on_the_union_between_its_image_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    frozen, seen = images(1, 12), []
    one, canvas = method(stage(frozen, transition=False), most_epochs=1), pixels(frozen)
    step = one._image_step

    def image_step(pixels: LearnableImages, net: ConvNet, *rest: Any) -> float:
        seen.append((net, next(net.parameters()).detach().clone()))
        return step(pixels, net, *rest)

    trained: list[Tensor] = []
    run = cafe.Trainer.run

    def train(trainer: Any, x: Tensor, y: Tensor, **more: Any) -> Any:
        trained.append(x)
        assert torch.equal(y, canvas.labels) and (more["batch_size"], more["schedule"].epochs) == (4, 1)
        return run(trainer, x, y, **more)

    monkeypatch.setattr(one, "_image_step", image_step)
    monkeypatch.setattr(cafe.Trainer, "run", train)
    one.iterate(canvas, 4, generator())
    assert len({id(net) for net, _ in seen}) == 1
    assert torch.equal(seen[0][1], next(one.stage.start_networks.network(4).parameters()))
    assert not torch.equal(seen[0][1], seen[1][1])
    assert [len(x) for x in trained] == [9, 9] and not torch.equal(trained[0], trained[1])
    assert torch.equal(trained[0][:3], frozen.images)


def test_an_image_step_descends_along_the_gradient_of_the_loss() -> None:
    one, canvas = method(stage(), batch_real=100, most_steps=1), pixels()
    union, train = canvas.union.requires_grad_(), one.stage.train
    classes = [(train.images[train.labels == c], union[canvas.labels == c]) for c in range(CLASSES)]
    loss = cafe_loss(network(4), classes, one._settings.weights)
    (gradient,) = torch.autograd.grad(loss, union)
    assert one.iterate(canvas, 4, generator()) == pytest.approx(loss.item(), rel=1e-5)
    torch.testing.assert_close(canvas.new, union.detach() - 0.1 * gradient, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("norm", "augmentation"), [("instance", DSA), ("batch", "none")])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_class_by_class_the_images_the_loss_and_the_network_are_the_same(
    norm: str, augmentation: str, dtype: torch.dtype
) -> None:
    """With less memory, at level 1, every bit is that of one graph, running statistics included."""
    frozen, ends = images(1, 12), []
    for level in (0, 1):
        one = stage(frozen, transition=False)
        train = Split(one.train.images.to(dtype), one.train.labels)
        nets = [network(number, norm).to(dtype) for number in range(2)]
        starts = StartNetworks(lambda number, nets=nets: nets[number], lambda number: generator(number), [], None, None)
        one = replace(one, train=train, memory_level=level, start_networks=starts)
        canvas, draws = pixels(replace(frozen, images=frozen.images.to(dtype)), dtype), generator(3)
        made = method(one, augmentation=augmentation)
        losses = [made.iterate(canvas, iteration, draws) for iteration in range(2)]
        statistics = [buffer for net in nets for buffer in net.state_dict().values()]
        ends.append((losses, canvas.new, *statistics))
    assert FeatureAlignment.memory_levels(CafeSettings(**NUMBERS)) == 1
    assert ends[0][0] == ends[1][0]
    assert all(torch.equal(a, b) for a, b in zip(ends[0][1:], ends[1][1:], strict=True))


def test_with_an_augmentation_both_sides_of_a_class_have_one_draw() -> None:
    one = stage()
    shared = one.train.images[:1]
    same = method(replace(one, train=Split(shared.expand(18, -1, -1, -1).clone(), one.train.labels)), augmentation=DSA)
    drawn = []
    for seed in range(12):
        own = same._drawn(1, generator(seed))
        (real,), synthetic = same._real_batches([own]), same._synthetic(shared, own)
        assert all(torch.equal(row, synthetic[0]) for row in real)
        drawn.append(torch.equal(synthetic, shared))
    assert not all(drawn)


def test_the_image_learning_rate_is_halved_from_the_given_iterations_on() -> None:
    spec = ImageOptimiserSpec(lr=0.8, momentum=0.0, halve_at=(2, 3))
    canvas, seen = LearnableImages(images(2, 11), None, spec, 5), []
    for iteration in range(5):
        before = canvas.new.clone()
        canvas.step(torch.ones(6, 1, SIDE, SIDE), iteration)
        seen.append(float((before - canvas.new).mean()))
    assert seen == pytest.approx([0.8, 0.8, 0.4, 0.2, 0.2], rel=1e-5)


def test_images_that_leave_the_finite_numbers_end_the_stage() -> None:
    one, canvas = method(stage()), pixels()
    canvas.new[0, 0, 0, 0] = math.inf
    with pytest.raises(Diverged, match=r"iteration 5: .*distil\.image\.lr"):
        one.iterate(canvas, 5, generator())


# What it can work with


def test_a_network_without_known_maps_is_refused() -> None:
    with pytest.raises(BadInput, match=r"network\.architecture is 'resnet10': .*name that"):
        method(stage(network=NetworkSpec(architecture="resnet10")))


def test_a_block_without_a_weight_is_refused() -> None:
    method(stage(network=NetworkSpec(width=2, depth=3)))
    with pytest.raises(BadInput, match=r"distil\.settings\.weights\.layers .*: give 5, one for each block's map"):
        method(stage(network=NetworkSpec(width=2, depth=4)))


def test_the_names_of_recipes_mean_one_class() -> None:
    assert method_named("cafe") is method_named("cafe_dsa") is FeatureAlignment
    assert settings_for("cafe_dsa", {**NUMBERS, "augmentation": DSA}) == CafeSettings(**NUMBERS, augmentation=DSA)
    with pytest.raises(BadInput, match=r"distil\.settings\.window is 1: must be at least 2"):
        settings_for("cafe", {**NUMBERS, "window": 1})


# Under PDD


def run(one: FeatureAlignment, canvas: LearnableImages, iterations: int = 2) -> list[float]:
    draws = generator(3)
    return [one.iterate(canvas, iteration, draws) for iteration in range(iterations)]


def test_the_frozen_images_never_move_by_a_bit() -> None:
    frozen = images(1, 12)
    canvas = pixels(frozen)
    before = canvas.new.clone()
    run(method(stage(frozen), augmentation=DSA), canvas)
    assert canvas.union[:3].numpy().tobytes() == images(1, 12).images.numpy().tobytes()
    assert not torch.equal(canvas.new, before)


def after(earlier: SyntheticSet, frozen: SyntheticSet | None, **more: Any) -> Tensor:
    """The new images after two iterations that are conditioned on `frozen`, the chain going through `earlier`."""
    canvas = pixels(frozen)
    run(method(stage(earlier, **more)), canvas)
    return canvas.new


def test_one_pixel_of_the_earlier_set_changes_the_result_through_conditioning_and_through_the_transition() -> None:
    usual, nudged = images(1, 12), images(1, 12)
    nudged.images[0, 0, 3, 3] += 1.0
    assert not torch.equal(after(usual, usual), after(usual, nudged))
    assert not torch.equal(after(usual, None), after(nudged, None))
    assert torch.equal(after(usual, None, transition=False), after(nudged, None, transition=False))


@pytest.mark.parametrize("augmentation", ["none", DSA])
def test_it_goes_on_from_a_checkpoint_as_if_it_had_never_stopped(augmentation: str) -> None:
    frozen, draws = images(1, 12), generator(3)
    straight, canvas = method(stage(frozen), augmentation=augmentation), pixels(frozen)
    for iteration in range(2):
        straight.iterate(canvas, iteration, draws)
    kept, drawn = canvas.state(), draws.get_state()
    expected = [straight.iterate(canvas, iteration, draws) for iteration in (2, 3)]
    assert straight.state() == ({}, {})

    resumed, other = method(stage(frozen), augmentation=augmentation), pixels(frozen)
    other.load_state(kept)
    draws.set_state(drawn)
    assert [resumed.iterate(other, iteration, draws) for iteration in (2, 3)] == expected
    assert torch.equal(other.new, canvas.new)
