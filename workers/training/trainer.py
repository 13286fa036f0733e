"""One SGD loop for experts, transitions, evaluation nets and full-data runs.

Why it exists: the published procedures differ in numbers (passes, drops, batch, momentum, augmentation), not
in kind. With one loop the differences are arguments, and an expert cannot silently be trained otherwise
than a student.

What it decides: images stay resident as tensors, without a loader; a pass is a fresh permutation with the
last short batch kept; augmentation draws one operation a batch and its numbers per image; momentum buffers
live in the `Trainer`, so that a second `run` carries them on, as progressive evaluation does from stage to
stage, unless `reset_momentum` is called. Numbers are drawn from the generator in this order: the
permutation, then for every batch the augmentation and CutMix. That order is part of the result.

What it leaves out: keeping snapshots, testing and saving, which are the caller's, between epochs, through
`on_epoch`. `Trainer.state` at that moment is enough to go on bit for bit on a CPU in another process.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from jobs.errors import Diverged
from workers.data.stored_images import Images, batches
from workers.runtime.transfer import moved_together
from workers.training.augmentation import Augmentation, Draw, Mix, cutmix, draw_cutmix, draws_on
from workers.training.compute import SGD, Compute, images_at_a_time


@dataclass(frozen=True, kw_only=True)
class Optimiser:
    """SGD: v <- momentum * v + gradient + weight_decay * w; w <- w - lr * v."""

    lr: float
    momentum: float = 0.0
    weight_decay: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How many passes, and before which of them the learning rate drops.

    Attributes:
        epochs: passes over the data.
        drops: epoch indices, from 0; the learning rate of this and all later passes is multiplied.
        factor: by which each drop multiplies.
    """

    epochs: int
    drops: tuple[int, ...] = ()
    factor: float = 0.1

    @classmethod
    def one_drop(cls, epochs: int, *, factor: float = 0.1, extra_epoch: bool = False) -> Schedule:
        """The schedule of DC, DM and MTT: one drop, after the pass of index epochs // 2 + 1.

        The first epochs // 2 + 2 passes run at the full rate: 502 of 1000. The published loops make one
        pass more than they are asked to; `extra_epoch` makes it too (502 + 499), otherwise there are
        exactly `epochs` (502 + 498). With 4 passes or fewer, `extra_epoch` apart, the drop never comes.
        """
        return cls(epochs=epochs + extra_epoch, drops=(epochs // 2 + 2,), factor=factor)

    @classmethod
    def two_drops(cls, epochs: int, *, factor: float = 0.2) -> Schedule:
        """The schedule of IDC and DREAM: drops before the passes of index 2/3 and 5/6 of `epochs`."""
        return cls(epochs=epochs, drops=(2 * epochs // 3, 5 * epochs // 6), factor=factor)

    def rate(self, lr: float, epoch: int) -> float:
        """The learning rate of the pass with this index, `lr` being that of the first."""
        return lr * self.factor ** sum(epoch >= drop for drop in self.drops)


@dataclass(frozen=True, eq=False)
class EpochStats:
    """What one pass showed, seen on the training batches before their updates.

    Attributes:
        lr: the pass's learning rate.
        loss: mean cross-entropy over the N examples.
        correct: bool [N] on the CPU, by example and not by order: was the (augmented) example classified
            rightly in train mode, just before the update it took part in? `None` unless asked for.
    """

    lr: float
    loss: float
    correct: Tensor | None


@dataclass(frozen=True, eq=False)
class _Parts:
    """The batches of a pass: their size, that of each, and the same as float [batches] on the device."""

    size: int
    sizes: tuple[int, ...]
    weights: Tensor

    @classmethod
    def of(cls, examples: int, size: int, device: torch.device) -> _Parts:
        sizes = tuple(min(size, examples - start) for start in range(0, examples, size))
        (weights,) = moved_together([torch.tensor(sizes, dtype=torch.float32)], device)
        return cls(size, sizes, weights)


@dataclass(frozen=True, eq=False)
class _Pass:
    """A pass whose numbers are still on the device: the sum of its losses, and bool [N]: who was right."""

    epoch: int
    lr: float
    loss: Tensor
    right: Tensor | None


Progress = Callable[[int], None]
"""Called after every pass with its index; what it raises ends the run."""
UNREAD_BATCHES = 64
"""Batches after which the losses of passes are read, if nobody asks sooner: on a card to read is to wait."""


class Trainer:
    """A module, its SGD state and its source of randomness, across any number of runs.

    Attributes:
        module: trained in place, on the device where it is.
        optimiser: its learning rate is the default of `run`.
        generator: a CPU generator, moved on by every pass.
    """

    def __init__(
        self,
        module: nn.Module,
        optimiser: Optimiser,
        generator: torch.Generator,
        compute: Compute = Compute(),  # noqa: B008 (frozen)
    ) -> None:
        """Start without momentum.

        Args:
            module: the network.
            optimiser: its numbers.
            generator: a CPU generator.
            compute: how forward passes of training are computed.
        """
        self.module, self.optimiser, self.generator = module, optimiser, generator
        self._forward = compute.forward_of(module)
        self._sgd = SGD(  # fused: a third of the time of the other forms on tiny nets on a CPU
            module.parameters(),
            lr=optimiser.lr,
            momentum=optimiser.momentum,
            weight_decay=optimiser.weight_decay,
            fused=True,
        )

    def run(
        self,
        images: Images,
        labels: Tensor,
        *,
        schedule: Schedule,
        batch_size: int,
        augmentation: Augmentation | None = None,
        cutmix_probability: float = 0.0,
        lr: float | None = None,
        on_epoch: Callable[[int, EpochStats], None] | None = None,
        progress: Progress | None = None,
        correctness: bool = False,
        first_epoch: int = 0,
        reset_at_drop: bool = False,
    ) -> list[EpochStats]:
        """Train through the schedule, or what is left of it.

        Args:
            images: float [N, C, H, W] on the module's device.
            labels: int64 [N] on the same device, or soft ones: probabilities float32 [N, classes].
            schedule: passes and drops; starts anew with every run.
            batch_size: examples per update; the last batch of a pass may be smaller.
            augmentation: applied to every batch; `None` for none.
            cutmix_probability: of mixing a batch, after the augmentation (IDC).
            lr: initial learning rate, e.g. a learned step size; that of the optimiser by default.
            on_epoch: called after every pass with its index and stats, the weights being those after the
                pass. What it keeps of them it must clone. What it raises ends the run.
            progress: the same for those who need not know what a pass showed; a card is not waited for.
            correctness: fill `EpochStats.correct`.
            first_epoch: index of the first pass to make: e + 1, with the state saved in `on_epoch(e, …)`.
            reset_at_drop: forget the momentum before every pass at which the learning rate drops.

        Returns:
            The stats of the passes made, in order.

        Raises:
            Diverged: when the learning rate is not a positive number, a pass ends with a loss that is not
                finite, or the run with such weights.
            ValueError: for an empty set, or for correctness of mixed images or of soft labels.
        """
        lr = self.optimiser.lr if lr is None else lr
        _require_examples(images, labels[:, 0] if labels.ndim == 2 and labels.is_floating_point() else labels)
        if correctness and labels.ndim > 1:
            raise ValueError("Trainer: correctness is True: give each image one class, not a soft label")
        if correctness and cutmix_probability > 0:
            raise ValueError("Trainer: correctness is True: switch CutMix off, a mixed image has two labels")
        if not (math.isfinite(lr) and lr > 0):
            raise Diverged(f"training cannot start at learning rate {lr:g}: it must be positive and finite")
        history, unread = list[EpochStats](), list[_Pass]()
        parts = _Parts.of(len(images), batch_size, labels.device)
        for epoch in range(first_epoch, schedule.epochs):
            self._sgd.param_groups[0]["lr"] = schedule.rate(lr, epoch)
            if reset_at_drop and epoch in schedule.drops:
                self.reset_momentum()
            loss, right = self._epoch(images, labels, parts, augmentation, cutmix_probability, correctness)
            unread.append(_Pass(epoch, schedule.rate(lr, epoch), loss, right))
            last = epoch + 1 == schedule.epochs
            if on_epoch is not None or last or len(unread) * len(parts.sizes) >= UNREAD_BATCHES:
                history += _read(unread, len(images), self.module if last else None)
                unread.clear()
            if on_epoch is not None:
                on_epoch(epoch, history[-1])
            if progress is not None:
                progress(epoch)
        return history

    def _epoch(
        self,
        images: Images,
        labels: Tensor,
        parts: _Parts,
        augmentation: Augmentation | None,
        cutmix_probability: float,
        correctness: bool,
    ) -> tuple[Tensor, Tensor | None]:
        """One pass: the sum of the losses over the examples and, if asked, bool [N] by example: who was right."""
        self.module.train()
        losses, right = list[Tensor](), list[Tensor]()
        order, draws = self._drawn(parts, images, augmentation, cutmix_probability)
        batches = zip(torch.split(order, parts.size), torch.split(labels[order], parts.size), draws, strict=True)
        for index, target, (draw, mix) in batches:
            batch = images[index]
            if augmentation is not None and draw is not None:
                batch = augmentation.apply(batch, draw)
            partner, weight = target, 1.0
            if mix is not None:
                batch, partner, weight = cutmix(batch, target, mix)
            logits = self._forward(batch)
            loss = _mixed_loss(logits, target, partner, weight)
            self._sgd.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            self._sgd.step()
            losses.append(loss.detach())
            if correctness:
                right.append(logits.detach().argmax(1) == target)
        total = (torch.stack(losses) * parts.weights.to(losses[0])).sum()
        return total, _by_example(torch.cat(right), order) if correctness else None

    def _drawn(
        self, parts: _Parts, images: Images, augmentation: Augmentation | None, cutmix_probability: float
    ) -> tuple[Tensor, list[tuple[Draw | None, Mix | None]]]:
        """The random numbers of a pass on the images' device: the order int64 [N], and those of batch after batch."""
        height, width = images.shape[2:]
        order = torch.randperm(len(images), generator=self.generator)
        draws, mixes = list[Draw | None](), list[Mix | None]()
        for n in parts.sizes:
            drawn = None
            if augmentation is not None:
                drawn = augmentation.draw(n, (height, width), self.generator, siamese=False)
            draws.append(drawn)
            mixes.append(draw_cutmix(n, (height, width), cutmix_probability, self.generator))
        order, *partners = moved_together([order, *(mix.partner for mix in mixes if mix)], images.device)
        rest = iter(partners)
        moved = [mix and Mix(next(rest), mix.box) for mix in mixes]
        return order, list(zip(draws_on(images.device, draws), moved, strict=True))

    def reset_momentum(self) -> None:
        """Forget the momentum buffers, as a new optimiser would."""
        self._sgd.state.clear()

    def state(self) -> dict[str, NDArray[Any]]:
        """Copies of everything the next pass depends on, fit for `np.savez`.

        Keys are `parameter/<name>`, `momentum/<name>` (absent before the first update), `buffer/<name>`
        and `generator` (uint8). The epoch reached is the caller's to remember.
        """
        arrays = {key: tensor.detach().cpu().numpy().copy() for key, tensor in self._tensors().items()}
        return {**arrays, "generator": self.generator.get_state().numpy().copy()}

    def load_state(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Go back to a `state`, taken from a trainer of the same architecture.

        Raises:
            ValueError: naming the entries that are missing, left over, or of another shape. Nothing has
                been changed then.
        """
        momentum = {f"momentum/{n}": p for n, p in self.module.named_parameters() if f"momentum/{n}" in state}
        expected = {**self._weights(), **momentum}
        shapes = {key: tuple(tensor.shape) for key, tensor in expected.items()}
        found = {key: array.shape for key, array in state.items() if key != "generator"}
        if shapes != found or "generator" not in state:
            wrong = sorted({key for key, _ in shapes.items() ^ found.items()}) or ["generator"]
            raise ValueError(f"Trainer: state does not fit at {', '.join(wrong)}: load the module's own")
        with torch.no_grad():
            for key, tensor in self._weights().items():
                tensor.copy_(torch.from_numpy(np.array(state[key])))
        self.reset_momentum()
        for key, parameter in momentum.items():
            buffer = torch.empty_like(parameter.detach())  # in the parameter's layout, which the fused step goes by
            self._sgd.state[parameter]["momentum_buffer"] = buffer.copy_(torch.from_numpy(np.array(state[key])))
        self.generator.set_state(torch.from_numpy(np.array(state["generator"])))

    def _weights(self) -> dict[str, Tensor]:
        parameters: dict[str, Tensor] = {f"parameter/{name}": p for name, p in self.module.named_parameters()}
        return {**parameters, **{f"buffer/{name}": b for name, b in self.module.named_buffers()}}

    def _tensors(self) -> dict[str, Tensor]:
        kept = {name: self._sgd.state[p].get("momentum_buffer") for name, p in self.module.named_parameters()}
        return {**self._weights(), **{f"momentum/{name}": v for name, v in kept.items() if v is not None}}


def accuracy(module: nn.Module, images: Images, labels: Tensor, batch: int | None = None) -> float:
    """Share of images [N, C, H, W] classified as labels [N] say, in percent.

    Evaluated in eval mode, without gradients; the module's mode is put back.

    Args:
        module: gives logits [n, classes].
        images: float32 [N, C, H, W].
        labels: int64 [N].
        batch: images at a time; by default `images_at_a_time`, which changes the time and at most last bits.

    Raises:
        ValueError: for an empty set, or labels of another number.
    """
    return 100.0 * float(correct(module, images, labels, batch).sum()) / len(images)


def balanced_accuracy(module: nn.Module, images: Images, labels: Tensor, batch: int | None = None) -> float:
    """Mean over the classes in `labels` of the share of their images that is classified rightly, in percent.

    Raises:
        ValueError: as `accuracy` does.
    """
    right = correct(module, images, labels, batch).double()
    images_of = torch.bincount(labels)
    rights_of = torch.bincount(labels, weights=right)
    there = images_of > 0
    return 100.0 * float((rights_of[there] / images_of[there]).mean())


def correct(module: nn.Module, images: Images, labels: Tensor, batch: int | None = None) -> Tensor:
    """Which images [N, C, H, W] a network classifies as labels [N] say: bool [N]; see `accuracy`."""
    _require_examples(images, labels)
    training = module.training
    module.eval()
    batch = batch or images_at_a_time(module, images)
    with torch.no_grad():
        pairs = zip(batches(images, batch), torch.split(labels, batch), strict=True)
        right = torch.cat([module(x).argmax(1) == y for x, y in pairs])
    module.train(training)
    return right


def _all_finite(module: nn.Module) -> Tensor:
    """Whether every parameter is a finite number: bool [1], on their device."""
    return torch.stack([parameter.isfinite().all() for parameter in module.parameters()]).all()[None]


def _by_example(values: Tensor, order: Tensor) -> Tensor:
    """`values` [N] given in the order of examples `order` [N], put back by example."""
    return torch.empty_like(values).scatter_(0, order, values)


def _read(passes: Sequence[_Pass], examples: int, module: nn.Module | None) -> list[EpochStats]:
    """What passes over so many examples showed; the device is waited for once, and once for who was right.

    Args:
        passes: in their order.
        examples: of a pass.
        module: as the last one left it, if it must be finite too.

    Raises:
        Diverged: the loss of one is not a finite number, or the module.
    """
    stats, losses = list[EpochStats](), torch.stack([one.loss for one in passes])
    finite = torch.ones_like(losses[:1]) if module is None else _all_finite(module).to(losses)
    *totals, whole = torch.cat([losses, finite]).tolist()
    for one, total in zip(passes, totals, strict=True):
        if not math.isfinite(total):
            raise Diverged(f"training left the finite numbers in epoch {one.epoch} at learning rate {one.lr:g}")
        stats.append(EpochStats(one.lr, total / examples, None if one.right is None else one.right.cpu()))
    if not whole:
        raise Diverged(f"training left the finite numbers at its end at learning rate {stats[-1].lr:g}")
    return stats


def _mixed_loss(logits: Tensor, target: Tensor, partner: Tensor, weight: float) -> Tensor:
    loss = F.cross_entropy(logits, target)
    return loss if weight == 1.0 else weight * loss + (1 - weight) * F.cross_entropy(logits, partner)


def _require_examples(images: Images, labels: Tensor) -> None:
    if len(images) == 0 or labels.shape != (len(images),):
        shapes = f"{tuple(images.shape)} and {tuple(labels.shape)}"
        raise ValueError(f"images and labels have shapes {shapes}: give [N, C, H, W] and [N], N at least 1")
