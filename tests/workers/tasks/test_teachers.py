"""What experts make of images: which they classify rightly, and the soft labels that they give."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from jobs.learning import LabelSpec
from workers.data.dataset import Split
from workers.data.synthetic_set import SyntheticSet
from workers.store import trajectories
from workers.store.trajectories import Trajectories
from workers.tasks.teachers import Teachers, mean_of_right
from workers.training.networks import Network, build, flatten, load_flat

CLASSES, EXPERTS = 3, 3


def random_network(seed: int) -> Network:
    draws = torch.Generator().manual_seed(seed)
    return build("convnet", channels=1, size=4, classes=CLASSES, width=4, depth=1, norm="instance", generator=draws)


def images(n: int) -> Tensor:
    return torch.randn(n, 1, 4, 4, generator=torch.Generator().manual_seed(n))


@pytest.fixture
def teachers(tmp_path: Path) -> Teachers:
    """Three random networks, which are the last of two snapshots each."""
    last = [flatten(random_network(seed)).numpy() for seed in range(EXPERTS)]
    rows = [np.stack([0 * one, one]) for one in last]
    trajectories.write(tmp_path, rows, [np.ones((1, 5), bool)] * EXPERTS)
    return Teachers(Trajectories([tmp_path / trajectories.TRAJECTORIES]), random_network(99))


def logits_of(given: Tensor) -> Tensor:
    """What the networks say, [experts, n, classes]."""
    with torch.no_grad():
        return torch.stack([random_network(seed)(given) for seed in range(EXPERTS)])


def test_the_mean_is_over_the_networks_that_are_right_and_over_all_where_none_is() -> None:
    logits = torch.tensor(
        [
            [[3.0, 1.0], [3.0, 1.0], [5.0, 1.0]],
            [[1.0, 3.0], [7.0, 1.0], [7.0, 3.0]],
        ],
        dtype=torch.float64,
    )
    mean = mean_of_right(logits, torch.tensor([0, 0, 1]))
    assert mean.tolist() == [[3.0, 1.0], [5.0, 1.0], [6.0, 2.0]]


@pytest.mark.parametrize("asked", [None, 1, 2, 9])
def test_labels_from_experts_are_the_logits_of_those_that_are_right_at_their_last_epoch(
    teachers: Teachers, asked: int | None
) -> None:
    labels = torch.arange(12) % CLASSES
    one = SyntheticSet(images(12), labels, None)
    said, right = logits_of(one.images)[: asked or EXPERTS], []
    given = teachers.first_labels(one, CLASSES, LabelSpec(source="experts", teachers=asked))
    for number, label in enumerate(labels.tolist()):
        own = [network[number].double() for network in said if int(network[number].argmax()) == label]
        right.append(len(own))
        expected = torch.stack(own or [network[number].double() for network in said]).mean(0)
        torch.testing.assert_close(given[number].double(), expected, rtol=1e-5, atol=1e-6)
    assert 0 in right and max(right) >= 1


def test_an_image_of_several_tiles_has_the_mean_logits_of_its_tiles(teachers: Teachers) -> None:
    one = SyntheticSet(images(4), torch.tensor([0, 1, 2, 0]), None, factor=2)
    decoded, _ = one.expanded()
    given = teachers.first_labels(one, CLASSES, LabelSpec(source="experts", teachers=1))
    torch.testing.assert_close(given, logits_of(decoded)[0].view(4, 4, CLASSES).mean(1))


def test_labels_from_classes_put_the_class_above_the_others(teachers: Teachers) -> None:
    one = SyntheticSet(images(2), torch.tensor([2, 0]), None)
    given = teachers.first_labels(one, CLASSES, LabelSpec(source="classes", scale=3.0))
    torch.testing.assert_close(given, torch.tensor([[-1.0, -1.0, 2.0], [2.0, -1.0, -1.0]]))
    assert given.dtype == torch.float32


def test_images_are_drawn_among_those_that_the_first_expert_classifies_rightly(teachers: Teachers) -> None:
    given = images(300)
    train = Split(given, torch.arange(300) % CLASSES)
    right = (logits_of(given)[0].argmax(1) == train.labels).tolist()
    chosen = teachers.classified(train, 3, torch.Generator().manual_seed(0))
    assert train.labels[chosen].tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2] and len(set(chosen.tolist())) == 9
    by_class = [sum(right[label::CLASSES]) for label in range(CLASSES)]
    for label in range(CLASSES):
        own = chosen[3 * label : 3 * label + 3].tolist()
        assert sum(right[row] for row in own) == min(3, by_class[label])
    other = teachers.classified(train, 3, torch.Generator().manual_seed(1))
    assert chosen.tolist() != other.tolist()
    again = teachers.classified(train, 3, torch.Generator().manual_seed(0))
    assert chosen.tolist() == again.tolist()


def test_where_too_few_are_right_the_next_experts_are_asked_and_then_anything_is_taken(teachers: Teachers) -> None:
    given = images(40)
    said = logits_of(given).argmax(2)
    known = said[:, said[0] == said[0].mode().values]
    assert known.shape[1] >= 2
    labels = torch.zeros(40, dtype=torch.int64)
    train, right = Split(given, labels), said == labels
    chosen = teachers.classified(train, 40, torch.Generator().manual_seed(0))
    assert sorted(chosen.tolist()) == list(range(40))
    rank = torch.where(right.any(0), right.int().argmax(0), EXPERTS)  # the first expert that is right
    assert rank[chosen].tolist() == sorted(rank.tolist())
    with pytest.raises(ValueError, match="class 0 has 40 images, fewer than 41"):
        teachers.classified(train, 41, torch.Generator().manual_seed(0))


def test_the_networks_own_weights_mean_nothing(teachers: Teachers, tmp_path: Path) -> None:
    one, spec = SyntheticSet(images(6), torch.arange(6) % CLASSES, None), LabelSpec()
    before = teachers.first_labels(one, CLASSES, spec)
    load_flat(teachers._network, torch.zeros_like(flatten(teachers._network)))
    assert torch.equal(teachers.first_labels(one, CLASSES, spec), before)
