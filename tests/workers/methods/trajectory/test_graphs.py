"""The engine of recorded steps gives the adjoint's bits from a tape, and goes back to it where nothing is recorded."""

from __future__ import annotations

import gc
import logging
import sys
import weakref
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.workers.methods.trajectory.tape import TapeRecorder
from tests.workers.methods.trajectory.test_trajectory_matching import EVERYTHING, Case, convnet, normal, softly
from workers.methods.trajectory import graphs as graphs_module
from workers.methods.trajectory.recorder import Work
from workers.methods.trajectory.trajectory_matching import InnerBatch, Matched, Student
from workers.training.augmentation import OPERATIONS
from workers.training.instance_norm import by_operators


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> TapeRecorder:
    tape = TapeRecorder()
    monkeypatch.setattr(graphs_module, "recorder_for", lambda device: tape)
    return tape


def assert_equal(matched: Matched, expected: Matched) -> None:
    pairs = [(getattr(matched, name), getattr(expected, name)) for name in ("loss", "images", "step_size")]
    assert all(torch.equal(own, other) for own, other in pairs)


def drawn(case: Case, seed: int, sizes: tuple[int, ...]) -> list[InnerBatch]:
    """Batches of the case's images, each with an operation of its own."""
    draws = torch.Generator().manual_seed(seed)
    shape = tuple(case.images.shape[2:])
    order = [torch.randperm(6, generator=draws)[:size] for size in sizes]
    return [InnerBatch(index, EVERYTHING.draw(len(index), shape, draws, siamese=False)) for index in order]


def kinds(batches: list[InnerBatch]) -> set[Any]:
    return {(batch.draw and batch.draw.names, len(batch.index)) for batch in batches}


@pytest.mark.parametrize("strategy", [None, *OPERATIONS])
def test_recorded_steps_give_the_bits_of_the_adjoint(strategy: str | None, recorder: TapeRecorder) -> None:
    case = Case(convnet(), (1, 8, 8), strategy)
    assert_equal(case.match("graphs"), case.match("adjoint"))
    assert recorder.played == 2 * len(case.batches)


def test_iterations_differ_in_everything_and_share_the_recordings(recorder: TapeRecorder) -> None:
    """Other images, parameters, targets, step sizes, labels, indices and random numbers reach the same recordings."""
    case, seen = Case(convnet(), (1, 8, 8)), set()
    case.student = Student(case.student.module, EVERYTHING)
    results = []
    for iteration in range(4):
        case.batches = drawn(case, iteration, (4, 4, 4, 2, 4))
        case.images, case.labels = normal(6, 1, 8, 8, seed=iteration), torch.tensor([0, 1, 2, 0, 1, 2]).roll(iteration)
        case.start, case.target = (normal(len(case.start), seed=10 * iteration + number) for number in (7, 8))
        case.step_size = torch.tensor(0.1 * (iteration + 1), dtype=torch.float64)
        matched = case.match("graphs")
        assert_equal(matched, case.match("adjoint"))
        results.append((matched, Matched(matched.loss.clone(), matched.images.clone(), matched.step_size.clone())))
        seen |= kinds(case.batches)
        assert recorder.recorded == 2 * len(seen)
    for matched, as_it_was in results:  # later iterations leave earlier results alone
        assert_equal(matched, as_it_was)
    assert len(seen) > 6


def test_soft_labels_that_learn_reach_the_recordings(recorder: TapeRecorder) -> None:
    case = softly(Case(convnet(), (1, 8, 8), "flip"))
    for iteration in range(3):
        case.labels = case.labels + 0.1 * normal(*case.labels.shape, seed=iteration)
        matched, expected = case.match("graphs"), case.match("adjoint")
        assert_equal(matched, expected)
        assert matched.labels is not None and expected.labels is not None
        assert torch.equal(matched.labels, expected.labels) and float(matched.labels.abs().sum()) > 0
    assert recorder.recorded == 2 * len(kinds(case.batches))


def test_tensors_of_other_shapes_are_recorded_anew(recorder: TapeRecorder) -> None:
    case = Case(convnet(), (1, 8, 8))
    case.match("graphs")
    before = recorder.recorded
    case.images, case.labels = normal(9, 1, 8, 8, seed=1), torch.arange(9) % 3
    assert_equal(case.match("graphs"), case.match("adjoint"))
    assert recorder.recorded == 2 * before
    case.match("graphs")
    assert recorder.recorded == 2 * before


def test_arguments_stay_as_they_were(recorder: TapeRecorder) -> None:
    case = Case(convnet(), (1, 8, 8), "crop")
    given = [case.start, case.target, case.images, case.labels, case.step_size, case.batches[0].index]
    before = [tensor.clone() for tensor in given]
    matched = [case.match("graphs") for _ in range(2)]
    assert all(torch.equal(now, then) for now, then in zip(given, before, strict=True))
    assert_equal(*matched)
    assert matched[0].images.data_ptr() != matched[1].images.data_ptr()


def test_another_student_has_recordings_of_its_own(recorder: TapeRecorder) -> None:
    first, second = Case(convnet(), (1, 8, 8)), Case(convnet(), (1, 8, 8), "flip")
    for case in (first, second, first):
        assert_equal(case.match("graphs"), case.match("adjoint"))


class _Reads(nn.Module):
    """A network that looks at a value, for which a card would be waited for."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        return self.module(x) * (1.0 if float(x.detach().sum()) < 1e9 else 2.0)


def test_what_cannot_be_recorded_is_done_by_the_adjoint_and_said_once(
    recorder: TapeRecorder, caplog: pytest.LogCaptureFixture
) -> None:
    case = Case(convnet(), (1, 8, 8))
    case.student = replace(case.student, module=_Reads(case.student.module))
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert_equal(case.match("graphs"), case.match("adjoint"))
    (record,) = caplog.records
    assert "_local_scalar_dense" in record.message and "adjoint" in record.message
    assert recorder.recorded == 0


def test_without_cuda_the_adjoint_does_it(caplog: pytest.LogCaptureFixture) -> None:
    case = Case(convnet(), (1, 8, 8))
    with caplog.at_level(logging.WARNING):
        assert_equal(case.match("graphs"), case.match("adjoint"))
    assert "there is no CUDA" in caplog.text


class _Forgetful:
    """A recorder that keeps nothing of the work, as a CUDA graph does not."""

    def record(self, work: Work) -> Work:
        work()
        return lambda: None


def test_the_memory_of_recordings_is_free_as_soon_as_their_student_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a collection of cycles, which may come much later."""
    monkeypatch.setattr(graphs_module, "recorder_for", lambda device: _Forgetful())
    case = Case(convnet(), (1, 8, 8))
    case.match("graphs")
    steps = weakref.ref(case.student.kept[graphs_module.RECORDED])
    gc.disable()
    try:
        del case
        assert steps() is None
    finally:
        gc.enable()


def test_soft_labels_and_their_gradients_go_through_the_recordings(recorder: TapeRecorder) -> None:
    case = Case(convnet(), (1, 8, 8))
    for iteration in range(3):
        case.labels = normal(6, 3, seed=20 + iteration)
        matched, expected = case.match("graphs"), case.match("adjoint")
        assert_equal(matched, expected)
        assert matched.labels is not None and expected.labels is not None
        assert torch.equal(matched.labels, expected.labels) and bool(matched.labels.any())
    assert recorder.recorded == 2 * len({len(batch.index) for batch in case.batches})


def test_without_triton_blocks_are_computed_by_operators_and_the_log_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.delitem(sys.modules, "workers.methods.trajectory.block_kernels", raising=False)
    monkeypatch.delattr("workers.methods.trajectory.block_kernels", raising=False)  # where Triton is installed
    with caplog.at_level(logging.WARNING):
        assert graphs_module._block_on.__wrapped__(torch.device("cuda")) is by_operators
    assert "triton" in caplog.text
