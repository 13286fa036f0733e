"""The ablation in which earlier sets go on learning: they move more slowly, and what reads them reads the newest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from jobs.errors import Yielded
from jobs.learning import ImageOptimiserSpec
from tests.workers.workshop import Workshop
from workers.data import synthetic_set
from workers.data.synthetic_set import EARLIER, SyntheticSet
from workers.execute import perform
from workers.methods.base import LearnableImages
from workers.runtime.context import JobContext
from workers.tasks import distil
from workers.tasks.distil import StageRun

ARM: dict[str, Any] = {"method": "mtt", "stages": 3, "ipc_per_stage": 1, "earlier_rate": 0.1}
SGD = ImageOptimiserSpec(lr=0.5, momentum=0.5)


def images(value: float) -> SyntheticSet:
    return SyntheticSet(torch.full((2, 1, 2, 2), value), torch.tensor([0, 1]), None)


def test_earlier_images_take_their_share_of_the_step_with_a_momentum_of_their_own() -> None:
    canvas = LearnableImages(images(1.0), images(2.0), SGD, 10, earlier_rate=0.1)
    gradient = torch.ones(4, 1, 2, 2)
    canvas.step(gradient, 0)
    assert canvas.new[0, 0, 0, 0].item() == pytest.approx(1 - 0.5)
    assert canvas.union[0, 0, 0, 0].item() == pytest.approx(2 - 0.05)
    canvas.step(gradient, 1)  # velocity 1.5
    assert canvas.new[0, 0, 0, 0].item() == pytest.approx(0.5 - 0.75)
    assert canvas.union[0, 0, 0, 0].item() == pytest.approx(1.95 - 0.075)


def test_at_rate_zero_they_do_not_move_by_a_bit_and_are_not_in_the_checkpoint() -> None:
    canvas = LearnableImages(images(1.0), images(2.0), SGD, 10)
    canvas.step(torch.ones(4, 1, 2, 2), 0)
    assert torch.equal(canvas.union[:2], images(2.0).images)
    assert set(canvas.state()) == {"new", "optimiser/momentum_buffer"}


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_a_checkpoint_holds_both_and_goes_on_bit_for_bit(name: Any) -> None:
    spec, source = ImageOptimiserSpec(name=name, lr=0.5), torch.Generator().manual_seed(0)
    steps = [torch.randn(4, 1, 2, 2, generator=source) for _ in range(6)]
    straight, first, second = (LearnableImages(images(1.0), images(2.0), spec, 10, earlier_rate=0.2) for _ in range(3))
    for at, step in enumerate(steps):
        straight.step(step, at)
        if at < 3:
            first.step(step, at)
    second.load_state(first.state())
    for at, step in list(enumerate(steps))[3:]:
        second.step(step, at)
    assert torch.equal(second.union, straight.union)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    workshop = Workshop.open(tmp_path_factory.mktemp("made"), ARM)
    workshop.make(workshop.job("distil", stage=3))
    return workshop


def test_a_stage_stores_the_earlier_images_as_it_left_them(made: Workshop) -> None:
    first, second, third = made.jobs("distil")
    assert EARLIER not in made.store.manifest(first.key).files
    before = made.synthetic(first)
    moved = synthetic_set.read(made.store.path(second.key, EARLIER))
    assert moved.labels.tolist() == before.labels.tolist()
    change = (moved.images - before.images).abs().max()
    assert 0 < change < 0.5 * (made.synthetic(second).images - moved.images).abs().max()
    assert len(synthetic_set.read(made.store.path(third.key, EARLIER))) == 2 * len(before)


def test_what_reads_a_prefix_reads_the_newest_images_with_the_step_sizes_they_were_learned_with(made: Workshop) -> None:
    stages = made.jobs("distil")
    keys = [job.key for job in stages]
    own = [made.synthetic(job) for job in stages]
    assert torch.equal(synthetic_set.newest(made.store, keys[:1])[0].images, own[0].images)
    second, third = (synthetic_set.read(made.store.path(key, EARLIER)).images for key in keys[1:])
    two, three = synthetic_set.newest(made.store, keys[:2]), synthetic_set.newest(made.store, keys)
    assert torch.equal(torch.cat([one.images for one in two]), torch.cat([second, own[1].images]))
    assert torch.equal(torch.cat([one.images for one in three]), torch.cat([third, own[2].images]))
    assert [one.step_size for one in three] == [one.step_size for one in own]
    before = StageRun(JobContext.alone(stages[2], made.store)).before
    assert before is not None and torch.equal(before.images, torch.cat([one.images for one in two]))


def test_a_stage_that_yields_goes_on_bit_for_bit(made: Workshop, tmp_path: Path, monkeypatch: Any) -> None:
    copied = made.copy(tmp_path)
    job = copied.job("distil", stage=2)
    digest = made.store.manifest(job.key).digest
    copied.store.quarantine(job.key, "to be made again")
    context = JobContext.alone(job, copied.store)
    calls = {"n": 0}
    monkeypatch.setattr(JobContext, "stopping", property(lambda self: calls["n"] == 4))
    step = StageRun.step

    def counted(run: StageRun) -> None:
        calls["n"] += 1
        step(run)

    monkeypatch.setattr(distil.StageRun, "step", counted)
    with pytest.raises(Yielded):
        perform(context)
    perform(JobContext.alone(job, copied.store))
    assert copied.store.manifest(job.key).digest == digest
    assert json.dumps(copied.store.manifest(job.key).extra) == json.dumps(made.store.manifest(job.key).extra)
