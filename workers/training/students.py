"""Networks and training as the specs say them: the bridge from `jobs.specs` to `networks` and `training`.

Everything that is trained (experts, links of the chain, evaluation nets, bounds) is built and fitted here, so
a number of a spec has one meaning.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from jobs.specs import Family, NetworkSpec, SgdSpec
from workers.data.stored_images import Images
from workers.training.augmentation import Augmentation
from workers.training.compute import Compute
from workers.training.networks import Network, build
from workers.training.trainer import EpochStats, Optimiser, Progress, Schedule, Trainer


def build_network(
    spec: NetworkSpec,
    shape: tuple[int, int, int],
    classes: int,
    generator: torch.Generator,
    device: torch.device,
) -> Network:
    """Build the network of a spec and draw its weights.

    Args:
        spec: the architecture and its sizes.
        shape: channels, height and width of the images.
        classes: number of logits.
        generator: a CPU generator of the weights.
        device: where the network goes.
    """
    channels, height, _ = shape
    network = build(
        spec.architecture,
        channels=channels,
        size=height,
        classes=classes,
        width=spec.width,
        depth=spec.depth,
        norm=spec.norm,
        generator=generator,
        pooling=spec.pooling,
        activation=spec.activation,
    )
    if device.type == "cuda" and spec.norm in ("batch", "none"):  # other norms would convert every map back and forth
        network.to(memory_format=torch.channels_last)
    return network.to(device, non_blocking=True)


def parameter_shapes(spec: NetworkSpec, shape: tuple[int, int, int], classes: int) -> tuple[tuple[int, ...], ...]:
    """The shapes of a network's parameters in the order in which trajectories have them.

    Args:
        spec: the architecture and its sizes.
        shape: channels, height and width of the images.
        classes: number of logits.
    """
    network = build_network(spec, shape, classes, torch.Generator(), torch.device("cpu"))
    return tuple(tuple(parameter.shape) for parameter in network.parameters())


def trainer_for(network: Network, spec: SgdSpec, generator: torch.Generator, lr: float | None = None) -> Trainer:
    """Make a trainer that has no momentum yet.

    Args:
        network: trained in place.
        spec: learning rate, momentum, weight decay, and how a forward pass is computed.
        generator: a CPU generator of the order of the images and of their augmentation.
        lr: takes the place of the spec's learning rate, e.g. a learned step size.
    """
    rate = lr if lr is not None else spec.lr
    assert rate is not None, f"no learning rate: neither the spec nor the caller gives one: {spec}"
    optimiser = Optimiser(lr=rate, momentum=spec.momentum, weight_decay=spec.weight_decay)
    return Trainer(network, optimiser, generator, Compute(engine=spec.engine, precision=spec.precision))


def fit(
    trainer: Trainer,
    images: Images,
    labels: Tensor,
    spec: SgdSpec,
    *,
    lr: float | None = None,
    on_epoch: Callable[[int, EpochStats], None] | None = None,
    progress: Progress | None = None,
    correctness: bool = False,
) -> None:
    """Train through the spec's schedule from its first epoch; momentum of earlier calls is carried on.

    Args:
        trainer: of the network to train.
        images: float32 [N, C, H, W] in the training space.
        labels: int64 [N], or soft ones: probabilities float32 [N, classes].
        spec: epochs, batches, augmentation and drops.
        lr: takes the place of the trainer's learning rate.
        on_epoch: called after each epoch with its index and what was seen.
        progress: called after each epoch with its index.
        correctness: whether `on_epoch` is told which images were right.
    """
    trainer.run(
        images,
        labels,
        schedule=schedule_of(spec),
        batch_size=spec.batch_size,
        augmentation=augmentation_of(spec.augmentation, spec.family),
        cutmix_probability=spec.cutmix,
        lr=lr,
        on_epoch=on_epoch,
        progress=progress,
        correctness=correctness,
        reset_at_drop=spec.momentum_at_drop == "reset",
    )


def schedule_of(spec: SgdSpec) -> Schedule:
    """The passes and drops of a spec."""
    match spec.drop:
        case "half":
            return Schedule.one_drop(spec.epochs, extra_epoch=spec.extra_epoch)
        case "thirds":
            schedule = Schedule.two_drops(spec.epochs)
            return replace(schedule, epochs=spec.epochs + spec.extra_epoch)
        case "none":
            return Schedule(epochs=spec.epochs + spec.extra_epoch)


def augmentation_of(strategy: str, family: Family = "mtt") -> Augmentation | None:
    """A strategy string as a family of code bases means it; None for no augmentation (facts 3)."""
    if strategy == "none":
        return None
    mode: Literal["one", "idc"] = "idc" if family == "idc" else "one"
    return Augmentation.parse(strategy, mode=mode, align_corners=family == "mtt")
