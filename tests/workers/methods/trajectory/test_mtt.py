"""MTT in one stage: its step size, its random orders, its pixels, and what makes it give up."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from jobs.errors import BadInput, Diverged
from jobs.learning import ImageOptimiserSpec
from jobs.specs import ChoiceSpec, DistilSpec, NetworkSpec, SgdSpec
from tests.workers.methods.trajectory.tape import TapeRecorder
from workers.data.dataset import Split
from workers.data.preprocess import Affine
from workers.data.synthetic_set import SyntheticSet
from workers.methods import base, method_named, settings_for
from workers.methods.base import LearnableImages, Stage, draw_without_replacement
from workers.methods.trajectory import graphs, trajectory_matching
from workers.methods.trajectory.engines import ENGINES
from workers.methods.trajectory.mtt import MttSettings, StepSize, TrajectoryMatching
from workers.methods.trajectory.trajectory_matching import InnerBatch, Matched, unrolled
from workers.store import trajectories
from workers.store.trajectories import Trajectories
from workers.training.networks import build, parameter_count
from workers.training.transition import StartNetworks

CLASSES, EXPERTS, EPOCHS = 3, 4, 5
SGD = ImageOptimiserSpec(lr=0.5, momentum=0.5)
ADAM = ImageOptimiserSpec(name="adam", lr=0.05, momentum=0.9)
NUMBERS: dict[str, Any] = {
    "syn_steps": 3,
    "expert_epochs": 2,
    "max_start_epoch": 4,
    "step_size_init": 0.1,
    "lr_step_size": 1e-3,
}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(per_class: int, seed: int, step_size: float | None = None) -> SyntheticSet:
    labels = torch.arange(CLASSES).repeat_interleave(per_class)
    return SyntheticSet(torch.randn(len(labels), 1, 4, 4, generator=generator(seed)), labels, step_size)


def settings(**changes: Any) -> MttSettings:
    return MttSettings(**{**NUMBERS, **changes})


def snapshot(expert: int, epoch: int, size: int) -> Tensor:
    """Parameters from which the expert and the epoch can be read back, and which training can start from."""
    base_of_expert = 0.3 * torch.randn(size, generator=generator(expert))
    return base_of_expert + 0.02 * epoch


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    """A stage of three classes, one image each, with four experts of five epochs."""
    network = build(
        "convnet", channels=1, size=4, classes=CLASSES, width=2, depth=1, norm="instance", generator=generator()
    )
    size = parameter_count(network)
    rows = [np.stack([snapshot(i, t, size).numpy() for t in range(EPOCHS + 1)]) for i in range(EXPERTS)]
    trajectories.write(tmp_path, rows, [np.ones((EPOCHS, 7), bool)] * EXPERTS)
    spec = DistilSpec(
        method="mtt",
        stage=2,
        ipc_per_stage=1,
        network=NetworkSpec(),
        iterations=10,
        image=SGD,
        choice=ChoiceSpec(training=SgdSpec(epochs=1)),
        settings=NUMBERS,
    )
    return Stage(
        spec=spec,
        train=Split(torch.zeros(0, 1, 4, 4), torch.zeros(0)),
        classes=CLASSES,
        transform=Affine(torch.zeros(1), torch.ones(1)),
        experts=Trajectories([tmp_path / trajectories.TRAJECTORIES]),
        network=network,
        start_networks=StartNetworks(lambda number: network, lambda number: generator(), [], None, None),
        device=torch.device("cpu"),
        memory_level=0,
    )


def pixels(optimiser: ImageOptimiserSpec = SGD, frozen: bool = True, iterations: int = 10) -> LearnableImages:
    return LearnableImages(images(1, 11), images(1, 12) if frozen else None, optimiser, iterations)


# The step size


def test_the_linear_step_size_follows_sgd_with_momentum() -> None:
    step = StepSize(settings(step_size_init=1.0, lr_step_size=0.1, step_size_momentum=0.5))
    seen = []
    for gradient in (2.0, -1.0, 4.0, 0.0):
        step.step(gradient)
        seen.append(step.value)
    # velocity 2, 0, 4, 2
    assert seen == pytest.approx([0.8, 0.8, 0.4, 0.2])


def test_the_linear_step_size_does_not_go_below_its_least() -> None:
    step = StepSize(settings(step_size_init=1.0, lr_step_size=0.1, step_size_momentum=0.0, least_step_size=0.85))
    seen = []
    for gradient in (1.0, 9.0, -1.0):
        step.step(gradient)
        seen.append(step.value)
    assert seen == pytest.approx([0.9, 0.85, 0.95])


@pytest.mark.parametrize("gradient", [float("inf"), float("nan")])
def test_the_least_step_size_hides_no_gradient_that_is_not_finite(gradient: float) -> None:
    step = StepSize(settings(step_size_init=1.0, lr_step_size=0.1, step_size_momentum=0.5, least_step_size=0.85))
    step.step(gradient)
    assert not math.isfinite(step.value)


def test_the_logarithm_descends_by_the_chain_rule() -> None:
    step = StepSize(settings(step_size_init=0.5, lr_step_size=0.05, step_size_momentum=0.5, step_size_form="log"))
    log_value, velocity = torch.tensor(0.5, dtype=torch.float64).log(), 0.0
    for _ in range(4):
        log_value.requires_grad_()
        (slope,) = torch.autograd.grad((log_value.exp() - 0.2) ** 2, log_value)
        step.step(2 * (step.value - 0.2))
        velocity = 0.5 * velocity + float(slope)
        log_value = log_value.detach() - 0.05 * velocity
        assert step.value == pytest.approx(math.exp(float(log_value)), rel=1e-12)
    assert 0.2 < step.value < 0.49


@pytest.mark.parametrize(("gradient", "factor"), [(1e9, math.exp(-0.25)), (-1e9, math.exp(0.25))])
def test_the_logarithm_moves_by_the_clamp_at_most(gradient: float, factor: float) -> None:
    step = StepSize(settings(step_size_init=0.5, lr_step_size=1.0, step_size_form="log", step_size_clamp=0.25))
    step.step(gradient)
    assert step.value == pytest.approx(0.5 * factor)


@pytest.mark.parametrize("lr", [1e3, -1e3])
def test_a_linear_step_size_that_turns_negative_or_infinite_ends_the_stage(stage: Stage, lr: float) -> None:
    method = TrajectoryMatching(stage, settings(lr_step_size=abs(lr)))
    method._match = _always(step_size=1.0 if lr > 0 else -math.inf)
    with pytest.raises(Diverged, match=r"iteration 7: step size (-999\.9|inf): lower lr_step_size"):
        method.iterate(pixels(), 7, generator())


@pytest.mark.parametrize("broken", ["loss", "images"])
def test_a_loss_or_gradient_that_is_not_finite_ends_the_stage_before_anything_moves(stage: Stage, broken: str) -> None:
    method, canvas = TrajectoryMatching(stage, settings()), pixels()
    before, step_size = canvas.new.clone(), method.step_size
    method._match = _always(**{broken: math.nan})
    with pytest.raises(
        Diverged, match=r"iteration 3: matching loss (nan|1) or its gradient .*: lower distil\.image\.lr"
    ):
        method.iterate(canvas, 3, generator())
    assert torch.equal(canvas.new, before)
    assert method.step_size == step_size


def test_an_expert_that_does_not_move_is_no_target(stage: Stage, tmp_path: Path) -> None:
    row = snapshot(0, 0, parameter_count(stage.network)).numpy()
    trajectories.write(tmp_path, [np.stack([row] * (EPOCHS + 1))], [np.ones((EPOCHS, 7), bool)])
    still = Trajectories([tmp_path / trajectories.TRAJECTORIES])
    method = TrajectoryMatching(_with(stage, experts=still), settings())
    with pytest.raises(Diverged, match="iteration 0: matching loss"):
        method.iterate(pixels(), 0, generator())


def _always(loss: float = 1.0, images: float = 0.0, step_size: float = 0.0) -> Any:
    def match(student: Any, start: Tensor, target: Tensor, union: Tensor, *rest: Any) -> Matched:
        return Matched(torch.tensor(loss), torch.full_like(union, images), torch.tensor(step_size))

    return match


def _with(stage: Stage, **changes: Any) -> Stage:
    return Stage(**{**vars(stage), **changes})


# What is matched with what


class Recorder:
    """Stands in for an engine and keeps what it was asked."""

    def __init__(self) -> None:
        self.starts: list[Tensor] = []
        self.targets: list[Tensor] = []
        self.unions: list[Tensor] = []
        self.labels: list[Tensor] = []
        self.batches: list[list[list[int]]] = []
        self.draws: list[list[Any]] = []

    def __call__(
        self,
        student: Any,
        start: Tensor,
        target: Tensor,
        union: Tensor,
        labels: Tensor,
        step_size: Tensor,
        batches: Sequence[InnerBatch],
    ) -> Matched:
        self.starts.append(start)
        self.targets.append(target)
        self.unions.append(union.clone())
        self.labels.append(labels)
        self.batches.append([batch.index.tolist() for batch in batches])
        self.draws.append([batch.draw for batch in batches])
        return Matched(torch.tensor(1.0), torch.ones_like(union), torch.tensor(0.0))


def record(stage: Stage, iterations: int, canvas: LearnableImages | None = None, **changes: Any) -> Recorder:
    method, recorder = TrajectoryMatching(stage, settings(**changes)), Recorder()
    method._match = recorder
    canvas, draws = canvas or pixels(), generator(1)
    for iteration in range(iterations):
        method.iterate(canvas, iteration, draws)
    return recorder


def test_the_target_lies_expert_epochs_after_a_start_below_max_start_epoch(stage: Stage) -> None:
    seen, size = record(stage, 60), parameter_count(stage.network)
    known = {(i, t): snapshot(i, t, size) for i in range(EXPERTS) for t in range(EPOCHS + 1)}

    def name(parameters: Tensor) -> tuple[int, int]:
        (found,) = [key for key, value in known.items() if torch.equal(value, parameters)]
        return found

    starts, targets = [name(row) for row in seen.starts], [name(row) for row in seen.targets]
    assert targets == [(expert, epoch + 2) for expert, epoch in starts]
    assert {epoch for _, epoch in starts} == {0, 1, 2, 3}
    experts = [expert for expert, _ in starts]
    rounds = [experts[i : i + EXPERTS] for i in range(0, len(experts), EXPERTS)]
    assert all(sorted(one) == list(range(EXPERTS)) for one in rounds)
    assert len({tuple(one) for one in rounds}) > 1  # each round has an order of its own


def test_experts_too_short_for_the_settings_are_refused_by_field(stage: Stage) -> None:
    TrajectoryMatching(stage, settings(max_start_epoch=EPOCHS - 1))
    with pytest.raises(BadInput, match=r"distil\.settings\.max_start_epoch is 5: .* 6 epochs and have 5"):
        TrajectoryMatching(stage, settings(max_start_epoch=EPOCHS))


def test_inner_batches_have_classes_times_ipc_images_of_the_whole_union_at_every_stage(stage: Stage) -> None:
    first = record(stage, 2, pixels(frozen=False))
    assert all(sorted(batch) == [0, 1, 2] for step in first.batches for batch in step)
    union_of_two = record(stage, 2, pixels())
    flat = [batch for step in union_of_two.batches for batch in step]
    assert [len(batch) for batch in flat] == [3] * 6  # not enlarged with the union
    assert all(sorted(flat[i] + flat[i + 1]) == list(range(6)) for i in (0, 2, 4))  # also across iterations


def test_batch_syn_sets_their_size(stage: Stage) -> None:
    sizes = [len(batch) for step in record(stage, 2, batch_syn=4).batches for batch in step]
    assert sizes == [4, 2, 4, 2, 4, 2]


def test_every_inner_batch_has_a_draw_of_its_own_when_there_is_augmentation(stage: Stage) -> None:
    assert record(stage, 1).draws == [[None] * 3]
    (draws,) = record(stage, 1, augmentation="scale").draws
    numbers = [draw.numbers["scale"][0] for draw in draws]
    assert [len(one) for one in numbers] == [3] * 3  # per image
    assert len({tuple(one.flatten().tolist()) for one in numbers}) == 3


def test_an_iteration_is_one_step_of_images_and_step_size_along_the_matching_gradient(stage: Stage) -> None:
    method, canvas = TrajectoryMatching(stage, settings(lr_step_size=0.01)), pixels()
    union, labels, new = canvas.union, canvas.labels, canvas.new.clone()
    draws, experts = generator(5), stage.experts
    assert experts is not None
    expert = int(torch.randperm(EXPERTS, generator=draws)[0])
    epoch = int(torch.randint(4, (), generator=draws))
    order = [*torch.randperm(6, generator=draws), *torch.randperm(6, generator=draws)]
    matched = unrolled(
        method._student,
        experts.parameters(expert, epoch),
        experts.parameters(expert, epoch + 2),
        union,
        labels,
        torch.tensor(0.1),
        [InnerBatch(torch.stack(order[i : i + 3]), None) for i in (0, 3, 6)],
    )
    loss = method.iterate(canvas, 0, generator(5))
    assert loss == float(matched.loss)
    torch.testing.assert_close(canvas.new, new - 0.5 * matched.images[3:], rtol=1e-6, atol=1e-8)
    assert method.step_size == pytest.approx(0.1 - 0.01 * float(matched.step_size), rel=1e-12)
    assert float(matched.step_size) != 0.0


def test_a_raised_memory_level_takes_the_adjoint_with_the_same_result(stage: Stage) -> None:
    results = []
    for level in (0, 1):
        method, canvas = TrajectoryMatching(_with(stage, memory_level=level), settings()), pixels()
        assert method._match is [trajectory_matching.unrolled, trajectory_matching.adjoint][level]
        losses = [method.iterate(canvas, i, draws) for draws in [generator(2)] for i in range(4)]
        results.append((losses, canvas.new))
    assert results[1][0] == pytest.approx(results[0][0], rel=1e-5)
    torch.testing.assert_close(results[1][1], results[0][1], rtol=1e-4, atol=1e-5)


def test_recorded_steps_give_the_bits_of_the_adjoint_over_iterations(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graphs, "recorder_for", lambda device: TapeRecorder())
    numbers = settings(augmentation="color_crop_cutout_flip_scale_rotate", batch_syn=4)
    results: list[tuple[list[float], Tensor, float]] = []
    for engine in ("adjoint", "graphs"):
        spec = stage.spec.model_copy(update={"settings": {"engine": engine}})
        method, canvas = TrajectoryMatching(_with(stage, spec=spec), numbers), pixels()
        losses = [method.iterate(canvas, i, draws) for draws in [generator(2)] for i in range(6)]
        results.append((losses, canvas.new, method.step_size))
    (losses, new, step_size), recorded = results
    assert recorded[0] == losses and torch.equal(recorded[1], new) and recorded[2] == step_size
    assert method._student.kept.keys() == {graphs.RECORDED}


def test_candidates_start_where_the_trajectories_do_and_go_round(stage: Stage) -> None:
    method, size = TrajectoryMatching(stage, settings()), parameter_count(stage.network)
    assert torch.equal(method.start(1), snapshot(1, 0, size))
    assert torch.equal(method.start(EXPERTS + 2), snapshot(2, 0, size))


def test_candidates_may_start_from_weights_of_their_own_as_in_mtts_code(stage: Stage) -> None:
    assert TrajectoryMatching(stage, settings(candidates_start="random")).start(1) is None


def test_the_order_of_the_union_may_be_drawn_anew_in_every_iteration(stage: Stage) -> None:
    """Three batches of 3 from 6 images: carried on, the fourth completes the third; drawn anew, it begins a round."""
    anew = record(stage, 4, pixels(), image_order="anew").batches
    assert all(sorted(first + second) == list(range(6)) for first, second, _ in anew)
    carried = record(stage, 4, pixels()).batches
    assert not all(sorted(first + second) == list(range(6)) for first, second, _ in carried)


@pytest.mark.parametrize("form", ["linear", "log"])
def test_a_method_goes_on_from_its_state_as_if_it_had_never_stopped(stage: Stage, form: str) -> None:
    numbers = settings(step_size_form=form, lr_step_size=1e-3, batch_syn=4, augmentation="crop_flip")
    straight, canvas, draws = TrajectoryMatching(stage, numbers), pixels(), generator(3)
    for iteration in range(3):
        straight.iterate(canvas, iteration, draws)
    arrays, values = straight.state()
    written, images_then, drawn = json.dumps(values), canvas.state(), draws.get_state()
    expected = [straight.iterate(canvas, iteration, draws) for iteration in (3, 4, 5)]

    resumed, other = TrajectoryMatching(stage, numbers), pixels()
    resumed.load_state(arrays, json.loads(written))
    other.load_state(images_then)
    draws.set_state(drawn)
    assert [resumed.iterate(other, iteration, draws) for iteration in (3, 4, 5)] == expected
    assert resumed.step_size == straight.step_size != numbers.step_size_init
    assert torch.equal(other.new, canvas.new)


# Drawing without replacement


def test_an_order_is_used_up_in_chunks_the_short_one_last_before_a_new_one_is_drawn() -> None:
    queue: list[int] = []
    draws = generator()
    chunks = [draw_without_replacement(queue, 2, 5, draws) for _ in range(6)]
    assert [len(chunk) for chunk in chunks] == [2, 2, 1, 2, 2, 1]
    first, second = sum(chunks[:3], []), sum(chunks[3:], [])
    assert sorted(first) == sorted(second) == [0, 1, 2, 3, 4]
    twin = generator()
    assert [first, second] == [torch.randperm(5, generator=twin).tolist() for _ in range(2)]


def test_a_chunk_larger_than_the_population_is_the_population() -> None:
    assert sorted(draw_without_replacement([], 9, 4, generator())) == [0, 1, 2, 3]


# LearnableImages


def test_the_union_puts_the_frozen_images_first() -> None:
    frozen, new = images(1, 12), images(1, 11)
    canvas = pixels()
    assert torch.equal(canvas.union, torch.cat([frozen.images, new.images]))
    assert canvas.labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert torch.equal(pixels(frozen=False).union, new.images)


def test_only_the_new_rows_descend_whatever_the_gradient_of_the_frozen_ones() -> None:
    canvas, frozen = pixels(), images(1, 12).images
    gradient = torch.full((6, 1, 4, 4), math.inf)
    gradient[3:] = torch.randn(3, 1, 4, 4, generator=generator(9))
    for iteration in range(3):
        canvas.step(gradient, iteration)
    assert canvas.union[:3].numpy().tobytes() == frozen.numpy().tobytes()
    assert bool(canvas.new.isfinite().all())
    # momentum 0.5: velocities g, 1.5 g, 1.75 g
    expected = images(1, 11).images - 0.5 * (1 + 1.5 + 1.75) * gradient[3:]
    torch.testing.assert_close(canvas.new, expected, rtol=1e-5, atol=1e-6)


def test_writing_into_the_union_does_not_reach_the_images() -> None:
    for canvas in (pixels(), pixels(frozen=False)):
        before = canvas.union
        canvas.union.zero_()
        assert torch.equal(canvas.union, before)


def test_adam_descends_as_written_out() -> None:
    canvas = pixels(ADAM)
    gradients = [torch.randn(6, 1, 4, 4, generator=generator(seed)) for seed in range(3)]
    x = canvas.new.double()
    m, v = torch.zeros_like(x[:3]), torch.zeros_like(x[:3])
    for number, gradient in enumerate(gradients, start=1):
        canvas.step(gradient, number - 1)
        g = gradient[3:].double()
        m, v = 0.9 * m + 0.1 * g, 0.95 * v + 0.05 * g * g
        x = x - 0.05 * (m / (1 - 0.9**number)) / ((v / (1 - 0.95**number)).sqrt() + 1e-8)
    torch.testing.assert_close(canvas.new.double(), x, rtol=1e-5, atol=1e-6)


def test_the_learning_rate_runs_down_a_straight_line_to_its_final_value() -> None:
    spec = ImageOptimiserSpec(lr=1.0, momentum=0.0, final_lr=0.2)
    canvas, seen = pixels(spec, iterations=5), []
    for iteration in range(5):
        before = canvas.new.clone()
        canvas.step(torch.ones(6, 1, 4, 4), iteration)
        seen.append(float((before - canvas.new).mean()))
    assert seen == pytest.approx([1.0, 0.8, 0.6, 0.4, 0.2], rel=1e-5)


def test_a_stage_of_one_iteration_takes_the_first_learning_rate() -> None:
    canvas = pixels(ImageOptimiserSpec(lr=1.0, momentum=0.0, final_lr=0.2), iterations=1)
    before = canvas.new.clone()
    canvas.step(torch.ones(6, 1, 4, 4), 0)
    torch.testing.assert_close(canvas.new, before - 1.0)


@pytest.mark.parametrize("spec", [SGD, SGD.model_copy(update={"momentum": 0.0}), ADAM])
def test_pixels_go_on_from_their_state_bit_for_bit(spec: ImageOptimiserSpec) -> None:
    gradients = [torch.randn(6, 1, 4, 4, generator=generator(seed)) for seed in range(5)]
    straight, resumed = pixels(spec), pixels(spec)
    resumed.step(gradients[4], 0)  # to be forgotten
    for iteration in range(3):
        straight.step(gradients[iteration], iteration)
    state = straight.state()
    kept = {name: value.copy() for name, value in state.items()}
    for iteration in (3, 4):
        straight.step(gradients[iteration], iteration)
    assert all(np.array_equal(state[name], kept[name]) for name in kept)  # copies, not views
    resumed.load_state(state)
    for iteration in (3, 4):
        resumed.step(gradients[iteration], iteration)
    assert torch.equal(resumed.new, straight.new)


def test_pixels_go_back_to_the_state_before_the_first_step() -> None:
    fresh, used = pixels(), pixels()
    state = fresh.state()
    for canvas in (fresh, used):
        canvas.step(torch.ones(6, 1, 4, 4), 0)
    used.load_state(state)
    used.step(torch.ones(6, 1, 4, 4), 0)
    assert torch.equal(used.new, fresh.new)


# Finding a method by its name


def test_a_method_is_found_by_its_name_or_by_its_import_path() -> None:
    assert method_named("mtt") is TrajectoryMatching
    assert method_named(f"{__name__}:LearnableImages") is base.LearnableImages


@pytest.mark.parametrize("name", ["mttt", "no.such.module:Class", "workers.methods.trajectory.mtt:Nothing", ""])
def test_an_unknown_method_is_refused_with_the_known_ones(name: str) -> None:
    with pytest.raises(BadInput, match=r"method is .*: must be one of .*mtt, .*tesla, or package\.module:Class"):
        method_named(name)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"syn_step": 3}, r"distil\.settings\.syn_step .* unknown field"),
        ({"syn_steps": 0}, r"distil\.settings\.syn_steps is 0: must be at least 1"),
        ({"step_size_clamp": 1.0}, r"distil\.settings\.step_size_clamp is 1\.0: must be less than 1"),
    ],
)
def test_settings_are_validated_by_the_method(changes: dict[str, Any], complaint: str) -> None:
    assert settings_for("mtt", NUMBERS) == MttSettings(**NUMBERS)
    with pytest.raises(BadInput, match=complaint):
        settings_for("mtt", {**NUMBERS, **changes}, "my.yaml")


def test_start_epochs_come_from_the_span_between_the_two_ends(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    experts, seen = stage.experts, set()
    assert experts is not None
    places = [(expert, epoch) for expert in range(EXPERTS) for epoch in range(EPOCHS + 1)]

    def engine(student: Any, start: Tensor, *rest: Any) -> Matched:
        seen.add(next(epoch for expert, epoch in places if torch.equal(start, experts.parameters(expert, epoch))))
        return unrolled(student, start, *rest)

    monkeypatch.setitem(ENGINES, "unrolled", engine)
    method = TrajectoryMatching(
        stage, settings(min_start_epoch=2, max_start_epoch=4, expert_epochs=1, lr_step_size=1e-9)
    )
    canvas, source = pixels(), generator(3)
    for iteration in range(12):
        method.iterate(canvas, iteration, source)
    assert seen == {2, 3}


def test_a_span_without_an_epoch_is_refused() -> None:
    with pytest.raises(ValidationError, match="min_start_epoch must be below max_start_epoch"):
        settings(min_start_epoch=3, max_start_epoch=3)
