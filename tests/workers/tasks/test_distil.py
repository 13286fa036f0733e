"""A stage of distillation: what it matches with, what it keeps, and that nothing is lost by interrupting it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from jobs.errors import Diverged, Yielded
from jobs.graph import Job
from tests.workers.workshop import PUBLISHED, THREE_STAGES, TWO_STAGES, Workshop, changed
from workers.data import synthetic_set
from workers.data.synthetic_set import EXACT, SyntheticSet
from workers.execute import perform
from workers.methods.base import LearnableImages, Method
from workers.methods.trajectory import mtt
from workers.methods.trajectory.engines import ENGINES
from workers.runtime.context import JobContext
from workers.store.store import Store
from workers.tasks import distil
from workers.tasks.distil import HISTORY, StageRun
from workers.training.networks import flatten
from workers.training.trainer import Trainer


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    """Two stages of one image per class, everything done."""
    workshop = Workshop.open(tmp_path_factory.mktemp("made"), TWO_STAGES)
    workshop.make(workshop.job("distil", stage=2))
    return workshop


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    """The same with the published optimisers and augmentation."""
    workshop = Workshop.open(tmp_path_factory.mktemp("published"), TWO_STAGES, set=PUBLISHED)
    workshop.make(workshop.job("distil", stage=2))
    return workshop


@pytest.fixture
def copied(made: Workshop, tmp_path: Path) -> Workshop:
    return made.copy(tmp_path)


def without(workshop: Workshop, job: Job) -> Workshop:
    """The workshop with one artifact taken out, to be made again."""
    workshop.store.quarantine(job.key, "to be made again")
    return workshop


def choosing(job: Job, **choice: Any) -> Job:
    """The job with another rule of choice."""
    return changed(job, choice={**job.canonical()["spec"]["choice"], **choice})


def result(store: Store, job: Job) -> SyntheticSet:
    return synthetic_set.read(store.path(job.key, EXACT))


# Frozen images


def test_the_frozen_set_takes_part_in_every_iteration_and_never_moves_by_a_bit(
    copied: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = copied.job("distil", stage=1), copied.job("distil", stage=2)
    file = copied.store.path(first.key, EXACT)
    bytes_before, frozen = file.read_bytes(), result(copied.store, first)
    unions: list[Tensor] = []

    def engine(student: Any, start: Tensor, target: Tensor, images: Tensor, *rest: Any) -> Any:
        unions.append(images.clone())
        return ENGINES["unrolled"](student, start, target, images, *rest)

    monkeypatch.setattr(mtt, "ENGINES", {"unrolled": engine})
    perform(without(copied, second).context(second))

    assert len(unions) == 6
    assert all(one[:10].numpy().tobytes() == frozen.images.numpy().tobytes() for one in unions)
    assert len({one[10:].numpy().tobytes() for one in unions}) == 6  # the new ones moved each time
    assert file.read_bytes() == bytes_before
    assert copied.store.verify(first.key) == []
    stored = result(copied.store, second)
    assert stored.images.shape == (10, 1, 8, 8)  # its own images only
    assert stored.labels.tolist() == list(range(10))


def test_frozen_images_get_a_gradient_that_would_have_moved_them(
    made: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    gradients: list[Tensor] = []

    def engine(*args: Any) -> Any:
        gradients.append((matched := ENGINES["unrolled"](*args)).images)
        return matched

    monkeypatch.setattr(mtt, "ENGINES", {"unrolled": engine})
    StageRun(made.context(made.job("distil", stage=2))).step()
    assert gradients[0].shape[0] == 20
    assert bool((gradients[0][:10].abs().amax((1, 2, 3)) > 0).any())


def test_without_conditioning_only_the_new_images_are_matched_but_the_union_is_judged(
    made: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = StageRun(made.context(changed(made.job("distil", stage=2), conditioning=False)))
    assert len(run.learnable.union) == 10
    judged = sizes_trained_on(monkeypatch)
    run._candidate_accuracy()
    assert judged == [20]


def test_the_third_stage_matches_with_both_earlier_sets_in_order(tmp_path: Path) -> None:
    workshop = Workshop.open(tmp_path, THREE_STAGES)
    run = StageRun(workshop.context(workshop.job("distil", stage=3)))
    earlier = [result(workshop.store, workshop.job("distil", stage=stage)).images for stage in (1, 2)]
    assert torch.equal(run.learnable.union[:20], torch.cat(earlier))
    assert run.learnable.labels.tolist() == list(range(10)) * 3


# Interrupting


def leave_at(iteration: int, leave: Callable[[], None]) -> Callable[[float, str], None]:
    """A report that calls `leave` once the stage says that it has done this many iterations."""

    def report(done: float, note: str) -> None:
        if note.startswith(f"iteration {iteration}/"):
            leave()

    return report


def crash() -> None:
    raise SystemExit("as if the machine had gone")


def again(context: JobContext) -> list[int]:
    """Do the job at a new context; the iterations that were made."""
    made: list[int] = []
    anew = JobContext.alone(context.job, context.store)
    anew.report = lambda done, note: made.append(int(note.split()[1].split("/")[0]))
    perform(anew)
    return made


@pytest.mark.parametrize("iteration", [1, 3, 4, 6])
@pytest.mark.parametrize("form", ["made", "published"])
def test_a_stage_that_yields_goes_on_bit_for_bit(
    form: str, iteration: int, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.runtime.context._LOOK_SECONDS", 0.0)
    origin: Workshop = request.getfixturevalue(form)
    job = origin.job("distil", stage=2)
    undisturbed = origin.store.manifest(job.key)
    context = without(origin.copy(tmp_path), job).context(job)
    context.stop_file = tmp_path / "stop"
    context.report = leave_at(iteration - 1, context.stop_file.touch)
    if iteration == 1:
        context.stop_file.touch()
    with pytest.raises(Yielded, match=f"asked to stop at iteration {iteration}"):
        perform(context)
    assert not context.store.has(job.key)
    assert again(context) == list(range(iteration + 1, 7))
    assert context.store.manifest(job.key).digest == undisturbed.digest
    assert context.store.manifest(job.key).extra == undisturbed.extra
    assert context.checkpoints.load(job.key) is None


@pytest.mark.parametrize(("iteration", "resumed_from"), [(1, 0), (2, 2), (3, 2), (5, 4), (6, 6)])
@pytest.mark.parametrize("form", ["made", "published"])
def test_a_stage_that_crashes_goes_on_from_its_last_checkpoint_bit_for_bit(
    form: str, iteration: int, resumed_from: int, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    origin: Workshop = request.getfixturevalue(form)
    job = origin.job("distil", stage=2)
    context = without(origin.copy(tmp_path), job).context(job)
    context.report = leave_at(iteration, crash)
    with pytest.raises(SystemExit):
        perform(context)
    assert not context.store.has(job.key)
    assert again(context) == list(range(resumed_from + 1, 7))
    assert context.store.manifest(job.key).digest == origin.store.manifest(job.key).digest


def test_a_stage_interrupted_after_every_iteration_ends_the_same(
    copied: Workshop, made: Workshop, tmp_path: Path
) -> None:
    job = copied.job("distil", stage=2)
    context = without(copied, job).context(job)
    for iteration in range(1, 6):
        one = JobContext.alone(job, copied.store)
        one.stop_file = tmp_path / "stop"
        one.stop_file.touch()
        with pytest.raises(Yielded, match=f"iteration {iteration}"):
            perform(one)
    again(context)
    assert copied.store.manifest(job.key).digest == made.store.manifest(job.key).digest


def test_how_often_it_saves_changes_neither_key_nor_result(copied: Workshop, made: Workshop) -> None:
    job = copied.job("distil", stage=2)
    rarely = changed(job, checkpoint_every=100)
    assert rarely.key == job.key
    perform(without(copied, job).context(rarely))
    assert copied.store.manifest(job.key).digest == made.store.manifest(job.key).digest


# The choice of the iterate


def scripted(monkeypatch: pytest.MonkeyPatch, *scores: float) -> list[Tensor]:
    """Let candidates score as scripted; returns the images of each, as they are judged."""
    judged: list[Tensor] = []

    def candidate_accuracy(run: StageRun) -> float:
        judged.append(run.learnable.new.clone())
        return scores[len(judged) - 1]

    monkeypatch.setattr(StageRun, "_candidate_accuracy", candidate_accuracy)
    return judged


@pytest.mark.parametrize(
    ("scores", "kept"), [((30.0, 50.0, 40.0), 4), ((30.0, 20.0, 10.0), 2), ((30.0, 50.0, 50.0), 6)]
)
def test_the_best_candidate_is_kept_with_its_step_size_a_later_one_on_a_tie(
    copied: Workshop, scores: tuple[float, ...], kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = choosing(copied.job("distil", stage=1), every=2)
    judged = scripted(monkeypatch, *scores)
    extra = copied.make(job).extra
    stored = result(copied.store, job)
    assert (extra["iteration"], extra["validation_accuracy"]) == (kept, max(scores))
    assert torch.equal(stored.images, judged[kept // 2 - 1])
    curve = pq.read_table(copied.store.path(job.key, HISTORY)).to_pydict()
    assert stored.step_size == extra["step_size"] == curve["step_size"][kept - 1]
    assert curve["candidate_accuracy"] == [None, scores[0], None, scores[1], None, scores[2]]


def test_candidates_may_be_the_initial_images_and_never_the_last_ones(
    copied: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = choosing(copied.job("distil", stage=1), every=2, initial_not_final=True)
    judged = scripted(monkeypatch, 10.0, 40.0, 30.0)
    manifest = copied.make(job)
    assert len(judged) == 3 and manifest.extra["iteration"] == 2
    assert torch.equal(result(copied.store, job).images, judged[1])
    start = StageRun(copied.context(job)).learnable.new
    assert torch.equal(start, judged[0])


def test_what_a_method_does_once_is_done_before_its_first_iterate_is_judged(
    copied: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = choosing(copied.job("distil", stage=1), every=2, initial_not_final=True)
    judged, begun = scripted(monkeypatch, 10.0, 40.0, 30.0), []

    def begin(self: Method, learnable: LearnableImages, generator: torch.Generator) -> None:
        begun.append(learnable.assign(torch.full_like(learnable.new, 0.25)))

    monkeypatch.setattr(Method, "begin", begin)
    copied.make(job)
    assert len(begun) == 1 and bool((judged[0] == 0.25).all())


def test_the_last_iterate_cannot_be_kept_where_it_is_no_candidate(made: Workshop) -> None:
    with pytest.raises(ValidationError, match="leaves the last iterate out"):
        choosing(made.job("distil", stage=1), by="last", initial_not_final=True)


def test_the_best_candidate_survives_an_interruption(copied: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    job = choosing(copied.job("distil", stage=1), every=2)
    context = copied.context(job)
    context.report = leave_at(5, crash)  # the best candidate, of iteration 2, is in the checkpoint of 4
    judged = scripted(monkeypatch, 50.0, 30.0, 40.0)
    with pytest.raises(SystemExit):
        perform(context)
    perform(JobContext.alone(job, copied.store))
    assert torch.equal(result(copied.store, job).images, judged[0])
    assert copied.store.manifest(job.key).extra["iteration"] == 2


def test_the_last_iterate_is_kept_without_any_contest_when_asked_for(
    made: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = choosing(made.job("distil", stage=1), by="last", every=1)
    run = StageRun(made.context(job))
    while run.iteration < 6:
        run.step()
    monkeypatch.setattr(StageRun, "_candidate_accuracy", lambda run: pytest.fail("a contest"))
    extra = made.make(job).extra
    stored = result(made.store, job)
    assert torch.equal(stored.images, run.learnable.new)
    assert stored.step_size == run.method.step_size
    assert extra["iteration"] == 6 and "validation_accuracy" not in extra


class Untouchable:
    """A split that nobody may look at."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"the test split's {name} was read")


def poison_the_test_split(monkeypatch: pytest.MonkeyPatch) -> None:
    load = distil.datasets.load
    monkeypatch.setattr(distil.datasets, "load", lambda *args: replace(load(*args), test=Untouchable()))


def test_choosing_by_validation_never_touches_the_test_split(
    copied: Workshop, made: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = copied.job("distil", stage=2)
    poison_the_test_split(monkeypatch)
    perform(without(copied, job).context(job))
    assert copied.store.manifest(job.key).digest == made.store.manifest(job.key).digest


def test_the_test_split_decides_only_when_named(made: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    job = choosing(made.job("distil", stage=2), by="test")
    assert "test_accuracy" in made.make(job).extra
    poison_the_test_split(monkeypatch)
    with pytest.raises(AssertionError, match="the test split's images was read"):
        StageRun(JobContext.alone(job, made.store))._candidate_accuracy()


def test_nothing_that_a_method_is_given_holds_the_held_out_or_the_test_split(made: Workshop) -> None:
    run = StageRun(made.context(made.job("distil", stage=2)))
    known = vars(run.method._stage)  # type: ignore[attr-defined]
    assert known["train"] is run.data.train
    withheld = (run.data, run.data.validation, run.data.test)
    assert not any(value is one for value in known.values() for one in withheld)


def sizes_trained_on(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of images of every training from now on."""
    sizes: list[int] = []
    run = Trainer.run

    def spy(trainer: Trainer, images: Tensor, labels: Tensor, **more: Any) -> Any:
        sizes.append(len(images))
        return run(trainer, images, labels, **more)

    monkeypatch.setattr(Trainer, "run", spy)
    return sizes


def test_a_candidate_starts_at_a_trajectorys_start_and_trains_on_the_union_at_the_step_size(
    made: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = StageRun(made.context(choosing(made.job("distil", stage=2), networks=3)))
    run.step()
    seen: list[tuple[Tensor, Tensor, float]] = []

    def spy(trainer: Trainer, images: Tensor, labels: Tensor, **more: Any) -> Any:
        seen.append((flatten(trainer.module), images, trainer.optimiser.lr))
        assert more["schedule"].epochs == 4

    monkeypatch.setattr(Trainer, "run", spy)
    run._candidate_accuracy()
    experts = [made.trajectories(job) for job in made.jobs("experts", stage=2)]
    starts = [experts[number].parameters(0, 0) for number in (0, 1, 0)]
    assert all(torch.equal(one[0], start) for one, start in zip(seen, starts, strict=True))
    union = torch.cat([result(made.store, made.job("distil", stage=1)).images, run.learnable.new])
    assert all(torch.equal(one[1], union) for one in seen)
    assert {one[2] for one in seen} == {run.method.step_size}


# Beginnings and endings


def test_new_images_start_from_training_images_of_their_class(made: Workshop) -> None:
    run = StageRun(made.context(changed(made.job("distil", stage=1), ipc_per_stage=3)))
    train = run.data.train
    rows = {image.numpy().tobytes(): int(label) for image, label in zip(train.images, train.labels, strict=True)}
    found = [rows[image.numpy().tobytes()] for image in run.learnable.new]
    assert found == run.learnable.labels.tolist() == [label for label in range(10) for _ in range(3)]
    assert len({image.numpy().tobytes() for image in run.learnable.new}) == 30


def test_new_images_can_start_from_noise(made: Workshop) -> None:
    run = StageRun(made.context(changed(made.job("distil", stage=1), init="noise", ipc_per_stage=20)))
    assert float(run.learnable.new.mean()) == pytest.approx(0.0, abs=0.05)
    assert float(run.learnable.new.std()) == pytest.approx(1.0, abs=0.05)


def test_stages_start_from_different_images(made: Workshop) -> None:
    first, second = (StageRun(made.context(job)).learnable.new for job in made.jobs("distil"))
    assert not torch.equal(first, second)


def test_the_result_hangs_on_the_content_of_the_earlier_set(made: Workshop, tmp_path: Path) -> None:
    first, second = made.job("distil", stage=1), made.job("distil", stage=2)
    assert first.key in second.parents["sets"]
    nudged = result(made.store, first)
    nudged.images[0, 0, 3, 3] += 1.0

    digests = {made.store.manifest(second.key).digest}
    for number, experts_too in enumerate((False, True)):
        workshop = without(without(made.copy(tmp_path / str(number)), first), second)
        with workshop.store.put(first.key, "distil", {}, {}, device="cpu") as folder:
            synthetic_set.write(folder, nudged, workshop.data().transform, [str(n) for n in range(10)])
        for job in workshop.jobs("experts", stage=2) if experts_too else []:
            before = workshop.store.manifest(job.key).digest
            assert without(workshop, job).make(job).digest != before
        digests.add(workshop.make(second).digest)
    assert len(digests) == 3  # by conditioning alone, and by conditioning and transition


def test_the_history_has_a_row_for_every_iteration(made: Workshop) -> None:
    job = made.job("distil", stage=2)
    extra = made.store.manifest(job.key).extra
    curve = pq.read_table(made.store.path(job.key, HISTORY)).to_pydict()
    assert curve["iteration"] == [1, 2, 3, 4, 5, 6]
    assert (curve["loss"][0], curve["loss"][-1]) == (extra["first_loss"], extra["loss"])
    assert [score is not None for score in curve["candidate_accuracy"]] == [False, False, True] * 2
    assert curve["candidate_accuracy"][extra["iteration"] - 1] == extra["validation_accuracy"]
    assert max(curve["candidate_accuracy"][2::3]) == extra["validation_accuracy"]


def test_a_stage_that_diverges_leaves_no_artifact(made: Workshop) -> None:
    job = made.job("distil", stage=1)
    wild = {**job.canonical()["spec"]["settings"], "step_size_form": "linear", "lr_step_size": 1e6}
    job = changed(job, settings=wild)
    with pytest.raises(Diverged, match=r"iteration \d: "):
        perform(made.context(job))
    assert not made.store.has(job.key)
    assert list((made.store.root / "tmp").iterdir()) == []


def test_a_job_that_travelled_as_json_gives_the_same_set(copied: Workshop, made: Workshop) -> None:
    job = copied.job("distil", stage=2)
    travelled = Job.from_json(json.loads(json.dumps(job.to_json())))
    perform(without(copied, job).context(travelled))
    assert copied.store.manifest(job.key).digest == made.store.manifest(job.key).digest


def test_a_candidate_network_that_diverges_counts_as_worthless_and_the_stage_goes_on(
    made: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = StageRun(made.context(choosing(made.job("distil", stage=2), networks=2)))
    run.step()
    whole = run._candidate_accuracy()
    train, calls = Trainer.run, iter(range(2))

    def diverge_once(trainer: Trainer, *arguments: Any, **more: Any) -> Any:
        if next(calls) == 0:
            raise Diverged("loss nan")
        return train(trainer, *arguments, **more)

    first = run._network_accuracy(run.result_so_far(), run.data.validation, 0)
    monkeypatch.setattr(Trainer, "run", diverge_once)
    assert run._candidate_accuracy() == pytest.approx(whole - first / 2)
