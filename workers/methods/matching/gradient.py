"""Gradient matching: DC (Zhao et al., ICLR 2021) and DSA (Zhao & Bilen, ICML 2021), facts 7.1 and 7.2.

For a network theta and a class c, real images of c pull its weights by the gradient of their cross-entropy. Synthetic
images are good when theirs pulls alike:

    loss = sum over c of D(grad_theta CE(f(A(T_c))), grad_theta CE(f(A(S_c)))),

D being a distance by weight tensor and A an augmentation drawn once for both. One iteration takes a new network and
goes `outer` times through: one image step for all classes together, then some epochs of training on the synthetic set,
so that later image steps meet networks that have learned. DC and DSA are one class: DC has no augmentation; DSA
augments both sides of a match alike (*siamese*) and the network's training image by image.

Under PDD the network comes from its chain, the class's frozen images stand in S_c and in the training set, and the new
images alone descend. `gradient_distance` serves IDC and DREAM too.

Left out: the running statistics that DC refreshes from real images before each image step of batch-norm networks; all
of the paper's distillations use instance norm.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from jobs.fields import Frozen
from jobs.methods import GradientSettings
from workers.data.dataset import rows_by_class
from workers.methods.base import LearnableImages, Method, Stage
from workers.methods.by_class import (
    SiameseDraws,
    classes_at_once,
    random_rows,
    require_finite,
    siamese,
    siamese_draw,
    taken_together,
)
from workers.training.augmentation import Draw
from workers.training.networks import Network
from workers.training.side_by_side import SideBySide
from workers.training.students import augmentation_of, fit, trainer_for

Distance = Callable[[Tensor, Tensor], Tensor]
"""Of the synthetic and the real gradient of one weight tensor, as a number."""
COSINE_EPS = 1e-6


def cosine_distance(synthetic: Tensor, real: Tensor) -> Tensor:
    """Sum over output units of 1 - cos of their weights' gradients (DC; facts 7.1).

    A convolution's weights [out, in, k, k] count as [out, in * k * k].
    """
    a, b = synthetic.flatten(1), real.flatten(1)
    cosines: Tensor = (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1) + COSINE_EPS)
    return (1 - cosines).sum()


def gradient_distance(
    network: nn.Module, weights: Sequence[Tensor], distance: Distance, real: Tensor, synthetic: Tensor, label: int
) -> Tensor:
    """How differently real and synthetic images [n, C, H, W] of one class pull the weights; [].

    Differentiable with respect to the synthetic images. Each side's cross-entropy is the mean over its images.
    """
    wanted = _pull(network, weights, real, label, create_graph=False)
    pulled = _pull(network, weights, synthetic, label, create_graph=True)
    return torch.stack([distance(ours, theirs) for ours, theirs in zip(pulled, wanted, strict=True)]).sum()


def joint_gradient_distance(
    copies: SideBySide, weights: Sequence[Tensor], distance: Distance, real: Tensor, synthetic: Tensor, labels: Tensor
) -> Tensor:
    """`gradient_distance` of several classes, summed over them; [].

    Args:
        copies: the network once for each class.
        weights: those of the copies whose gradients are matched.
        distance: by weight tensor; a sum over output units, or over numbers.
        real: [classes, m, C, H, W]; not differentiated.
        synthetic: [classes, n, C, H, W].
        labels: int64 [classes].
    """
    wanted = torch.autograd.grad(copies.loss(real, labels), weights)
    pulled = torch.autograd.grad(copies.loss(synthetic, labels), weights, create_graph=True)
    return torch.stack([distance(ours, theirs) for ours, theirs in zip(pulled, wanted, strict=True)]).sum()


def _pull(
    network: nn.Module, weights: Sequence[Tensor], images: Tensor, label: int, *, create_graph: bool
) -> tuple[Tensor, ...]:
    labels = torch.full((len(images),), label, device=images.device)
    return torch.autograd.grad(F.cross_entropy(network(images), labels), weights, create_graph=create_graph)


class GradientMatching(Method):
    """DC or DSA in one stage; see `workers.methods.base.Method`."""

    Settings = GradientSettings
    saving = "with one class in a call"

    def __init__(self, stage: Stage, settings: Frozen) -> None:
        super().__init__(stage, settings)
        assert isinstance(settings, GradientSettings)
        self._settings = settings
        self._augmentation = augmentation_of(settings.augmentation, "dc")
        self._real = rows_by_class(stage.train.labels, stage.classes)
        self._at_once = classes_at_once(stage, settings.classes_at_once)

    @classmethod
    def memory_levels(cls, settings: Frozen) -> int:
        """One where several classes are taken at once: they are taken one by one."""
        assert isinstance(settings, GradientSettings)
        return int(settings.classes_at_once > 1)

    def iterate(self, learnable: LearnableImages, iteration: int, generator: torch.Generator) -> float:
        """One network from its start to its end; returns the mean loss of a class."""
        settings = self._settings
        network = self.stage.start_networks.network(iteration)
        trainer = trainer_for(network, settings.training, generator)
        losses = []
        for step in range(settings.outer):
            if step:
                fit(trainer, learnable.union, learnable.labels, settings.training)
            losses.append(self._image_step(learnable, network, iteration, generator))
        return require_finite(learnable, iteration, torch.stack(losses).mean()[None])[0]

    def _image_step(
        self,
        learnable: LearnableImages,
        network: Network,
        iteration: int,
        generator: torch.Generator,
    ) -> Tensor:
        """One descent along the gradient of the loss summed over classes; the graph is of `classes_at_once`."""
        union, rows = learnable.union, learnable.rows
        gradient, losses = torch.zeros_like(union), []
        sizes = [min(self._settings.batch_real, len(own)) for own in self._real]
        for labels in taken_together(sizes, self._at_once):
            own = torch.cat([rows[label] for label in labels])
            if len(labels) == 1:
                loss, gradient[own] = self._match(network, union[own], labels[0], generator)
            else:
                loss, gradient[own] = self._match_together(network, union[own], labels, generator)
            losses.append(loss)
        learnable.step(gradient, iteration)
        return torch.stack(losses).mean() * (len(losses) / len(rows))

    def _match(
        self, network: Network, synthetic: Tensor, label: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """The distance of one class and its gradient with respect to the class's synthetic images."""
        synthetic.requires_grad_()
        real = self.stage.train.images[random_rows(self._real[label], self._settings.batch_real, generator)]
        pair = siamese(self._augmentation, real, synthetic, generator)
        weights = [parameter for parameter in network.parameters() if parameter.dim() > 1]
        loss = gradient_distance(network, weights, cosine_distance, *pair, label)
        (gradient,) = torch.autograd.grad(loss, synthetic)
        return loss.detach(), gradient

    def _match_together(
        self, network: Network, synthetic: Tensor, labels: range, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """As `_match` for several classes at once: the sum of their distances, and its gradient."""
        synthetic.requires_grad_()
        rows, draws = list[Tensor](), list[Draw | None]()
        for label in labels:
            rows.append(random_rows(self._real[label], self._settings.batch_real, generator))
            draws.append(siamese_draw(self._augmentation, synthetic, generator))
        siamese = SiameseDraws(self._augmentation, draws, synthetic.device)
        real, own = (
            siamese.apply(images.view(len(labels), -1, *images.shape[1:]))
            for images in (self.stage.train.images[torch.cat(rows)], synthetic)
        )
        copies = SideBySide(network, len(labels))
        weights = [weight for weight in copies.weights.values() if weight.dim() > 1]
        there = torch.arange(labels.start, labels.stop, device=synthetic.device)
        loss = joint_gradient_distance(copies, weights, cosine_distance, real, own, there)
        (gradient,) = torch.autograd.grad(loss, synthetic)
        return loss.detach(), gradient
