"""The SGD loop does what a ten-line loop does, resumes bit for bit, and says who was right."""

import math
from collections.abc import Callable, MutableMapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from jobs.errors import Diverged
from workers.training import trainer as trainer_module
from workers.training.augmentation import Augmentation, Draw, cutmix, draw_cutmix
from workers.training.networks import Network, build, flatten
from workers.training.trainer import EpochStats, Optimiser, Schedule, Trainer, accuracy, balanced_accuracy

AUGMENTATION = Augmentation.parse("color_crop_cutout_flip_scale_rotate", align_corners=True)
SGD = Optimiser(lr=0.05, momentum=0.9, weight_decay=5e-4)


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _net(norm: str = "instance", seed: int = 0) -> Network:
    return build("convnet", channels=1, size=8, classes=3, width=4, depth=2, norm=norm, generator=_generator(seed))


def _data(n: int = 10) -> tuple[Tensor, Tensor]:
    return torch.randn(n, 1, 8, 8, generator=_generator(9)), torch.arange(n) % 3


class _Table(nn.Module):
    """Logits are the flattened image times a weight per class: predictions can be set by hand."""

    def __init__(self, *weight: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight))
        self.batches: list[list[float]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.batches.append(x.flatten().tolist())
        return x.flatten(1) * self.weight


def _points(*values: float) -> Tensor:
    return torch.tensor(values).view(-1, 1, 1, 1)


def test_one_drop_comes_after_epoch_index_half_plus_one() -> None:
    rates = [Schedule.one_drop(1000, extra_epoch=True).rate(0.01, epoch) for epoch in range(1001)]
    assert rates[:502] == [0.01] * 502
    assert rates[502:] == pytest.approx([0.001] * 499)


def test_without_the_extra_epoch_there_are_exactly_as_many_passes_as_asked_for() -> None:
    schedule = Schedule.one_drop(1000)
    assert (schedule.epochs, schedule.drops) == (1000, (502,))
    assert Schedule.one_drop(1000, extra_epoch=True).epochs == 1001


def test_two_drops_come_at_two_thirds_and_five_sixths() -> None:
    schedule = Schedule.two_drops(200)
    assert schedule.drops == (133, 166)
    assert [schedule.rate(1.0, epoch) for epoch in (132, 133, 165, 166)] == pytest.approx([1, 0.2, 0.2, 0.04])


def test_the_trainer_follows_the_schedule_and_starts_it_anew_with_every_run() -> None:
    trainer, seen = Trainer(_net(), SGD, _generator()), []
    for lr in (0.1, 0.02):
        trainer.run(
            *_data(),
            schedule=Schedule(epochs=4, drops=(2, 3)),
            batch_size=10,
            lr=lr,
            on_epoch=lambda epoch, stats: seen.append((epoch, stats.lr)),
        )
    assert [epoch for epoch, _ in seen] == [0, 1, 2, 3] * 2
    expected = [0.1, 0.1, 0.01, 0.001, 0.02, 0.02, 0.002, 0.0002]
    assert [rate for _, rate in seen] == pytest.approx(expected)


def _by_hand(net: nn.Module, images: Tensor, labels: Tensor, stages: list[tuple[float, int]], carried: bool) -> None:
    """Whole-batch SGD with momentum and decay, written out."""
    velocity = [torch.zeros_like(p) for p in net.parameters()]
    for lr, epochs in stages:
        if not carried:
            velocity = [torch.zeros_like(p) for p in net.parameters()]
        for _ in range(epochs):
            gradients = torch.autograd.grad(F.cross_entropy(net(images), labels), list(net.parameters()))
            with torch.no_grad():
                for p, v, g in zip(net.parameters(), velocity, gradients, strict=True):
                    v.mul_(SGD.momentum).add_(g + SGD.weight_decay * p)
                    p.sub_(lr * v)


@pytest.mark.parametrize("carried", [True, False])
def test_momentum_is_carried_into_the_next_run_or_reset_on_request(carried: bool) -> None:
    images, labels = _data()
    ours, reference, other = (_net().double() for _ in range(3))
    trainer, stages = Trainer(ours, SGD, _generator()), [(0.1, 3), (0.02, 4)]
    for lr, epochs in stages:
        if not carried:
            trainer.reset_momentum()
        trainer.run(images.double(), labels, schedule=Schedule(epochs=epochs), batch_size=10, lr=lr)
    _by_hand(reference, images.double(), labels, stages, carried)
    _by_hand(other, images.double(), labels, stages, not carried)
    torch.testing.assert_close(flatten(ours), flatten(reference), rtol=1e-9, atol=1e-12)
    assert not torch.allclose(flatten(ours), flatten(other), rtol=1e-4)


@pytest.mark.parametrize("reset", [True, False])
def test_momentum_outlives_a_drop_of_the_learning_rate_unless_it_is_to_be_reset(reset: bool) -> None:
    images, labels = _data()
    ours, reference, other = (_net().double() for _ in range(3))
    schedule, stages = Schedule(epochs=6, drops=(2, 5), factor=0.5), [(0.1, 2), (0.05, 3), (0.025, 1)]
    Trainer(ours, SGD, _generator()).run(
        images.double(), labels, schedule=schedule, batch_size=10, lr=0.1, reset_at_drop=reset
    )
    _by_hand(reference, images.double(), labels, stages, carried=not reset)
    _by_hand(other, images.double(), labels, stages, carried=reset)
    torch.testing.assert_close(flatten(ours), flatten(reference), rtol=1e-9, atol=1e-12)
    assert not torch.allclose(flatten(ours), flatten(other), rtol=1e-4)


def test_the_reported_loss_is_the_mean_over_examples_before_their_updates() -> None:
    images, labels = _data(10)
    net, trainer = _net(), Trainer(_net(), Optimiser(lr=1e-12), _generator())
    (stats,) = trainer.run(images, labels, schedule=Schedule(epochs=1), batch_size=4)
    assert stats.loss == pytest.approx(F.cross_entropy(net(images), labels).item(), rel=1e-5)


def test_every_pass_is_a_new_permutation_that_keeps_the_short_batch() -> None:
    net, images = _Table(1.0, 0.0), _points(0, 1, 2, 3, 4, 5, 6, 7, 8)
    trainer = Trainer(net, Optimiser(lr=1e-12), _generator())
    trainer.run(images, torch.zeros(9, dtype=torch.int64), schedule=Schedule(epochs=2), batch_size=4)
    assert [len(batch) for batch in net.batches] == [4, 4, 1] * 2
    passes = [sum(net.batches[:3], []), sum(net.batches[3:], [])]
    assert all(sorted(order) == list(range(9)) for order in passes)
    assert passes[0] != passes[1]


def _train(seed: int) -> tuple[Tensor, list[float]]:
    trainer = Trainer(_net("batch"), SGD, _generator(seed))
    arguments = {"schedule": Schedule(epochs=3), "batch_size": 4, "cutmix_probability": 0.5}
    history = trainer.run(*_data(), augmentation=AUGMENTATION, **arguments)  # type: ignore[arg-type]
    return flatten(trainer.module), [stats.loss for stats in history]


def test_the_same_generator_gives_the_same_bits_and_leaves_the_global_state_alone() -> None:
    before = torch.get_rng_state()
    (first, first_losses), (again, again_losses), (other, _) = _train(1), _train(1), _train(2)
    assert torch.equal(first, again) and first_losses == again_losses
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("momentum", [0.9, 0.0])
@pytest.mark.parametrize("stop", [0, 2])
def test_a_run_resumed_in_the_middle_ends_in_the_same_bits(tmp_path: Path, momentum: float, stop: int) -> None:
    schedule, optimiser = Schedule(epochs=5, drops=(3,)), Optimiser(lr=0.05, momentum=momentum)

    def run(trainer: Trainer, first_epoch: int) -> list[float]:
        def save(epoch: int, _: EpochStats) -> None:
            if epoch == stop and first_epoch == 0:
                np.savez(tmp_path / "state.npz", **trainer.state())  # type: ignore[arg-type]

        history = trainer.run(
            *_data(),
            schedule=schedule,
            batch_size=4,
            augmentation=AUGMENTATION,
            cutmix_probability=0.5,
            on_epoch=save,
            first_epoch=first_epoch,
        )
        return [stats.loss for stats in history]

    whole = Trainer(_net("batch"), optimiser, _generator(1))
    losses = run(whole, 0)
    resumed = Trainer(_net("batch", seed=5), optimiser, _generator(77))
    with np.load(tmp_path / "state.npz", allow_pickle=False) as file:
        resumed.load_state(dict(file))
    assert run(resumed, stop + 1) == losses[stop + 1 :]
    for name, value in whole.module.state_dict().items():
        assert torch.equal(value, resumed.module.state_dict()[name]), name
    ours, theirs = whole.state(), resumed.state()
    assert ours.keys() == theirs.keys()
    assert all(np.array_equal(ours[key], theirs[key]) for key in ours)


@pytest.mark.parametrize("norm", ["batch", "none"])
def test_momentum_is_loaded_in_the_layout_of_weights_that_are_channels_last(norm: str) -> None:
    """As on a card; the fused step goes through memory and not through indices."""

    def trainer() -> Trainer:
        net = build("convnet", channels=3, size=8, classes=3, width=4, depth=2, norm=norm, generator=_generator())
        return Trainer(net.to(memory_format=torch.channels_last), SGD, _generator())

    images, labels = torch.randn(10, 3, 8, 8, generator=_generator(9)), torch.arange(10) % 3
    straight, resumed = trainer(), trainer()
    straight.run(images, labels, schedule=Schedule(epochs=1), batch_size=4)
    resumed.load_state(straight.state())
    for parameter in resumed.module.parameters():
        assert resumed._sgd.state[parameter]["momentum_buffer"].stride() == parameter.stride()
    for one in (straight, resumed):
        one.run(images, labels, schedule=Schedule(epochs=2), batch_size=4)
    assert torch.equal(flatten(straight.module), flatten(resumed.module))


def test_losses_are_read_now_and_then_where_only_progress_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.training.trainer.UNREAD_BATCHES", 6)
    read, passes, (images, labels) = list[int](), list[int](), _data()
    original = trainer_module._read
    monkeypatch.setattr(trainer_module, "_read", lambda made, *rest: read.append(len(made)) or original(made, *rest))
    watched, quiet = (Trainer(_net(), SGD, _generator()) for _ in range(2))
    arguments = {"schedule": Schedule(epochs=7), "batch_size": 4}
    history = watched.run(images, labels, progress=passes.append, **arguments)  # type: ignore[arg-type]
    assert read == [2, 2, 2, 1] and passes == list(range(7))  # three batches a pass
    read.clear()
    told = quiet.run(images, labels, on_epoch=lambda epoch, stats: None, **arguments)  # type: ignore[arg-type]
    assert read == [1] * 7
    assert [stats.loss for stats in history] == [stats.loss for stats in told]
    assert torch.equal(flatten(watched.module), flatten(quiet.module))


def test_a_divergence_seen_late_still_names_its_own_epoch() -> None:
    trainer = Trainer(_net(norm="none"), Optimiser(lr=0.1), _generator())

    def poison(epoch: int) -> None:
        if epoch == 1:
            next(trainer.module.parameters()).data.fill_(math.nan)

    with pytest.raises(Diverged, match="epoch 2 at learning rate 0.01"):
        trainer.run(*_data(), schedule=Schedule(epochs=9, drops=(2,)), batch_size=4, progress=poison)


def test_a_state_without_momentum_clears_the_trainers_own() -> None:
    fresh, used = (Trainer(_net(), SGD, _generator()) for _ in range(2))
    used.run(*_data(), schedule=Schedule(epochs=1), batch_size=4)
    used.load_state(fresh.state())
    for trainer in (fresh, used):
        trainer.run(*_data(), schedule=Schedule(epochs=2), batch_size=4)
    assert torch.equal(flatten(fresh.module), flatten(used.module))


def test_a_state_is_a_copy_that_training_and_loading_do_not_alias() -> None:
    trainer = Trainer(_net("batch"), SGD, _generator())
    trainer.run(*_data(), schedule=Schedule(epochs=1), batch_size=4)
    state = trainer.state()
    kept = {key: array.copy() for key, array in state.items()}
    trainer.load_state(state)
    trainer.run(*_data(), schedule=Schedule(epochs=1), batch_size=4)
    assert all(np.array_equal(state[key], kept[key]) for key in state)
    assert any(key.startswith("momentum/") for key in state)


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (lambda state: state.pop("parameter/classifier.bias"), "parameter/classifier.bias"),
        (lambda state: state.update({"buffer/extra": np.zeros(1)}), "buffer/extra"),
        (lambda state: state.update({"parameter/classifier.bias": np.zeros(1)}), "parameter/classifier.bias"),
        (lambda state: state.pop("generator"), "generator"),
    ],
)
def test_a_state_that_does_not_fit_is_named_and_changes_nothing(
    damage: Callable[[MutableMapping[str, Any]], object], named: str
) -> None:
    trainer, state = (
        Trainer(_net(seed=1), SGD, _generator()),
        Trainer(_net(seed=2), SGD, _generator()).state(),
    )
    before = flatten(trainer.module)
    damage(state)
    with pytest.raises(ValueError, match=named):
        trainer.load_state(state)
    assert torch.equal(flatten(trainer.module), before)


def test_snapshots_taken_between_epochs_differ_from_each_other_and_do_not_move() -> None:
    trainer, snapshots, kept = Trainer(_net(), SGD, _generator()), [], []

    def snapshot(epoch: int, stats: EpochStats) -> None:
        snapshots.append(flatten(trainer.module))
        kept.append(snapshots[-1].tolist())

    trainer.run(*_data(), schedule=Schedule(epochs=3), batch_size=4, on_epoch=snapshot)
    assert [s.tolist() for s in snapshots] == kept
    assert not torch.equal(snapshots[0], snapshots[1]) and not torch.equal(snapshots[1], snapshots[2])
    assert torch.equal(snapshots[2], flatten(trainer.module))


def test_correctness_is_told_by_example_whatever_the_order() -> None:
    images = _points(1, -1, 2, -2, 3, -3, 4)  # positive ones are taken for class 0, negative ones for class 1
    labels = torch.tensor([0, 0, 1, 1, 0, 1, 1])
    trainer = Trainer(_Table(1.0, 0.0), Optimiser(lr=1e-12), _generator())
    for stats in trainer.run(images, labels, schedule=Schedule(epochs=3), batch_size=2, correctness=True):
        assert stats.correct is not None
        assert stats.correct.tolist() == [True, False, False, True, True, True, False]


def test_correctness_is_seen_before_the_update() -> None:
    trainer = Trainer(_Table(1.0, 0.0), Optimiser(lr=10.0), _generator())
    history = trainer.run(_points(1), torch.tensor([1]), schedule=Schedule(epochs=2), batch_size=1, correctness=True)
    assert [stats.correct.tolist() for stats in history if stats.correct is not None] == [[False], [True]]


def test_correctness_is_seen_on_the_augmented_image() -> None:
    class Blank(Augmentation):
        def apply(self, images: Tensor, draw: Draw) -> Tensor:
            return -images

    trainer = Trainer(_Table(1.0, 0.0), Optimiser(lr=1e-12), _generator())
    arguments = {"schedule": Schedule(epochs=1), "batch_size": 2, "correctness": True}
    (stats,) = trainer.run(_points(1, -1), torch.tensor([0, 0]), augmentation=Blank(()), **arguments)  # type: ignore[arg-type]
    assert stats.correct is not None and stats.correct.tolist() == [False, True]


def test_correctness_is_not_kept_unless_asked_for_and_never_with_cutmix() -> None:
    trainer, schedule = Trainer(_net(), SGD, _generator()), Schedule(epochs=1)
    assert trainer.run(*_data(), schedule=schedule, batch_size=4)[0].correct is None
    with pytest.raises(ValueError, match="switch CutMix off"):
        trainer.run(*_data(), schedule=schedule, batch_size=4, correctness=True, cutmix_probability=0.5)


def test_cutmix_minimises_the_weighted_loss_of_both_labels() -> None:
    (images, labels), net, reference = _data(), _net(), _net()
    trainer = Trainer(net, Optimiser(lr=0.1), _generator(3))
    (stats,) = trainer.run(images, labels, schedule=Schedule(epochs=1), batch_size=10, cutmix_probability=1.0)
    generator = _generator(3)
    order = torch.randperm(10, generator=generator)
    own = labels[order]
    mix = draw_cutmix(10, (images.shape[2], images.shape[3]), 1.0, generator)
    assert mix is not None
    mixed, partners, weight = cutmix(images[order], own, mix)
    assert 0.1 < weight < 0.9, "the seed must give a box that matters"
    logits = reference(mixed)
    loss = weight * F.cross_entropy(logits, own) + (1 - weight) * F.cross_entropy(logits, partners)
    step = torch.autograd.grad(loss, list(reference.parameters()))
    assert stats.loss == pytest.approx(loss.item())
    moved = flatten(reference) - 0.1 * torch.cat([g.reshape(-1) for g in step])
    torch.testing.assert_close(flatten(net), moved)


@pytest.mark.parametrize("lr", [0.0, -0.01, math.nan, math.inf])
def test_a_step_size_that_is_not_positive_and_finite_never_trains(lr: float) -> None:
    trainer = Trainer(_net(), SGD, _generator())
    before = flatten(trainer.module)
    with pytest.raises(Diverged, match=f"learning rate {lr:g}"):
        trainer.run(*_data(), schedule=Schedule(epochs=1), batch_size=4, lr=lr)
    assert torch.equal(flatten(trainer.module), before)


def test_a_loss_that_is_not_finite_names_the_epoch_and_the_learning_rate() -> None:
    trainer, seen = Trainer(_net(norm="none"), Optimiser(lr=0.1), _generator()), []

    def poison(epoch: int, stats: EpochStats) -> None:
        seen.append(epoch)
        if epoch == 1:
            next(trainer.module.parameters()).data.fill_(math.nan)

    with pytest.raises(Diverged, match="epoch 2 at learning rate 0.01"):
        trainer.run(*_data(), schedule=Schedule(epochs=9, drops=(2,)), batch_size=4, on_epoch=poison)
    assert seen == [0, 1]


def test_weights_broken_by_the_very_last_update_are_not_returned() -> None:
    trainer = Trainer(_net(norm="none"), Optimiser(lr=1e38, weight_decay=1e3), _generator())
    with pytest.raises(Diverged, match="at its end"):
        trainer.run(*_data(), schedule=Schedule(epochs=1), batch_size=10)


def test_what_on_epoch_raises_ends_the_run_after_that_epoch() -> None:
    def stop(epoch: int, stats: EpochStats) -> None:
        if epoch == 1:
            raise KeyboardInterrupt

    stopped, reference = (Trainer(_net(), SGD, _generator()) for _ in range(2))
    with pytest.raises(KeyboardInterrupt):
        stopped.run(*_data(), schedule=Schedule(epochs=5), batch_size=4, on_epoch=stop)
    reference.run(*_data(), schedule=Schedule(epochs=2), batch_size=4)
    assert torch.equal(flatten(stopped.module), flatten(reference.module))


def test_accuracy_counts_in_percent_whatever_the_batch() -> None:
    images, labels = _points(1, -1, 2, -2, 3), torch.tensor([0, 0, 0, 1, 1])
    for batch in (1, 2, 5, 100):
        assert accuracy(_Table(1.0, 0.0), images, labels, batch) == pytest.approx(60)


def test_accuracy_evaluates_in_eval_mode_and_puts_the_mode_back() -> None:
    net, (images, labels) = _net("batch"), _data()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    expected = 100 * (net.eval()(images).argmax(1) == labels).double().mean().item()
    for training in (True, False):
        net.train(training)
        assert accuracy(net, images, labels, 3) == pytest.approx(expected)
        assert net.training is training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_training_goes_on_in_train_mode_after_a_test_between_epochs() -> None:
    def tested(epoch: int, stats: EpochStats) -> None:
        plain.module.eval()

    plain, reference = (Trainer(_net("batch"), SGD, _generator()) for _ in range(2))
    plain.run(*_data(), schedule=Schedule(epochs=2), batch_size=4, on_epoch=tested)
    reference.run(*_data(), schedule=Schedule(epochs=2), batch_size=4)
    assert torch.equal(flatten(plain.module), flatten(reference.module))


@pytest.mark.parametrize("n_labels", [0, 4])
def test_an_empty_set_or_labels_of_another_number_are_refused(n_labels: int) -> None:
    images, labels = torch.zeros(0, 1, 8, 8), torch.zeros(n_labels, dtype=torch.int64)
    with pytest.raises(ValueError, match="images and labels have shapes"):
        accuracy(_net(), images, labels)
    with pytest.raises(ValueError, match="images and labels have shapes"):
        Trainer(_net(), SGD, _generator()).run(images, labels, schedule=Schedule(epochs=1), batch_size=4)


class Says(nn.Module):
    """Answers with the class that the first pixel names."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.one_hot(x[:, 0, 0, 0].long(), 3).float()


def test_balanced_accuracy_is_the_mean_over_classes_of_their_accuracies() -> None:
    """Class 0: 8 of 8 right; class 1: 1 of 2; class 2: 0 of 1. All: 9 of 11; balanced: (100 + 50 + 0) / 3."""
    labels = torch.tensor([0] * 8 + [1, 1, 2])
    answers = torch.tensor([0] * 8 + [1, 0, 0]).float().reshape(-1, 1, 1, 1)
    assert accuracy(Says(), answers, labels) == pytest.approx(100 * 9 / 11)
    assert balanced_accuracy(Says(), answers, labels, batch=4) == pytest.approx(50.0)


def test_classes_without_an_image_do_not_count_for_the_balanced_accuracy() -> None:
    answers = torch.tensor([0.0, 2.0]).reshape(-1, 1, 1, 1)
    assert balanced_accuracy(Says(), answers, torch.tensor([0, 2])) == 100.0


# Soft labels.


def _soft(n: int = 10) -> Tensor:
    return torch.softmax(torch.randn(n, 3, generator=_generator(4)), 1)


def test_soft_labels_are_trained_towards_by_cross_entropy_as_a_loop_written_out_does() -> None:
    images, labels = _data()[0].double(), _soft().double()
    trained, by_hand = _net().double(), _net().double()
    Trainer(trained, SGD, _generator(1)).run(images, labels, schedule=Schedule(epochs=2), batch_size=4)
    order, sgd = _generator(1), torch.optim.SGD(by_hand.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    for _ in range(2):
        rows = torch.randperm(10, generator=order)
        for batch in rows.split(4):
            torch.rand((), generator=order)  # whether the batch is mixed
            scores = by_hand(images[batch])
            loss = -(labels[batch] * scores.log_softmax(1)).sum(1).mean()
            sgd.zero_grad()
            loss.backward()
            sgd.step()
    torch.testing.assert_close(flatten(trained), flatten(by_hand), rtol=1e-10, atol=1e-12)


def test_certain_soft_labels_train_as_the_classes_do_cutmix_and_augmentation_included() -> None:
    images, classes = _data()
    ends = []
    for labels in (classes, F.one_hot(classes, 3).float()):
        net = _net()
        Trainer(net, SGD, _generator(1)).run(
            images,
            labels,
            schedule=Schedule(epochs=3),
            batch_size=4,
            augmentation=AUGMENTATION,
            cutmix_probability=0.5,
        )
        ends.append(flatten(net))
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-4, atol=1e-6)


def test_soft_labels_of_another_number_and_correctness_of_soft_labels_are_refused() -> None:
    trainer = Trainer(_net(), SGD, _generator())
    images, _ = _data()
    with pytest.raises(ValueError, match="N at least 1"):
        trainer.run(images, _soft(9), schedule=Schedule(epochs=1), batch_size=4)
    with pytest.raises(ValueError, match="N at least 1"):
        trainer.run(images, torch.zeros(10, 3, dtype=torch.int64), schedule=Schedule(epochs=1), batch_size=4)
    with pytest.raises(ValueError, match="not a soft label"):
        trainer.run(images, _soft(), schedule=Schedule(epochs=1), batch_size=4, correctness=True)
    with pytest.raises(ValueError, match="N at least 1"):
        accuracy(_net(), images, _soft())
