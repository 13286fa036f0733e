"""The adjoint by compiled code: forward mode over reverse, a few images at a time.

The way back over a step needs H lambda and d/dX (g . lambda), g being the gradient of the step's loss L. Both are the
derivative of L's gradient along lambda,

    d/de grad_(theta, X) L(theta + e lambda, X)  =  (H lambda, d/dX (g . lambda)),

so they come from one function without a graph, which a compiler takes whole: what lies between convolutions becomes a
few passes over memory. Images of a batch do not depend on each other, and gradients are sums over them; so a batch goes
through in chunks of at most `CHUNK` images of one size, whose maps stay near the core, and rows that fill the last
chunk up have no weight. Augmentation stays with PyTorch's operators. Batch norm, by which images do depend on each
other, is refused, by the plan where the experiment names it.
"""

from __future__ import annotations

import copy
import logging
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache, partial
from typing import cast

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call, grad, jvp
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from jobs.errors import BadInput
from jobs.methods import NO_BATCH_NORM
from workers.methods.trajectory.trajectory_matching import (
    AdjointSteps,
    InnerBatch,
    Matched,
    Student,
    adjoint,
    walked,
)
from workers.training.compute import compiled_function
from workers.training.instance_norm import InstanceNorm
from workers.training.networks import AveragePool, flatten, unflatten

CHUNK = 25
"""Images in a call at most: 25 were as fast as 10 or 50 at width 32, and 4 to 8 % faster at width 128."""
CODE = "compiled steps"
"""The name in `Student.kept`."""
WRITTEN_OUT = (nn.GroupNorm, InstanceNorm, nn.LayerNorm)
"""Norms that compilers get in operators; a class derived from them may norm over something else and stays."""


def compiled(
    student: Student,
    start: Tensor,
    target: Tensor,
    images: Tensor,
    labels: Tensor,
    step_size: Tensor,
    batches: Sequence[InnerBatch],
) -> Matched:
    """The same as `adjoint` by compiled code, on a CPU; arguments and result alike.

    Raises:
        BadInput: there is no C++ compiler, or the network has batch norm.
    """
    if start.is_cuda:
        _warn_of_a_card()
        return adjoint(student, start, target, images, labels, step_size, batches)
    start = start.detach()
    steps = CompiledSteps(student, start, images.detach(), labels.detach(), step_size.detach())
    return walked(steps, start, target, batches)


@cache
def _warn_of_a_card() -> None:
    logging.warning("engine compiled: made for CPUs: a card goes on with engine adjoint, which gives the same")


class CompiledSteps(AdjointSteps):
    """The inner steps by `StepCode`, which the student keeps."""

    def __init__(self, student: Student, start: Tensor, images: Tensor, labels: Tensor, step_size: Tensor) -> None:
        super().__init__(student, images, labels, step_size)
        if CODE not in student.kept:
            student.kept[CODE] = StepCode(student.module, images)
        self._code: StepCode = student.kept[CODE]

    def forward(self, theta: Tensor, batch: InnerBatch) -> Tensor:
        """The parameters after a step from theta [P]."""
        shown = self._shown(self._images[batch.index], self._labels[batch.index], batch)
        return theta - self._step_size * _sum(self._code.gradient(theta, *chunk) for chunk in _chunks(*shown))

    def back(self, theta: Tensor, batch: InnerBatch) -> None:
        """Go back over the step that began at theta [P]."""
        rows, labels = self._images[batch.index], self._labels[batch.index]
        leaves = (rows,) if self.to_labels is None else (rows, labels)
        with torch.enable_grad():
            for leaf in leaves:
                leaf.requires_grad_()
            shown = self._shown(rows, labels, batch)
        chunks = _chunks(*(tensor.detach() for tensor in shown))
        parts = (self._code.derivatives(theta, self.costate, *chunk) for chunk in chunks)
        gradients, curvatures, *slopes = zip(*parts, strict=True)
        upstream = [torch.cat(slope)[: len(rows)] for slope in slopes]
        learned = len(leaves)
        self._add(batch, _sum(gradients), torch.autograd.grad(shown[:learned], leaves, upstream[:learned]))
        self.costate -= self._step_size * _sum(curvatures)

    def _shown(self, rows: Tensor, labels: Tensor, batch: InnerBatch) -> tuple[Tensor, Tensor]:
        """A batch's augmented images [b, C, H, W], and the shares of the classes in its loss, [b, classes]."""
        soft = labels.is_floating_point()
        shares = self._student.shares(labels) if soft else F.one_hot(labels, self._code.classes).to(rows.dtype)
        return self._student.augmented(rows, batch.draw), shares / len(rows)


def _load_forward_mode() -> None:
    """Use forward mode once, which makes PyTorch load a part that warns of PyTorch's own future."""
    with warnings.catch_warnings(), forward_ad.dual_level():
        warnings.simplefilter("ignore", FutureWarning)
        forward_ad.make_dual(torch.ones(()), torch.ones(()))  # type: ignore[no-untyped-call]


class StepCode:
    """Compiled code of an inner step's gradient and of its derivative, for one network.

    Attributes:
        classes: that the network tells apart.
        gradient: of theta [P], images [b, C, H, W] and shares of the classes [b, classes]: the gradient of the loss
            - sum(shares * log softmax), [P].
        derivatives: of theta, lambda [P], and as above: g, H lambda, and the gradients of g . lambda by images and
            shares.
    """

    def __init__(self, module: nn.Module, images: Tensor) -> None:
        self.classes = require_separate_images(module, tuple(images.shape[1:]))
        twin, device = _written_out(module), images.device
        self.gradient: Callable[..., Tensor] = partial(compiled_function(_gradient, device), twin)
        self.derivatives: Callable[..., tuple[Tensor, ...]] = partial(compiled_function(_derivatives, device), twin)


def require_separate_images(module: nn.Module, shape: tuple[int, ...], place: str = "recipe") -> int:
    """Refuse a network whose logits of an image depend on other images, or that is another one when written out.

    Both are tried: three images at once by the network, and one by one by what the compiler would get, in float64.

    Args:
        module: of one's own, perhaps.
        shape: channels, height and width of an image.
        place: where the network is named, for the message.

    Returns:
        The number of classes.

    Raises:
        BadInput: the logits differ, or they or their derivatives cannot be computed.
    """
    if any(isinstance(layer, _BatchNorm) for layer in module.modules()):
        raise BadInput(place, "distil.settings.engine", "compiled", NO_BATCH_NORM)
    _load_forward_mode()
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(3, *shape, generator=generator, dtype=torch.float64)
    whole = copy.deepcopy(module).cpu().double()
    theta = flatten(whole)
    theta += 0.1 * torch.randn(theta.shape, generator=generator, dtype=theta.dtype)  # no weight is 1, no bias 0
    try:
        with torch.no_grad():
            logits = _logits(whole, theta, images)
            twin = _written_out(whole)
            singly = torch.cat([_logits(twin, theta, image[None]) for image in images])
            _derivatives(twin, theta, theta, images, logits.softmax(1))
    except Exception as error:  # a module from outside may raise anything
        fix = f"take another engine: the network cannot be written out for a compiler ({type(error).__name__}: {error})"
        raise BadInput(place, "distil.settings.engine", "compiled", fix) from error
    if logits.shape != singly.shape or not torch.allclose(logits, singly, rtol=1e-6, atol=1e-9):
        fix = "take another engine: this network's logits of an image depend on the images beside it, or on a norm or "
        raise BadInput(place, "distil.settings.engine", "compiled", f"{fix}pooling that it holds outside its modules")
    return logits.shape[1]


def _logits(module: nn.Module, theta: Tensor, images: Tensor) -> Tensor:
    return cast(Tensor, functional_call(module, unflatten(theta, module), (images,)))


def _loss(module: nn.Module, theta: Tensor, images: Tensor, shares: Tensor) -> Tensor:
    return -(shares * F.log_softmax(_logits(module, theta, images), 1)).sum()


# The network is an argument, so that a process compiles them once for all jobs whose networks have the same layers.


def _gradient(module: nn.Module, theta: Tensor, images: Tensor, shares: Tensor) -> Tensor:
    return cast(Tensor, grad(partial(_loss, module))(theta, images, shares))


def _derivatives(
    module: nn.Module, theta: Tensor, costate: Tensor, images: Tensor, shares: Tensor
) -> tuple[Tensor, ...]:
    def gradients(point: Tensor) -> tuple[Tensor, ...]:
        return cast(tuple[Tensor, ...], grad(partial(_loss, module), (0, 1, 2))(point, images, shares))

    value, slope = cast(tuple[tuple[Tensor, ...], ...], jvp(gradients, (theta,), (costate,)))
    return value[0], *slope


def _sum(terms: Iterable[Tensor]) -> Tensor:
    return torch.stack(tuple(terms)).sum(0)


def _chunks(images: Tensor, shares: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """A batch in parts of one size; copies of the first image that fill the last one up have no shares."""
    number = math.ceil(len(images) / CHUNK)
    size = math.ceil(len(images) / number)
    missing = number * size - len(images)
    if missing:
        images = torch.cat([images, images[:1].expand(missing, *images.shape[1:])])
        shares = torch.cat([shares, shares.new_zeros(missing, shares.shape[1])])
    for part, own in zip(torch.split(images, size), torch.split(shares, size), strict=True):
        yield part.contiguous(memory_format=torch.channels_last), own


class WrittenOut(nn.Module):
    """A group norm or layer norm in operators that compilers differentiate twice.

    Its parameters have the names and places of those of the norm that it stands for.
    """

    def __init__(self, norm: nn.GroupNorm | nn.LayerNorm) -> None:
        super().__init__()
        self.weight, self.bias, self._eps = norm.weight, norm.bias, norm.eps
        self._groups = norm.num_groups if isinstance(norm, nn.GroupNorm) else None
        self._last = () if isinstance(norm, nn.GroupNorm) else tuple(range(-len(norm.normalized_shape), 0))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise maps x [n, C, H, W]; with layer norm, anything."""
        if self._groups is None:
            return self._normalised(x, self._last) * self.weight + self.bias
        count, channels, height, width = x.shape
        each = self._groups == channels  # then no map is cut up, and channels last stay so
        grouped = x if each else x.view(count, self._groups, -1, height, width)
        normalised = self._normalised(grouped, (2, 3) if each else (2, 3, 4)).view(x.shape)
        return normalised * self.weight[:, None, None] + self.bias[:, None, None]

    def _normalised(self, x: Tensor, over: tuple[int, ...]) -> Tensor:
        centred = x - x.mean(over, keepdim=True)
        return centred * (centred.square().mean(over, keepdim=True) + self._eps).rsqrt()


class SquareMeans(nn.Module):
    """Means of squares of 2x2 pixels, for which compilers write no loop over windows."""

    def forward(self, x: Tensor) -> Tensor:
        """The means [n, C, H // 2, W // 2] of maps [n, C, H, W]."""
        *outer, height, width = x.shape
        halves = height // 2, width // 2
        whole = x[..., : 2 * halves[0], : 2 * halves[1]]
        return whole.reshape(*outer, halves[0], 2, halves[1], 2).mean((-3, -1))


def _written_out(module: nn.Module) -> nn.Module:
    """The network with norms and average pooling written out; parameters are shared and stay in their order."""
    if isinstance(module, AveragePool):
        return SquareMeans()
    if type(module) in WRITTEN_OUT and module.weight is not None and module.bias is not None:
        return WrittenOut(cast(nn.GroupNorm | nn.LayerNorm, module))
    twin = copy.copy(module)
    twin._modules = {name: None if child is None else _written_out(child) for name, child in module._modules.items()}
    return twin
