"""IDC: its distance and decoding, a round and an iteration, its streams of real images."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from jobs.errors import BadInput, Diverged
from tests.workers.matched import AFFINE, CLASSES, SGD, SIDE, after, generator, images, pixels, random_network, resumed
from tests.workers.matched import stage as any_stage
from workers.data import preprocess
from workers.data.multi_formation import decode
from workers.methods import method_named
from workers.methods.base import LearnableImages, Stage
from workers.methods.matching import idc
from workers.methods.matching.idc import DISTANCES, Endless, FormationMatching, IdcSettings
from workers.training.augmentation import Augmentation
from workers.training.networks import Network, flatten
from workers.training.students import fit, trainer_for

NUMBERS: dict[str, Any] = {
    "rounds": 2,
    "batch_real": 5,
    "n_data": 8,
    "augmentation": "color_crop_cutout",
    "training": {
        "epochs": 1,
        "lr": 0.05,
        "momentum": 0.9,
        "weight_decay": 5e-4,
        "batch_size": 4,
        "augmentation": "color_crop",
        "family": "idc",
        "cutmix": 0.5,
    },
}
SLOW = SGD.model_copy(update={"lr": 0.01})


def stage(**more: Any) -> Stage:
    return any_stage("idc", NUMBERS, **{"factor": 2, **more})


def method(made: Stage | None = None, **changes: Any) -> FormationMatching:
    return FormationMatching(made or stage(), IdcSettings.model_validate({**NUMBERS, **changes}))


def canvas(**more: Any) -> LearnableImages:
    return pixels(unit=True, **{"factor": 2, "optimiser": SLOW, **more})


# The loss


def test_distances_are_sums_of_squares_or_of_absolute_values() -> None:
    ours, theirs = torch.tensor([[1.0, -2.0]]), torch.tensor([[0.0, 1.0]])
    assert float(DISTANCES["l2"](ours, theirs)) == 1 + 9
    assert float(DISTANCES["l1"](ours, theirs)) == 1 + 3


def reference(network: Network, real: Tensor, stored: Tensor, label: int, power: int) -> Tensor:
    """The loss written out for affine normalisation: convolutions' weights alone, decoded images, no augmentation."""
    weights = [module.weight for module in network.modules() if isinstance(module, torch.nn.Conv2d)]
    mean, std = AFFINE.mean.to(stored), AFFINE.std.to(stored)
    pulls = [
        torch.autograd.grad(F.cross_entropy(network(x), torch.full((len(x),), label)), weights, create_graph=True)
        for x in (real, (decode(stored, 2) - mean) / std)
    ]
    return sum(((a - b).abs() ** power).sum() for a, b in zip(*pulls, strict=True))


@pytest.mark.parametrize(("distance", "power"), [("l1", 1), ("l2", 2)])
def test_loss_and_gradient_equal_the_reference_in_float64(distance: str, power: int) -> None:
    made = stage(dtype=torch.float64)
    network, real = random_network(1, torch.float64), made.train.images[:4]
    stored = AFFINE.inverse(images(1, 2, torch.float64).images)
    learning = stored.clone().requires_grad_()
    expected = reference(network, real, learning, 1, power)
    (slope,) = torch.autograd.grad(expected, learning)
    loss, found = method(made, distance=distance, augmentation="none")._match(network, real, stored, 1, generator())
    assert float(loss) == pytest.approx(float(expected.detach()), rel=1e-10) and float(loss) > 1e-6
    torch.testing.assert_close(found, slope, rtol=1e-8, atol=1e-12)


def test_the_gradient_reaches_stored_pixels_exactly_through_decoding_normalising_and_augmenting() -> None:
    made = stage(dtype=torch.float64)
    one, network, real = method(made), random_network(1, torch.float64), made.train.images[:3]
    stored = AFFINE.inverse(images(1, 2, torch.float64).images[:1])
    _, slope = one._match(network, real, stored.clone(), 1, generator(4))
    direction = torch.randn(stored.shape, generator=generator(9), dtype=torch.float64)
    ahead, behind = (
        float(one._match(network, real, stored + step * direction, 1, generator(4))[0]) for step in (1e-6, -1e-6)
    )
    assert float((slope * direction).sum()) == pytest.approx((ahead - behind) / 2e-6, rel=1e-4)
    assert float(slope.abs().max()) > 0


def test_of_too_many_decoded_images_a_random_part_is_matched() -> None:
    one, stored = method(max_synthetic=3), canvas().union[:2]
    whole = AFFINE.normalise(decode(stored, 2))
    part = one._decoded(stored, generator(1))
    rows = [image.numpy().tobytes() for image in whole]
    chosen = [rows.index(image.numpy().tobytes()) for image in part]
    assert len(set(chosen)) == 3 and chosen == torch.randperm(8, generator=generator(1))[:3].tolist()
    assert torch.equal(method(max_synthetic=8)._decoded(stored, generator(1)), whole)


# Streams of real images


def test_a_stream_passes_through_all_its_members_and_drops_a_rest_that_is_too_short() -> None:
    stream, draws = Endless(torch.tensor([3, 5, 7, 9, 11])), generator()
    first, second, third = (stream.take(2, draws).tolist() for _ in range(3))
    twin = generator()
    orders = [torch.tensor([3, 5, 7, 9, 11])[torch.randperm(5, generator=twin)].tolist() for _ in range(2)]
    assert first + second == orders[0][:4] and third == orders[1][:2]
    assert stream.rest.tolist() == orders[1][2:]


def test_a_stream_of_few_members_gives_them_all_every_time() -> None:
    stream, draws = Endless(torch.tensor([4, 6])), generator()
    assert sorted(stream.take(5, draws).tolist()) == sorted(stream.take(5, draws).tolist()) == [4, 6]


def test_the_network_trains_on_the_next_real_images_by_whole_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    made = stage()
    one, seen = method(made, n_data=6), []
    monkeypatch.setattr(idc, "fit", lambda trainer, x, y, spec: seen.append((x, y)))
    for _ in range(3):
        one._train(None, draws := generator(1))  # type: ignore[arg-type]
    del draws
    rows = [image.numpy().tobytes() for image in made.train.images]
    drawn = [rows.index(image.numpy().tobytes()) for x, _ in seen for image in x]
    assert [len(x) for x, _ in seen] == [8] * 3  # 6 are two batches of 4
    assert len(set(drawn)) == 24  # of 36: the stream goes on where it stopped
    assert all(torch.equal(made.train.labels[rows.index(x[0].numpy().tobytes())], y[0]) for x, y in seen)


# An iteration


class Recorder:
    """Keeps what is matched and answers with a constant slope."""

    def __init__(self) -> None:
        self.batches: list[tuple[int, Tensor, Tensor]] = []
        self.thetas: list[Tensor] = []
        self.shapes: list[list[int]] = []

    def __call__(self, network: Network, weights: Any, distance: Any, real: Tensor, made: Tensor, label: int) -> Tensor:
        self.batches.append((label, real.detach().clone(), made.detach().clone()))
        self.thetas.append(flatten(network))
        self.shapes.append([weight.dim() for weight in weights])
        return made.sum()


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    recorder = Recorder()
    monkeypatch.setattr(idc, "gradient_distance", recorder)
    return recorder


def test_each_class_takes_a_step_of_its_own_and_the_others_go_on_by_their_momentum(recorder: Recorder) -> None:
    plain = {"factor": 1, "optimiser": SGD.model_copy(update={"lr": 0.001})}
    made, one = stage(factor=1), canvas(**plain)
    before = one.new.clone()
    method(made, rounds=1, augmentation="none").iterate(one, 0, generator())
    assert [label for label, _, _ in recorder.batches] == [0, 1, 2]
    # the slope of sum(normalise(x)) is 1/std = 4; momentum 0.5 carries class 0 on for two steps, class 1 for one
    moved = (before - one.new).reshape(3, -1)
    expected = torch.tensor([1 + 0.5 + 0.25, 1 + 0.5, 1.0])[:, None] * 4 * 0.001
    torch.testing.assert_close(moved, expected.expand_as(moved), rtol=1e-3, atol=1e-6)


def test_a_class_is_matched_with_its_real_images_and_all_its_decoded_ones_under_one_draw(recorder: Recorder) -> None:
    frozen = replace(images(1, 7), factor=2)
    made, one = stage(earlier=(frozen,)), canvas(frozen=frozen)
    start, draws = one.union, generator(3)
    method(made, rounds=1).iterate(one, 0, generator(3))
    real = [made.train.images[12 * c + torch.randperm(12, generator=draws)[:5]] for c in range(CLASSES)]
    augmentation = Augmentation.parse("color_crop_cutout", mode="idc")
    own = AFFINE.normalise(decode(start[torch.tensor([0, 3, 4])], 2))
    expected = augmentation(torch.cat([real[0], own]), draws, siamese=True)
    label, seen_real, seen_made = recorder.batches[0]
    assert label == 0 and len(seen_made) == 3 * 4
    torch.testing.assert_close(torch.cat([seen_real, seen_made]), expected)
    assert recorder.shapes[0] == [4, 4]  # the convolutions' weights and nothing else


def test_the_network_starts_at_its_number_and_learns_from_real_images_between_rounds(recorder: Recorder) -> None:
    earlier = replace(images(1, 7), factor=2)
    made = stage(earlier=(earlier,))
    one = method(made, augmentation="none")
    one.iterate(canvas(), 4, generator(2))
    network, twin = made.start_networks.network(4), generator(2)
    assert torch.equal(recorder.thetas[0], flatten(network)) and torch.equal(recorder.thetas[2], flatten(network))
    assert not torch.equal(recorder.thetas[0], flatten(random_network(4)))  # it has been through S_1
    for _ in range(CLASSES):
        torch.randperm(12, generator=twin)
    index = torch.randperm(36, generator=twin)[:8]
    training = one._settings.training
    fit(trainer_for(network, training, twin), made.train.images[index], made.train.labels[index], training)
    assert len(recorder.thetas) == 6 and torch.equal(recorder.thetas[3], flatten(network))


def test_new_images_are_clamped_when_an_iteration_begins_and_frozen_ones_are_not(recorder: Recorder) -> None:
    frozen = replace(images(1, 7), factor=2)
    frozen.images[0] += 9.0
    one = canvas(frozen=frozen)
    one.new[0] = 2.0
    one.new[1] = -2.0
    method(stage(earlier=(frozen,)), rounds=1, augmentation="none").iterate(one, 0, generator())
    seen = AFFINE.inverse(recorder.batches[0][2]).reshape(3, -1)
    assert float(seen[0].max()) > 1.5 and float(seen[1].min()) == pytest.approx(1.0, abs=1e-6)
    assert float(seen[2].abs().max()) < 1e-6


# A stage


def test_frozen_images_stay_and_one_of_their_pixels_changes_the_result() -> None:
    results = []
    for nudge in (0.0, 0.5):
        frozen = replace(images(1, 7), factor=2)
        frozen.images[0, 0, 3, 3] += nudge
        one = canvas(frozen=frozen)
        kept = one.union[:3].clone()
        results.append(after(method(stage(earlier=(frozen,))), one))
        assert torch.equal(one.union[:3], kept)
    assert not torch.equal(*results)


def test_by_conditioning_alone_and_by_transition_alone_an_earlier_set_changes_the_result() -> None:
    def result(earlier: bool, transition: bool, conditioning: bool) -> Tensor:
        frozen = replace(images(1, 7), factor=2)
        made = stage(earlier=(frozen,) if earlier else (), transition=transition)
        return after(method(made), canvas(frozen=frozen if conditioning else None))

    plain = result(earlier=False, transition=False, conditioning=False)
    assert torch.equal(result(earlier=True, transition=False, conditioning=False), plain)
    assert not torch.equal(result(earlier=True, transition=True, conditioning=False), plain)
    assert not torch.equal(result(earlier=True, transition=False, conditioning=True), plain)


@pytest.mark.parametrize("before", [1, 2])
def test_a_stage_goes_on_from_its_state_bit_for_bit(before: int) -> None:
    made = stage()
    straight, again = resumed(method(made), method(made), canvas(), canvas(), before)
    assert straight == again


def test_the_state_is_a_copy_of_what_is_left_of_each_pass() -> None:
    one = method()
    after(one, canvas(), 1)
    arrays, values = one.state()
    assert values == {} and sorted(arrays) == ["all", "class/0", "class/1", "class/2"]
    assert {name: len(left) for name, left in arrays.items()} == {
        "all": 36 - 8,
        **{f"class/{c}": 12 - 10 for c in range(3)},
    }


def test_images_that_leave_the_finite_numbers_end_the_stage() -> None:
    wild = canvas(optimiser=SGD.model_copy(update={"lr": 1e38}))
    with pytest.raises(Diverged, match="iteration 3: .*: lower distil.image.lr"):
        method(augmentation="none").iterate(wild, 3, generator())


def test_whitened_images_are_refused_since_they_cannot_be_decoded() -> None:
    whitening = preprocess.fit_zca(torch.randint(0, 256, (9, 1, SIDE, SIDE), generator=generator()).to(torch.uint8))
    with pytest.raises(BadInput, match=r"dataset\.normalise is '?zca"):
        method(stage(transform=whitening))
    assert method_named("idc") is FormationMatching


# Several classes at once


@pytest.mark.parametrize("optimiser", [SLOW, SLOW.model_copy(update={"name": "adam"})], ids=["sgd", "adam"])
@pytest.mark.parametrize(("at_once", "most"), [(2, 128), (3, 3)])
def test_several_classes_at_once_are_matched_as_one_by_one_in_float64(optimiser: Any, at_once: int, most: int) -> None:
    """Momentum moves images also in the steps of the other classes."""
    images_after, losses = [], []
    for taken in (1, at_once):
        one = method(stage(dtype=torch.float64), classes_at_once=taken, max_synthetic=most, rounds=3)
        new = replace(images(2, 2, torch.float64), factor=2)
        frozen = replace(images(1, 7, torch.float64), factor=2)
        new, frozen = (replace(own, images=AFFINE.inverse(own.images)) for own in (new, frozen))
        learnable, draws = LearnableImages(new, frozen, optimiser, 10, earlier_rate=0.1), generator(5)
        losses.append([one.iterate(learnable, iteration, draws) for iteration in range(2)])
        images_after.append(learnable.union)
    assert losses[0] == pytest.approx(losses[1], rel=1e-8)
    torch.testing.assert_close(*images_after, rtol=1e-7, atol=1e-9)


def test_after_too_little_memory_classes_are_taken_one_by_one() -> None:
    settings = IdcSettings.model_validate({**NUMBERS, "classes_at_once": 3})
    assert FormationMatching.memory_levels(settings) == 1
    assert method(replace(stage(), memory_level=1), classes_at_once=3)._at_once == 1
