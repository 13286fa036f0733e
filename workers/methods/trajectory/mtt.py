"""MTT, matching training trajectories (Cazenavette et al., CVPR 2022; facts 4).

Each iteration takes the next expert of a random order, an epoch t uniform in [0, max_start_epoch) (without transition
stages start later: from min_start_epoch, facts 5.6), and pulls the student that starts at the expert's epoch t towards
the expert's epoch t + expert_epochs (`workers.methods.trajectory.trajectory_matching`). Images and step size learn
together. Under PDD the experts of stage i are those whose chains went through S_1..S_{i-1}, and inner batches are drawn
from the whole union.

The step size can be learned in two forms. `linear` is the published one: SGD with momentum on the number
itself, which can turn negative or explode (at least six threads report it), so it is guarded. `log` is ours:
the logarithm learns, each update clamped, which settles in tens of iterations where the published rate needs
thousands.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, ClassVar, cast

import torch
from numpy.typing import NDArray
from torch import Tensor

from jobs.errors import BadInput, Diverged
from jobs.fields import Frozen
from jobs.memory import chosen_engine
from jobs.methods import MttSettings, TrajectorySettings
from workers.methods.base import Arrays, LearnableImages, Method, Stage, draw_without_replacement
from workers.methods.trajectory.engines import ENGINES
from workers.methods.trajectory.trajectory_matching import InnerBatch, Matched, Student, batches_on
from workers.training.students import augmentation_of


class StepSize:
    """The learned step size a > 0 and its own small optimiser."""

    def __init__(self, settings: TrajectorySettings) -> None:
        self._settings = settings
        self.value = settings.step_size_init
        self.velocity = 0.0

    def step(self, gradient: float) -> None:
        """One step; on the logarithm the chain rule gives d/d(log a) = a * d/da."""
        settings = self._settings
        slope = gradient if settings.step_size_form == "linear" else self.value * gradient
        self.velocity = settings.step_size_momentum * self.velocity + slope
        move = settings.lr_step_size * self.velocity
        if settings.step_size_form == "linear":
            self.value -= move
            if settings.least_step_size is not None and math.isfinite(self.value):  # else it has diverged
                self.value = max(self.value, settings.least_step_size)
        else:
            clamp = settings.step_size_clamp
            self.value *= math.exp(-min(max(move, -clamp), clamp))


class TrajectoryMatching(Method):
    """MTT in one stage; see `workers.methods.base.Method`."""

    soft_labels = True

    Settings: ClassVar[type[Frozen]] = MttSettings
    saving = "with the adjoint, a step's graph at a time"
    rates: ClassVar[str] = "distil.image.lr or lr_step_size"
    """What to lower where the loss leaves the finite numbers."""

    def __init__(self, stage: Stage, settings: Frozen) -> None:
        assert isinstance(settings, TrajectorySettings) and stage.experts is not None
        self._stage, self._settings, self._experts = stage, settings, stage.experts
        self._step_size = StepSize(settings)
        self._expert_order: list[int] = []
        self._image_order: list[int] = []
        labels = stage.spec.labels
        temperature = 1.0 if labels is None else labels.temperature
        self._student = Student(stage.network, augmentation_of(settings.augmentation), temperature)
        self._match = self._matcher()
        _require_epochs(settings, stage)

    def _matcher(self) -> Callable[..., Matched]:
        """What gives the matching loss and its gradients: the engine of the spec."""
        stage = self._stage
        channels, side = stage.train.images.shape[1:3]
        return ENGINES["adjoint" if stage.memory_level else chosen_engine(stage.spec, channels, side, stage.classes)]

    @classmethod
    def expert_epochs_needed(cls, settings: Frozen) -> int:
        """The last target."""
        assert isinstance(settings, TrajectorySettings)
        return settings.last_target

    @classmethod
    def memory_levels(cls, settings: Frozen) -> int:
        """One where it keeps the whole graph: the adjoint keeps that of a step."""
        assert isinstance(settings, MttSettings)
        return int(settings.engine != "adjoint")

    @property
    def step_size(self) -> float:
        """The learned step size."""
        return self._step_size.value

    def start(self, number: int) -> Tensor | None:
        """The start of an expert's trajectory: random in stage 1, the end of its chain later (facts 5.4)."""
        if self._settings.candidates_start == "random":
            return None
        return self._experts.parameters(number % len(self._experts), 0)

    def iterate(self, learnable: LearnableImages, iteration: int, generator: torch.Generator) -> float:
        """One matching step, one image step, one step of the step size."""
        matched = self._matched(learnable, iteration, generator)
        finite = matched.images.isfinite().all().to(matched.loss)
        read: list[float] = torch.stack([matched.loss, finite, matched.step_size.to(finite)]).tolist()
        loss, finite_images, slope = read
        if not (math.isfinite(loss) and finite_images):
            fix = f"lower {self.rates}"
            raise Diverged(f"iteration {iteration}: matching loss {loss:g} or its gradient is not finite: {fix}")
        if self._moves(loss):
            self._step(learnable, matched, iteration)
            self._step_size.step(slope)
        if not (math.isfinite(self.step_size) and self.step_size > 0):
            fix = "lower lr_step_size or learn its logarithm"
            raise Diverged(f"iteration {iteration}: step size {self.step_size:g}: {fix}")
        return loss

    def _moves(self, loss: float) -> bool:
        """Whether an iteration with this matching loss moves images, labels and step size."""
        return True

    def _step(self, learnable: LearnableImages, matched: Matched, iteration: int) -> None:
        """Move what learns but the step size, along the gradients of a match."""
        learnable.step(matched.images, iteration, matched.labels)

    def _matched(self, learnable: LearnableImages, iteration: int, generator: torch.Generator) -> Matched:
        settings, device = self._settings, self._stage.device
        (expert,) = draw_without_replacement(self._expert_order, 1, len(self._experts), generator)
        epoch = int(torch.randint(*settings.start_epochs(iteration), (), generator=generator))
        target = self._experts.parameters(expert, epoch + settings.expert_epochs).to(device, non_blocking=True)
        if (spec := self._stage.spec.labels) is not None and spec.source == "target":
            learnable.assign_labels(self._student.logits(target, learnable.new))
        union = learnable.union
        if settings.image_order == "anew":
            self._image_order.clear()
        batches = batches_on(device, [self._inner_batch(union, generator) for _ in range(settings.syn_steps)])
        return self._match(
            self._student,
            self._experts.parameters(expert, epoch).to(device, non_blocking=True),
            target,
            union,
            learnable.labels if (soft := learnable.logits) is None else soft,
            torch.tensor(self.step_size).to(device, non_blocking=True),
            batches,
        )

    def _inner_batch(self, union: Tensor, generator: torch.Generator) -> InnerBatch:
        return self._augmented(self._next_rows(len(union), generator), union, generator)

    def _next_rows(self, images: int, generator: torch.Generator) -> list[int]:
        """The rows of the union, which has so many images, that the next inner step takes."""
        size = self._settings.batch_syn or self._stage.classes * self._stage.spec.ipc_per_stage
        return draw_without_replacement(self._image_order, size, images, generator)

    def _augmented(self, rows: list[int], union: Tensor, generator: torch.Generator) -> InnerBatch:
        """The batch of these rows of the union, with an augmentation drawn for each."""
        augmentation = self._student.augmentation
        height, width = union.shape[2:]
        batch = InnerBatch(torch.tensor(rows), None)
        if augmentation is None:
            return batch
        return replace(batch, draw=augmentation.draw(len(rows), (height, width), generator, siamese=False))

    def state(self) -> tuple[Arrays, dict[str, Any]]:
        """The step size with its velocity, and what is left of the two random orders."""
        return {}, {
            "step_size": self._step_size.value.hex(),
            "velocity": self._step_size.velocity.hex(),
            "expert_order": self._expert_order,
            "image_order": self._image_order,
        }

    def load_state(self, arrays: Mapping[str, NDArray[Any]], values: Mapping[str, Any]) -> None:
        """Go back to a `state`."""
        self._step_size.value = float.fromhex(cast(str, values["step_size"]))
        self._step_size.velocity = float.fromhex(cast(str, values["velocity"]))
        self._expert_order = list(values["expert_order"])
        self._image_order = list(values["image_order"])


def _require_epochs(settings: TrajectorySettings, stage: Stage) -> None:
    """The last target must be on the experts' trajectories."""
    needed = settings.last_target
    if stage.experts is not None and needed > stage.experts.epochs:
        raise BadInput(
            f"stage {stage.spec.stage} of {stage.spec.method}",
            "distil.settings.max_start_epoch",
            settings.max_start_epoch,
            f"lower it or train the experts longer: with expert_epochs {settings.expert_epochs} they need "
            f"{needed} epochs and have {stage.experts.epochs}",
        )
