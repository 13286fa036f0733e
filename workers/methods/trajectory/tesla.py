"""TESLA, the constant-memory form of MTT (Cui et al., ICML 2023; facts 4.4).

The distance between the student's end  theta_N = theta_0 - a (g_0 + ... + g_{N-1})  and the expert's target is
differentiated as if the parameters before each step were constants: the gradient g_t of a step then depends on the
batch of that step alone, and its graph can be dropped before the next one,

    d loss / dX = sum over t of  2 a (theta* - theta_0 + a G) . dg_t/dX / || theta_0 - theta* ||^2,   G = sum of g_t.

The exact gradient (`adjoint`) carries  lambda <- lambda - a H_t lambda  back through the steps; TESLA is the same walk
with H_t = 0, so lambda stays 2 (theta_N - theta*) / || theta_0 - theta* ||^2. Both keep the graph of one step and N
parameter vectors. TESLA leaves out the Hessian-vector products and what they know of how an early batch moves the
later steps: the first inner steps get the coarsest gradients.

Its soft labels come from the target itself (`labels: {source: target}`): in each iteration the expert at the epoch that
is matched labels the new images as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

from torch import Tensor

from jobs.fields import Frozen
from jobs.methods import TeslaSettings
from workers.methods.trajectory.mtt import TrajectoryMatching
from workers.methods.trajectory.trajectory_matching import AdjointSteps, InnerBatch, Matched, Student, walked


class ConstantSteps(AdjointSteps):
    """Inner steps whose way back takes the parameters before each step for constants, so lambda does not move."""

    curved = False


def constant_memory(
    student: Student,
    start: Tensor,
    target: Tensor,
    images: Tensor,
    labels: Tensor,
    step_size: Tensor,
    batches: Sequence[InnerBatch],
) -> Matched:
    """The matching loss and TESLA's gradients.

    Args:
        student: the network, its augmentation and the temperature of soft labels.
        start: parameters of an expert at the epoch that the student starts from, [P].
        target: of the same expert some epochs later, [P].
        images: synthetic images, float32 [n, C, H, W].
        labels: classes int64 [n], or logits float32 [n, classes].
        step_size: the learned rate of the inner steps, a scalar.
        batches: of the inner steps, in order.
    """
    steps = ConstantSteps(student, images.detach(), labels.detach(), step_size.detach())
    return walked(steps, start.detach(), target, batches)


class ConstantMemoryMatching(TrajectoryMatching):
    """TESLA in one stage: MTT with another gradient; see `workers.methods.base.Method`."""

    Settings: ClassVar[type[Frozen]] = TeslaSettings

    def _matcher(self) -> Callable[..., Matched]:
        return constant_memory

    @classmethod
    def memory_levels(cls, settings: Frozen) -> int:
        """None: it keeps the graph of one step as it is."""
        return 0
