"""Class-incremental learning: sets of several phases become sets of the whole label space (Table 7; facts 5.8).

A phase distils or selects from its own classes, whose labels count from 0 there. After phase p a new network is trained
on the images of phases 1..p under the classes' own ids, with a head for all classes, and tested on the classes seen
(the setting of DM's code).

Ours, because the paper does not say how stages and phases meet: the sets of all phases are put together stage by
stage, so that a progressive evaluation meets the first stage of every phase, then the first two, and so on. The step
size of such a link is the mean of those its phases learned.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean

import torch

from workers.data import synthetic_set
from workers.data.dataset import Split
from workers.data.stored_images import subset
from workers.data.synthetic_set import SyntheticSet


def by_stage(sets: Sequence[SyntheticSet], phases: Sequence[Sequence[int]], classes: int) -> list[SyntheticSet]:
    """One set per stage, of all phases.

    Args:
        sets: S_1..S_P of the first phase, then those of the second, and so on; labels count inside their phase.
        phases: the class ids of each phase, by the phase's own labels.
        classes: of the whole label space.

    Returns:
        S_1..S_P with labels of the whole label space.
    """
    stages = len(sets) // len(phases)
    relabelled = [_relabelled(one, phases[number // stages], classes) for number, one in enumerate(sets)]
    return [_together(relabelled[stage::stages]) for stage in range(stages)]


def of_classes(split: Split, phases: Sequence[Sequence[int]]) -> Split:
    """The images of the classes of these phases."""
    seen = torch.tensor([label for phase in phases for label in phase], device=split.labels.device)
    own = torch.isin(split.labels, seen)
    return Split(subset(split.images, own), split.labels[own])


def _relabelled(one: SyntheticSet, phase: Sequence[int], classes: int) -> SyntheticSet:
    """A set of one phase under the classes' own ids; its soft labels give all other classes the probability 0."""
    ids, logits = torch.tensor(phase), one.logits
    if logits is not None:
        logits = torch.full((len(one), classes), -math.inf).index_copy(1, ids, logits)
    return replace(one, labels=ids[one.labels], logits=logits)


def _together(parts: Sequence[SyntheticSet]) -> SyntheticSet:
    learned = [one.step_size for one in parts if one.step_size is not None]
    return replace(synthetic_set.union(parts), step_size=fmean(learned) if learned else None)
