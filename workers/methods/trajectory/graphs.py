"""The adjoint by recorded steps: on a card a whole inner step is launched as one CUDA graph.

An inner step launches some two hundred kernels, which takes the host longer than it takes the card where batches are
small. A recording runs the same kernels on the same memory, so there is one for every shape of a batch, every operation
of its augmentation and either direction; what changes from step to step is copied into the recording's own tensors.
All recordings of a student share what does not belong to a batch: parameters, images, labels, step size and gradients.
Blocks of a ConvNet are computed in them by kernels of our own (`block_kernels`), where those can be compiled.

Where nothing can be recorded (no card, or an operation that waits for it), `adjoint` itself takes over, with the same
result.
"""

from __future__ import annotations

import logging
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial

import torch
from torch import Tensor

from workers.methods.trajectory.recorder import Recorder, Work, recorder_for
from workers.methods.trajectory.trajectory_matching import (
    AdjointSteps,
    InnerBatch,
    Matched,
    Student,
    adjoint,
    walked,
)
from workers.training.augmentation import Draw
from workers.training.instance_norm import Block, blocks_by, by_operators

RECORDED, REFUSED = "recorded steps", "recording refused"
"""Names in `Student.kept`."""


def graphs(
    student: Student,
    start: Tensor,
    target: Tensor,
    images: Tensor,
    labels: Tensor,
    step_size: Tensor,
    batches: Sequence[InnerBatch],
) -> Matched:
    """The same as `adjoint` by recorded steps, where they can be recorded; arguments and result alike."""
    given = (start.detach(), images.detach(), labels.detach(), step_size.detach())
    steps = _steps_for(student, given, batches)
    if steps is None:
        return adjoint(student, start, target, images, labels, step_size, batches)
    steps.load(*given)
    matched = walked(steps, given[0], target, batches)
    to_labels = None if matched.labels is None else matched.labels.clone()
    return Matched(matched.loss, matched.images.clone(), matched.step_size.clone(), to_labels)


def _steps_for(student: Student, given: tuple[Tensor, ...], batches: Sequence[InnerBatch]) -> RecordedSteps | None:
    """The recorded steps of tensors of these shapes, all batches included; None where they cannot be recorded."""
    if REFUSED in student.kept:
        return None
    steps: RecordedSteps | None = student.kept.get(RECORDED)
    try:
        if steps is None or steps.signature != _signature(given):
            recorder = recorder_for(given[0].device)
            if recorder is None:
                raise RuntimeError("there is no CUDA")
            # a student of its own, or the recordings would hold the one that holds them
            steps = student.kept[RECORDED] = RecordedSteps(replace(student, kept={}), recorder, given)
        steps.record(given, batches)
    except RuntimeError as error:
        student.kept.clear()
        student.kept[REFUSED] = str(error)
        logging.getLogger(__name__).debug("the recording failed", exc_info=True)
        logging.warning("engine graphs: %s: the stage goes on with engine adjoint, which gives the same", error)
        return None
    return steps


@cache
def _block_on(device: torch.device) -> Block:
    """How a ConvNet's blocks are computed in recordings: on a card by kernels of our own, if they can be compiled."""
    if device.type != "cuda":
        return by_operators
    try:
        from workers.methods.trajectory import block_kernels  # takes Triton

        block_kernels.require_agreement(device)
    except Exception as error:  # a compiler has errors of its own
        logging.warning("engine graphs: blocks by PyTorch's operators: %s: %s", type(error).__name__, error)
        return by_operators
    return block_kernels.block


@dataclass(frozen=True)
class Recording:
    """One kind of batch: tensors that a batch is copied into, and the step over it, forward and back."""

    batch: InnerBatch
    forward: Work
    back: Work

    def fill(self, batch: InnerBatch) -> None:
        """Take over the indices and random numbers of a batch."""
        for own, other in zip(_tensors(self.batch), _tensors(batch), strict=True):
            own.copy_(other)


class RecordedSteps(AdjointSteps):
    """The inner steps from recordings, over copies of the images, labels and step size that stay where they are."""

    def __init__(self, student: Student, recorder: Recorder, given: tuple[Tensor, ...]) -> None:
        theta, images, labels, step_size = (tensor.clone() for tensor in given)
        super().__init__(student, images, labels, step_size)
        self.signature = _signature(given)
        self._theta, self.costate = theta, torch.zeros_like(theta)
        self._recorder = recorder
        self._recordings: dict[Hashable, Recording] = {}

    def record(self, given: tuple[Tensor, ...], batches: Sequence[InnerBatch]) -> None:
        """Make the recordings that these batches need and that are not there.

        Args:
            given: parameters, images, labels and step size on which a step is defined.
            batches: of the iteration that follows.

        Raises:
            RuntimeError: a step cannot be recorded.
        """
        for batch in batches:
            kind = _kind(batch)
            if kind not in self._recordings:
                self.load(*given)
                own = _copied(batch)
                with blocks_by(_block_on(batch.index.device)):
                    forward = self._recorder.record(partial(self._forward_in_place, own))
                    back = self._recorder.record(partial(super().back, self._theta, own))
                self._recordings[kind] = Recording(own, forward, back)

    def load(self, theta: Tensor, images: Tensor, labels: Tensor, step_size: Tensor) -> None:
        """Begin an iteration: take over what it is given, and forget gradients.

        Args:
            theta: the parameters that it begins with, [P].
            images: float32 [n, C, H, W].
            labels: classes int64 [n], or logits float32 [n, classes].
            step_size: a scalar.
        """
        for own, other in zip(self._state(), (theta, images, labels, step_size), strict=True):
            own.copy_(other)
        for gradient in (self.costate, self.to_images, self.to_step_size, self.to_labels):
            if gradient is not None:
                gradient.zero_()

    def start_back(self, costate: Tensor) -> None:
        """Turn round at the end of the student's way."""
        self.costate.copy_(costate)

    def forward(self, theta: Tensor, batch: InnerBatch) -> Tensor:
        """The parameters after a step from theta [P]."""
        recording = self._filled(theta, batch)
        recording.forward()
        return self._theta.clone()

    def back(self, theta: Tensor, batch: InnerBatch) -> None:
        """Go back over the step that began at theta [P]."""
        self._filled(theta, batch).back()

    def _filled(self, theta: Tensor, batch: InnerBatch) -> Recording:
        recording = self._recordings[_kind(batch)]
        recording.fill(batch)
        self._theta.copy_(theta)
        return recording

    def _forward_in_place(self, batch: InnerBatch) -> None:
        self._theta.copy_(super().forward(self._theta, batch))

    def _state(self) -> tuple[Tensor, ...]:
        return self._theta, self._images, self._labels, self._step_size


def _tensors(batch: InnerBatch) -> Iterator[Tensor]:
    """The indices of a batch, then its random numbers."""
    yield batch.index
    if batch.draw is not None:
        for numbers in batch.draw.numbers.values():
            yield from numbers


def _copied(batch: InnerBatch) -> InnerBatch:
    """The batch in tensors of its own."""
    if batch.draw is None:
        return InnerBatch(batch.index.clone(), None)
    numbers = {name: tuple(number.clone() for number in group) for name, group in batch.draw.numbers.items()}
    return InnerBatch(batch.index.clone(), Draw(numbers))


def _kind(batch: InnerBatch) -> Hashable:
    """What two batches must have in common to share a recording: operations, shapes and dtypes."""
    names = None if batch.draw is None else batch.draw.names
    return names, _signature(tuple(_tensors(batch)))


def _signature(tensors: Sequence[Tensor]) -> Hashable:
    return tuple((tensor.shape, tensor.dtype, tensor.device) for tensor in tensors)
